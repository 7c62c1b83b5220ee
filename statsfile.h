/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* MCSHIM_STATS_FILE: the counters, in Prometheus' text format. */

#ifndef MCSHIM_STATSFILE_H
#define MCSHIM_STATSFILE_H

#include "policy.h"
#include "replicate.h"

/* Check that the policy's file can be written, and take it for this process:
 * a lock on it lasts until this process and its forked children have ended.
 * Returns 0, or -1 with errno set, which is EWOULDBLOCK if a running server
 * has the file.  The others do nothing if this was not called.
 */
extern int statsfile_claim (const struct policy *policy);

/* Write it for the first time.  Call it at most once, in the process that
 * serves.
 */
extern void statsfile_write (const char *plugin, const char *thread_model);

/* The same unless that was done, and keep the file up to date from now on: on
 * a thread, at most once a second, and only if something has changed.
 * Call it after the server's last fork, and after it has reopened its standard
 * input and output: a file that the thread opens meanwhile would take their
 * place.  Calling it again is harmless.
 */
extern void statsfile_keep (const char *plugin, const char *thread_model);

/* Write it for the last time, and end the thread.  This does not wait for a
 * file system that hangs.  Errors are reported by nbdkit_error.
 */
extern void statsfile_end (void);

#endif /* MCSHIM_STATSFILE_H */
