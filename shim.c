/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The wrapped plugin: its struct, and one short function for each callback.
 *
 * The server asks for plugin_init and gets register_plugin, which calls
 * the plugin's own and returns an altered copy of its struct.  The server's
 * handle is a struct connection, which has one or more handles of the plugin
 * and begins with the first.  Callbacks are in the order in which the server
 * calls them; the table of what is wrapped is at the end.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection.h"
#include "interpose/environment.h"
#include "interpose/server.h"
#include "shim.h"
#include "statsfile.h"

static plugin_init_fn plugin_init;
static struct nbdkit_plugin wrapped; /* as the server gets it */

/* New in nbdkit 1.26; also needs a build with a header that has it. */
#define HAS_AFTER_FORK \
  (NBDKIT_VERSION_MINOR >= 26 && nbdkit_next_context_open != NULL)

/* replicate.c calls this to flush one handle.  The thread may be another
 * connection's, or not the server's.
 */
static int
flush_one (struct handle *h)
{
  struct visit v;
  int r;

  context_enter (&h->connection->context, h->resolution.replicate, &v);
  nbdkit_set_error (0);
  errno = 0;
  r = plugin.flush ? plugin.flush (h->plugin, 0) :
    plugin._flush_v1 (h->plugin);
  r = r == -1 ? server_error (plugin.errno_is_preserved) : 0;
  context_leave (&v);
  return r;
}

static const struct replicate_ops ops = {
  .flush = flush_one,
  .helper_starts = server_error_thread,
  .server_ends = server_ends,
};

/* Before any connection. */

static void
shim_unload (void)
{
  /* If there was neither after_fork nor client. */
  statsfile_keep (plugin.name, thread_model_name ());
  statsfile_end ();
  replicate_free (free_handle);
  policy_free (&policy);
  if (plugin.unload)
    plugin.unload ();
}

/* A plugin may execute the server again, as vddk does with another
 * LD_LIBRARY_PATH: from one of these, in which the environment has the
 * library.  Nothing is said before they have returned.
 */
static void
shim_dump_plugin (void)
{
  return_to_environment ();
  plugin.dump_plugin ();
  leave_environment ();
}

static int
shim_config_complete (void)
{
  int r;

  return_to_environment ();
  r = plugin.config_complete ();
  leave_environment ();
  return r;
}

/* The server (since 1.18) calls this once the thread model is settled and
 * the filters are loaded.
 */
static int
shim_get_ready (void)
{
  if (plugin.get_ready) {
    return_to_environment ();
    if (plugin.get_ready () == -1)
      return -1;
    leave_environment ();
  }
  log_settings ();
  log_foreseen ();
  if (!HAS_AFTER_FORK && stays_in_process ())
    statsfile_write (plugin.name, thread_model_name ());
  return 0;
}

#if NBDKIT_VERSION_MINOR >= 26
static int
shim_after_fork (void)
{
  const int r = plugin.after_fork ? plugin.after_fork () : 0;

  if (r != -1)
    statsfile_keep (plugin.name, thread_model_name ());
  return r;
}
#endif

/* With several handles a plugin that takes one request at a time is called
 * in parallel, each time with another handle.
 */
static int
model_for_server (void)
{
  return nr_handles > 1 && server_purpose () == SERVE ?
    NBDKIT_THREAD_MODEL_PARALLEL : thread_model;
}

/* nbdkit 1.14 to 1.18 ask again for each connection, and the plugin may run
 * a script: remember the answer.  The first time there is no other thread.
 */
static int
shim_thread_model (void)
{
  static int model = -1;

  if (model == -1) {
    model = plugin.thread_model ();
    if (model != -1 && model < thread_model)
      set_thread_model (model);
    if (model != -1)
      model = model_for_server ();
  }
  return model;
}

/* Data.  In API version 1 the first five have no flags.  The server passes a
 * connection, which begins with its first handle.
 */

/* Returns what a callback must return: it fails with ERR, or succeeds.  Not
 * inline, so that requests that succeed need no register for ERR.
 */
static __attribute__ ((noinline)) int
result (int err)
{
  nbdkit_set_error (err);
  errno = err;
  return err ? -1 : 0;
}

static inline void
count (_Atomic uint64_t *counter)
{
  atomic_fetch_add_explicit (counter, 1, memory_order_relaxed);
}

#define READS  reads, false
#define WRITES writes, true

#define DATA(name, callback, kind, parameters, ...)     \
  DATA_ (name, callback, kind, parameters, __VA_ARGS__)
#define DATA_(name, callback, counter, wrote, parameters, ...)  \
  static int                                            \
  name parameters                                       \
  {                                                     \
    struct handle *h = handle;                          \
    int r = request_begin (h, wrote, offset, len);      \
                                                        \
    if (__builtin_expect (r != 0, 0))                   \
      return result (r);                                \
    r = plugin.callback (h->plugin, __VA_ARGS__);       \
    count (&h->counter);                                \
    request_end (h, wrote);                             \
    return r;                                           \
  }

DATA (shim__pread_v1, _pread_v1, READS,
      (void *handle, void *buf, uint32_t len, uint64_t offset),
      buf, len, offset)
DATA (shim__pwrite_v1, _pwrite_v1, WRITES,
      (void *handle, const void *buf, uint32_t len, uint64_t offset),
      buf, len, offset)
DATA (shim__trim_v1, _trim_v1, WRITES,
      (void *handle, uint32_t len, uint64_t offset),
      len, offset)
DATA (shim__zero_v1, _zero_v1, WRITES,
      (void *handle, uint32_t len, uint64_t offset, int may_trim),
      len, offset, may_trim)

DATA (shim_pread, pread, READS,
      (void *handle, void *buf, uint32_t len, uint64_t offset,
       uint32_t flags),
      buf, len, offset, flags)
DATA (shim_pwrite, pwrite, WRITES,
      (void *handle, const void *buf, uint32_t len, uint64_t offset,
       uint32_t flags),
      buf, len, offset, flags)
DATA (shim_trim, trim, WRITES,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)
DATA (shim_zero, zero, WRITES,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)
DATA (shim_extents, extents, READS,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags,
       struct nbdkit_extents *extents),
      len, offset, flags, extents)
DATA (shim_cache, cache, READS,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)

/* End the request that was alone, whose callback has returned R.  Returns R,
 * or -1 with the error set: the callback's, or else the flush's.
 */
static int
after_alone (struct connection *c, int r)
{
  const int failed = r == -1 ? server_error (plugin.errno_is_preserved) : 0;
  const int err = spread_alone_end (c->spread);

  return failed || err ? result (failed ? failed : err) : r;
}

/* The same callbacks, if there may be several handles: most requests are for
 * one of them, and the others become pieces of LEN bytes.  The arguments are
 * those of a piece, and STEP goes to the next one.
 */
#define PIECES(callback, may_be_long, step, parameters, ...)    \
  static __attribute__ ((noinline)) int                 \
  split_##callback parameters                           \
  {                                                     \
    struct connection *c = handle;                      \
    uint32_t len = count;                               \
    struct handle *h;                                   \
    int r;                                              \
                                                        \
    if (may_be_long && c->handle.flushable &&           \
        spread_is_long (c->spread, count)) {            \
      r = result (spread_alone_begin (c->spread));      \
      if (r != -1) {                                    \
        r = shim_##callback (handle, __VA_ARGS__);      \
        r = after_alone (c, r);                         \
      }                                                 \
      return r;                                         \
    }                                                   \
    do {                                                \
      len = spread_length (c->spread, offset, count);   \
      h = spread_enter (c->spread, offset);             \
      if (h == NULL)                                    \
        return result (errno);                          \
      nbdkit_set_error (0);     /* the last piece may have left one */ \
      r = shim_##callback (h, __VA_ARGS__);             \
      spread_leave (c->spread, h);                      \
      count -= len;                                     \
      offset += len;                                    \
      step;                                             \
    } while (count > 0 && r != -1);                     \
    return r;                                           \
  }                                                     \
                                                        \
  static int                                            \
  spread_##callback parameters                          \
  {                                                     \
    struct connection *c = handle;                      \
    struct spread *s = c->spread;                       \
    const uint32_t len = count;                         \
    struct handle *h;                                   \
    int r;                                              \
                                                        \
    if (s == NULL)                                      \
      return shim_##callback (handle, __VA_ARGS__);     \
    if (spread_length (s, offset, len) < len)           \
      return split_##callback (handle, __VA_ARGS__);    \
    h = spread_enter (s, offset);                       \
    if (h == NULL)                                      \
      return result (errno);                            \
    r = shim_##callback (h, __VA_ARGS__);               \
    spread_leave (s, h);                                \
    return r;                                           \
  }

#define NEXT_BUF buf = (char *) buf + len
#define NO_BUF

PIECES (_pread_v1, false, NEXT_BUF,
        (void *handle, void *buf, uint32_t count, uint64_t offset),
        buf, len, offset)
PIECES (_pwrite_v1, false, NEXT_BUF,
        (void *handle, const void *buf, uint32_t count, uint64_t offset),
        buf, len, offset)
PIECES (_trim_v1, true, NO_BUF,
        (void *handle, uint32_t count, uint64_t offset),
        len, offset)
PIECES (_zero_v1, true, NO_BUF,
        (void *handle, uint32_t count, uint64_t offset, int may_trim),
        len, offset, may_trim)

PIECES (pread, false, NEXT_BUF,
        (void *handle, void *buf, uint32_t count, uint64_t offset,
         uint32_t flags),
        buf, len, offset, flags)
PIECES (pwrite, false, NEXT_BUF,
        (void *handle, const void *buf, uint32_t count, uint64_t offset,
         uint32_t flags),
        buf, len, offset, flags)
PIECES (trim, true, NO_BUF,
        (void *handle, uint32_t count, uint64_t offset, uint32_t flags),
        len, offset, flags)
PIECES (zero, true, NO_BUF,
        (void *handle, uint32_t count, uint64_t offset, uint32_t flags),
        len, offset, flags)
PIECES (cache, false, NO_BUF,
        (void *handle, uint32_t count, uint64_t offset, uint32_t flags),
        len, offset, flags)

/* nbdkit's split plugin (1.24 and 1.32 at least) crashes if the last of several
 * extents goes on beyond what it was asked about, which is seldom unless
 * requests are cut.
 */
static bool one_extent_at_a_time;

/* An answer may cover less than was asked: many pieces take too long. */
#define EXTENTS_PIECES 64

/* Add what the plugin says about one piece, and nothing beyond it: that is
 * for another handle to say.  Returns how much of the piece that covers.
 */
static uint32_t
add_extents (struct nbdkit_extents *extents,
             const struct nbdkit_extents *piece, int *r)
{
  const size_t n = nbdkit_extents_count (piece);
  uint32_t covered = 0;
  struct extent e;
  size_t i;

  for (i = 0; i < n && *r != -1; i++) {
    e = get_extent (piece, i);
    *r = nbdkit_add_extent (extents, e.offset, e.length, e.type);
    covered += e.length;
  }
  return covered;
}

static int
spread_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                struct nbdkit_extents *extents)
{
  struct connection *c = handle;
  struct spread *s = c->spread;
  const bool one = flags & NBDKIT_FLAG_REQ_ONE;
  struct nbdkit_extents *piece;
  uint32_t len, covered;
  unsigned pieces = 0;
  struct handle *h;
  bool on;
  int r, err;

  if (s == NULL)
    return shim_extents (handle, count, offset, flags, extents);
  if (s->any) {
    h = spread_enter (s, offset);
    if (h == NULL)
      return result (errno);
    r = shim_extents (h, count, offset, flags, extents);
    spread_leave (s, h);
    return r;
  }
  if (one_extent_at_a_time)
    flags |= NBDKIT_FLAG_REQ_ONE;
  do {
    len = spread_length (s, offset, count);
    piece = nbdkit_extents_new (offset, offset + len);
    if (piece == NULL) {        /* it has said why */
      r = result (ENOMEM);
      break;
    }
    h = spread_enter (s, offset);
    if (h == NULL) {
      err = errno;
      nbdkit_extents_free (piece);
      return result (err);
    }
    nbdkit_set_error (0);
    r = shim_extents (h, len, offset, flags, piece);
    spread_leave (s, h);
    covered = add_extents (extents, piece, &r);
    err = errno;
    on = r != -1 && covered > 0 &&
      (!one || nbdkit_extents_count (extents) == 1);
    nbdkit_extents_free (piece);
    errno = err;
    if (r == -1 && pieces > 0)  /* whoever asks about the rest is told */
      return result (0);
    count -= covered;
    offset += covered;
  } while (on && count > 0 && ++pieces < EXTENTS_PIECES);
  return r;
}

/* The plugin has said that it can't flush here.  The server calls its flush all
 * the same after a FUA write that it emulates: for this connection alone.
 */
static int
flush_own (struct connection *c)
{
  const unsigned nr = c->spread ? spread_count (c->spread) : 1;
  int err = 0, e;
  struct handle *h;
  unsigned i;

  for (i = 0; i < nr; i++) {
    h = i > 0 ? spread_handle (c->spread, i) : &c->handle;
    control_begin (h);
    e = flush_one (h);
    control_end (h);
    if (err == 0)
      err = e;
  }
  return err;
}

static int
shim__flush_v1 (void *handle)
{
  struct connection *c = handle;
  struct flushed f;

  if (!c->handle.flushable)
    return result (flush_own (c));
  f = replicate_flush (&c->handle);
  if (f.replicated)
    nbdkit_debug ("mcshim: flush: replicas %u, phases %u, %.3f ms",
                  f.replicas, f.phases, f.ns / 1e6);
  return result (f.err);
}

static int
shim_flush (void *handle, uint32_t flags)
{
  (void) flags;                 /* there are none */
  return shim__flush_v1 (handle);
}

/* Registration. */

/* Errors here end the server before it serves anyone.  All of them are
 * reported, not only the first.
 */
static void
load_policy (void)
{
  bool ok = policy_load (&policy, environ, complain) == 0;

  if (policy.exportname && !nbdkit_export_name) {
    complain ("MCSHIM_EXPORTNAME: 'true' needs nbdkit 1.16 or later, which "
              "this is not: must be false");
    ok = false;
  }
  if (policy.stats_file && server_purpose () == SERVE &&
      statsfile_claim (&policy) == -1) {
    char line[1024];

    snprintf (line, sizeof line, errno == EWOULDBLOCK ?
              "MCSHIM_STATS_FILE: '%.512s' belongs to a running server: "
              "must be another path for each (%%p is the process ID)" :
              "MCSHIM_STATS_FILE: '%.512s' can't be written: %m: must be the "
              "path of a file, in a directory that exists",
              policy.stats_file);
    complain (line);
    ok = false;
  }
  if (!ok)
    exit (EXIT_FAILURE);
}

/* Our own lines come after those about the plugin. */
static void
print_last (void)
{
  if (server_purpose () == DUMP_PLUGIN) {
    printf ("mcshim_version=%s\nmcshim_mode=%s\n",
            MCSHIM_VERSION, mode_name (policy.mode));
    if (policy.handles > 1)
      printf ("mcshim_handles=%u\n", nr_handles);
  }
  else if (server_purpose () == HELP) {
    printf ("\nmcshim %s is preloaded (see libmcshim(7)), "
            "and its variables are:\n", MCSHIM_VERSION);
    policy_print_knobs ();
  }
}

static void
wrap (void)
{
  wrapped = plugin;
  wrapped._struct_size = sizeof wrapped;
  wrapped._thread_model = model_for_server ();
#define WRAP(callback)                                  \
  if (plugin.callback)                                  \
    wrapped.callback = shim_##callback;
  WRAP (dump_plugin)
  WRAP (config_complete)
  WRAP (thread_model)
  WRAP (open)
  WRAP (export_description)
  QUESTIONS (WRAP)
#if NBDKIT_VERSION_MINOR >= 30
  WRAP (block_size)
#endif
  WRAP (_flush_v1)
  WRAP (flush)
#undef WRAP
  wrapped.can_multi_conn = shim_can_multi_conn;
  wrapped.close = shim_close;

#define WRAP(callback)                                          \
  if (plugin.callback)                                          \
    wrapped.callback = policy.handles > 1 ? spread_##callback   \
                                          : shim_##callback
  WRAP (_pread_v1);
  WRAP (_pwrite_v1);
  WRAP (_trim_v1);
  WRAP (_zero_v1);
  WRAP (pread);
  WRAP (pwrite);
  WRAP (trim);
  WRAP (zero);
  WRAP (extents);
  WRAP (cache);
#undef WRAP
}

static struct nbdkit_plugin *
register_plugin (void)
{
  struct nbdkit_plugin *original = plugin_init ();
  size_t size = sizeof plugin;

  /* Let the server judge it. */
  if (original == NULL ||
      original->_api_version < 1 || original->_api_version > 2)
    return original;

  if (original->_struct_size < size)
    size = original->_struct_size;
  memcpy (&plugin, original, size);
  one_extent_at_a_time = plugin.name && strcmp (plugin.name, "split") == 0;

  load_policy ();
  leave_environment ();
  replicate_init (&policy, &ops);
  set_thread_model (plugin._thread_model);
  wrap ();

  if (server_purpose () != SERVE) {
    if (atexit (print_last) != 0) {
      complain ("no memory");
      exit (EXIT_FAILURE);
    }
    policy_free (&policy);      /* there is nothing to count */
  }
  /* The callbacks that the plugin lacks stay absent. */
  if (server_purpose () == DUMP_PLUGIN)
    return &wrapped;

  wrapped.get_ready = shim_get_ready;
#if NBDKIT_VERSION_MINOR >= 26
  wrapped.after_fork = shim_after_fork;
#endif
  wrapped.unload = shim_unload;
  return &wrapped;
}

plugin_init_fn
shim_plugin_init (plugin_init_fn original, const struct link_map *map)
{
  plugin_init = original;
  context_init (map);
  return register_plugin;
}
