/* How long one request takes, on a server with many connections.
 *
 *   latency WHAT CONNECTIONS DIRTY ROUNDS URI
 *
 * opens CONNECTIONS and then, ROUNDS times, measures
 *
 *   read    a read of 512 bytes, on one connection after another
 *   flush   a flush on the first connection, after a write to each of
 *           the next DIRTY ones
 *   open    a connection opened and closed, beside all the others
 *
 * It prints the median, the quartiles and the least, in microseconds, on
 * one line.  Nothing overlaps: one thread, one request at a time.
 */

#define _GNU_SOURCE

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#define REQUEST 512             /* bytes */

static char buffer[REQUEST];

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
  if (argc != 6)
    fail ("usage", "latency read|flush|open CONNECTIONS DIRTY ROUNDS URI");

  const char *what = argv[1], *uri = argv[5];
  const unsigned n = number ("CONNECTIONS", argv[2]);
  const unsigned dirty = number ("DIRTY", argv[3]);
  const unsigned rounds = number ("ROUNDS", argv[4]);
  const bool is_flush = strcmp (what, "flush") == 0;
  const bool is_open = strcmp (what, "open") == 0;
  struct nbd_handle **nbd = calloc (n, sizeof *nbd), *extra;
  double *us = calloc (rounds, sizeof *us), start;
  unsigned i, j;

  if (!is_flush && !is_open && strcmp (what, "read") != 0)
    fail (what, "must be read, flush or open");
  if (n == 0 || rounds == 0 || dirty > n)
    fail ("CONNECTIONS", "must be 1 or more, as ROUNDS, and DIRTY no more");
  if (nbd == NULL || us == NULL)
    fail ("calloc", "no memory");

  for (i = 0; i < n; i++)
    nbd[i] = connect_to (uri);

  for (i = 0; i < rounds; i++) {
    if (is_flush)
      for (j = 1; j <= dirty; j++)
        check (nbd_pwrite (nbd[j % n], buffer, REQUEST,
                           (uint64_t) j * REQUEST, 0), "write");
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

  qsort (us, rounds, sizeof *us, compare);
  printf ("median %.1f lower %.1f upper %.1f least %.1f\n", us[rounds / 2],
          us[rounds / 4], us[rounds - 1 - rounds / 4], us[0]);

  for (i = 0; i < n; i++)
    disconnect (nbd[i]);
  free (nbd);
  free (us);
  return EXIT_SUCCESS;
}
