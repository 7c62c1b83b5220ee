/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The server's record of a thread: the error of a request, and whose request
 * it is.
 */

#ifndef MCSHIM_RECORD_H
#define MCSHIM_RECORD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct link_map;

/* Learn how the server keeps the error of a request, for server_error.
 * Call it on a thread of the server; calling it again is harmless.
 */
extern void server_error_init (void);

/* Give this thread, which is not the server's, a place for the error. */
extern void server_error_thread (void);

/* The errno that the server would report for a plugin's callback that has
 * just failed on this thread, if nbdkit_set_error (0) and errno = 0 came
 * before it.
 */
extern int server_error (bool errno_is_preserved);

/* Which connection a handle is for, as the server keeps it. */
struct context {
  void *whose;                  /* NULL if that is not known */
  bool interns;                 /* it has a list of interned strings */
  _Atomic bool closing;
};

/* Learn what a flush of PLUGIN, which is loaded, may ask the server. */
extern void context_init (const struct link_map *plugin);

/* A function that the plugin uses and that fails in a flush of C's handle
 * for which other connections wait, or NULL.
 */
extern const char *context_lacks (const struct context *c);

/* Does what the plugin asks the server for C's handle, in a request, go as
 * well on a thread that is not the server's?
 */
extern bool context_travels (const struct context *c);

/* Call it on the thread on which the server has just opened the handle. */
extern void context_capture (struct context *c);

/* Around a plugin flush, an open or a part of a request, on any thread: what
 * it asks the server about its connection is answered for the handle of C, or
 * is an error.  OTHERS is true if other connections wait for this flush: then
 * nbdkit_nanosleep must not end because one of them has left.  Set C->closing,
 * on a thread of its connection, once the server closes the handle.  Between
 * the two calls server_error gives this call's error; afterwards the thread's
 * earlier error is back.
 */
struct visit {
  char *record;
  size_t offset;
  void *whose, *connection;
  int error;                    /* of a request that has just ended here */
  bool bare;                    /* what needs the client's socket fails */
  bool hidden, locked;
};
extern void context_enter (const struct context *c, bool others,
                           struct visit *v);
extern void context_leave (const struct visit *v);

/* On a thread of the server: is it ending? */
extern bool server_ends (void);

#endif /* MCSHIM_RECORD_H */
