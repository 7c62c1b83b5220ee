/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The environment that the server hands on to the programs it starts. */

#ifndef MCSHIM_ENVIRONMENT_H
#define MCSHIM_ENVIRONMENT_H

/* Take this library, and nothing else, out of LD_PRELOAD, so that the
 * programs that the server starts do not get it.
 */
extern void leave_environment (void);

/* Put it back, for a server that may be executed again in this process. */
extern void return_to_environment (void);

#endif /* MCSHIM_ENVIRONMENT_H */
