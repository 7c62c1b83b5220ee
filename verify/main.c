/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The consistency checker: for the tests, and for mcshim --verify. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <libnbd.h>

#include "checker.h"

#define OVERTIME 90             /* Seconds, for whatever it is that hangs. */

static struct nbd_handle *
open_connection (void)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd &&
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
      nbd_connect_uri (nbd, uri) == 0)
    return nbd;
  nbd_close (nbd);
  return NULL;
}

static void
close_connection (struct nbd_handle *nbd)
{
  nbd_shutdown (nbd, 0);
  nbd_close (nbd);
}

static int
mapped (void *zero, const char *context, uint64_t offset, uint32_t *entries,
        size_t nr_entries, int *error)
{
  (void) context;
  (void) error;
  for (size_t i = 0; i + 1 < nr_entries; i += 2) {
    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      (*(void (**) (uint64_t, uint64_t)) zero) (entries[i], offset);
    offset += entries[i];
  }
  return 0;
}

static int
get_extents (struct nbd_handle *nbd, uint64_t count, uint64_t offset,
             void (*zero) (uint64_t, uint64_t))
{
  return nbd_block_status (nbd, count, offset,
                           (nbd_extent_callback) { mapped, &zero, NULL }, 0);
}

int
main (int argc, char *argv[])
{
  struct server server = {
    open_connection, close_connection, nbd_get_error, usleep, nbd_pread,
    nbd_pwrite, nbd_zero, nbd_trim, nbd_cache, nbd_flush, get_extents,
    0, false, false, false, false, false
  };
  struct nbd_handle *nbd;
  struct timespec ts;
  int64_t size;

  clock_gettime (CLOCK_REALTIME, &ts);
  seed = ts.tv_sec * UINT64_C (1000000) + ts.tv_nsec / 1000;
  parse_or_exit (argc, argv);
  if (seconds > 0)
    alarm (seconds + OVERTIME);
  setvbuf (stdout, NULL, _IOLBF, 0);
  printf ("seed: %" PRIu64 "\n", seed);

  nbd = open_connection ();
  if (!nbd) {
    fprintf (stderr, "consistency: connect: %s\n", nbd_get_error ());
    return 2;
  }
  if (nbd_can_flush (nbd) != 1 || nbd_is_read_only (nbd) != 0) {
    fprintf (stderr, "consistency: %s: cannot be written and flushed\n", uri);
    return 2;
  }
  size = nbd_get_size (nbd) - (int64_t) range_offset;
  server.size = size < 0 ? 0 :
    range_size && range_size < (uint64_t) size ? range_size : (uint64_t) size;
  server.can_zero = nbd_can_zero (nbd) == 1;
  server.can_trim = nbd_can_trim (nbd) == 1;
  server.can_fua = nbd_can_fua (nbd) == 1;
  server.can_cache = nbd_can_cache (nbd) == 1;
  server.can_map =
    nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  close_connection (nbd);
  return sequences ? check_sequences (&server) : check_overlaps (&server);
}
