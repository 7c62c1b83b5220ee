/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The wrapped plugin: its struct, and one short function for each callback.
 *
 * The server asks for plugin_init and gets register_plugin, which calls
 * the plugin's own and returns an altered copy of its struct.  Where the
 * plugin has a handle, the server has a struct connection.  Callbacks
 * stand in the order in which the server calls them; the table of what
 * is wrapped is at the end.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "interpose/interpose.h"
#include "policy.h"
#include "replicate.h"
#include "statsfile.h"

static plugin_init_fn plugin_init;
static struct nbdkit_plugin plugin;  /* as the plugin made it */
static struct nbdkit_plugin wrapped; /* as the server gets it */
static struct policy policy;
static int thread_model;

struct connection {
  struct handle handle;         /* the plugin's */
  struct context context;       /* of the client, for the handle's flush */
  int can_write, can_flush;     /* the plugin's answers, or UNASKED */
};

#define UNASKED (-2)

/* Before the server has forked: what is printed is seen. */
static void
complain (const char *line)
{
  fprintf (stderr, "mcshim: %s\n", line);
}

static const char *
thread_model_name (void)
{
  switch (thread_model) {
  case NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS:
    return "serialize_connections";
  case NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS:
    return "serialize_all_requests";
  case NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS:
    return "serialize_requests";
  default:
    return "parallel";
  }
}

static void
set_thread_model (int model)
{
  thread_model = model;
  replicate_set_thread_model
    (model >= NBDKIT_THREAD_MODEL_PARALLEL ? PARALLEL :
     model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS ? SERIALIZE_HANDLE :
     SERIALIZE_ALL);
}

/* Say once which function of the server's the plugin had better not call
 * in a flush.
 */
static void
warn_of_context (const struct context *c, void (*say) (const char *line))
{
  static atomic_flag said = ATOMIC_FLAG_INIT;
  const char *function = context_lacks (c);
  char line[256];

  if (function == NULL || atomic_flag_test_and_set (&said))
    return;
  snprintf (line, sizeof line, "warning: the %.64s plugin uses %.64s, which "
            "fails in a flush that other connections wait for",
            plugin.name, function);
  say (line);
}

static struct connection *
connection_of (struct handle *h)
{
  return (struct connection *) h; /* its first member */
}

/* What replicate.c calls to flush one handle.  The thread may be another
 * connection's, or none of the server's.
 */
static int
flush_one (struct handle *h)
{
  struct visit v;
  int r;

  context_enter (&connection_of (h)->context, h->resolution.replicate, &v);
  nbdkit_set_error (0);
  errno = 0;
  r = plugin.flush ? plugin.flush (h->plugin, 0) :
    plugin._flush_v1 (h->plugin);
  r = r == -1 ? server_error (plugin.errno_is_preserved) : 0;
  context_leave (&v);
  return r;
}

static void
free_connection (struct handle *h)
{
  free (connection_of (h));
}

static const struct replicate_ops ops = {
  .flush = flush_one,
  .helper_starts = server_error_thread,
};

/* Before any connection. */

static void
shim_unload (void)
{
  statsfile_finish (&policy, thread_model_name ());
  replicate_free (free_connection);
  policy_free (&policy);
  if (plugin.unload)
    plugin.unload ();
}

/* The vddk plugin executes the server anew from here, with another
 * LD_LIBRARY_PATH: only after it may the shim leave the environment.
 */
static int
shim_config_complete (void)
{
  int r = plugin.config_complete ();

  if (r != -1)
    leave_environment ();
  return r;
}

/* Once the thread model is settled. */
static void
describe (void)
{
  static atomic_flag described = ATOMIC_FLAG_INIT;

  if (atomic_flag_test_and_set (&described))
    return;
  nbdkit_debug ("mcshim %s: plugin %s: API version %d, %s, mode %s, "
                "level %s", MCSHIM_VERSION, plugin.name, plugin._api_version,
                thread_model_name (), mode_name (policy.mode),
                level_name (policy.level));
}

/* The server (since 1.18) calls it once the thread model is settled and the
 * filters are there as well.
 */
static int
shim_get_ready (void)
{
  if (filter_loaded ("multi-conn"))
    complain ("warning: the multi-conn filter is loaded too: what it does "
              "is done twice, or wrong where requests overlap; leave it out");
  describe ();
  return plugin.get_ready ? plugin.get_ready () : 0;
}

/* nbdkit 1.14 to 1.18 ask again for each connection, and it may run a
 * script: remember the answer.  The first time there is no other thread.
 */
static int
shim_thread_model (void)
{
  static int model = -1;

  if (model == -1) {
    model = plugin.thread_model ();
    if (model != -1 && model < thread_model)
      set_thread_model (model);
  }
  return model;
}

/* A connection opens and closes. */

/* What the mode depends on, as far as the plugin's struct tells. */
static struct traits
struct_traits (bool readonly)
{
  return (struct traits) {
    .plugin = plugin.name,
    .connections_serialized =
      thread_model <= NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS,
    .can_flush = plugin.flush || plugin._flush_v1,
    .readonly = readonly || (!plugin.pwrite && !plugin._pwrite_v1),
  };
}

/* Set once what policy.c has to say of the plugin has been said. */
static atomic_flag noticed;

/* Ask the plugin what the mode depends on, and settle it.  Returns 0, or
 * -1 after nbdkit_error.
 */
static int
settle (struct connection *c, int readonly)
{
  struct handle *h = &c->handle;
  struct traits t = struct_traits (readonly);
  int r;

  c->can_flush = c->can_write = UNASKED;
  if (policy_wants_multi_conn (&policy) && plugin.can_multi_conn) {
    r = plugin.can_multi_conn (h->plugin);
    if (r == -1)
      return -1;
    t.multi_conn = h->multi_conn = r;
  }
  if (policy_wants_can_flush (&policy) && plugin.can_flush) {
    c->can_flush = plugin.can_flush (h->plugin);
    if (c->can_flush == -1)
      return -1;
    t.can_flush = t.can_flush && c->can_flush;
  }
  if (!t.can_flush && !t.readonly && plugin.can_write) {
    c->can_write = plugin.can_write (h->plugin);
    if (c->can_write == -1)
      return -1;
    t.readonly = !c->can_write;
  }

  h->flushable = t.can_flush;
  h->resolution = policy_resolve (&policy, &t);
  if (h->resolution.refusal) {
    nbdkit_error ("mcshim: %s", h->resolution.refusal);
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  if (h->resolution.notice && !atomic_flag_test_and_set (&noticed))
    nbdkit_error ("mcshim: %s", h->resolution.notice);
  return 0;
}

static void
log_warning (const char *line)
{
  nbdkit_error ("mcshim: %s", line);
}

/* Returns NULL after nbdkit_error. */
static struct connection *
new_connection (const char *group)
{
  struct connection *c;
  int err;

  err = posix_memalign ((void **) &c, _Alignof (struct connection), sizeof *c);
  if (err == 0) {
    memset (c, 0, sizeof *c);
    if (handle_opens (&c->handle, group) == 0)
      return c;
    err = errno;
    free (c);
  }
  errno = err;
  nbdkit_error ("mcshim: no memory for another connection: %m");
  return NULL;
}

static void *
shim_open (int readonly)
{
  const char *group = NULL;
  struct connection *c;

  describe ();                  /* a server without get_ready */
  server_error_init ();
  statsfile_start (&policy, thread_model_name ());
  if (policy.exportname) {
    group = nbdkit_export_name ();
    if (group == NULL)          /* it has said why */
      return NULL;
  }
  c = new_connection (group);
  if (c == NULL)
    return NULL;

  c->handle.plugin = plugin.open (readonly);
  if (c->handle.plugin != NULL) {
    context_capture (&c->context);
    if (settle (c, readonly) == 0) {
      if (c->handle.resolution.replicate)
        warn_of_context (&c->context, log_warning);
      handle_joins (&c->handle);
      nbdkit_debug ("mcshim: connection: mode %s, group %s%s%s",
                    mode_name (c->handle.resolution.mode), group ? "\"" : "",
                    group ? group : "of all", group ? "\"" : "");
      nbdkit_debug ("mcshim: a flush has %s connection's context",
                    c->context.whose ? "its own" : "no");
      return c;
    }
    if (plugin.close)
      plugin.close (c->handle.plugin);
  }
  handle_gives_up (&c->handle);
  free (c);
  return NULL;
}

static void
shim_close (void *handle)
{
  struct connection *c = handle;
  int err;

  c->context.closing = true;
  err = handle_leaves (&c->handle);
  if (err != 0) {
    errno = err;
    nbdkit_error ("mcshim: the flush of a connection that closes failed, "
                  "its last writes are lost: %m");
  }
  if (plugin.close)
    plugin.close (c->handle.plugin);
  free (c);
}

/* What a connection can do.  These have their handle to themselves as data
 * callbacks do, but leave no mark.
 */

#define CONTROL(type, name, callback)                   \
  static type                                           \
  name (void *handle)                                   \
  {                                                     \
    struct connection *c = handle;                      \
    type r;                                             \
                                                        \
    control_begin (&c->handle);                         \
    r = plugin.callback (c->handle.plugin);             \
    control_end (&c->handle);                           \
    return r;                                           \
  }

CONTROL (const char *, shim_export_description, export_description)
CONTROL (int64_t, shim_get_size, get_size)
CONTROL (int, shim_is_rotational, is_rotational)
CONTROL (int, shim_can_trim, can_trim)
CONTROL (int, shim_can_zero, can_zero)
CONTROL (int, shim_can_fast_zero, can_fast_zero)
CONTROL (int, shim_can_extents, can_extents)
CONTROL (int, shim_can_cache, can_cache)

/* These may have been asked at open. */
#define CONTROL_ONCE(name, callback)                    \
  static int                                            \
  name (void *handle)                                   \
  {                                                     \
    struct connection *c = handle;                      \
                                                        \
    control_begin (&c->handle);                         \
    if (c->callback == UNASKED)                         \
      c->callback = plugin.callback (c->handle.plugin); \
    control_end (&c->handle);                           \
    return c->callback;                                 \
  }

CONTROL_ONCE (shim_can_write, can_write)
CONTROL_ONCE (shim_can_flush, can_flush)

#if NBDKIT_VERSION_MINOR >= 30
static int
shim_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                 uint32_t *maximum)
{
  struct connection *c = handle;
  int r;

  control_begin (&c->handle);
  r = plugin.block_size (c->handle.plugin, minimum, preferred, maximum);
  control_end (&c->handle);
  return r;
}
#endif

static int
shim_can_fua (void *handle)
{
  struct connection *c = handle;
  int r;

  control_begin (&c->handle);
  r = plugin.can_fua (c->handle.plugin);
  control_end (&c->handle);

  /* The plugin's own FUA says nothing to other connections: let the
   * server turn it into a write and a flush.
   */
  if (r == NBDKIT_FUA_NATIVE && c->handle.resolution.replicate)
    r = NBDKIT_FUA_EMULATE;
  return r;
}

static int
shim_can_multi_conn (void *handle)
{
  struct connection *c = handle;

  return c->handle.resolution.advertise;
}

/* Data.  In API version 1 the first five have no flags. */

/* Returns what a callback must, if it fails with ERR, or succeeds. */
static int
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
    struct connection *c = handle;                      \
    struct handle *h = &c->handle;                      \
    int r = request_begin (h);                          \
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

static int
shim__flush_v1 (void *handle)
{
  struct connection *c = handle;
  const struct flushed f = replicate_flush (&c->handle);

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

/* Errors here end the server before it serves anyone.  All are reported,
 * not only the first.
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
  if (policy.stats_file && statsfile_check (policy.stats_file) == -1) {
    fprintf (stderr, "mcshim: MCSHIM_STATS_FILE: '%s' can't be written: %m: "
             "must be the path of a file, in a directory that exists\n",
             policy.stats_file);
    ok = false;
  }
  if (!ok)
    exit (EXIT_FAILURE);
}

/* Our own lines come after those about the plugin. */
static void
print_last (void)
{
  if (server_purpose () == DUMP_PLUGIN)
    printf ("mcshim_version=%s\nmcshim_mode=%s\n",
            MCSHIM_VERSION, mode_name (policy.mode));
  else if (server_purpose () == HELP) {
    printf ("\nmcshim %s is preloaded (see libmcshim(7)), "
            "and its variables are:\n", MCSHIM_VERSION);
    policy_print_knobs ();
  }
}

/* What is sure to be so for each connection is better said now. */
static void
warn_early (void)
{
  const struct traits t = struct_traits (false);
  const struct resolution r = policy_resolve (&policy, &t);
  const bool same_for_all = plugin.name && !plugin.can_multi_conn;

  if (policy.mode != MODE_DISABLE && handle_single_connection)
    complain ("this nbdkit is older than 1.10 and cannot advertise "
              "multi-conn: clients will not use it");
  if (policy.mode == MODE_UNSAFE)
    complain ("warning: MCSHIM_MODE=unsafe: clients are told that a flush "
              "counts for all connections, and nothing makes that true");
  if (same_for_all && opens_for_writing () &&
      (t.can_flush || !plugin.can_write) && r.notice && !atomic_flag_test_and_set (&noticed))
    complain (r.notice);
  if (same_for_all && r.replicate && !r.refusal)
    warn_of_context (NULL, complain);
}

static void
wrap (void)
{
  wrapped = plugin;
  wrapped._struct_size = sizeof wrapped;
  wrapped.can_multi_conn = shim_can_multi_conn;

#define WRAP(callback)                                  \
  if (plugin.callback)                                  \
    wrapped.callback = shim_##callback
  WRAP (thread_model);
  WRAP (open);
  WRAP (close);
  WRAP (export_description);
  WRAP (get_size);
  WRAP (can_write);
  WRAP (can_flush);
  WRAP (is_rotational);
  WRAP (can_trim);
  WRAP (can_zero);
  WRAP (can_fast_zero);
  WRAP (can_extents);
  WRAP (can_fua);
  WRAP (can_cache);
#if NBDKIT_VERSION_MINOR >= 30
  WRAP (block_size);
#endif
  WRAP (_pread_v1);
  WRAP (_pwrite_v1);
  WRAP (_flush_v1);
  WRAP (_trim_v1);
  WRAP (_zero_v1);
  WRAP (pread);
  WRAP (pwrite);
  WRAP (flush);
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
  const bool is_vddk = original && original->name &&
    strcmp (original->name, "vddk") == 0;
  size_t size = sizeof plugin;

  /* What the server refuses is not for us to judge. */
  if (original == NULL ||
      original->_api_version < 1 || original->_api_version > 2)
    return original;

  if (original->_struct_size < size)
    size = original->_struct_size;
  memcpy (&plugin, original, size);

  load_policy ();
  context_init ();
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
  else
    warn_early ();
  /* The callbacks that the plugin lacks stay absent. */
  if (server_purpose () == DUMP_PLUGIN)
    return &wrapped;

  wrapped.get_ready = shim_get_ready;
  wrapped.close = shim_close;
  wrapped.unload = shim_unload;
  if (is_vddk && plugin.config_complete)
    wrapped.config_complete = shim_config_complete;
  else
    leave_environment ();

  return &wrapped;
}

plugin_init_fn
shim_plugin_init (plugin_init_fn original)
{
  plugin_init = original;
  return register_plugin;
}
