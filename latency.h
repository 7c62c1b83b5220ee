/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* How long something takes, in nanoseconds: enough for a mean, a maximum
 * and quantiles, in little memory.
 *
 * Each power of two is divided into eight buckets, so that a quantile is
 * at most an eighth too high.
 */

#ifndef MCSHIM_LATENCY_H
#define MCSHIM_LATENCY_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Up to 2^40 ns, 18 minutes; the last one also takes longer times. */
#define LATENCY_BUCKETS (8 * 38)

struct latency {
  uint64_t count, sum, max;
  uint64_t bucket[LATENCY_BUCKETS];
};

static inline void
latency_add (struct latency *l, uint64_t ns)
{
  const unsigned power = 63 - __builtin_clzll (ns | 8);
  uint64_t i = 8 * (power - 3) + (ns >> (power - 3));

  if (i >= LATENCY_BUCKETS)
    i = LATENCY_BUCKETS - 1;
  l->bucket[i]++;
  l->count++;
  l->sum += ns;
  if (ns > l->max)
    l->max = ns;
}

/* At least PERCENT of all took no longer than this.  0 if there are none. */
static inline uint64_t
latency_quantile (const struct latency *l, unsigned percent)
{
  uint64_t left = (l->count * percent + 99) / 100, end;
  unsigned i;

  for (i = 0; i < LATENCY_BUCKETS - 1; i++) {
    if (left <= l->bucket[i])
      break;
    left -= l->bucket[i];
  }
  /* Where the next bucket begins; the first sixteen hold one value each. */
  end = i < 16 ? i : (8 + (uint64_t) i % 8 + 1) << (i / 8 - 1);
  return end < l->max && i < LATENCY_BUCKETS - 1 ? end : l->max;
}

#endif /* MCSHIM_LATENCY_H */
