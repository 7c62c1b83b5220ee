/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which of a connection's handles serves a request: see spread.h. */

#include <errno.h>
#include <stdlib.h>

#include "must.h"
#include "spread.h"

struct spread *
spread_new (const struct spread_ops *ops, struct handle *first, unsigned most,
            uint64_t stripe, bool any, bool shared, bool beside)
{
  struct spread *s = calloc (1, sizeof *s + most * sizeof s->handle[0]);

  if (s == NULL)
    return NULL;
  s->ops = ops;
  s->connection = first->connection;
  s->most = most;
  s->stripe = stripe;
  s->shift = __builtin_ctzll (stripe);
  s->any = any;
  s->mask = any ? 0 : stripe - 1;
  s->beside = beside;
  s->shared = shared;
  s->handle[0] = first;
  s->nr = 1;
  s->idle = 1;
  must (pthread_mutex_init (&s->lock, NULL));
  must (pthread_cond_init (&s->changed, NULL));
  return s;
}

void
spread_free (struct spread *s)
{
  if (s == NULL)
    return;
  must (pthread_mutex_destroy (&s->lock));
  must (pthread_cond_destroy (&s->changed));
  free (s);
}

/* Needs the lock, and lets go of it meanwhile. */
static void
wait_for_change (struct spread *s)
{
  must (pthread_cond_wait (&s->changed, &s->lock));
}

static void
announce_change (struct spread *s)
{
  must (pthread_cond_broadcast (&s->changed));
}

/* May the caller open another handle now? */
static bool
may_open (const struct spread *s)
{
  return s->nr < s->most && !s->gave_up && !s->opening;
}

/* Open another handle, which may_open.  Needs the lock, and lets go of it
 * meanwhile.  Returns NULL if there is none.
 */
static struct handle *
open_another (struct spread *s)
{
  char why[160];
  struct handle *h;

  s->opening = true;
  must (pthread_mutex_unlock (&s->lock));
  h = s->ops->open (s->connection, why, sizeof why);
  if (h == NULL)
    s->ops->gives_up (s->connection, s->nr, why);
  must (pthread_mutex_lock (&s->lock));

  s->opening = false;
  if (h != NULL) {
    h->number = s->nr;
    s->handle[s->nr++] = h;
  }
  else
    s->gave_up = true;
  announce_change (s);
  return h;
}

/* Give CLASS a handle.  The first class takes the one that is there.  If no
 * more can be opened, a class takes another's, and stays with it too.
 */
struct handle *
spread_assign (struct spread *s, unsigned class)
{
  struct handle *h = NULL;

  must (pthread_mutex_lock (&s->lock));
  while (s->opening && s->class[class] == NO_HANDLE)
    wait_for_change (s);
  if (s->class[class] == NO_HANDLE) {
    if (s->first_used && may_open (s))
      h = open_another (s);
    s->first_used = true;
    if (h == NULL)
      h = s->handle[class % s->nr];
    s->class[class] = h->number + 1;
  }
  h = s->handle[s->class[class] - 1];
  must (pthread_mutex_unlock (&s->lock));
  return h;
}

/* None is idle. */
struct handle *
spread_take_any (struct spread *s, uint64_t offset)
{
  struct handle *h = NULL;
  uint64_t idle;

  must (pthread_mutex_lock (&s->lock));
  /* First this, then look again at "idle": spread_leave does it the other
   * way round.
   */
  s->waiting++;
  while (h == NULL) {
    idle = s->idle;
    if (idle != 0) {
      if (atomic_compare_exchange_strong (&s->idle, &idle, idle & (idle - 1)))
        h = s->handle[__builtin_ctzll (idle)];
    }
    else if (may_open (s))
      h = open_another (s);
    else if (s->shared)
      h = s->handle[(offset >> s->shift) % s->nr];
    else
      wait_for_change (s);
  }
  s->waiting--;
  must (pthread_mutex_unlock (&s->lock));
  return h;
}

unsigned
spread_count (struct spread *s)
{
  unsigned nr;

  must (pthread_mutex_lock (&s->lock));
  nr = s->nr;
  must (pthread_mutex_unlock (&s->lock));
  return nr;
}

/* A thread may wait for what the caller has changed. */
void
spread_signal (struct spread *s)
{
  const int saved = errno;

  must (pthread_mutex_lock (&s->lock));
  if (s->any)
    must (pthread_cond_signal (&s->changed)); /* one handle, for one of them */
  else
    announce_change (s);
  must (pthread_mutex_unlock (&s->lock));
  errno = saved;
}

/* Flush, for the request that is alone.  Needs the lock, and lets go of it
 * meanwhile.  Returns 0 or an errno.
 */
static int
flush_alone (struct spread *s)
{
  int err;

  must (pthread_mutex_unlock (&s->lock));
  err = s->ops->flush (s->handle[0]);
  must (pthread_mutex_lock (&s->lock));
  return err;
}

/* Let others in, or if UNFLUSHED only have them flush.  Needs the lock. */
static void
open_to_others (struct spread *s, bool unflushed)
{
  s->unflushed = unflushed;
  if (!unflushed)
    s->inside &= ~ALONE;
  announce_change (s);
}

/* The last step of the request that is alone.  Needs the lock, and lets go of
 * it meanwhile.  Returns 0 or an errno.
 */
static int
flush_and_open (struct spread *s)
{
  const int err = flush_alone (s);

  open_to_others (s, err != 0);
  return err;
}

/* Wait until no request is alone, and flush what the last one could not.
 * Needs the lock, and lets go of it meanwhile.  Returns 0 or an errno.
 */
static int
wait_for_others (struct spread *s)
{
  int err;

  while (s->inside & ALONE)
    if (s->unflushed) {
      s->unflushed = false;
      err = flush_and_open (s);
      if (err != 0)
        return err;
    }
    else
      wait_for_change (s);
  return 0;
}

/* The caller, which is counted, must wait for the request that is alone.
 * Returns 0, or -1 with errno set and the caller no longer counted.
 */
int
spread_wait (struct spread *s)
{
  int err;

  must (pthread_mutex_lock (&s->lock));
  s->inside--;
  announce_change (s);
  err = wait_for_others (s);
  if (err == 0)
    s->inside++;
  must (pthread_mutex_unlock (&s->lock));
  errno = err;
  return err != 0 ? -1 : 0;
}

int
spread_alone_begin (struct spread *s)
{
  int err;

  must (pthread_mutex_lock (&s->lock));
  err = wait_for_others (s);
  if (err == 0) {
    s->inside |= ALONE;
    while (s->inside != ALONE)
      wait_for_change (s);
    err = flush_alone (s);
    if (err != 0)
      open_to_others (s, false);
  }
  must (pthread_mutex_unlock (&s->lock));
  return err;
}

int
spread_alone_end (struct spread *s)
{
  int err;

  must (pthread_mutex_lock (&s->lock));
  err = flush_and_open (s);
  must (pthread_mutex_unlock (&s->lock));
  return err;
}
