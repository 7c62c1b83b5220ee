/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin whose struct is odd, in the way that $ODD says, since nbdkit
 * reads the struct before a plugin sees any parameter:
 *
 *   ancient    API version 1 and ends before can_zero, as nbdkit 1.2's did
 *   short      ends before can_multi_conn
 *   future     an API version that is not known, and a struct without a name
 *   long       goes on after the last field known here, with garbage
 *   noflush    no flush callback
 *   nofua      no can_fua callback, like most plugins
 *   noclose    no close callback
 *   notneeded  all connections share NBDKIT_HANDLE_NOT_NEEDED
 *   null       plugin_init returns NULL
 *
 * Except in "ancient" and "nofua" it has a can_fua (emulate).  The struct
 * ends at a page that can't be read.  Callbacks end the server if they get
 * a handle that is not the plugin's own.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "memory.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS

#define MAGIC 0x6f6464u

struct longer {
  struct nbdkit_plugin known;
  uintptr_t garbage[16];
};

static const char *kind;
static FILE *log_file;

struct nbdkit_plugin *plugin_init (void);

static void
check (void *handle, const char *name)
{
  unsigned *h = handle;

  if (strcmp (kind, "notneeded") != 0 && *h != MAGIC) {
    fprintf (stderr, "odd: %s got another handle than open returned\n",
             name);
    abort ();
  }
  if (log_file &&
      (fprintf (log_file, "%s\n", name) < 0 || fflush (log_file) == EOF))
    nbdkit_error ("log: %m");
}

static void
odd_unload (void)
{
  if (log_file)
    fclose (log_file);
}

static int
odd_config (const char *key, const char *value)
{
  if (strcmp (key, "log") != 0) {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  log_file = fopen (value, "ae");
  if (!log_file) {
    nbdkit_error ("%s: %m", value);
    return -1;
  }
  return 0;
}

static void *
odd_open (int readonly)
{
  unsigned *h;

  (void) readonly;
  if (strcmp (kind, "notneeded") == 0)
    return NBDKIT_HANDLE_NOT_NEEDED;
  h = malloc (sizeof *h);
  if (!h) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  *h = MAGIC;
  return h;
}

static void
odd_close (void *handle)
{
  check (handle, "close");
  if (strcmp (kind, "notneeded") != 0)
    free (handle);
}

static int64_t
odd_get_size (void *handle)
{
  check (handle, "get_size");
  return memory_get_size (handle);
}

static int
odd_can_fua (void *handle)
{
  check (handle, "can_fua");
  return NBDKIT_FUA_EMULATE;
}

static int
odd_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
           uint32_t flags)
{
  check (handle, "read");
  return memory_pread (handle, buf, count, offset, flags);
}

static int
odd_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  check (handle, "write");
  return memory_pwrite (handle, buf, count, offset, flags);
}

static int
odd_flush (void *handle, uint32_t flags)
{
  (void) flags;
  check (handle, "flush");
  return 0;
}

static int
odd_pread_v1 (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  return odd_pread (handle, buf, count, offset, 0);
}

static int
odd_pwrite_v1 (void *handle, const void *buf, uint32_t count,
               uint64_t offset)
{
  return odd_pwrite (handle, buf, count, offset, 0);
}

static int
odd_flush_v1 (void *handle)
{
  return odd_flush (handle, 0);
}

static const struct nbdkit_plugin plugin = {
  ._api_version  = NBDKIT_API_VERSION,
  ._thread_model = THREAD_MODEL,
  .name          = "odd",
  .version       = "1.0",
  .unload        = odd_unload,
  .config        = odd_config,
  .open          = odd_open,
  .close         = odd_close,
  .get_size      = odd_get_size,
  .can_fua       = odd_can_fua,
  .pread         = odd_pread,
  .pwrite        = odd_pwrite,
  .flush         = odd_flush,
};

NBDKIT_DLL_PUBLIC struct nbdkit_plugin *
plugin_init (void)
{
  struct longer all = { .known = plugin };
  const size_t page = sysconf (_SC_PAGESIZE);
  size_t size = sizeof all.known;
  uint8_t *map;

  kind = getenv ("ODD");
  if (!kind)
    kind = "";
  if (strcmp (kind, "null") == 0)
    return NULL;
  if (strcmp (kind, "ancient") == 0) {
    size = offsetof (struct nbdkit_plugin, can_zero);
    all.known._api_version = 1;
    all.known._pread_v1 = odd_pread_v1;
    all.known._pwrite_v1 = odd_pwrite_v1;
    all.known._flush_v1 = odd_flush_v1;
  }
  if (strcmp (kind, "future") == 0) {
    size = offsetof (struct nbdkit_plugin, name);
    all.known._api_version = NBDKIT_API_VERSION + 1;
  }
  if (strcmp (kind, "short") == 0)
    size = offsetof (struct nbdkit_plugin, can_multi_conn);
  if (strcmp (kind, "long") == 0) {
    size = sizeof all;
    memset (all.garbage, 0xa5, sizeof all.garbage);
  }
  if (strcmp (kind, "noflush") == 0)
    all.known.flush = NULL;
  if (strcmp (kind, "nofua") == 0)
    all.known.can_fua = NULL;
  if (strcmp (kind, "noclose") == 0)
    all.known.close = NULL;
  all.known._struct_size = size;

  map = mmap (NULL, 2 * page, PROT_READ|PROT_WRITE,
              MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED || mprotect (map + page, page, PROT_NONE) == -1) {
    perror ("odd: mmap");
    exit (EXIT_FAILURE);
  }
  return memcpy (map + page - size, &all, size);
}
