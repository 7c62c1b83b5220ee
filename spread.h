/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which of a connection's handles serves a request, if there may be several.
 * Nothing here depends on nbdkit: the caller passes in how to open a handle.
 *
 * A connection that only reads takes any idle handle.  One that can write
 * chooses by range.  The export is cut into stripes, and these are dealt out
 * in turn to the handles that are in use: as many as "modulus" says.  So even
 * if handles share nothing, a request finds what was done before in the same
 * place, and in that order.  A request that crosses into another stripe is cut
 * there.
 *
 * A zero or trim of very many stripes would need as many calls.  It is one
 * call of the first handle instead, alone on its connection, between two
 * flushes.  The first one writes back all that the handles hold, so that none
 * of it later overwrites the zeroes.  The second one is the next request's, if
 * that is not such a zero again.  After it no handle has an older copy, and no
 * zero later overwrites what others have written.  Until it succeeds no
 * request is let in.
 *
 * At first one handle is in use.  More are opened one at a time, by a thread
 * that helps if there is one, once a request comes while another is inside, or
 * is cut.  Requests go on meanwhile.  With "any" a new handle is in use at
 * once; for requests that come one at a time there are two until it shows that
 * pieces are faster.  Otherwise there are twice as many in use when that many
 * are open, or all when no more can be opened.  Stripes then go to other
 * handles, so this is done alone, too, after a flush.
 *
 * If an open fails, the next one is some time later.  If a read fails with a
 * handle, and not with the first one, that handle is left alone as long: a
 * server may allow fewer connections.
 */

#ifndef MCSHIM_SPREAD_H
#define MCSHIM_SPREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "helpers.h"
#include "policy.h"
#include "replicate.h"

struct spread_ops {
  /* Open a further handle of C.  Returns NULL with the reason in WHY, of
   * SIZE bytes.
   */
  struct handle *(*open) (struct connection *c, char *why, size_t size);

  /* C goes on with NR handles for a while, for WHY.  Called once. */
  void (*gives_up) (struct connection *c, unsigned nr, const char *why);

  /* Flush all handles of H's connection.  Returns 0 or an errno. */
  int (*flush) (struct handle *h);
};

/* Of a request.  From PWRITE on they write. */
enum kind { FLUSH, PREAD, CACHE, EXTENTS, PWRITE, TRIM, ZERO, KINDS };

/* What is learnt of requests: do their pieces run at the same time, or not?
 * Two requests that mix it up do no harm.
 */
struct ways {
  _Atomic unsigned tries;       /* with "tried" handles in use */
  _Atomic unsigned tried;
  _Atomic uint64_t took[2];     /* for 64 KiB: not, and at the same time */
};

/* In "inside", besides the count. */
#define ALONE ((uint64_t) 1 << 63)

struct spread {
  struct job job;               /* to open handles; first */

  /* Constant. */
  const struct spread_ops *ops;
  struct connection *connection;
  unsigned most;                /* handles */
  unsigned shift;               /* log2 of the stripe */
  uint64_t stripe;
  uint64_t mask;                /* of the offset in it; 0 with "any" */
  bool any;                     /* any handle may serve any request */
  bool shared;                  /* if none is idle, a busy one will do */
  bool beside;                  /* other threads may call the plugin */

  _Atomic uint64_t idle;        /* with "any": a bit for each handle */
  _Atomic uint64_t inside;      /* otherwise: pieces */
  _Atomic uint64_t alert;       /* that many want another handle, or ALONE */
  _Atomic unsigned modulus;     /* handles in use; changes while ALONE */
  _Atomic uint64_t resting;     /* handles that are left alone, as bits */
  _Atomic unsigned waiting;     /* for an idle handle */
  _Atomic unsigned nr;          /* of handles */
  _Atomic uint64_t retry_at;    /* no open before that time */

  _Atomic bool enough;          /* no more for pieces, but a second one */
  struct ways whole;            /* of those that need not be cut */
  struct ways sequence[KINDS];  /* of those that must be, by kind */

  pthread_mutex_t lock;         /* guards the rest, and each wait */
  pthread_cond_t changed;
  bool opening;                 /* somebody opens handles */
  bool closing;                 /* nobody should */
  bool said;                    /* that an open has failed */
  bool unflushed;               /* ALONE is set, until the next one flushes */
  struct handle *handle[];      /* constant once it is there */
};

/* For the connection of the handle FIRST.  MOST is at least 2, and STRIPE a
 * power of two.  SHARED: the plugin takes requests of one handle in parallel.
 * BESIDE: other threads may call it for this connection.  Returns NULL with
 * errno set.
 */
extern struct spread *spread_new (const struct spread_ops *ops,
                                  struct handle *first, unsigned most,
                                  uint64_t stripe, bool any, bool shared,
                                  bool beside);
extern void spread_free (struct spread *s);

/* Wait until no handle is being opened, and open no more. */
extern void spread_close (struct spread *s);

/* A request could use more handles: see that they are opened. */
extern void spread_opens (struct spread *s);

/* Between the two, the caller, which is not inside, has the connection to
 * itself, and uses its first handle: what was inside has come out, and nothing
 * comes in.  What is in other handles is flushed before.  Returns 0, or the
 * errno of that flush: then do not call the second.  The next request flushes
 * before it is let in.  spread_alone_end leaves errno alone.
 */
extern int spread_alone_begin (struct spread *s);
extern void spread_alone_end (struct spread *s);

/* All handles, by number from 0; NULL if there are not so many. */
static inline struct handle *
spread_handle (struct spread *s, unsigned number)
{
  return number < atomic_load (&s->nr) ? s->handle[number] : NULL;
}

/* H is not the first one, and a read failed with it: take the first one
 * besides.  Returns NULL if there is no point in it.
 */
extern struct handle *spread_take_first (struct spread *s,
                                         const struct handle *h);

/* Instead of spread_leave: with the first one it succeeded. */
extern void spread_rests (struct spread *s, const struct handle *h);

/* How many handles are in use? */
static inline unsigned
spread_width (struct spread *s)
{
  return atomic_load (s->any ? &s->nr : &s->modulus);
}

/* Slow paths of the functions below; not for anyone else. */
extern int spread_look (struct spread *s);
extern void spread_signal (struct spread *s);
extern struct handle *spread_take_any (struct spread *s, uint64_t offset);

/* Does one handle serve LEN bytes at OFFSET?  With "any" it could serve more,
 * but they can be cut.
 */
static inline bool
spread_fits (const struct spread *s, uint64_t offset, uint32_t len)
{
  return (offset & s->mask) + len <= s->stripe;
}

/* The longest piece of LEN bytes that any handle may serve.  While fewer are
 * in use it is longer: so a request takes no more calls of a handle.
 */
static inline uint64_t
spread_longest (struct spread *s, uint32_t len)
{
  const unsigned width = spread_width (s);
  uint64_t stripes = (len + s->stripe - 1) >> s->shift;

  if (stripes > s->most)
    stripes = s->most;
  return (stripes + width - 1) / width << s->shift;
}

/* How long is the first piece of LEN bytes at OFFSET, of up to LONGEST, which
 * is a multiple of the stripe?  While one handle is in use, which the caller
 * sees to, it is all of them.
 */
static inline uint32_t
spread_length (struct spread *s, uint64_t offset, uint32_t len,
               uint64_t longest)
{
  const uint64_t left = longest - (offset & (s->stripe - 1));

  return len <= left || spread_width (s) == 1 ? len : left;
}

/* Is a request too long to be cut?  Up to so many calls of a handle, one after
 * the other, are no worse than being alone between two flushes.
 */
#define PIECES_OF_HANDLE 4

static inline bool
spread_is_long (struct spread *s, uint32_t len)
{
  const unsigned width = spread_width (s);

  return !s->any && width > 1 &&
    (uint64_t) len >> s->shift > PIECES_OF_HANDLE * width;
}

/* May the pieces of a request run at the same time?  With "any" it need not be
 * cut: requests that come side by side use the handles already, and a plugin
 * that takes many on a handle loses by it.
 */
static inline bool
spread_cuts (struct spread *s)
{
  const uint64_t all = ((uint64_t) 2 << (atomic_load (&s->nr) - 1)) - 1;

  return s->beside &&
    (!s->any || (!s->shared && atomic_load (&s->idle) ==
                 (all & ~atomic_load (&s->resting))));
}

/* How many more threads could call the plugin at the same time, if they take
 * the right handles?  Besides the caller, so many OTHERS do it already, or are
 * about to.
 */
static inline unsigned
spread_spare (struct spread *s, unsigned others)
{
  const unsigned width = s->shared ? HANDLES_MAX : spread_width (s);
  uint64_t inside = s->any ?
    width - __builtin_popcountll (atomic_load (&s->idle)) :
    atomic_load (&s->inside) & ~ALONE;

  if (inside < others)
    inside = others;
  return inside < width ? width - inside : 0;
}

/* Does it pay to run pieces at the same time?  That depends on what is behind
 * the plugin: a connection that is slow, or an answer that takes its time
 * however long it is, or memory.  So both ways are tried, and this one is taken
 * from then on if it saves a quarter.  While one handle is in use it is not.
 * When there are twice as many, it is for two requests.  Now and then the other
 * way is tried again.  Say afterwards what it TOOK for LEN bytes, in
 * nanoseconds.
 */
extern bool spread_pays (struct spread *s, struct ways *w);
extern void spread_took (struct ways *w, bool beside, uint32_t len,
                         uint64_t took);

/* How long would LEN bytes take with pieces at the same time? */
static inline uint64_t
spread_expect (const struct ways *w, uint32_t len)
{
  return w->took[true] * len / 65536;
}

/* Any handle may serve the request at OFFSET.  Returns where there is one that
 * is idle, for spread_enter; the stripe's own if it is, or none is.
 */
static inline uint64_t
spread_idle_at (struct spread *s, uint64_t offset)
{
  const unsigned width = spread_width (s);
  const uint64_t stripe = offset >> s->shift;
  unsigned i;

  for (i = 0; i < width; i++)
    if (INSIDE (atomic_load (&s->handle[(stripe + i) % width]->state)) == 0)
      return (stripe + i) << s->shift;
  return offset;
}

/* Around each piece of a request.  Returns the handle for it, or NULL with
 * errno set if a flush that had to come first has failed.  Then do not call
 * spread_leave.
 */
static inline struct handle *
spread_enter (struct spread *s, uint64_t offset)
{
  uint64_t inside, idle;

  if (!s->any) {
    inside = atomic_fetch_add (&s->inside, 1);
    if (__builtin_expect (inside >= atomic_load_explicit
                          (&s->alert, memory_order_relaxed), 0) &&
        spread_look (s) == -1)
      return NULL;
    return s->handle[(offset >> s->shift) %
                     atomic_load_explicit (&s->modulus, memory_order_relaxed)];
  }

  idle = atomic_load_explicit (&s->idle, memory_order_relaxed);
  while (__builtin_expect (idle != 0, 1))
    if (atomic_compare_exchange_weak (&s->idle, &idle, idle & (idle - 1)))
      return s->handle[__builtin_ctzll (idle)];
  return spread_take_any (s, offset);
}

/* Leaves errno alone. */
static inline void
spread_leave (struct spread *s, const struct handle *h)
{
  bool waited_for;

  if (!s->any)
    waited_for = atomic_fetch_sub (&s->inside, 1) & ALONE;
  else {
    atomic_fetch_or (&s->idle, (uint64_t) 1 << h->number);
    waited_for = atomic_load (&s->waiting) > 0;
  }
  if (__builtin_expect (waited_for, 0))
    spread_signal (s);
}

#endif /* MCSHIM_SPREAD_H */
