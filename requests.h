/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Requests: data, in pieces where there are several handles; extents; flushes;
 * and API version 1, which has fewer arguments.
 */

#ifndef MCSHIM_REQUESTS_H
#define MCSHIM_REQUESTS_H

#include "connection.h"

#define REQUESTS(each)                                  \
  each (_zero_v1)                                       \
  each (pread)                                          \
  each (pwrite)                                         \
  each (flush)                                          \
  each (trim)                                           \
  each (zero)                                           \
  each (extents)                                        \
  each (cache)

REQUESTS (WRAPPER)

/* Give "plugin" the callbacks of version 2, if it has only those of 1. */
extern void adapt_version_1 (void);

/* Flush one handle, for replicate.c.  The thread may be another connection's,
 * or not the server's.  Returns 0 or an errno.
 */
extern int flush_one (struct handle *h);

#endif /* MCSHIM_REQUESTS_H */
