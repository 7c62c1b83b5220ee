/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Requests: see requests.h. */

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "interpose/server.h"
#include "requests.h"

#define ALWAYS_INLINE inline __attribute__ ((always_inline))

enum kind { PREAD, CACHE, EXTENTS, PWRITE, TRIM, ZERO }; /* three write */

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

/* The one place where a request, or a piece of one, leaves the plugin.  It is
 * short because the kind is a constant where it matters.
 */
static ALWAYS_INLINE int
run_inside (struct handle *h, const struct request *request)
{
  const bool writes = request->kind >= PWRITE;
  const int r = call_plugin (h->plugin, request);

  atomic_fetch_add_explicit (writes ? &h->writes : &h->reads, 1,
                             memory_order_relaxed);
  return request_end (h, writes, r);
}

static ALWAYS_INLINE int
run (struct handle *h, const struct request *request)
{
  const int err = request_begin (h, request->kind >= PWRITE, request->offset,
                                 request->count);

  return __builtin_expect (err != 0, 0) ? result (err) :
    run_inside (h, request);
}

/* Run PIECE, which one handle serves, on that.  Any thread may do so. */
static ALWAYS_INLINE int
run_piece (struct spread *s, const struct request *piece)
{
  struct handle *h = spread_enter (s, piece->offset);
  int r;

  if (h == NULL)
    return result (errno);
  r = run (h, piece);
  spread_leave (s, h);
  return r;
}

/* Run REQUEST, on the first handle, while there is no other on C. */
static int
run_alone (struct connection *c, const struct request *request)
{
  int r = result (spread_alone_begin (c->spread)), failed, err;

  if (r != -1) {
    r = run (&c->handle, request);
    failed = r == -1 ? server_error (plugin.errno_is_preserved) : 0;
    err = spread_alone_end (c->spread);
    if (failed || err)
      r = result (failed ? failed : err);
  }
  return r;
}

/* Serve a request that goes to several handles. */
static __attribute__ ((noinline)) int
serve_pieces (struct connection *c, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags, enum kind kind)
{
  struct request piece = { kind, count, flags, offset, buf, NULL };
  uint32_t left = count;
  int r;

  if ((kind == TRIM || kind == ZERO) && c->handle.flushable &&
      spread_is_long (c->spread, count))
    return run_alone (c, &piece);
  do {
    nbdkit_set_error (0);       /* the last piece may have left one */
    piece.count = spread_length (c->spread, piece.offset, left);
    r = run_piece (c->spread, &piece);
    left -= piece.count;
    piece.offset += piece.count;
    if (piece.buf != NULL)
      piece.buf = (char *) piece.buf + piece.count;
  } while (left > 0 && r != -1);
  return r;
}

/* Requests that are not short: a connection may have several handles, or it is
 * not easy to get in.  The arguments are where a callback has got them, so that
 * nothing need be saved before.
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
    return spread_length (c->spread, offset, count) < count ?           \
      serve_pieces (c, buf, count, offset, flags, kind) :               \
      run_piece (c->spread, &r);                                        \
  }                                                                     \
  static __attribute__ ((noinline)) int                                 \
  slow_##kind (struct connection *c, void *buf, uint32_t count,         \
               uint64_t offset, uint32_t flags, bool inside)            \
  {                                                                     \
    const struct request r = { kind, count, flags, offset, buf, NULL }; \
    const int err = request_waits (&c->handle, kind >= PWRITE, offset,  \
                                   count, inside);                      \
                                                                        \
    return err ? result (err) : run_inside (&c->handle, &r);            \
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
  return run_inside (h, &r);
}

int
shim_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  return serve (handle, buf, count, offset, flags, PREAD, several_PREAD, slow_PREAD);
}

int
shim_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  return serve (handle, (void *) buf, count, offset, flags, PWRITE, several_PWRITE, slow_PWRITE);
}

int
shim_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return serve (handle, NULL, count, offset, flags, TRIM, several_TRIM, slow_TRIM);
}

int
shim_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return serve (handle, NULL, count, offset, flags, ZERO, several_ZERO, slow_ZERO);
}

int
shim_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return serve (handle, NULL, count, offset, flags, CACHE, several_CACHE, slow_CACHE);
}

/* Ask one handle, which may tell about what others have served. */
static int
ask_one (struct connection *c, const struct request *r)
{
  struct handle *h = spread_enter (c->spread, r->offset);
  int err, ret;

  if (h == NULL)
    return result (errno);
  err = handle_catches_up (h);
  ret = err ? result (err) : run (h, r);
  spread_leave (c->spread, h);
  return ret;
}

int
shim_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  struct connection *c = handle;
  const struct request r = { EXTENTS, count, flags, offset, NULL, extents };

  if (c->spread == NULL)
    return run (&c->handle, &r);
  return c->spread->any || !c->handle.flushable ?
    run_piece (c->spread, &r) : ask_one (c, &r);
}

int
flush_one (struct handle *h)
{
  struct visit v;
  int r;

  context_enter (&h->connection->context, h->resolution.replicate, &v);
  nbdkit_set_error (0);
  errno = 0;
  r = plugin.flush (h->plugin, 0) == -1 ?
    server_error (plugin.errno_is_preserved) : 0;
  context_leave (&v);
  if (r != 0 && v.bare)
    log_failed_flush (&h->connection->context);
  return r;
}

/* The plugin has said that it can't flush here.  The server calls its flush
 * all the same after a FUA write that it emulates: for this connection alone.
 */
static int
flush_own (struct connection *c)
{
  const unsigned nr = c->spread ? spread_count (c->spread) : 1;
  int err = 0, e;
  struct handle *h;
  unsigned i;

  for (i = 0; i < nr; i++) {
    h = c->spread ? spread_handle (c->spread, i) : &c->handle;
    control_begin (h);
    e = flush_one (h);
    control_end (h);
    if (err == 0)
      err = e;
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
