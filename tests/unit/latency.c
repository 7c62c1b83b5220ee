/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* latency.h: a quantile is never too low, and at most an eighth too high. */

#include "latency.h"
#include "unit.h"

static const uint64_t huge = (uint64_t) 1 << 50;
static struct latency l;

#define QUANTILE(percent, least, most)                                  \
  do {                                                                  \
    uint64_t low = least, high = most;                                  \
    uint64_t got = latency_quantile (&l, percent);                      \
                                                                        \
    CHECK (got >= low && got <= high, "%llu, not %llu to %llu",         \
           (unsigned long long) got, (unsigned long long) low,          \
           (unsigned long long) high);                                  \
  } while (0)

static void
test_nothing (void)
{
  QUANTILE (50, 0, 0);
  QUANTILE (100, 0, 0);
}

/* One bucket after the other; the second value keeps the maximum away. */
static void
test_buckets (void)
{
  uint64_t ns;

  for (ns = 0; ns < (uint64_t) 1 << 39; ns += ns / 13 + 1) {
    memset (&l, 0, sizeof l);
    latency_add (&l, ns);
    latency_add (&l, huge);
    QUANTILE (50, ns, ns + ns / 8 + (ns > 15));
    QUANTILE (100, huge, huge);
  }
}

/* The last bucket has no end, so the maximum is used. */
static void
test_last_bucket (void)
{
  latency_add (&l, huge);
  latency_add (&l, huge + 1);
  QUANTILE (50, huge, huge + 1);
}

/* A quantile is never more than the maximum. */
static void
test_maximum (void)
{
  latency_add (&l, 1000001);
  latency_add (&l, 1000000);
  QUANTILE (50, 1000000, 1000001);
  QUANTILE (100, 1000001, 1000001);
  CHECK (l.max == 1000001);
}

static void
test_thousand (void)
{
  uint64_t ns;

  for (ns = 1; ns <= 1000; ns++)
    latency_add (&l, ns * 1000);
  CHECK (l.count == 1000);
  CHECK (l.sum == 500500000);
  QUANTILE (50, 500000, 562500);
  QUANTILE (99, 990000, 1000000);
}

static void
test_clock (void)
{
  uint64_t before = now_ns (), after = now_ns ();

  CHECK (before > 0);
  CHECK (after >= before);
}

int
main (void)
{
  static const struct unit_test tests[] = {
    { "nothing was measured", test_nothing },
    { "every bucket, to an eighth", test_buckets },
    { "the last bucket gives the maximum", test_last_bucket },
    { "no quantile above the maximum", test_maximum },
    { "quantiles of a thousand values", test_thousand },
    { "the clock does not go back", test_clock },
    { NULL, NULL }
  };

  return unit_main ("latency", tests);
}
