/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* How long one request takes, on a server with many connections.
 *
 *   latency WHAT CONNECTIONS DIRTY ROUNDS URI [BUSY IN-FLIGHT [WRITE-EVERY]]
 *
 * opens CONNECTIONS and then, ROUNDS times, measures
 *
 *   read    a read of 512 bytes, on one connection after another
 *   flush   a flush on the first connection, after a write to each of
 *           the next DIRTY ones
 *   open    a connection opened and closed, beside all the others
 *
 * None of these overlap: one thread, one request at a time.  But BUSY more
 * connections always have IN-FLIGHT reads in flight; one in WRITE-EVERY is a
 * write instead.  Each measurement begins when another of these (of the
 * writes, if there are any) has ended.
 *
 * It prints the median, the 99th percentile and the most, in microseconds, on
 * one line.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#define REQUEST 512             /* bytes */

static char buffer[REQUEST];
static unsigned in_flight, write_every;
static atomic_bool stop;
static atomic_ulong replies, writes; /* of the busy connections */

static void
fail (const char *what, const char *why)
{
  fprintf (stderr, "latency: %s: %s\n", what, why);
  exit (EXIT_FAILURE);
}

/* For libnbd's calls: R is -1 after an error. */
static void
check (int r, const char *what)
{
  if (r == -1)
    fail (what, nbd_get_error ());
}

static struct nbd_handle *
connect_to (const char *uri)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL)
    fail ("nbd_create", nbd_get_error ());
  check (nbd_connect_uri (nbd, uri), uri);
  return nbd;
}

static void
disconnect (struct nbd_handle *nbd)
{
  check (nbd_shutdown (nbd, 0), "shutdown");
  nbd_close (nbd);
}

static double
now_us (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int
replied (void *opaque, int *error)
{
  unsigned *under_way = opaque;

  if (*error)
    fail ("a busy connection", strerror (*error));
  --*under_way;
  replies++;
  return 1;
}

static int
written (void *opaque, int *error)
{
  writes++;
  return replied (opaque, error);
}

/* A busy connection, to the end of its requests. */
static void *
keep_busy (void *arg)
{
  struct nbd_handle *nbd = arg;
  unsigned under_way = 0, sent = 0;
  char data[REQUEST];           /* nobody looks at it */
  const nbd_completion_callback after_read = { replied, &under_way, NULL },
    after_write = { written, &under_way, NULL };
  int64_t r;

  memset (data, 0, sizeof data);
  while (!stop || under_way > 0) {
    for (; !stop && under_way < in_flight; under_way++) {
      if (write_every > 0 && ++sent % write_every == 0)
        r = nbd_aio_pwrite (nbd, data, REQUEST, 0, after_write, 0);
      else
        r = nbd_aio_pread (nbd, data, REQUEST, 0, after_read, 0);
      check (r == -1 ? -1 : 0, "a busy connection");
    }
    check (nbd_poll (nbd, -1), "a busy connection");
  }
  disconnect (nbd);
  return NULL;
}

static int
compare (const void *a, const void *b)
{
  double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

static unsigned
number (const char *what, const char *word)
{
  char *end;
  unsigned long n = strtoul (word, &end, 10);

  if (*word == '\0' || *end != '\0' || n > 1000000)
    fail (what, "must be a number up to 1000000");
  return n;
}

int
main (int argc, char *argv[])
{
  if (argc != 6 && argc != 8 && argc != 9)
    fail ("usage", "latency read|flush|open CONNECTIONS DIRTY ROUNDS URI "
          "[BUSY IN-FLIGHT [WRITE-EVERY]]");

  const char *what = argv[1], *uri = argv[5];
  const unsigned n = number ("CONNECTIONS", argv[2]);
  const unsigned dirty = number ("DIRTY", argv[3]);
  const unsigned rounds = number ("ROUNDS", argv[4]);
  const bool is_flush = strcmp (what, "flush") == 0;
  const bool is_open = strcmp (what, "open") == 0;
  const unsigned nr_busy = argc > 6 ? number ("BUSY", argv[6]) : 0;
  struct nbd_handle **nbd = calloc (n, sizeof *nbd), *extra;
  pthread_t *busy = calloc (nr_busy + 1, sizeof *busy);
  double *us = calloc (rounds, sizeof *us), start;
  unsigned long before;
  unsigned i, j;

  if (!is_flush && !is_open && strcmp (what, "read") != 0)
    fail (what, "must be read, flush or open");
  if (n == 0 || rounds == 0 || dirty > n)
    fail ("CONNECTIONS", "must be 1 or more, as ROUNDS, and DIRTY no more");
  if (nbd == NULL || us == NULL || busy == NULL)
    fail ("calloc", "no memory");
  if (nr_busy > 0)
    in_flight = number ("IN-FLIGHT", argv[7]);
  if (argc == 9)
    write_every = number ("WRITE-EVERY", argv[8]);

  for (i = 0; i < n; i++)
    nbd[i] = connect_to (uri);
  for (i = 0; i < nr_busy; i++)
    if (pthread_create (&busy[i], NULL, keep_busy, connect_to (uri)) != 0)
      fail ("pthread_create", "no more threads");
  /* Not before all are under way. */
  while (replies < nr_busy)
    usleep (100);

  for (i = 0; i < rounds; i++) {
    if (is_flush)
      for (j = 1; j <= dirty; j++)
        check (nbd_pwrite (nbd[j % n], buffer, REQUEST,
                           (uint64_t) j * REQUEST, 0), "write");
    before = write_every ? writes : replies;
    while (nr_busy > 0 && (write_every ? writes : replies) == before)
      usleep (100);
    start = now_us ();
    if (is_flush)
      check (nbd_flush (nbd[0], 0), "flush");
    else if (is_open) {
      extra = connect_to (uri);
      disconnect (extra);
    }
    else
      check (nbd_pread (nbd[i % n], buffer, REQUEST, 0, 0), "read");
    us[i] = now_us () - start;
  }
  stop = true;

  qsort (us, rounds, sizeof *us, compare);
  printf ("median %.1f p99 %.1f most %.1f\n", us[rounds / 2],
          us[rounds - 1 - rounds / 100], us[rounds - 1]);

  for (i = 0; i < nr_busy; i++)
    pthread_join (busy[i], NULL);
  for (i = 0; i < n; i++)
    disconnect (nbd[i]);
  free (nbd);
  free (busy);
  free (us);
  return EXIT_SUCCESS;
}
