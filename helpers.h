/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Threads that help with work that another thread has found.
 *
 * They start when first needed, so after the server's fork, and end when
 * they have been idle for some seconds.  If one can't be started, there are
 * fewer: whoever calls for help does the work that nobody else takes.
 */

#ifndef MCSHIM_HELPERS_H
#define MCSHIM_HELPERS_H

#include <pthread.h>
#include <stdbool.h>

#include "queue.h"

/* Some work, in parts that several threads may do at once.  WORK does a part,
 * for which it may let go of the lock, and returns true; or it keeps the lock
 * and returns false, if there is none to do now.  All is guarded by the lock.
 */
struct job {
  bool (*work) (struct job *j);
  unsigned running;             /* threads that are in "work" */
  unsigned wanted;              /* helpers that have yet to begin */
  bool listed;
  TAILQ_ENTRY (job) entry;
  pthread_cond_t changed;       /* a part has been done */
};

#define JOB_INITIALIZER(fn) { .work = fn, .changed = PTHREAD_COND_INITIALIZER }

/* LOCK guards everything here.  STARTS is called first on each thread, without
 * the lock.
 */
extern void helpers_init (pthread_mutex_t *lock, void (*starts) (void));
extern void helpers_lock (void);
extern void helpers_unlock (void);

/* List a job that helpers may work at, after those that are listed, and take
 * it out again.  Needs the lock.
 */
extern void helpers_list (struct job *j);
extern void helpers_unlist (struct job *j);

/* Have N helpers look for work at J, including those that are about to anyway.
 * Needs the lock.  Returns false if there will be none.
 */
extern bool helpers_call (struct job *j, unsigned n);

/* Do all of J, which is not listed, with the helpers that its work calls.
 * Must not hold the lock.
 */
extern void helpers_share (struct job *j);

/* Take J out, and wait until nobody works at it.  Must not hold the lock. */
extern void helpers_leave (struct job *j);

/* Wait for all to end their work, and end.  Must not hold the lock. */
extern void helpers_end (void);

#endif /* MCSHIM_HELPERS_H */
