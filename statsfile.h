/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* MCSHIM_STATS_FILE: counters for people and scripts, "key: value". */

#ifndef MCSHIM_STATSFILE_H
#define MCSHIM_STATSFILE_H

#include "policy.h"
#include "replicate.h"

/* See whether the file can be written.  Returns 0, or -1 with errno set. */
extern int statsfile_check (const char *path);

/* Keep the policy's file, if it names one, up to date from now on: on a
 * thread, once a second at most, and only if something has changed.  Call
 * it when a connection opens, which is after the server's fork; more than
 * once is harmless.  Both arguments must stay valid.
 */
extern void statsfile_start (const struct policy *policy,
                             const char *thread_model);

/* End the thread, and write the file for the last time.  Errors are
 * reported by nbdkit_error.
 */
extern void statsfile_finish (const struct policy *policy,
                              const char *thread_model);

#endif /* MCSHIM_STATSFILE_H */
