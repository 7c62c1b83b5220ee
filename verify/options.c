/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What the checker is asked for. */

#include <getopt.h>
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

void
parse_or_exit (int argc, char *argv[])
{
  struct option known[NR_OPTIONS + 1] = { { 0 } };
  bool wrong = false;
  int i;

  for (i = 0; i < (int) NR_OPTIONS; ++i)
    known[i] = (struct option) { options[i].name, optional_argument, NULL, i };
  while ((i = getopt_long (argc, argv, "", known, NULL)) != -1 && i != '?') {
    if (options[i].file) {
      *options[i].file = optarg;
      wrong |= !optarg || !*optarg;
    }
    else if (!optarg)
      *options[i].number = options[i].without;
    else {
      wrong |= !*optarg || optarg[strspn (optarg, "0123456789")];
      *options[i].number = strtoull (optarg, NULL, 10);
    }
  }
  if (seconds == 0 && (max_operations == 0 || victim))
    seconds = 10;
  if (check)
    nr_threads = nr_connections = 1;
  if (i == '?' || wrong || optind + 1 != argc || nr_threads == 0 ||
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
  uri = argv[optind];
}
