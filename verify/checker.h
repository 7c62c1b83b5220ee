/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The checker: what it is asked for (options.c), and its two halves:
 * consistency.c, for requests that overlap, and sequences.c, for sequences
 * of single requests.
 */

#ifndef CHECKER_H
#define CHECKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* Options: options.c says what they are. */
extern uint64_t seed, seconds, max_operations, nr_threads, nr_connections,
  nr_ahead, block_size, stripe, range_offset, range_size, victim,
  one_at_a_time, churn, hard_cuts, reads_first, allow_errors, mixed,
  own_order, sequences;
extern const char *uri, *save, *check;

extern void parse_or_exit (int argc, char *argv[]);

/* A server: libnbd's functions (main.c), or those of one in memory
 * (tests/unit).  Requests return -1 if they fail.
 */
struct nbd_handle;
struct server {
  struct nbd_handle *(*open) (void); /* Returns NULL on error. */
  void (*close) (struct nbd_handle *);
  const char *(*error) (void);
  int (*sleep) (unsigned microseconds);
  int (*pread) (struct nbd_handle *, void *, size_t, uint64_t, uint32_t);
  int (*pwrite) (struct nbd_handle *, const void *, size_t, uint64_t,
                 uint32_t);
  int (*zero) (struct nbd_handle *, uint64_t, uint64_t, uint32_t);
  int (*trim) (struct nbd_handle *, uint64_t, uint64_t, uint32_t);
  int (*cache) (struct nbd_handle *, uint64_t, uint64_t, uint32_t);
  int (*flush) (struct nbd_handle *, uint32_t);
  /* Calls ZERO for what the extents say is zero. */
  int (*extents) (struct nbd_handle *, uint64_t count, uint64_t offset,
                  void (*zero) (uint64_t count, uint64_t offset));
  uint64_t size;                /* From range_offset on. */
  bool can_zero, can_trim, can_fua, can_cache, can_map;
};

/* These return the exit status of the program. */
extern int check_overlaps (const struct server *server);
extern int check_sequences (const struct server *server);

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
