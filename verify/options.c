/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What the checker is asked for. */

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker.h"

uint64_t seed, seconds, max_operations, nr_threads = 8, nr_connections = 4,
  nr_ahead, block_size = 512, stripe, range_offset, range_size, victim,
  one_at_a_time, churn, hard_cuts, reads_first, allow_errors, mixed,
  own_order, sequences;
const char *uri, *save, *check;

static const char usage[] =
  "usage: consistency [OPTIONS] URI\n"
  "  --threads=8 --connections=4\n"
  "  --seconds=N or --operations=N  how long (10 seconds)\n"
  "  --seed=N                       for the random choices of each thread\n"
  "  --churn                        close connections, and cut them\n"
  "  --hard-cuts                    cut also those with several commands in\n"
  "                                 flight: kills nbdkit 1.32 if parallel\n"
  "  --reads-first                  read before each write\n"
  "  --mixed                        cache and block status among the reads\n"
  "  --one-at-a-time                a connection has one command in flight,\n"
  "                                 as with libnbd's synchronous calls\n"
  "  --commands-in-flight[=4]       reads that each thread has under way\n"
  "                                 while it writes and flushes\n"
  "  --block=512                    bytes in a block\n"
  "  --allow-errors                 error replies are part of the test\n"
  "  --own-order                    what one connection sees of its own\n"
  "  --stripe=BYTES                 with it: requests lie across multiples\n"
  "  --offset=BYTES --size=BYTES    use no more of the disk than this\n"
  "  --sequences                    one request after the other; the first\n"
  "                                 that goes wrong is made short and told\n"
  "  --kill=PID --save=FILE         kill the server in the midst of it, at\n"
  "                                 the flush of that number (--operations),\n"
  "  --check=FILE                   and look whether it has kept its word\n";

/* An option that takes a number has its value alone in "without", or 0. */
static const struct {
  const char *name;
  uint64_t *number, without;
  const char **file;
} options[] = {
  { "threads", &nr_threads, 0, NULL },
  { "connections", &nr_connections, 0, NULL },
  { "seconds", &seconds, 0, NULL },
  { "operations", &max_operations, 0, NULL },
  { "seed", &seed, 0, NULL },
  { "churn", &churn, 1, NULL },
  { "hard-cuts", &hard_cuts, 1, NULL },
  { "reads-first", &reads_first, 1, NULL },
  { "mixed", &mixed, 1, NULL },
  { "one-at-a-time", &one_at_a_time, 1, NULL },
  { "commands-in-flight", &nr_ahead, 4, NULL },
  { "block", &block_size, 0, NULL },
  { "allow-errors", &allow_errors, 1, NULL },
  { "own-order", &own_order, 1, NULL },
  { "stripe", &stripe, 0, NULL },
  { "offset", &range_offset, 0, NULL },
  { "size", &range_size, 0, NULL },
  { "sequences", &sequences, 1, NULL },
  { "kill", &victim, 0, NULL },
  { "save", NULL, 0, &save },
  { "check", NULL, 0, &check },
};
#define NR_OPTIONS (sizeof options / sizeof options[0])

/* Returns false if this is none of the options, or its value is wrong. */
static bool
parse (const char *arg)
{
  const size_t len = strcspn (arg, "=");
  const char *value = arg[len] ? arg + len + 1 : NULL;
  char *end;

  for (size_t i = 0; i < NR_OPTIONS; ++i) {
    if (strlen (options[i].name) != len ||
        strncmp (arg, options[i].name, len) != 0)
      continue;
    if (options[i].file) {
      *options[i].file = value;
      return value && *value;
    }
    *options[i].number = value ? strtoull (value, &end, 10) :
      options[i].without;
    return !value || (isdigit (*value) && !*end);
  }
  return false;
}

void
parse_or_exit (int argc, char *argv[])
{
  int i;

  for (i = 1; i < argc && strncmp (argv[i], "--", 2) == 0; ++i)
    if (!parse (argv[i] + 2))
      break;
  if (seconds == 0 && (max_operations == 0 || victim))
    seconds = 10;
  if (check)
    nr_threads = nr_connections = 1;
  if (i + 1 != argc || argv[i][0] == '-' || nr_threads == 0 ||
      nr_connections == 0 || block_size == 0 || block_size % 8 != 0 ||
      (stripe && !own_order) || stripe % block_size != 0 ||
      !victim != !save || (int) victim < 0 ||
      (own_order && (victim || check)) || (victim && check)) {
    fputs (usage, stderr);
    exit (2);
  }
  uri = argv[i];
}
