/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Connections: see connection.h.  Callbacks are in the order in which the
 * server calls them.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "interpose/server.h"
#include "statsfile.h"

#define UNASKED (-2)

void
free_handle (struct handle *h)
{
  if (!h->further) {
    spread_free (h->connection->spread);
    free (h->connection);
  }
  else
    free (h);
}

/* Ask the plugin about the first handle of C. */
#define ASK_FIRST(c, question) \
  ((c)->answers[ASKED_##question] = plugin.question ((c)->handle.plugin))

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

/* Open a further handle of C, on any thread if its context travels: the server
 * gives the plugin the same answers as for the first handle.
 */
static struct handle *
open_further (struct connection *c, char *why, size_t size)
{
  struct handle *h = allocate (sizeof *h);
  struct visit v;
  bool ok;

  if (h == NULL) {
    snprintf (why, size, "no memory");
    return NULL;
  }
  handle_opens_beside (h, &c->handle);
  snprintf (why, size, "another could not be opened");
  context_enter (&c->context, false, &v);
  h->plugin = plugin.open (c->readonly);
  ok = h->plugin != NULL && answers_alike (h, why, size);
  if (h->plugin != NULL && !ok && plugin.close)
    plugin.close (h->plugin);
  context_leave (&v);           /* no request has failed */
  if (ok) {
    handle_joins (h);
    nbdkit_debug ("mcshim: the connection has opened another handle");
  }
  else {
    handle_gives_up (h);
    free (h);
    h = NULL;
  }
  errno = 0;
  return h;
}

static void
gives_up (struct connection *c, unsigned nr, const char *why)
{
  (void) c;
  nbdkit_error ("mcshim: a connection goes on with %u of up to %u handles: "
                "%s", nr, nr_handles, why);
}

/* What the plugin can't flush stays with the handle that wrote it. */
static int
flush_connection (struct handle *h)
{
  struct spread *s = h->connection->spread;
  unsigned i;

  if (h->flushable)
    return replicate_for_connection (h);
  for (i = 0; (h = spread_handle (s, i)) != NULL; i++)
    if (atomic_load (&h->state) & WRITE_DIRTY)
      return EBUSY;
  return 0;
}

static const struct spread_ops spread_ops = {
  .open = open_further,
  .gives_up = gives_up,
  .flush = flush_connection,
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
  c->spread = spread_new (&spread_ops, &c->handle,
                          c->handle.resolution.handles,
                          policy_stripe (&policy, c->handle.block), only_reads,
                          thread_model >= NBDKIT_THREAD_MODEL_PARALLEL,
                          policy_helps (&policy) &&
                          context_travels (&c->context));
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

  if (policy_wants_multi_conn (&policy) && plugin.can_multi_conn) {
    r = ASK_FIRST (c, can_multi_conn);
    if (r == -1)
      return -1;
    t.multi_conn = h->multi_conn = r;
  }
  if (policy_wants_can_flush (&policy, t.handles) && plugin.can_flush) {
    r = ASK_FIRST (c, can_flush);
    if (r == -1)
      return -1;
    t.can_flush = t.can_flush && r;
  }
  if ((!t.can_flush || t.handles > 1) && !t.readonly && plugin.can_write) {
    r = ASK_FIRST (c, can_write);
    if (r == -1)
      return -1;
    t.readonly = !r;
  }
  /* Each handle would know of its own stripes only, and no flush tells it. */
  if (t.handles > 1 && !t.can_flush && !t.readonly && plugin.extents) {
    r = plugin.can_extents ? ASK_FIRST (c, can_extents) : 1;
    if (r == -1)
      return -1;
    if (r)
      t.handles = 1;
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
  log_resolution (&h->resolution);
  if (!t.readonly && (h->resolution.replicate || t.handles > 1))
    h->block = policy_block (&policy, preferred_block (h));
  return h->resolution.handles > 1 ? prepare_spread (c, t.readonly) : 0;
}

/* Returns NULL after nbdkit_error. */
static struct connection *
new_connection (const char *group, int readonly)
{
  struct connection *c = allocate (sizeof *c);
  unsigned i;

  if (c == NULL || handle_opens (&c->handle, group) == -1) {
    nbdkit_error ("mcshim: no memory for another connection: %m");
    free (c);
    return NULL;
  }
  c->handle.connection = c;
  c->readonly = readonly;
  for (i = 0; i < NR_QUESTIONS; i++)
    c->answers[i] = UNASKED;
  return c;
}

void *
shim_open (int readonly)
{
  const char *group = NULL;
  struct connection *c;

  log_settings ();              /* a server without get_ready */
  server_error_init ();
  /* A server without after_fork. */
  statsfile_keep (plugin.name, thread_model_name ());
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
  free_handle (&c->handle);
  return NULL;
}

/* Flush, close and free H.  If the flush fails, what H still holds is lost. */
static void
close_handle (struct handle *h)
{
  int err = handle_leaves (h);

  if (err != 0) {
    errno = err;
    nbdkit_error ("mcshim: the flush of a closing connection failed, "
                  "its last writes are lost: %m");
  }
  if (plugin.close)
    plugin.close (h->plugin);
  free_handle (h);
}

void
shim_close (void *handle)
{
  struct connection *c = handle;
  struct handle *h;
  unsigned i;

  if (c->spread)
    spread_close (c->spread);
  c->context.closing = true;
  for (i = 1; c->spread && (h = spread_handle (c->spread, i)) != NULL; i++)
    close_handle (h);
  close_handle (&c->handle);
}

/* What a connection can do.  Like data callbacks these have their handle to
 * themselves, but they leave no mark.
 */

/* ONCE: it may have been asked as the connection opened. */
#define CONTROL(type, callback, once)                                   \
  type                                                                  \
  shim_##callback (void *handle)                                        \
  {                                                                     \
    struct connection *c = handle;                                      \
    type r;                                                             \
                                                                        \
    control_begin (&c->handle);                                         \
    r = once && c->answers[ASKED_##callback] != UNASKED ?               \
      c->answers[ASKED_##callback] : ASK_FIRST (c, callback);           \
    control_end (&c->handle);                                           \
    return r;                                                           \
  }

CONTROL (int64_t, get_size, false)
CONTROL (int, can_write, true)
CONTROL (int, can_flush, true)
CONTROL (int, is_rotational, false)
CONTROL (int, can_trim, false)
CONTROL (int, can_zero, false)
CONTROL (int, can_fast_zero, false)
CONTROL (int, can_extents, true)
CONTROL (int, can_cache, false)

const char *
shim_export_description (void *handle)
{
  struct connection *c = handle;
  const char *r;

  control_begin (&c->handle);
  r = plugin.export_description (c->handle.plugin);
  control_end (&c->handle);
  return r;
}

#if NBDKIT_VERSION_MINOR >= 30
int
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

int
shim_can_fua (void *handle)
{
  struct connection *c = handle;
  int r;

  control_begin (&c->handle);
  r = ASK_FIRST (c, can_fua);
  control_end (&c->handle);

  /* The plugin's own FUA does not reach other connections: let the server
   * turn it into a write and a flush.
   */
  if (r == NBDKIT_FUA_NATIVE && c->handle.resolution.fua_is_flush)
    r = NBDKIT_FUA_EMULATE;
  return r;
}

int
shim_can_multi_conn (void *handle)
{
  struct connection *c = handle;

  return c->handle.resolution.advertise;
}
