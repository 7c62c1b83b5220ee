/* latency.h: a quantile is never too low, and at most an eighth too high. */

#include <stdio.h>
#include <string.h>

#include "latency.h"

static int failures;

static void
check (const char *what, uint64_t value, uint64_t got, uint64_t most)
{
  if (got >= value && got <= most)
    return;
  printf ("%s: %llu, must be %llu to %llu\n", what, (unsigned long long) got,
          (unsigned long long) value, (unsigned long long) most);
  failures++;
}

int
main (void)
{
  const uint64_t huge = (uint64_t) 1 << 50;
  struct latency l;
  uint64_t ns;

  memset (&l, 0, sizeof l);
  check ("nothing", 0, latency_quantile (&l, 99), 0);

  /* One bucket after the other; the second value keeps the maximum away. */
  for (ns = 0; ns < (uint64_t) 1 << 39; ns += ns / 13 + 1) {
    memset (&l, 0, sizeof l);
    latency_add (&l, ns);
    latency_add (&l, huge);
    check ("median", ns, latency_quantile (&l, 50), ns + ns / 8 + (ns > 15));
    check ("maximum", huge, latency_quantile (&l, 100), huge);
  }

  memset (&l, 0, sizeof l);
  for (ns = 1; ns <= 1000; ns++)
    latency_add (&l, ns * 1000);
  check ("count", 1000, l.count, 1000);
  check ("p50 of a thousand", 500000, latency_quantile (&l, 50), 562500);
  check ("p99 of a thousand", 990000, latency_quantile (&l, 99), 1000000);
  return failures != 0;
}
