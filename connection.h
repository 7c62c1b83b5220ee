/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Connections: they open, settle their mode, answer the server's questions,
 * and close.
 */

#ifndef MCSHIM_CONNECTION_H
#define MCSHIM_CONNECTION_H

#include <stdint.h>

#include "plugin.h"
#include "replicate.h"
#include "spread.h"

/* What the server asks about a handle, in its order. */
#define QUESTIONS(each)                                 \
  each (get_size)                                       \
  each (can_write)                                      \
  each (can_flush)                                      \
  each (is_rotational)                                  \
  each (can_trim)                                       \
  each (can_zero)                                       \
  each (can_fast_zero)                                  \
  each (can_extents)                                    \
  each (can_fua)                                        \
  each (can_cache)                                      \
  each (can_multi_conn)

enum question {
#define NUMBER(name) ASKED_##name,
  QUESTIONS (NUMBER)
#undef NUMBER
  NR_QUESTIONS
};

/* The server's handle: one or more handles of the plugin. */
struct connection {
  struct handle handle;         /* the first one */
  struct context context;       /* of the client, for flushes */
  int readonly;                 /* as the server opened it */
  struct spread *spread;        /* if there may be several handles */
  int64_t answers[NR_QUESTIONS]; /* about the first one; or UNASKED */
};

WRAPPER (open)
WRAPPER (close)
WRAPPER (export_description)
QUESTIONS (WRAPPER)
#if NBDKIT_VERSION_MINOR >= 30
WRAPPER (block_size)
#endif

/* H is of a connection that will not be closed. */
extern void free_handle (struct handle *h);

#endif /* MCSHIM_CONNECTION_H */
