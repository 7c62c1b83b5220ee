/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What the two halves of the checker share: consistency.c, for requests that
 * overlap, and sequences.c, for sequences of single requests.
 */

#ifndef CHECKER_H
#define CHECKER_H

#include <stdbool.h>
#include <stdint.h>

/* Options. */
extern const char *uri;
extern uint64_t seed, seconds, block_size, nr_connections;
extern uint64_t range_offset, range_size; /* Of the disk, in bytes. */

/* Seconds since the checker began its work. */
extern double elapsed (void);

static inline uint64_t
mix (uint64_t *state)           /* splitmix64 */
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Returns the exit status of the program. */
extern int check_sequences (void);

#endif /* CHECKER_H */
