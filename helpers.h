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

/* LOCK guards everything here, and is held when WORK is called.  WORK does
 * a piece of work, for which it may let go of the lock, and returns true,
 * or returns false if there is none.  STARTS is called first on each
 * thread, without the lock.
 */
extern void helpers_init (pthread_mutex_t *lock, bool (*work) (void),
                          void (*starts) (void));

/* Have N threads look for work, including those that are about to anyway.
 * Needs the lock.
 */
extern void helpers_call (unsigned n);

/* Wait for all to end their work, and end.  Must not hold the lock. */
extern void helpers_end (void);

#endif /* MCSHIM_HELPERS_H */
