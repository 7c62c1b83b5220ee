/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The checker: what it is asked for (options.c), and its two halves:
 * consistency.c, for requests that overlap, and sequences.c, for sequences
 * of single requests.
 */

#ifndef CHECKER_H
#define CHECKER_H

#include <stdint.h>
#include <time.h>

/* Options: options.c says what they are. */
extern uint64_t seed, seconds, max_operations, nr_threads, nr_connections,
  nr_ahead, block_size, stride, stripe, range_offset, range_size, victim,
  one_at_a_time, churn, hard_cuts, reads_first, allow_errors, mixed,
  own_order, sequences;
extern const char *uri, *save, *check;

extern void parse_or_exit (int argc, char *argv[]);

/* These return the exit status of the program. */
extern int check_overlaps (void);
extern int check_sequences (void);

static inline double
now (void)                      /* In seconds. */
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

static inline uint64_t
mix (uint64_t *state)           /* splitmix64 */
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

#endif /* CHECKER_H */
