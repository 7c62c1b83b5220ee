/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Getting in, and telling where we are.
 *
 * The library is preloaded into every program that the user's command
 * starts.  These files decide whether this one is an nbdkit server,
 * catch the one moment in which it registers its plugin, and otherwise
 * stay out of the way.
 */

#ifndef MCSHIM_INTERPOSE_H
#define MCSHIM_INTERPOSE_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)

/* Functions that the server exports.  All are weak: an older server lacks
 * some, and a program that is not nbdkit lacks all of them.  Test the
 * address before the call.  The first four are in every nbdkit.
 */
#define WEAK __attribute__ ((weak))
extern void nbdkit_error (const char *fmt, ...) WEAK;
extern void nbdkit_debug (const char *fmt, ...) WEAK;
extern void nbdkit_set_error (int err) WEAK;
extern int64_t nbdkit_parse_size (const char *str) WEAK;
/* Not meant for plugins, but servers before 1.10 export all they have. */
extern void handle_single_connection (void) WEAK;
extern const char *nbdkit_export_name (void) WEAK; /* since 1.16 */
extern int nbdkit_nanosleep (unsigned sec, unsigned nsec) WEAK; /* since 1.14 */
struct nbdkit_extents;
/* Since 1.12; most are for filters. */
extern int nbdkit_add_extent (struct nbdkit_extents *extents, uint64_t offset,
                              uint64_t length, uint32_t type) WEAK;
extern struct nbdkit_extents *nbdkit_extents_new (uint64_t start, uint64_t end)
  WEAK;
extern void nbdkit_extents_free (struct nbdkit_extents *extents) WEAK;
extern size_t nbdkit_extents_count (const struct nbdkit_extents *extents) WEAK;
/* By another name: plugins' headers may or may not have it, and its struct. */
struct extent { uint64_t offset, length; uint32_t type; };
extern struct extent get_extent (const struct nbdkit_extents *extents, size_t i)
  __asm__ ("nbdkit_get_extent") WEAK;
extern void *nbdkit_next_context_open (void *backend, int readonly,
                                       const char *exportname, int shared)
  WEAK;                                            /* since 1.26 */

#pragma GCC visibility pop

struct nbdkit_plugin;
typedef struct nbdkit_plugin *(*plugin_init_fn) (void);

/* shim.c: given the plugin's own registration function, returns the one
 * that the server must call instead.
 */
extern plugin_init_fn shim_plugin_init (plugin_init_fn plugin_init);

/* True if this process is an nbdkit server. */
static inline bool
in_nbdkit (void)
{
  return nbdkit_error && nbdkit_debug && nbdkit_set_error && nbdkit_parse_size;
}

/* This library as the dynamic loader knows it, or NULL if it can't be
 * found.
 */
extern const struct link_map *own_link_map (void);

/* The first function that the plugin imports whose name begins with PREFIX,
 * or NULL.
 */
extern const char *plugin_imports (const char *prefix);

/* True if malloc_usable_size comes from the library that calloc comes from.
 * Beside libmemusage or DUMA it does not, and reads anything as a size.
 */
extern bool allocator_knows_sizes (void);

/* What the server was started for, by its options.  Unless this is SERVE, it
 * prints something about the plugin, and opens no connection.
 */
enum purpose { SERVE, DUMP_PLUGIN, HELP, VERSION };
extern enum purpose server_purpose (void);

/* Whether the server will open the plugin read-only, by its options: 1 with
 * -r, 0 without, and -1 if a filter may do so.
 */
extern int opens_read_only (void);

/* True if the server will go on in this process, by its options: it will not
 * fork.
 */
extern bool stays_in_process (void);

/* Print a line that is not an error, where the server prints its errors.  The
 * first call must come before the server forks.
 */
extern void server_log (const char *line);

/* True if the server has loaded the filter NAME. */
extern bool filter_loaded (const char *name);

/* Take this library, and nothing else, out of LD_PRELOAD, so that the
 * programs that the server starts do not get it.
 */
extern void leave_environment (void);

/* Put it back, for a server that may be executed again in this process. */
extern void return_to_environment (void);

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

/* Learn from the plugin's symbols what its flush may ask the server.  Call
 * it once the plugin is loaded.
 */
extern void context_init (void);

/* A function that the plugin uses and that fails in a flush of C's handle
 * for which other connections wait, or NULL.  Before there is any handle, C
 * is NULL, and the answer is what is known so far.
 */
extern const char *context_lacks (const struct context *c);

/* Call it on the thread on which the server has just opened the handle. */
extern void context_capture (struct context *c);

/* Around a plugin flush, on any thread: what it asks the server about its
 * connection is answered for the handle of C, or is an error.  OTHERS is
 * true if other connections wait for this flush: then nbdkit_nanosleep
 * must not end because one of them has left.  Set C->closing, on a thread
 * of its connection, once the server closes the handle.  Between the two
 * calls server_error gives this flush's error; afterwards the thread's
 * earlier error is back.
 */
struct visit {
  char *record;
  size_t offset;
  void *whose, *connection;
  int error;                    /* of a request that has just ended here */
  bool hidden, locked;
};
extern void context_enter (const struct context *c, bool others,
                           struct visit *v);
extern void context_leave (const struct visit *v);

/* On a thread of the server: is it ending? */
extern bool server_ends (void);

#endif /* MCSHIM_INTERPOSE_H */
