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

/* An option that takes a number has its value alone in "without", or 0. */
static const struct {
  const char *name;
  uint64_t *number, without;
  const char **file;
  const char *help;
} options[] = {
  { "threads", &nr_threads, 0, NULL, "8 by default" },
  { "connections", &nr_connections, 0, NULL, "4 by default" },
  { "seconds", &seconds, 0, NULL, "how long: 10 by default, or" },
  { "operations", &max_operations, 0, NULL, "so many in all" },
  { "seed", &seed, 0, NULL, "for the random choices of each thread" },
  { "churn", &churn, 1, NULL, "close connections, and cut them" },
  { "hard-cuts", &hard_cuts, 1, NULL, "cut also those with several commands "
    "in flight: kills nbdkit 1.32 if parallel" },
  { "reads-first", &reads_first, 1, NULL, "read before each write" },
  { "mixed", &mixed, 1, NULL, "cache and block status among the reads" },
  { "one-at-a-time", &one_at_a_time, 1, NULL, "a connection has one command "
    "in flight, as with libnbd's synchronous calls" },
  { "commands-in-flight", &nr_ahead, 4, NULL, "reads that each thread "
    "has under way while it writes and flushes: 4, if there is no N" },
  { "block", &block_size, 0, NULL, "bytes in a block, 512 by default" },
  { "allow-errors", &allow_errors, 1, NULL, "error replies are part of it" },
  { "own-order", &own_order, 1, NULL, "what one connection sees of its own" },
  { "stripe", &stripe, 0, NULL, "with it: requests lie across multiples" },
  { "offset", &range_offset, 0, NULL, "use the disk from this byte on" },
  { "size", &range_size, 0, NULL, "and no more bytes than this" },
  { "sequences", &sequences, 1, NULL, "one request after the other; the first "
    "that goes wrong is made short and told" },
  { "kill", &victim, 0, NULL, "the server with this process ID is killed in "
    "the midst of it, at the flush of that number (--operations)" },
  { "save", NULL, 0, &save, "write down what it had promised until then" },
  { "check", NULL, 0, &check, "has it kept the word of that file?" },
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
    fputs ("usage: consistency [OPTIONS] URI\n", stderr);
    for (size_t n = 0; n < NR_OPTIONS; ++n)
      fprintf (stderr, "  --%s%-*s%s\n", options[n].name,
               24 - (int) strlen (options[n].name), options[n].file ? "=FILE" :
               options[n].without == 1 ? "" : "=N", options[n].help);
    exit (2);
  }
  uri = argv[i];
}
