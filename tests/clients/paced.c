/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A client with a given speed, for tests of what measures it.
 *
 * It takes the first number of the file "figures", reads so many MiB from
 * $uri, in equal parts over $connections (or 2) connections, and moves the
 * clock in the file "clock", in nanoseconds, on by a second.  After a 1 it
 * does not end before its server: the file "over" is there from when it has
 * read until the server has gone.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libnbd.h>

static void
check (int failed, const char *what)
{
  if (failed) {
    fprintf (stderr, "paced: %s: %s\n", what, nbd_get_error () ?: "");
    exit (EXIT_FAILURE);
  }
}

/* Takes the first number out of the file. */
static unsigned
next_figure (void)
{
  char all[1024], *rest;
  unsigned figure;
  FILE *f = fopen ("figures", "r+");

  check (f == NULL || fgets (all, sizeof all, f) == NULL, "figures");
  figure = strtoul (all, &rest, 10);
  check (figure == 0, "it has run too often");
  rewind (f);
  check (ftruncate (fileno (f), 0) == -1 || fputs (rest, f) == EOF ||
         fclose (f) == EOF, "figures");
  return figure;
}

static void
advance_clock (void)
{
  uint64_t t;
  FILE *f = fopen ("clock", "r+");

  check (f == NULL || fscanf (f, "%" SCNu64, &t) != 1, "clock");
  rewind (f);
  check (fprintf (f, "%" PRIu64 "\n", t + 1000000000) < 0 ||
         fclose (f) == EOF, "clock");
}

int
main (void)
{
  const char *connections = getenv ("connections");
  const unsigned count = connections ? atoi (connections) : 2;
  const unsigned figure = next_figure ();
  const size_t size = (size_t) figure * 1024 * 1024 / count;
  struct nbd_handle *h[64];
  char *buf = malloc (size);
  unsigned i;

  check (buf == NULL || count > 64, "arguments");
  for (i = 0; i < count; i++) {
    h[i] = nbd_create ();
    check (h[i] == NULL || nbd_connect_uri (h[i], getenv ("uri")) == -1,
           "connect");
  }
  for (i = 0; i < count; i++)
    check (nbd_pread (h[i], buf, size, 0, 0) == -1, "read");
  advance_clock ();

  if (figure == 1) {
    check (fopen ("over", "w") == NULL, "over");
    while (nbd_poll (h[0], -1) != -1)
      ;
    unlink ("over");
    exit (EXIT_FAILURE);
  }
  for (i = 0; i < count; i++)
    check (nbd_shutdown (h[i], 0) == -1, "shutdown");
  exit (EXIT_SUCCESS);
}
