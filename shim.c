/* The wrapped plugin: its struct, and one short function a callback.
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
  replicate_set_concurrency
    (model >= NBDKIT_THREAD_MODEL_PARALLEL ? PARALLEL :
     model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS ? ONE_PER_CONNECTION :
     ONE_AT_A_TIME);
}

/* What a flush of one handle returns to replicate.c: 0 or an errno.  It
 * may run on a thread that is not the server's.
 */
static int
flush_one (void *handle)
{
  int r;

  nbdkit_set_error (0);
  errno = 0;
  r = plugin.flush ? plugin.flush (handle, 0) : plugin._flush_v1 (handle);
  return r == -1 ? server_error (plugin.errno_is_preserved) : 0;
}

/* Before any connection. */

static void
shim_unload (void)
{
  statsfile_finish (&policy, thread_model_name ());
  replicate_free ();
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

  if (r != -1 && leave_environment () == -1) {
    nbdkit_error ("mcshim: LD_PRELOAD: %m");
    r = -1;
  }
  return r;
}

/* The server (since 1.20) calls it once the thread model is settled and the
 * filters are there as well.
 */
static int
shim_get_ready (void)
{
  if (filter_loaded ("multi-conn"))
    complain ("warning: the multi-conn filter is loaded too: what it does "
              "is done twice, or wrong where requests overlap; leave it out");
  nbdkit_debug ("mcshim %s: plugin %s: API version %d, %s, mode %s, "
                "level %s", MCSHIM_VERSION, plugin.name, plugin._api_version,
                thread_model_name (), mode_name (policy.mode),
                level_name (policy.level));
  return plugin.get_ready ? plugin.get_ready () : 0;
}

/* It may run a script, and is asked once: remember the answer. */
static int
shim_thread_model (void)
{
  int model = plugin.thread_model ();

  if (model != -1 && model < thread_model)
    set_thread_model (model);
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
  struct traits t = struct_traits (readonly);
  int r;

  c->can_flush = c->can_write = UNASKED;
  if (policy_wants_multi_conn (&policy) && plugin.can_multi_conn) {
    r = plugin.can_multi_conn (c->handle);
    if (r == -1)
      return -1;
    t.multi_conn = c->multi_conn = r;
  }
  if (policy_wants_can_flush (&policy) && plugin.can_flush) {
    c->can_flush = plugin.can_flush (c->handle);
    if (c->can_flush == -1)
      return -1;
    t.can_flush = t.can_flush && c->can_flush;
  }
  if (!t.can_flush && !t.readonly && plugin.can_write) {
    c->can_write = plugin.can_write (c->handle);
    if (c->can_write == -1)
      return -1;
    t.readonly = !c->can_write;
  }

  c->flushable = t.can_flush;
  c->resolution = policy_resolve (&policy, &t);
  if (c->resolution.refusal) {
    nbdkit_error ("mcshim: %s", c->resolution.refusal);
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  if (c->resolution.notice && !atomic_flag_test_and_set (&noticed))
    nbdkit_error ("mcshim: %s", c->resolution.notice);
  return 0;
}

static int
join (struct connection *c)
{
  const char *name = NULL;

  if (policy.exportname) {
    name = nbdkit_export_name ();
    if (name == NULL)           /* it has said why */
      return -1;
  }
  if (connection_join (c, name) == -1) {
    nbdkit_error ("mcshim: no memory for another connection: %m");
    return -1;
  }
  nbdkit_debug ("mcshim: connection: mode %s, group %s%s%s",
                mode_name (c->resolution.mode), name ? "\"" : "",
                name ? name : "of all", name ? "\"" : "");
  return 0;
}

static void *
shim_open (int readonly)
{
  struct connection *c;
  void *handle;

  server_error_init ();
  statsfile_start (&policy, thread_model_name ());
  handle = plugin.open (readonly);
  if (handle == NULL)
    return NULL;

  c = connection_new (handle);
  if (c == NULL)
    nbdkit_error ("mcshim: no memory for another connection: %m");
  else if (settle (c, readonly) == 0 && join (c) == 0)
    return c;
  else
    connection_free (c);

  if (plugin.close)
    plugin.close (handle);
  return NULL;
}

static void
shim_close (void *handle)
{
  struct connection *c = handle;

  connection_leave (c);
  if (plugin.close)
    plugin.close (c->handle);
  connection_free (c);
}

/* What a connection can do.  These take their handle's lock as data
 * callbacks do, but leave no mark.
 */

static void
control_begin (struct connection *c)
{
  if (c->exclusive)
    connection_lock (c);
}

static void
control_end (struct connection *c)
{
  if (c->exclusive)
    connection_unlock (c);
}

#define CONTROL(type, callback)                         \
  static type                                           \
  shim_##callback (void *handle)                        \
  {                                                     \
    struct connection *c = handle;                      \
    type r;                                             \
                                                        \
    control_begin (c);                                  \
    r = plugin.callback (c->handle);                    \
    control_end (c);                                    \
    return r;                                           \
  }

CONTROL (const char *, export_description)
CONTROL (int64_t, get_size)
CONTROL (int, is_rotational)
CONTROL (int, can_trim)
CONTROL (int, can_zero)
CONTROL (int, can_fast_zero)
CONTROL (int, can_extents)
CONTROL (int, can_cache)

/* These may have been asked at open. */
#define CONTROL_ONCE(callback)                          \
  static int                                            \
  shim_##callback (void *handle)                        \
  {                                                     \
    struct connection *c = handle;                      \
                                                        \
    control_begin (c);                                  \
    if (c->callback == UNASKED)                         \
      c->callback = plugin.callback (c->handle);        \
    control_end (c);                                    \
    return c->callback;                                 \
  }

CONTROL_ONCE (can_write)
CONTROL_ONCE (can_flush)

#if NBDKIT_VERSION_MINOR >= 30
static int
shim_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                 uint32_t *maximum)
{
  struct connection *c = handle;
  int r;

  control_begin (c);
  r = plugin.block_size (c->handle, minimum, preferred, maximum);
  control_end (c);
  return r;
}
#endif

static int
shim_can_fua (void *handle)
{
  struct connection *c = handle;
  int r;

  control_begin (c);
  r = plugin.can_fua (c->handle);
  control_end (c);

  /* The plugin's own FUA says nothing to other connections: let the
   * server turn it into a write and a flush.
   */
  if (r == NBDKIT_FUA_NATIVE && c->resolution.replicate)
    r = NBDKIT_FUA_EMULATE;
  return r;
}

static int
shim_can_multi_conn (void *handle)
{
  struct connection *c = handle;

  return c->resolution.advertise;
}

/* Data.  In API version 1 the first five have no flags. */

static inline void
count (_Atomic uint64_t *counter)
{
  atomic_fetch_add_explicit (counter, 1, memory_order_relaxed);
}

#define DATA(callback, counter, mark, parameters, ...)  \
  static int                                            \
  shim_##callback parameters                            \
  {                                                     \
    struct connection *c = handle;                      \
    uint64_t one = request_begin (c);                   \
    int r = plugin.callback (c->handle, __VA_ARGS__);   \
                                                        \
    count (&c->counter);                                \
    request_end (c, one, mark);                         \
    return r;                                           \
  }

DATA (_pread_v1, reads, READ_MARKED,
      (void *handle, void *buf, uint32_t len, uint64_t offset),
      buf, len, offset)
DATA (_pwrite_v1, writes, WRITE_DIRTY,
      (void *handle, const void *buf, uint32_t len, uint64_t offset),
      buf, len, offset)
DATA (_trim_v1, writes, WRITE_DIRTY,
      (void *handle, uint32_t len, uint64_t offset),
      len, offset)
DATA (_zero_v1, writes, WRITE_DIRTY,
      (void *handle, uint32_t len, uint64_t offset, int may_trim),
      len, offset, may_trim)

DATA (pread, reads, READ_MARKED,
      (void *handle, void *buf, uint32_t len, uint64_t offset,
       uint32_t flags),
      buf, len, offset, flags)
DATA (pwrite, writes, WRITE_DIRTY,
      (void *handle, const void *buf, uint32_t len, uint64_t offset,
       uint32_t flags),
      buf, len, offset, flags)
DATA (trim, writes, WRITE_DIRTY,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)
DATA (zero, writes, WRITE_DIRTY,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)
DATA (extents, reads, READ_MARKED,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags,
       struct nbdkit_extents *extents),
      len, offset, flags, extents)
DATA (cache, reads, READ_MARKED,
      (void *handle, uint32_t len, uint64_t offset, uint32_t flags),
      len, offset, flags)

static int
shim__flush_v1 (void *handle)
{
  int err = connection_flush (handle);

  nbdkit_set_error (err);
  errno = err;
  return err ? -1 : 0;
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

  if (policy.mode != MODE_DISABLE && !nbdkit_add_extent)
    complain ("this nbdkit is older than 1.12: before 1.10 it cannot "
              "advertise multi-conn, and clients will not use it");
}

/* Our own lines come after those about the plugin. */
static void
print_last (int status, void *data)
{
  (void) data;
  if (status != 0)
    return;
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
notice_early (void)
{
  const struct traits t = struct_traits (false);
  const struct resolution r = policy_resolve (&policy, &t);

  if (r.notice && !plugin.can_multi_conn && !plugin.can_write &&
      !atomic_flag_test_and_set (&noticed))
    complain (r.notice);
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
  replicate_init (&policy, flush_one);
  set_thread_model (plugin._thread_model);
  wrap ();

  if (server_purpose () != SERVE) {
    if (on_exit (print_last, NULL) != 0) {
      complain ("no memory");
      exit (EXIT_FAILURE);
    }
    policy_free (&policy);      /* there is nothing to count */
  }
  else if (policy.mode == MODE_UNSAFE)
    complain ("warning: MCSHIM_MODE=unsafe: clients are told that a flush "
              "counts for all connections, and nothing makes that true");
  else if (plugin.name && opens_for_writing ())
    notice_early ();
  /* The callbacks that the plugin lacks stay absent. */
  if (server_purpose () == DUMP_PLUGIN)
    return &wrapped;

  wrapped.get_ready = shim_get_ready;
  wrapped.close = shim_close;
  wrapped.unload = shim_unload;
  if (is_vddk && plugin.config_complete)
    wrapped.config_complete = shim_config_complete;
  else if (leave_environment () == -1) {
    complain ("LD_PRELOAD: no memory");
    exit (EXIT_FAILURE);
  }

  return &wrapped;
}

plugin_init_fn
shim_plugin_init (plugin_init_fn original)
{
  plugin_init = original;
  return register_plugin;
}
