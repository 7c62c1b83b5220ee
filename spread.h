/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which of a connection's handles serves a request, if there may be several.
 * Nothing here depends on nbdkit: the caller passes in how to open a handle.
 *
 * A connection that only reads takes any idle handle.  One that can write
 * chooses by range.  The export is cut into stripes, and these are dealt out
 * to as many classes as there may be handles.  A class always stays with the
 * handle that its first request got.  So even if handles share nothing, a
 * request finds what was done before in the same place, and in that order.
 * A request that crosses into another stripe is split there.
 *
 * A zero or trim of very many stripes would need as many calls.  It is one
 * call instead, alone on its connection, between two flushes.  The first one
 * writes back all that the handles hold, so that none of it later overwrites
 * the zeroes.  After the second one no handle has an older copy, and no zero
 * later overwrites what others have written.  Until it succeeds no request is
 * let in.
 *
 * Handles are opened when first needed, by the request that needs one, and one
 * at a time: meanwhile others use what is there, if any handle will do.  Once
 * an open has failed, no more are opened.
 */

#ifndef MCSHIM_SPREAD_H
#define MCSHIM_SPREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "policy.h"
#include "replicate.h"

struct spread_ops {
  /* Open a further handle of C.  Returns NULL with the reason in WHY, of
   * SIZE bytes.  The connection has a request under way, on this thread.
   */
  struct handle *(*open) (struct connection *c, char *why, size_t size);

  /* C goes on with NR handles, for WHY.  Called once. */
  void (*gives_up) (struct connection *c, unsigned nr, const char *why);

  /* Flush all handles of H's connection.  Returns 0 or an errno. */
  int (*flush) (struct handle *h);
};

/* In "inside", besides the count. */
#define ALONE ((uint64_t) 1 << 63)

/* In "class". */
#define NO_HANDLE 0             /* yet; otherwise the handle's number plus 1 */

struct spread {
  /* Constant. */
  const struct spread_ops *ops;
  struct connection *connection;
  unsigned most;                /* handles */
  unsigned shift;               /* log2 of the stripe */
  uint64_t stripe;
  uint64_t mask;                /* of the offset in it, unless "any" */
  bool beside;                  /* other threads may call the plugin */
  bool any;                     /* any handle may serve any request */
  bool shared;                  /* if none is idle, a busy one will do */

  _Atomic uint64_t idle;        /* with "any": a bit for each handle */
  _Atomic uint64_t inside;      /* otherwise: pieces */
  _Atomic unsigned waiting;     /* for an idle handle */
  _Atomic uint8_t class[HANDLES_MAX];

  pthread_mutex_t lock;         /* guards the rest, and each wait */
  pthread_cond_t changed;
  _Atomic unsigned nr;          /* of handles */
  bool opening;                 /* another one is about to be there */
  bool first_used;              /* the first one has a class */
  bool gave_up;                 /* no more are opened */
  bool unflushed;               /* ALONE is set, and is nobody's */
  struct handle *handle[];      /* constant once it is there */
};

/* For the connection of the handle FIRST.  MOST is at least 2, and STRIPE a
 * power of two.  SHARED: the plugin takes requests of one handle in parallel.
 * Returns NULL with errno set.
 */
extern struct spread *spread_new (const struct spread_ops *ops,
                                  struct handle *first, unsigned most,
                                  uint64_t stripe, bool any, bool shared,
                                  bool beside);
extern void spread_free (struct spread *s);

/* Between the two, the caller, which is not inside, has the connection to
 * itself: what was inside has come out, and nothing comes in.  Each of them
 * flushes, and returns 0 or the errno of that flush.  If the first one fails,
 * do not call the second.  If the second one fails, the next request tries
 * that flush again first.
 */
extern int spread_alone_begin (struct spread *s);
extern int spread_alone_end (struct spread *s);

/* How many handles there are, each that a request has used among them. */
extern unsigned spread_count (struct spread *s);

/* All handles, by number from 0.  No request may be under way. */
static inline struct handle *
spread_handle (const struct spread *s, unsigned number)
{
  return number < s->nr ? s->handle[number] : NULL;
}

/* Slow paths of the functions below; not for anyone else. */
extern int spread_wait (struct spread *s);
extern void spread_signal (struct spread *s);
extern struct handle *spread_take_any (struct spread *s, uint64_t offset);
extern struct handle *spread_assign (struct spread *s, unsigned class);

/* Does one handle serve LEN bytes at OFFSET?  With "any" it could serve more,
 * but they can be cut.
 */
static inline bool
spread_fits (const struct spread *s, uint64_t offset, uint32_t len)
{
  return (offset & s->mask) + len <= s->stripe;
}

/* How long is the first piece of LEN bytes at OFFSET? */
static inline uint32_t
spread_length (const struct spread *s, uint64_t offset, uint32_t len)
{
  const uint64_t left = s->stripe - (offset & (s->stripe - 1));

  return len <= left ? len : left;
}

/* May a request be cut, for handles that are all idle now? */
static inline bool
spread_cuts (struct spread *s)
{
  return s->beside && !s->shared &&
    (s->any ? atomic_load (&s->idle) == ((uint64_t) 2 << (s->nr - 1)) - 1 :
     atomic_load (&s->inside) == 0);
}

/* So many of its pieces can run at the same time. */
static inline unsigned
spread_width (const struct spread *s)
{
  return s->most;
}

/* Is a request too long to be split?  Up to so many calls, one after the
 * other, are no worse than being alone with two flushes.
 */
#define PIECES_OF_HANDLE 4

static inline bool
spread_is_long (const struct spread *s, uint32_t len)
{
  return !s->any && (uint64_t) len >> s->shift > PIECES_OF_HANDLE * s->most;
}

/* Around each piece of a request.  Returns the handle for it, or NULL with
 * errno set if a flush that had to come first has failed.  Then do not call
 * spread_leave.
 */
static inline struct handle *
spread_enter (struct spread *s, uint64_t offset)
{
  unsigned class, number;
  uint64_t idle;

  if (!s->any) {
    /* __builtin_expect takes a long, which may lack this bit. */
    if (__builtin_expect ((atomic_fetch_add (&s->inside, 1) & ALONE) != 0, 0) &&
        spread_wait (s) == -1)
      return NULL;
    class = (offset >> s->shift) % s->most;
    number = atomic_load_explicit (&s->class[class], memory_order_acquire);
    if (__builtin_expect (number == NO_HANDLE, 0))
      return spread_assign (s, class);
    return s->handle[number - 1];
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
