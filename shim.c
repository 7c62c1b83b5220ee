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
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "interpose/environment.h"
#include "interpose/record.h"
#include "interpose/server.h"
#include "policy.h"
#include "replicate.h"
#include "shim.h"
#include "spread.h"
#include "statsfile.h"

static plugin_init_fn plugin_init;
static struct nbdkit_plugin plugin;  /* as the plugin made it */
static struct nbdkit_plugin wrapped; /* as the server gets it */
static struct policy policy;
static int thread_model;
static unsigned nr_handles = 1; /* of a connection, at most */

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

struct connection {
  struct handle handle;         /* the first one */
  struct context context;       /* of the client, for flushes */
  int can_write, can_flush;     /* the plugin's answers, or UNASKED */
  int readonly;                 /* as the server opened it */
  struct spread *spread;        /* if there may be several handles */
  int64_t answers[];            /* then: of the first one, or UNASKED */
};

#define UNASKED (-2)

/* New in nbdkit 1.26; also needs a build with a header that has it. */
#define HAS_AFTER_FORK \
  (NBDKIT_VERSION_MINOR >= 26 && nbdkit_next_context_open != NULL)

/* An error that ends the server before it serves anyone. */
static void
complain (char *line)
{
  fprintf (stderr, "mcshim: %s\n", one_line (line));
}

/* Anything else goes to the server's log. */
static void __attribute__ ((format (printf, 1, 2)))
say (const char *fmt, ...)
{
  char line[512];
  va_list args;

  va_start (args, fmt);
  vsnprintf (line, sizeof line, fmt, args);
  va_end (args);
  server_log (one_line (line));
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
  nr_handles =
    policy_handles (&policy, plugin.name,
                    model >= NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS);
  replicate_set_thread_model
    (model >= NBDKIT_THREAD_MODEL_PARALLEL ? PARALLEL :
     model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS ? SERIALIZE_HANDLE :
     SERIALIZE_ALL);
}

/* Say once which function of the server the plugin should not call in a
 * flush.
 */
static void
warn_of_context (const struct context *c)
{
  static atomic_flag said = ATOMIC_FLAG_INIT;
  const char *function = context_lacks (c);

  if (function != NULL && !atomic_flag_test_and_set (&said))
    say ("mcshim: warning: the %.64s plugin uses %.64s, which fails in a "
         "flush that other connections wait for", plugin.name, function);
}

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

static void
free_handle (struct handle *h)
{
  if (!h->further) {
    spread_free (h->connection->spread);
    free (h->connection);
  }
  else
    free (h);
}

static const struct replicate_ops ops = {
  .flush = flush_one,
  .helper_starts = server_error_thread,
  .server_ends = server_ends,
};

/* Before any connection. */

static void
start_statistics (void)
{
  statsfile_keep (plugin.name, thread_model_name ());
}

static void
shim_unload (void)
{
  start_statistics ();          /* if there was neither after_fork nor client */
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

/* Once the thread model is settled. */
static void
describe (void)
{
  static atomic_flag described = ATOMIC_FLAG_INIT;

  if (atomic_flag_test_and_set (&described))
    return;
  if (policy.mode != MODE_DISABLE && handle_single_connection)
    say ("mcshim: this nbdkit is older than 1.10 and cannot advertise "
         "multi-conn: clients will not use it");
  if (policy.mode == MODE_UNSAFE)
    say ("mcshim: warning: MCSHIM_MODE=unsafe: clients are told that a flush "
         "counts for all connections, and nothing makes that true");
  nbdkit_debug ("mcshim %s: plugin %s: API version %d, %s, mode %s, "
                "level %s", MCSHIM_VERSION, plugin.name, plugin._api_version,
                thread_model_name (), mode_name (policy.mode),
                level_name (policy.level));
  if (policy.handles > 1)
    nbdkit_debug ("mcshim: handles of a connection: %u%s", nr_handles,
                  nr_handles > 1 ? "" : ": MCSHIM_HANDLES has no effect with "
                  "this plugin, or its thread model");
}

/* What the mode depends on, as far as the plugin's struct shows. */
static struct traits
struct_traits (bool readonly)
{
  return (struct traits) {
    .plugin = plugin.name,
    .connections_serialized =
      thread_model <= NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS,
    .can_flush = plugin.flush || plugin._flush_v1,
    .readonly = readonly || (!plugin.pwrite && !plugin._pwrite_v1),
    .handles = nr_handles,
  };
}

/* The one line at a normal start. */
static void
say_mode (const char *words)
{
  say ("mcshim " MCSHIM_VERSION ": %.64s: %s; dirty level %s, handles %u",
       plugin.name, words, level_name (policy.level), nr_handles);
}

/* Log each verdict once, and why; and once what policy.c has to say about
 * the plugin.
 */
static void
announce (const struct resolution *r)
{
  static atomic_uint said;
  static atomic_flag noticed = ATOMIC_FLAG_INIT;
  const unsigned bit = 1u << r->verdict;

  if (!(atomic_fetch_or (&said, bit) & bit))
    say_mode (verdict_words (r->verdict));
  if (r->notice && !atomic_flag_test_and_set (&noticed))
    say ("mcshim: %s", r->notice);
}

/* Resolve what every connection will settle on, if the options and the
 * plugin's struct decide it, whatever the plugin will answer.
 */
static bool
foresee (struct resolution *r)
{
  const int readonly = opens_read_only ();
  enum verdict first = NR_VERDICTS;
  unsigned answers;

  for (answers = 0; answers < 8; answers++) {
    struct traits t = struct_traits (readonly == 1);

    if (plugin.can_multi_conn && (answers & 1))
      t.multi_conn = true;
    if (plugin.can_flush && !(answers & 2))
      t.can_flush = false;
    if ((readonly == -1 || plugin.can_write) && (answers & 4))
      t.readonly = true;
    *r = policy_resolve (&policy, &t);
    if (answers == 0)
      first = r->verdict;
    else if (r->verdict != first)
      return false;
  }
  return true;
}

/* The server (since 1.18) calls this once the thread model is settled and
 * the filters are loaded.
 */
static int
shim_get_ready (void)
{
  struct resolution r;
  char words[64];

  if (plugin.get_ready) {
    return_to_environment ();
    if (plugin.get_ready () == -1)
      return -1;
    leave_environment ();
  }
  describe ();
  if (filter_loaded ("multi-conn"))
    say ("mcshim: warning: the multi-conn filter is loaded too: what it does "
         "is done twice, or wrong where requests overlap; leave it out");
  if (foresee (&r)) {
    announce (&r);
    if (r.replicate && !r.refusal)
      warn_of_context (NULL);
  }
  else {
    snprintf (words, sizeof words, "%s, settled as clients connect",
              mode_name (policy.mode));
    say_mode (words);
  }
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
    start_statistics ();
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

/* A connection opens and closes. */

/* R is what the first handle of C has answered.  Returns R. */
static int64_t
answered (struct connection *c, enum question question, int64_t r)
{
  if (nr_handles > 1)
    c->answers[question] = r;
  return r;
}

/* Does H, a further handle of its connection, give the first one's answers
 * to what was asked?  If not, the reason goes to WHY.  Some plugins also need
 * to be asked.
 */
static bool
answers_alike (struct handle *h, char *why, size_t size)
{
  const int64_t *first = h->connection->answers;
  int64_t r;

#define ASK(name)                                                       \
  if (first[ASKED_##name] != UNASKED &&                                 \
      (r = plugin.name (h->plugin)) != first[ASKED_##name]) {           \
    snprintf (why, size, #name " is %lld, but %lld for the first one",  \
              (long long) r, (long long) first[ASKED_##name]);          \
    return false;                                                       \
  }
  QUESTIONS (ASK)
#undef ASK
  return true;
}

/* Returns NULL with errno set. */
static void *
allocate (size_t size)
{
  void *p;
  int err = posix_memalign (&p, _Alignof (struct handle), size);

  if (err != 0) {
    errno = err;
    return NULL;
  }
  memset (p, 0, size);
  return p;
}

/* Open a further handle of C, on a thread of its connection: the server
 * gives the plugin the same answers as for the first handle.
 */
static struct handle *
open_further (struct connection *c, char *why, size_t size)
{
  struct handle *h = allocate (sizeof *h);

  if (h == NULL) {
    snprintf (why, size, "no memory");
    return NULL;
  }
  handle_opens_beside (h, &c->handle);
  h->plugin = plugin.open (c->readonly);
  if (h->plugin == NULL)
    snprintf (why, size, "another could not be opened");
  else if (answers_alike (h, why, size)) {
    handle_joins (h);
    nbdkit_debug ("mcshim: the connection has opened another handle");
    nbdkit_set_error (0);       /* open may have left one */
    errno = 0;
    return h;
  }
  else if (plugin.close)
    plugin.close (h->plugin);
  handle_gives_up (h);
  free (h);
  nbdkit_set_error (0);         /* no request has failed */
  errno = 0;
  return NULL;
}

static void
gives_up (struct connection *c, unsigned nr, const char *why)
{
  (void) c;
  nbdkit_error ("mcshim: a connection goes on with %u of up to %u handles: "
                "%s", nr, nr_handles, why);
}

static int
flush_all (struct connection *c)
{
  return replicate_for_connection (&c->handle);
}

static const struct spread_ops spread_ops = {
  .open = open_further,
  .gives_up = gives_up,
  .flush = flush_all,
};

/* What the plugin prefers, or 0. */
static uint32_t
preferred_block (struct handle *h)
{
  uint32_t preferred = 0;
#if NBDKIT_VERSION_MINOR >= 30
  uint32_t minimum = 0, maximum = 0;

  if (plugin.block_size &&
      plugin.block_size (h->plugin, &minimum, &preferred, &maximum) == -1)
    preferred = 0;              /* fails for the client that asks for it */
#endif
  return preferred;
}

/* Returns 0, or -1 after nbdkit_error. */
static int
prepare_spread (struct connection *c, bool only_reads)
{
  c->spread = spread_new (&spread_ops, &c->handle, c->handle.resolution.handles,
                          policy_stripe (&policy, c->handle.block),
                          only_reads,
                          thread_model >= NBDKIT_THREAD_MODEL_PARALLEL);
  if (c->spread == NULL)
    nbdkit_error ("mcshim: no memory for another connection: %m");
  return c->spread ? 0 : -1;
}

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
    r = answered (c, ASKED_can_multi_conn, plugin.can_multi_conn (h->plugin));
    if (r == -1)
      return -1;
    t.multi_conn = h->multi_conn = r;
  }
  if (policy_wants_can_flush (&policy, t.handles) && plugin.can_flush) {
    c->can_flush = answered (c, ASKED_can_flush, plugin.can_flush (h->plugin));
    if (c->can_flush == -1)
      return -1;
    t.can_flush = t.can_flush && c->can_flush;
  }
  if ((!t.can_flush || t.handles > 1) && !t.readonly && plugin.can_write) {
    c->can_write = answered (c, ASKED_can_write, plugin.can_write (h->plugin));
    if (c->can_write == -1)
      return -1;
    t.readonly = !c->can_write;
  }

  h->flushable = t.can_flush;
  h->resolution = policy_resolve (&policy, &t);
  if (!h->resolution.refusal &&
      handle_settles (h, h->resolution.replicate) != h->resolution.replicate) {
    t.group = h->resolution.replicate ? PASSES_ON : REPLICATES;
    h->resolution = policy_resolve (&policy, &t);
  }
  if (h->resolution.refusal) {
    nbdkit_error ("mcshim: %s", h->resolution.refusal);
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  announce (&h->resolution);
  if (!t.readonly && (h->resolution.replicate || t.handles > 1))
    h->block = policy_block (&policy, preferred_block (h));
  return h->resolution.handles > 1 ? prepare_spread (c, t.readonly) : 0;
}

/* Returns NULL after nbdkit_error. */
static struct connection *
new_connection (const char *group, int readonly)
{
  const bool several = nr_handles > 1;
  struct connection *c;
  unsigned i;
  int err;

  c = allocate (sizeof *c +
                (several ? NR_QUESTIONS * sizeof c->answers[0] : 0));
  if (c != NULL) {
    c->handle.connection = c;
    c->readonly = readonly;
    for (i = 0; several && i < NR_QUESTIONS; i++)
      c->answers[i] = UNASKED;
    if (handle_opens (&c->handle, group) == 0)
      return c;
    err = errno;
    free (c);
    errno = err;
  }
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
  start_statistics ();          /* a server without after_fork */
  if (policy_groups_by_name (&policy) && nbdkit_export_name) {
    group = nbdkit_export_name ();
    if (group == NULL && policy.exportname) /* it has said why */
      return NULL;
  }
  c = new_connection (group, readonly);
  if (c == NULL)
    return NULL;

  c->handle.plugin = plugin.open (readonly);
  if (c->handle.plugin != NULL) {
    context_capture (&c->context);
    if (settle (c, readonly) == 0) {
      if (c->handle.resolution.replicate)
        warn_of_context (&c->context);
      handle_joins (&c->handle);
      nbdkit_debug ("mcshim: connection: group %s%s%s, mode %s",
                    group ? "\"" : "", group ? group : "of all",
                    group ? "\"" : "",
                    verdict_words (c->handle.resolution.verdict));
      nbdkit_debug ("mcshim: a flush has %s connection's context",
                    c->context.whose ? "its own" : "no");
      return c;
    }
    if (plugin.close)
      plugin.close (c->handle.plugin);
  }
  handle_gives_up (&c->handle);
  spread_free (c->spread);
  free (c);
  return NULL;
}

/* Flush and close H.  If the flush fails, what H still holds is lost. */
static void
leave (struct handle *h)
{
  int err = handle_leaves (h);

  if (err != 0) {
    errno = err;
    nbdkit_error ("mcshim: the flush of a closing connection failed, "
                  "its last writes are lost: %m");
  }
  if (plugin.close)
    plugin.close (h->plugin);
}

static void
shim_close (void *handle)
{
  struct connection *c = handle;
  struct handle *h;
  unsigned i;

  c->context.closing = true;
  for (i = 1; c->spread && (h = spread_handle (c->spread, i)) != NULL; i++) {
    leave (h);
    free (h);
  }
  leave (&c->handle);
  spread_free (c->spread);
  free (c);
}

/* What a connection can do.  Like data callbacks these have their handle to
 * themselves, but they leave no mark.
 */

#define CONTROL(type, name, callback)                   \
  static type                                           \
  name (void *handle)                                   \
  {                                                     \
    struct connection *c = handle;                      \
    type r;                                             \
                                                        \
    control_begin (&c->handle);                         \
    r = answered (c, ASKED_##callback,                  \
                  plugin.callback (c->handle.plugin));  \
    control_end (&c->handle);                           \
    return r;                                           \
  }

CONTROL (int64_t, shim_get_size, get_size)
CONTROL (int, shim_is_rotational, is_rotational)
CONTROL (int, shim_can_trim, can_trim)
CONTROL (int, shim_can_zero, can_zero)
CONTROL (int, shim_can_fast_zero, can_fast_zero)
CONTROL (int, shim_can_extents, can_extents)
CONTROL (int, shim_can_cache, can_cache)

static const char *
shim_export_description (void *handle)
{
  struct connection *c = handle;
  const char *r;

  control_begin (&c->handle);
  r = plugin.export_description (c->handle.plugin);
  control_end (&c->handle);
  return r;
}

/* These may have been asked at open. */
#define CONTROL_ONCE(name, callback)                    \
  static int                                            \
  name (void *handle)                                   \
  {                                                     \
    struct connection *c = handle;                      \
                                                        \
    control_begin (&c->handle);                         \
    if (c->callback == UNASKED)                         \
      c->callback = answered (c, ASKED_##callback,      \
                              plugin.callback (c->handle.plugin)); \
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
  r = answered (c, ASKED_can_fua, plugin.can_fua (c->handle.plugin));
  control_end (&c->handle);

  /* The plugin's own FUA does not reach other connections: let the server
   * turn it into a write and a flush.
   */
  if (r == NBDKIT_FUA_NATIVE && c->handle.resolution.fua_is_flush)
    r = NBDKIT_FUA_EMULATE;
  return r;
}

static int
shim_can_multi_conn (void *handle)
{
  struct connection *c = handle;

  return c->handle.resolution.advertise;
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
  wrapped.can_multi_conn = shim_can_multi_conn;
  wrapped.close = shim_close;

#define WRAP(callback)                                  \
  if (plugin.callback)                                  \
    wrapped.callback = shim_##callback
  WRAP (dump_plugin);
  WRAP (config_complete);
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
  WRAP (_flush_v1);
  WRAP (flush);
#undef WRAP

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
