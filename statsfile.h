/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* MCSHIM_STATS_FILE: the counters, in Prometheus' text format. */

#ifndef MCSHIM_STATSFILE_H
#define MCSHIM_STATSFILE_H

#include "policy.h"
#include "replicate.h"

/* See whether the policy's file can be written, and take it for this
 * process: a lock on it lasts until the last one that it has forked into
 * ends.  Returns 0, or -1 with errno set, which is EWOULDBLOCK if a server
 * that runs has taken it.
 */
extern int statsfile_take (const struct policy *policy);

/* Write the policy's file, if it names one, and keep it up to date from now
 * on: on a thread, once a second at most, and only if something has changed.
 * Call it after the server's last fork; more than once is harmless.
 */
extern void statsfile_start (const struct policy *policy, const char *plugin,
                             const char *thread_model);

/* Write it for the last time, and end the thread.  A file system that hangs
 * is not waited for.  Errors are reported by nbdkit_error.
 */
extern void statsfile_finish (void);

#endif /* MCSHIM_STATSFILE_H */
