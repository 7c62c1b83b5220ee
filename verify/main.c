/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The consistency checker: for the tests, and for mcshim --verify. */

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "checker.h"

#define OVERTIME 90             /* Seconds, for whatever it is that hangs. */

int
main (int argc, char *argv[])
{
  struct timespec ts;

  clock_gettime (CLOCK_REALTIME, &ts);
  seed = ts.tv_sec * UINT64_C (1000000) + ts.tv_nsec / 1000;
  parse_or_exit (argc, argv);
  if (seconds > 0)
    alarm (seconds + OVERTIME);
  setvbuf (stdout, NULL, _IOLBF, 0);
  printf ("seed: %" PRIu64 "\n", seed);
  return sequences ? check_sequences () : check_overlaps ();
}
