/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Requests: see requests.h. */

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "helpers.h"
#include "interpose/server.h"
#include "requests.h"

#define ALWAYS_INLINE inline __attribute__ ((always_inline))

/* A request, or a piece of one. */
struct request {
  enum kind kind;
  uint32_t count, flags;
  uint64_t offset;
  void *buf;                    /* PREAD, PWRITE */
  struct nbdkit_extents *extents; /* EXTENTS */
};

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

static ALWAYS_INLINE int
call_plugin (void *handle, const struct request *r)
{
  switch (r->kind) {
  case FLUSH:
    return plugin.flush (handle, r->flags);
  case PREAD:
    return plugin.pread (handle, r->buf, r->count, r->offset, r->flags);
  case CACHE:
    return plugin.cache (handle, r->count, r->offset, r->flags);
  case EXTENTS:
    return plugin.extents (handle, r->count, r->offset, r->flags, r->extents);
  case PWRITE:
    return plugin.pwrite (handle, r->buf, r->count, r->offset, r->flags);
  case TRIM:
    return plugin.trim (handle, r->count, r->offset, r->flags);
  default:
    return plugin.zero (handle, r->count, r->offset, r->flags);
  }
}

/* The same on any thread, as if it were one of H's connection: see
 * context_enter.  Returns 0 or an errno.
 */
static int
call_on_any_thread (struct handle *h, const struct request *r, bool flush,
                    struct visit *v)
{
  int err;

  context_enter (&h->connection->context, flush, v);
  nbdkit_set_error (0);
  errno = 0;
  err = call_plugin (h->plugin, r) == -1 ?
    server_error (plugin.errno_is_preserved) : 0;
  context_leave (v);
  return err;
}

static int
call_beside (struct handle *h, const struct request *r)
{
  struct visit v;

  return result (call_on_any_thread (h, r, false, &v));
}

enum part { WHOLE, PIECE, PIECE_BESIDE };

/* The one place where a request, or a piece of one, leaves the plugin.  It is
 * short because kind and part are constant where it matters.
 */
static ALWAYS_INLINE int
run_inside (struct handle *h, const struct request *request, enum part part)
{
  const bool writes = request->kind >= PWRITE;
  const int r = part == PIECE_BESIDE ? call_beside (h, request) :
    call_plugin (h->plugin, request);

  atomic_fetch_add_explicit (part != WHOLE ? &h->pieces :
                             writes ? &h->writes : &h->reads, 1,
                             memory_order_relaxed);
  return request_end (h, writes, r);
}

static ALWAYS_INLINE int
run (struct handle *h, const struct request *request, enum part part)
{
  const int err = request_begin (h, request->kind >= PWRITE, request->offset,
                                 request->count);

  return __builtin_expect (err != 0, 0) ? result (err) :
    run_inside (h, request, part);
}

/* REQUEST has failed with H: try the first handle, if it may do better, and
 * leave H.  It is given by value, so that requests that succeed need not store
 * it.
 */
static __attribute__ ((noinline)) int
run_on_first (struct spread *s, struct handle *h, struct request request,
              enum part part)
{
  const int err = server_error (plugin.errno_is_preserved);
  struct handle *first = spread_take_first (s, h);
  int r = -1;

  if (first != NULL) {
    nbdkit_set_error (0);
    errno = 0;
    r = run (first, &request, part == WHOLE ? PIECE : part);
    spread_leave (s, first);
  }
  if (r == -1) {
    spread_leave (s, h);
    return result (err);
  }
  spread_rests (s, h);
  return result (0);
}

/* Run REQUEST on the handle of the stripe that is AT this offset.  If it
 * CROSSES into another one, any handle will do that has caught up with the
 * others, and an idle one is taken.
 */
static ALWAYS_INLINE int
run_on_one (struct spread *s, const struct request *request, uint64_t at,
            enum part part, bool crosses)
{
  const bool any = crosses && !s->any;
  struct handle *h = spread_enter (s, any ? spread_idle_at (s, at) : at);
  int r;

  if (h == NULL)
    return result (errno);
  r = any && spread_width (s) > 1 ? result (handle_catches_up (h)) : 0;
  if (r == 0)
    r = run (h, request, part);
  if (request->kind < EXTENTS && s->any && __builtin_expect (r == -1, 0))
    return run_on_first (s, h, *request, part);
  spread_leave (s, h);
  return r;
}

/* Run REQUEST, on the first handle, while there is no other on C. */
static int
run_alone (struct connection *c, const struct request *request)
{
  int r = result (spread_alone_begin (c->spread));

  if (r != -1) {
    r = run (&c->handle, request, WHOLE);
    spread_alone_end (c->spread);
  }
  return r;
}

/* Returns the first piece of what is LEFT of a request, and takes it away. */
static struct request
cut (struct spread *s, struct request *left, uint64_t longest)
{
  struct request piece = *left;

  piece.count = spread_length (s, left->offset, left->count, longest);
  left->count -= piece.count;
  left->offset += piece.count;
  if (left->buf != NULL)
    left->buf = (char *) left->buf + piece.count;
  return piece;
}

/* A request is one, however many pieces it has. */
static void
count_cut (struct handle *first, enum kind kind)
{
  atomic_fetch_add_explicit (kind >= PWRITE ? &first->writes : &first->reads,
                             1, memory_order_relaxed);
}

/* A request whose pieces run at the same time. */
struct batch {
  struct job job;               /* its lock guards the rest */
  struct spread *spread;
  uint64_t longest;             /* piece */
  uint64_t help_at;             /* not before, by now_ns */
  struct request left;          /* what nobody has taken yet */
  uint64_t failed;              /* the first piece that has: its offset */
  int err;
};

/* What helpers.c calls. */
static bool
take_piece (struct job *job)
{
  struct batch *b = (struct batch *) job;
  struct spread *s = b->spread;
  const unsigned spare = spread_spare (s, job->running - 1);
  struct request piece;
  uint32_t more;
  int err;

  if (b->left.count == 0 || (spare == 0 && job->running > 1))
    return false;
  piece = cut (s, &b->left, b->longest);
  more = (b->left.count + b->longest - 1) / b->longest;
  if (more >= spare)
    more = spare > 0 ? spare - 1 : 0;
  if (more > 0 && now_ns () >= b->help_at)
    helpers_call (job, more);
  helpers_unlock ();
  /* Those of several stripes go to handles in turn, and so does the last. */
  err = run_on_one (s, &piece, piece.offset / (b->longest / s->stripe),
                    PIECE_BESIDE, b->longest > s->stripe) == -1 ?
    server_error (plugin.errno_is_preserved) : 0;
  helpers_lock ();
  if (err != 0 && (b->err == 0 || piece.offset < b->failed)) {
    b->failed = piece.offset;
    b->err = err;
  }
  return true;
}

/* All pieces end, whether one fails or not. */
static int
run_batch (struct spread *s, const struct request *request, uint64_t longest,
           uint64_t help_at)
{
  struct batch b = {
    .job = JOB_INITIALIZER (take_piece), .spread = s, .longest = longest,
    .help_at = help_at, .left = *request
  };

  helpers_share (&b.job);
  return result (b.err);
}

/* Run a request in pieces at the same time, or otherwise if that is no faster:
 * WHOLE, or with the pieces one after the other.  These get help as soon as
 * they take longer than pieces at the same time have.
 */
static int
run_faster (struct spread *s, const struct request *request, bool whole)
{
  struct ways *w = whole ? &s->whole : &s->sequence[request->kind];
  const uint64_t start = now_ns ();
  const bool beside = spread_pays (s, w);
  int r;

  if (whole && !beside)
    r = run_on_one (s, request, request->offset, WHOLE, true);
  else {
    count_cut (s->handle[0], request->kind);
    r = run_batch (s, request,
                   whole ? spread_longest (s, request->count) : s->stripe,
                   beside ? 0 : start + spread_expect (w, request->count));
  }
  spread_took (w, beside, request->count, now_ns () - start);
  return r;
}

static int
run_in_sequence (struct spread *s, const struct request *request)
{
  struct request left = *request, piece;
  struct handle *h;
  int r;

  do {
    nbdkit_set_error (0);       /* the last piece may have left one */
    h = spread_enter (s, left.offset);
    if (h == NULL)
      return result (errno);
    piece = cut (s, &left, s->stripe);
    r = run (h, &piece, piece.count < request->count ? PIECE : WHOLE);
    spread_leave (s, h);
  } while (left.count > 0 && r != -1);
  return r;
}

/* Serve a request that is long, or goes to several handles. */
static __attribute__ ((noinline)) int
serve_long (struct connection *c, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags, enum kind kind)
{
  const struct request r = { kind, count, flags, offset, buf, NULL };
  struct spread *s = c->spread;
  const bool beside = spread_cuts (s);

  if (beside)
    spread_opens (s);
  if ((kind == TRIM || kind == ZERO) && c->handle.flushable &&
      spread_is_long (s, count))
    return run_alone (c, &r);
  if (s->any || (kind < EXTENTS && c->handle.flushable &&
                 connection_is_clean (&c->handle)))
    return beside ? run_faster (s, &r, true) :
      run_on_one (s, &r, offset, WHOLE, true);
  if (beside && spread_width (s) > 1)
    return run_faster (s, &r, false);
  if (spread_width (s) > 1)
    count_cut (&c->handle, kind);
  return run_in_sequence (s, &r);
}

/* Requests that are not short: a connection may have several handles, or it is
 * not easy to get in.  The arguments are where a callback has got them, so
 * that nothing need be saved before.
 */
typedef int several_fn (struct connection *c, void *buf, uint32_t count,
                        uint64_t offset, uint32_t flags);
typedef int slow_fn (struct connection *c, void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags, bool inside);
#define SLOW(kind)                                                      \
  static __attribute__ ((noinline)) int                                 \
  several_##kind (struct connection *c, void *buf, uint32_t count,      \
                  uint64_t offset, uint32_t flags)                      \
  {                                                                     \
    const struct request r = { kind, count, flags, offset, buf, NULL }; \
                                                                        \
    return !spread_fits (c->spread, offset, count) ?                    \
      serve_long (c, buf, count, offset, flags, kind) :                 \
      run_on_one (c->spread, &r, offset, WHOLE, false);                \
  }                                                                     \
  static __attribute__ ((noinline)) int                                 \
  slow_##kind (struct connection *c, void *buf, uint32_t count,         \
               uint64_t offset, uint32_t flags, bool inside)            \
  {                                                                     \
    const struct request r = { kind, count, flags, offset, buf, NULL }; \
    const int err = request_waits (&c->handle, kind >= PWRITE, offset,  \
                                   count, inside);                      \
                                                                        \
    return err ? result (err) : run_inside (&c->handle, &r, WHOLE);     \
  }
SLOW (PREAD)
SLOW (PWRITE)
SLOW (TRIM)
SLOW (ZERO)
SLOW (CACHE)

static ALWAYS_INLINE int
serve (struct connection *c, void *buf, uint32_t count, uint64_t offset,
       uint32_t flags, enum kind kind, several_fn *several, slow_fn *slow)
{
  const struct request r = { kind, count, flags, offset, buf, NULL };
  struct handle *h = &c->handle;
  bool inside;

  if (c->spread != NULL)
    return several (c, buf, count, offset, flags);
  __asm__ ("" : "+r" (h));      /* nothing need be saved before the test */
  if (!request_enters (h, kind >= PWRITE, offset, count, &inside))
    return slow (c, buf, count, offset, flags, inside);
  return run_inside (h, &r, WHOLE);
}

int
shim_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  return serve (handle, buf, count, offset, flags, PREAD, several_PREAD,
                slow_PREAD);
}

int
shim_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  return serve (handle, (void *) buf, count, offset, flags, PWRITE,
                several_PWRITE, slow_PWRITE);
}

#define SHIM(callback, kind)                                            \
  int                                                                   \
  shim_##callback (void *handle, uint32_t count, uint64_t offset,       \
                   uint32_t flags)                                      \
  {                                                                     \
    return serve (handle, NULL, count, offset, flags, kind,             \
                  several_##kind, slow_##kind);                         \
  }
SHIM (trim, TRIM)
SHIM (zero, ZERO)
SHIM (cache, CACHE)

int
shim_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  struct connection *c = handle;
  const struct request r = { EXTENTS, count, flags, offset, NULL, extents };

  if (c->spread == NULL)
    return run (&c->handle, &r, WHOLE);
  /* An extent may go on beyond the request. */
  return run_on_one (c->spread, &r, offset, WHOLE, true);
}

int
flush_one (struct handle *h)
{
  static const struct request flush = { .kind = FLUSH };
  struct visit v;
  const int err = call_on_any_thread (h, &flush, h->resolution.replicate, &v);

  if (err != 0 && v.bare)
    log_failed_flush (&h->connection->context);
  return err;
}

/* The plugin has said that it can't flush here.  The server calls its flush
 * all the same after a FUA write that it emulates: for this connection alone.
 */
static int
flush_own (struct connection *c)
{
  struct handle *h = &c->handle;
  int err = 0, e;
  unsigned i;

  for (i = 1; h != NULL; i++) {
    control_begin (h);
    e = flush_one (h);
    control_end (h);
    if (err == 0)
      err = e;
    h = c->spread ? spread_handle (c->spread, i) : NULL;
  }
  return err;
}

int
shim_flush (void *handle, uint32_t flags)
{
  struct connection *c = handle;
  struct flushed f;

  (void) flags;                 /* there are none */
  if (!c->handle.flushable)
    return result (flush_own (c));
  f = replicate_flush (&c->handle);
  if (f.replicated)
    nbdkit_debug ("mcshim: flush: replicas %u, phases %u, %.3f ms",
                  f.replicas, f.phases, f.ns / 1e6);
  return result (f.err);
}

/* API version 1: the plugin's callbacks as if they were of version 2. */

static int
pread_v1 (void *handle, void *buf, uint32_t count, uint64_t offset,
          uint32_t flags)
{
  (void) flags;
  return plugin._pread_v1 (handle, buf, count, offset);
}

static int
pwrite_v1 (void *handle, const void *buf, uint32_t count, uint64_t offset,
           uint32_t flags)
{
  (void) flags;
  return plugin._pwrite_v1 (handle, buf, count, offset);
}

static int
flush_v1 (void *handle, uint32_t flags)
{
  (void) flags;
  return plugin._flush_v1 (handle);
}

static int
trim_v1 (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) flags;
  return plugin._trim_v1 (handle, count, offset);
}

static int
zero_v1 (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return plugin._zero_v1 (handle, count, offset,
                          (flags & NBDKIT_FLAG_MAY_TRIM) != 0);
}

void
adapt_version_1 (void)
{
#define ADAPT(callback)                                 \
  if (plugin._##callback##_v1 && !plugin.callback)      \
    plugin.callback = callback##_v1;
  ADAPT (pread)
  ADAPT (pwrite)
  ADAPT (flush)
  ADAPT (trim)
  ADAPT (zero)
#undef ADAPT
}

/* The server goes by this one when it answers can_fast_zero. */
int
shim__zero_v1 (void *handle, uint32_t count, uint64_t offset, int may_trim)
{
  return shim_zero (handle, count, offset,
                    may_trim ? NBDKIT_FLAG_MAY_TRIM : 0);
}
