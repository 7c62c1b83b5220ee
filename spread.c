/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which of a connection's handles serves a request: see spread.h. */

#include <errno.h>
#include <stdlib.h>

#include "latency.h"
#include "must.h"
#include "spread.h"

/* After an open that has failed, the next one is so much later. */
#define RETRY_NS UINT64_C (60000000000)

static bool open_beside (struct job *job);

struct spread *
spread_new (const struct spread_ops *ops, struct handle *first, unsigned most,
            uint64_t stripe, bool any, bool shared, bool beside)
{
  struct spread *s = calloc (1, sizeof *s + most * sizeof s->handle[0]);

  if (s == NULL)
    return NULL;
  s->job = (struct job) JOB_INITIALIZER (open_beside);
  s->ops = ops;
  s->connection = first->connection;
  s->most = most;
  s->stripe = stripe;
  s->shift = __builtin_ctzll (stripe);
  s->any = any;
  s->mask = s->any ? 0 : stripe - 1;
  s->beside = beside;
  s->shared = shared;
  s->enough = any;
  s->handle[0] = first;
  s->nr = 1;
  s->idle = 1;
  s->modulus = 1;
  s->alert = 1;
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

/* A thread may wait for what the caller has changed. */
void
spread_signal (struct spread *s)
{
  const int saved = errno;

  must (pthread_mutex_lock (&s->lock));
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

/* Wait until no request is alone, and flush what the last one has done.
 * Needs the lock, and lets go of it meanwhile.  Returns 0 or an errno.
 */
static int
wait_for_others (struct spread *s)
{
  int err;

  while (s->inside & ALONE)
    if (s->unflushed) {
      s->unflushed = false;
      err = flush_alone (s);
      open_to_others (s, err != 0);
      if (err != 0)
        return err;
    }
    else
      wait_for_change (s);
  return 0;
}

/* Have the connection to oneself.  Needs the lock, and lets go of it
 * meanwhile.
 */
static void
be_alone (struct spread *s)
{
  s->unflushed = false;
  s->inside |= ALONE;
  while (s->inside != ALONE)
    wait_for_change (s);
}

/* And flush it, for which nothing may be unflushed.  Returns 0, or an errno:
 * then it was for nothing.
 */
static int
flush_and_be_alone (struct spread *s)
{
  int err = wait_for_others (s);

  if (err == 0) {
    be_alone (s);
    err = flush_alone (s);
    if (err != 0)
      open_to_others (s, false);
  }
  return err;
}

/* Would more handles be used, and may they be opened now?  Needs the lock. */
static bool
wants_more (struct spread *s)
{
  return spread_width (s) < s->most && !s->closing &&
    (!s->enough || s->nr == 1) &&
    (s->retry_at == 0 || now_ns () >= s->retry_at);
}

/* Open another handle, and use what is open if it is time to.  Needs the lock,
 * and lets go of it meanwhile.
 */
static void
open_one (struct spread *s)
{
  const unsigned twice = 2 * s->modulus;
  const unsigned goal = s->any || twice > s->most ? s->most : twice;
  struct handle *h;
  char why[160];
  bool ok = true, say;

  if (s->nr < goal) {
    must (pthread_mutex_unlock (&s->lock));
    h = s->ops->open (s->connection, why, sizeof why);
    must (pthread_mutex_lock (&s->lock));
    ok = h != NULL;
    say = !ok && !s->said;
    if (ok) {
      h->number = s->nr;
      s->handle[s->nr] = h;
      s->nr++;
      s->idle |= (uint64_t) 1 << h->number;
      announce_change (s);
    }
    else
      s->said = true;
    if (say) {
      must (pthread_mutex_unlock (&s->lock));
      s->ops->gives_up (s->connection, s->nr, why);
      must (pthread_mutex_lock (&s->lock));
    }
  }
  if (!s->any && s->nr > s->modulus && (s->nr == goal || !ok)) {
    if (flush_and_be_alone (s) == 0) {
      s->modulus = s->nr;
      open_to_others (s, false);
    }
    else
      ok = false;
  }
  if (!ok)
    s->retry_at = now_ns () + RETRY_NS;
}

/* Use the handles again that have rested long enough.  Needs the lock. */
static void
wake_up (struct spread *s)
{
  if (s->resting != 0 && now_ns () >= s->retry_at)
    s->idle |= atomic_exchange (&s->resting, 0);
}

/* Others may open handles again.  Needs the lock. */
static void
end_opening (struct spread *s)
{
  s->opening = false;
  s->alert = spread_width (s) < s->most ? 1 : ALONE;
}

/* What helpers.c calls: for one handle each time, as the server may end. */
static bool
open_beside (struct job *job)
{
  struct spread *s = (struct spread *) job;
  bool more;

  helpers_unlist (job);
  helpers_unlock ();
  must (pthread_mutex_lock (&s->lock));
  open_one (s);
  more = wants_more (s);
  if (!more)
    end_opening (s);
  must (pthread_mutex_unlock (&s->lock));
  helpers_lock ();
  if (more) {
    helpers_list (job);
    helpers_call (job, 1);      /* this thread may find other work first */
  }
  return true;
}

static bool
has_helper (struct spread *s)
{
  bool r;

  if (!s->beside)
    return false;
  helpers_lock ();
  helpers_list (&s->job);
  r = helpers_call (&s->job, 1);
  if (!r)
    helpers_unlist (&s->job);
  helpers_unlock ();
  return r;
}

/* Have more handles opened if they are wanted: if no thread helps, one, by the
 * caller, which is not inside.  Needs the lock, and lets go of it meanwhile.
 * Returns false if nothing was to be done.
 */
static bool
opens (struct spread *s)
{
  bool helped;

  if (s->opening || !wants_more (s))
    return false;
  s->opening = true;
  s->alert = ALONE;
  must (pthread_mutex_unlock (&s->lock));
  helped = has_helper (s);
  must (pthread_mutex_lock (&s->lock));
  if (!helped) {
    open_one (s);
    end_opening (s);
  }
  return true;
}

/* None is idle. */
struct handle *
spread_take_any (struct spread *s, uint64_t offset)
{
  struct handle *h = NULL;
  uint64_t idle;
  unsigned number;

  must (pthread_mutex_lock (&s->lock));
  /* First this, then look again at "idle": spread_leave does it the other
   * way round.
   */
  s->waiting++;
  s->enough = false;
  while (h == NULL) {
    wake_up (s);
    idle = s->idle;
    if (idle != 0) {
      if (atomic_compare_exchange_strong (&s->idle, &idle, idle & (idle - 1)))
        h = s->handle[__builtin_ctzll (idle)];
    }
    else if (opens (s))
      ;
    else if (s->shared) {
      number = (offset >> s->shift) % s->nr;
      h = s->handle[s->resting >> number & 1 ? 0 : number];
    }
    else
      wait_for_change (s);
  }
  s->waiting--;
  must (pthread_mutex_unlock (&s->lock));
  return h;
}

void
spread_opens (struct spread *s)
{
  must (pthread_mutex_lock (&s->lock));
  wake_up (s);
  opens (s);
  must (pthread_mutex_unlock (&s->lock));
}

struct handle *
spread_take_first (struct spread *s, const struct handle *h)
{
  struct handle *first = s->handle[0];

  if (!s->any || h == first)
    return NULL;
  must (pthread_mutex_lock (&s->lock));
  s->waiting++;
  while (!(atomic_fetch_and (&s->idle, ~(uint64_t) 1) & 1) && !s->shared)
    wait_for_change (s);
  s->waiting--;
  must (pthread_mutex_unlock (&s->lock));
  return first;
}

void
spread_rests (struct spread *s, const struct handle *h)
{
  bool say;

  must (pthread_mutex_lock (&s->lock));
  s->resting |= (uint64_t) 1 << h->number;
  s->retry_at = now_ns () + RETRY_NS;
  say = !s->said;
  s->said = true;
  must (pthread_mutex_unlock (&s->lock));
  if (say)
    s->ops->gives_up (s->connection,
                      s->nr - __builtin_popcountll (s->resting),
                      "a read failed with one, and not with the first");
}

/* So many are tried at first; and one of so many goes the other way. */
#define TRIES 2
#define TRY_AGAIN 256

bool
spread_pays (struct spread *s, struct ways *w)
{
  const unsigned width = spread_width (s);
  unsigned n;
  bool faster, more;

  if (width == 1)
    return false;
  if (width >= 2 * w->tried || (width == s->most && width != w->tried)) {
    w->tried = width;
    w->tries = 0;
  }
  n = w->tries++;
  if (n == 0 || w->took[false] == 0)
    return n < TRIES;
  /* The processor time that it costs is not all seen here. */
  faster = 4 * w->took[true] <= 3 * w->took[false];
  more = faster && s->enough;
  s->enough = s->any && !faster;
  if (more)
    spread_opens (s);
  return n < TRIES || (n % TRY_AGAIN == 0 ? !faster : faster);
}

/* A shorter time is believed at once: a request that goes the wrong way then
 * tells.  A longer one may be an accident.
 */
void
spread_took (struct ways *w, bool beside, uint32_t len, uint64_t took)
{
  const uint64_t old = w->took[beside];

  took = took * 65536 / len;
  if (old != 0 && took > old && !(beside && w->tries <= TRIES))
    took = old + (took > 2 * old ? old : took - old) / 4;
  w->took[beside] = took;
}

void
spread_close (struct spread *s)
{
  must (pthread_mutex_lock (&s->lock));
  s->closing = true;
  must (pthread_mutex_unlock (&s->lock));
  helpers_leave (&s->job);
}

/* The caller, which is counted, must wait for the request that is alone, or
 * more handles may be wanted.  Returns 0, or -1 with errno set and the caller
 * no longer counted.
 */
int
spread_look (struct spread *s)
{
  int err;

  if (!(s->inside & ALONE) && now_ns () < s->retry_at)
    return 0;
  must (pthread_mutex_lock (&s->lock));
  s->inside--;
  announce_change (s);
  opens (s);
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
  int err = 0;

  must (pthread_mutex_lock (&s->lock));
  while (s->inside & ALONE && !s->unflushed)
    wait_for_change (s);
  if (s->unflushed)             /* only the first handle holds anything */
    be_alone (s);
  else
    err = flush_and_be_alone (s);
  must (pthread_mutex_unlock (&s->lock));
  return err;
}

void
spread_alone_end (struct spread *s)
{
  const int saved = errno;

  must (pthread_mutex_lock (&s->lock));
  open_to_others (s, true);
  must (pthread_mutex_unlock (&s->lock));
  errno = saved;
}
