/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The group of handles: marks, and the replicated flush.
 *
 * The promise: when a flush returns success on any connection of a group,
 * every write, zero and trim that had returned on any of them before the
 * flush was entered is durable (Durable), and every read that begins from
 * then on sees it (Visible).  The plugin keeps its caches per handle, so
 * one client flush becomes a plugin flush, a replica, on each handle that
 * needs one.
 *
 * A group replicates or it does not.  Its first connection settles that,
 * until the group is empty.  If it does not, a flush is passed on to its own
 * handle, and is skipped only in the modes that say so.
 *
 * Marks.  A handle becomes WRITE_DIRTY when a write, zero or trim has
 * returned from the plugin, before the server learns of it.  It becomes
 * READ_MARKED when any request enters.  A flush takes WRITE_DIRTY before
 * it begins, so a write that overlaps the flush leaves its mark behind.
 * It takes READ_MARKED only if no request is inside: what a request has
 * fetched may reach its handle's cache after the flush.  A flush that
 * fails puts back what it took.
 *
 * Write-backs, the flushes that take WRITE_DIRTY, are numbered in each
 * group as they end.  "seen" of a handle is such a number: nothing in the
 * handle, or fetched by a request inside it, is older than that
 * write-back.  A flush that has the handle to itself, from beginning to
 * end, advances "seen" to the number as of when the flush began.
 *
 * A round is one replicated flush:
 *
 *   1. Every WRITE_DIRTY handle gets a replica.  The round also waits for
 *      write-backs that have begun outside rounds: they have taken marks.
 *   2. Then every handle that has not seen the last write-back gets one.
 *      At level "connection" these are handles with a mark: the others
 *      hold nothing.  At "fast" and "off" they are all handles: one may
 *      hold a copy from its open or from a thread of the plugin.
 *
 * A replica of the first phase waits for at most the one request inside
 * its handle, and only if the plugin takes one at a time: it is left
 * PENDING, that request runs it as it ends, and the others of the round
 * go on meanwhile.  A replica of the second phase waits for nothing.  If
 * a request is inside the handle, or enters meanwhile, the handle OWES a
 * flush instead: the next request runs it, once the handle is empty and
 * before it enters the plugin.
 *
 * Flushes that arrive while a round runs share the next one: the running
 * round may have passed their handle already.
 *
 * A handle whose open overlapped a write-back may have been opened with
 * an older copy: it is flushed before the open returns.
 *
 * Order.  Of two writes of one block, of which the second begins after the
 * reply to the first, the second wins, though they come in on two handles.
 * So no two handles hold the same block unflushed.  A write claims its blocks
 * in the group's table (order.h) once it is counted inside.  If another
 * handle has one of them it goes out again.  It has a round flush the other
 * handle, and nothing else, while no write is inside that one; it owes a
 * flush itself if it has not seen that write-back; and it begins again.  What
 * the other handle wrote before its flush began is then past.  A flush makes
 * the next spell current before it looks whether a write is inside, and ends
 * the spell only if none was: a write is counted before it claims.
 *
 * Exclusion.  "lock" guards the groups and everything else unless a
 * comment says otherwise; it is never held during a callback.  If the
 * plugin takes one request at a time the count in the state word is at
 * most one, and whoever counted it up, a request or a flush, has the
 * handle.  At SERIALIZE_ALL the server holds one lock around every callback, and the
 * replicas run on the thread on which it calls us.  Lock order: the
 * server's locks, a handle, "lock".  Whoever has a handle does not wait
 * for another one.
 *
 * Closing.  A handle that closes waits for a replica that is inside it.
 * If a replica is queued, it runs that itself; otherwise it flushes what
 * is WRITE_DIRTY outside any round.  Then it leaves the lists, under
 * "lock", and nothing is called on it again.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "helpers.h"
#include "interpose/oldglibc.h"
#include "replicate.h"

/* How often whoever waits for a round looks whether the server ends. */
#define LOOK_SECONDS 1

#define MARKS (WRITE_DIRTY | READ_MARKED | OWES)

struct waiter {
  struct waiter *next;
  struct handle *handle;        /* which the client flushes; NULL: only those
                                 * that are held */
  bool client;                  /* a client has asked for it */
  bool done;
  struct flushed result;
};

/* All fields are guarded by "lock". */
struct group {
  LIST_ENTRY (group) in_bucket;
  char *name;                   /* NULL if there is just one group */
  unsigned members;             /* also those about to join */
  enum group_kind kind;
  LIST_HEAD (, handle) handles;
  TAILQ_HEAD (, handle) marked; /* with a mark; the WRITE_DIRTY ones first */

  uint64_t written;             /* write-backs that have ended */
  unsigned writing;             /* those that have begun and not ended */
  bool unflushed;               /* holds writes that no handle's mark shows */
  int close_err;                /* a flush at close failed: fail once */
  struct order *order;          /* once somebody has written */

  struct waiter *waiters;       /* client flushes for the next round */
  bool running;                 /* a round is */
  bool for_client;              /* and a client has asked for it */
  uint64_t round;               /* its number, from 1 */
  unsigned phase;               /* 1 or 2 */
  int err;                      /* its first error */
  unsigned outstanding;         /* what its phase still waits for */
  unsigned replicas;            /* run in it so far */
  unsigned helping;             /* threads that help with it */
  unsigned queue_length;
  TAILQ_HEAD (, handle) queue;
  LIST_ENTRY (group) in_running;

  pthread_cond_t phase_over;    /* outstanding is 0 */
  pthread_cond_t round_over;
};

static struct policy policy;
static struct replicate_ops ops;
static enum thread_model thread_model;

/* Look-up does not grow with the number of export names. */
#define BUCKETS 1024

/* Groups that are gone may have left something behind.  So many of them are
 * remembered by name; what others left applies to every new group.
 */
#define REMEMBERED_MAX 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD (, group) groups[BUCKETS];
static LIST_HEAD (, group) running = LIST_HEAD_INITIALIZER (running);
static unsigned remembered;     /* groups without members */
static int forgotten_err;       /* of a group that was not remembered */
static bool forgotten_unflushed;
static struct statistics statistics;

/* None of these can fail unless memory is corrupt, and then no promise can
 * be kept: nbdkit's own locks also abort.
 */
static void
must (int err)
{
  if (err != 0)
    abort ();
}

static void
lock_groups (void)
{
  must (pthread_mutex_lock (&lock));
}

static void
unlock_groups (void)
{
  must (pthread_mutex_unlock (&lock));
}

/* Marks.  They change only under "lock", so that they agree with the list.
 * All of these functions need it.
 */

static void
mark (struct handle *h, uint64_t bits)
{
  uint64_t s = atomic_fetch_or (&h->state, bits);

  if (!(s & MARKS) && bits != 0)
    TAILQ_INSERT_TAIL (&h->group->marked, h, marked);
  if (bits & ~s & WRITE_DIRTY) {
    TAILQ_REMOVE (&h->group->marked, h, marked);
    TAILQ_INSERT_HEAD (&h->group->marked, h, marked);
  }
}

/* After the marks BITS of H, whose state was S, have gone. */
static void
unmarked (struct handle *h, uint64_t s, uint64_t bits)
{
  if (!(s & bits & MARKS))
    return;
  TAILQ_REMOVE (&h->group->marked, h, marked);
  if (s & ~bits & WRITE_DIRTY)
    TAILQ_INSERT_HEAD (&h->group->marked, h, marked);
  else if (s & ~bits & MARKS)
    TAILQ_INSERT_TAIL (&h->group->marked, h, marked);
}

static void
unmark (struct handle *h, uint64_t bits)
{
  unmarked (h, atomic_fetch_and (&h->state, ~bits), bits);
}

/* A flush is about to begin: take the marks that it will cover, and return
 * them.  MINE is how many of those inside belong to it.  *COVERS is set if
 * nothing else is inside, and *ENDS if no write is.
 */
static uint64_t
take_marks (struct handle *h, unsigned mine, bool *covers, bool *ends)
{
  uint64_t s = atomic_load (&h->state), bits;

  do {
    *covers = INSIDE (s) == mine;
    *ends = WRITERS (s) == 0;
    bits = *covers ? WRITE_DIRTY | READ_MARKED : WRITE_DIRTY;
  } while (!atomic_compare_exchange_weak (&h->state, &s, s & ~bits));
  unmarked (h, s, bits);
  return s & bits;
}

/* The first of the list, if it is WRITE_DIRTY, or NULL. */
static struct handle *
write_dirty (struct group *g)
{
  struct handle *h = TAILQ_FIRST (&g->marked);

  return h != NULL && atomic_load (&h->state) & WRITE_DIRTY ? h : NULL;
}

/* Count up if nothing is inside H; otherwise set the bits FLAG.  Needs
 * "lock".  Returns true if the caller now has the handle.
 */
static bool
occupy (struct handle *h, uint64_t flag)
{
  uint64_t s = atomic_load (&h->state);

  while (!atomic_compare_exchange_weak (&h->state, &s, INSIDE (s) == 0 ?
                                        s + ONE_INSIDE : s | flag))
    ;
  return INSIDE (s) == 0;
}

/* In nanoseconds: for a shorter plugin flush it is not worth waking another
 * thread.
 */
#define WORTH_HELP 20000

/* About how long a plugin flush takes: one with nothing to write back, and
 * one that may have something.
 */
static uint64_t expected_ns[2] = { UINT64_MAX, UINT64_MAX };

/* How many threads may help with one round.  A thread that waits in the
 * plugin's flush costs next to nothing.
 */
static unsigned max_helpers;

/* Have threads help with what is queued, except MINE of G, which the caller
 * takes.  Needs "lock".
 */
static void
call_help (struct group *g, unsigned mine)
{
  unsigned n = 0, left;
  struct group *g2;

  LIST_FOREACH (g2, &running, in_running) {
    left = g2->queue_length - (g2 == g ? mine : 0);
    n += left < max_helpers - g2->helping ? left : max_helpers - g2->helping;
  }
  helpers_call (n);
}

/* All that H wrote up to CLAIM's spell has been written back.  Needs "lock". */
static void
end_spell (struct handle *h, uint32_t claim)
{
  struct owner *owner = owner_of (h->order, claim);

  owner->wrote = h->group->written; /* first: see is_past */
  if (is_later (claim, owner->flushed))
    owner->flushed = claim & (SPELLS - 1);
}

/* Flush H.  MINE is 1 if the caller has the handle, and is counted inside
 * it, and 0 if requests may go on.  WRITE_BACK: count the flush as one even
 * if H is not WRITE_DIRTY; a round that begins meanwhile then fails as well.
 * Needs "lock", and lets go of it meanwhile.  Returns 0 or an errno.
 */
static int
flush_handle (struct handle *h, unsigned mine, bool write_back)
{
  struct group *g = h->group;
  const uint64_t began = g->written, seen = h->seen, round = g->round;
  const uint32_t claim = h->claim;
  uint64_t taken, start, ns, *expected;
  bool covers, ends;
  int err;

  if (claim != 0)
    h->claim = next_spell (claim);
  taken = take_marks (h, mine, &covers, &ends);
  write_back |= (taken & WRITE_DIRTY) != 0;
  g->writing += write_back;
  h->flushing++;
  unlock_groups ();
  start = now_ns ();
  err = ops.flush (h);
  ns = now_ns () - start;
  lock_groups ();
  g->writing -= write_back;
  h->flushing--;

  latency_add (&statistics.plugin_flushes, ns);
  expected = &expected_ns[write_back];
  *expected = *expected == UINT64_MAX ? ns : *expected - *expected / 4 + ns / 4;

  if (err != 0) {
    statistics.failed_flushes++;
    mark (h, taken);
    h->seen = seen;
  }
  else if (covers && atomic_load (&h->state) & READ_MARKED)
    /* A request that has entered meanwhile may have taken what was about to
     * be dropped, and may put it into another cache of the handle.
     */
    h->seen = seen;
  else if (covers && h->seen < began)
    h->seen = began;
  /* A flush beside this one may have paid for what this one has put back. */
  if (h->seen < h->owed)
    mark (h, OWES);
  else
    unmark (h, OWES);
  if (write_back) {
    /* A handle has seen its own write-back, unless a request inside has
     * fetched older data, and may still put it into the cache.
     */
    if (err == 0 && covers && h->seen == g->written)
      h->seen++;
    g->written++;
  }
  /* What another flush has taken may still be on its way. */
  if (err == 0 && claim != 0 && ends && (write_back || h->flushing == 0))
    end_spell (h, claim);

  /* A round that counted this flush can't have ended. */
  if (write_back && g->round != round) {
    if (g->err == 0)
      g->err = err;
    if (--g->outstanding == 0)
      must (pthread_cond_signal (&g->phase_over));
  }
  if (ns >= WORTH_HELP && g->queue_length > 0)
    call_help (g, 1);
  return err;
}

static void run_replica (struct group *g, struct handle *h);

/* Something has come out of H.  Needs "lock", and may let go of it. */
static void
left (struct handle *h)
{
  if (h->replica == REPLICA_PENDING)
    run_replica (h->group, h);
  must (pthread_cond_broadcast (&h->changed));
}

/* The caller, which WRITES or not, no longer has H.  Needs "lock", and may let
 * go of it.
 */
static void
vacate (struct handle *h, bool writes)
{
  atomic_fetch_sub (&h->state, ONE_INSIDE + (writes ? ONE_WRITER : 0));
  left (h);
}

/* Run the flush that H, which the caller has, owes.  Needs "lock", and lets
 * go of it meanwhile.  Returns 0 or an errno.
 */
static int
run_owed (struct handle *h)
{
  int err;

  statistics.owed_flushes++;
  err = flush_handle (h, 1, false);
  vacate (h, false);
  return err;
}

/* Let the caller in, which WRITES or not, and count it, once the handle has
 * seen write-back OWED.  What the handle owes beyond that is for those that come later, so
 * that flushes never keep a request out for long.  Needs "lock", and may
 * let go of it.  Returns 0, or the errno of an owed flush.
 */
static int
admit (struct handle *h, uint64_t owed, bool writes)
{
  const bool serialize = thread_model == SERIALIZE_HANDLE;
  int err = 0;

  h->waiting++;
  atomic_fetch_or (&h->state, WAITING);
  for (;;) {
    if (h->replica == REPLICA_PENDING || (writes && h->held > 0))
      ;
    else if (h->seen < owed) {
      if (occupy (h, 0)) {
        err = run_owed (h);
        if (err != 0)
          break;
        continue;
      }
    }
    else if (!serialize) {
      atomic_fetch_add (&h->state, ONE_INSIDE);
      break;
    }
    else if (occupy (h, 0))
      break;
    must (pthread_cond_wait (&h->changed, &lock));
  }
  if (--h->waiting == 0)
    atomic_fetch_and (&h->state, ~WAITING);
  if (err != 0)
    left (h);
  else if (writes)
    atomic_fetch_add (&h->state, ONE_WRITER);
  return err;
}

/* At level "connection" an unmarked handle holds nothing, unless a flush of it
 * fails.  Needs "lock".
 */
static void
notice_empty (struct handle *h)
{
  if (policy.level == LEVEL_CONNECTION && h->flushing == 0 &&
      !(atomic_load (&h->state) & MARKS))
    h->seen = h->group->written;
}

/* Writes of H may enter again, unless other handles' hold it.  Those of a
 * handle whose own blocks are larger than the table's always take the slow
 * path.  Needs "lock".
 */
static void
let_go (struct handle *h)
{
  if (h->held == 0 && h->block <= (uint32_t) 1 << h->shift)
    atomic_fetch_and (&h->state, ~HELD);
}

/* H flushes before its next request, unless it has seen write-back NUMBER.
 * Needs "lock".
 */
static void
owe (struct handle *h, uint64_t number)
{
  if (h->seen >= number)
    return;
  if (h->owed < number)
    h->owed = number;
  mark (h, OWES);
}

/* H, whose first write this is, becomes an owner of blocks.  Needs "lock".
 * Returns 0 or an errno.
 */
static int
become_owner (struct group *g, struct handle *h)
{
  uint32_t claim;

  if (g->order == NULL && (g->order = order_new (h->block)) == NULL)
    return errno;
  claim = order_join (g->order, h);
  if (claim == 0)
    return errno;
  h->order = g->order;
  h->shift = g->order->shift;
  h->claim = claim;
  let_go (h);
  /* Claims of the handle that had the number before look like its own. */
  owe (h, owner_of (h->order, claim)->wrote);
  return 0;
}

void
handle_wrote (struct handle *h)
{
  int saved = errno;

  lock_groups ();
  mark (h, WRITE_DIRTY);
  unlock_groups ();
  errno = saved;
}

void
handle_left (struct handle *h)
{
  int saved = errno;

  lock_groups ();
  left (h);
  unlock_groups ();
  errno = saved;
}

void
control_begin (struct handle *h)
{
  if (thread_model != SERIALIZE_HANDLE)
    return;
  lock_groups ();
  must (admit (h, 0, false));
  unlock_groups ();
}

void
control_end (struct handle *h)
{
  int saved = errno;

  if (thread_model != SERIALIZE_HANDLE)
    return;
  lock_groups ();
  vacate (h, false);
  unlock_groups ();
  errno = saved;
}

/* Replicas and rounds. */

/* H's part in the running round of G is over.  Needs "lock". */
static void
replica_done (struct group *g, struct handle *h, int err)
{
  h->replica = NO_REPLICA;
  if (err != 0)
    h->failed = g->round;
  if (g->err == 0)
    g->err = err;
  if (--g->outstanding == 0)
    must (pthread_cond_signal (&g->phase_over));
}

/* A replica of H is left to its next request.  Needs "lock". */
static void
leave_owed (struct group *g, struct handle *h)
{
  owe (h, g->written);
  statistics.flushes_owed++;
}

/* Run the replica of H, which is queued or pending, or leave it to the
 * request that has the handle.  Needs "lock", and lets go of it meanwhile.
 */
static void
run_replica (struct group *g, struct handle *h)
{
  const bool serialize = thread_model == SERIALIZE_HANDLE;
  const uint64_t flag = serialize && g->phase == 1 ? PENDING : 0;
  const uint64_t written = g->written;
  bool mine;
  int err;

  if (h->replica == REPLICA_QUEUED) {
    TAILQ_REMOVE (&g->queue, h, queued);
    g->queue_length--;
  }

  mine = occupy (h, flag);
  if (!mine && g->phase == 2) {
    leave_owed (g, h);
    replica_done (g, h, 0);
    return;
  }
  if (!mine && serialize) {
    h->replica = REPLICA_PENDING;
    return;
  }

  h->replica = REPLICA_RUNNING;
  atomic_fetch_and (&h->state, ~PENDING);
  g->replicas++;
  err = flush_handle (h, mine, g->phase == 1);
  if (err == 0 && g->phase == 2 && h->seen < written)
    leave_owed (g, h);
  replica_done (g, h, err);
  if (mine)
    vacate (h, false);
  else
    must (pthread_cond_broadcast (&h->changed));
}

/* Needs "lock". */
static void
queue_replica (struct group *g, struct handle *h)
{
  h->replica = REPLICA_QUEUED;
  TAILQ_INSERT_TAIL (&g->queue, h, queued);
  g->queue_length++;
  g->outstanding++;
}

/* What helpers.c calls.  Needs "lock", and lets go of it meanwhile. */
static bool
help_a_round (void)
{
  struct group *g;

  LIST_FOREACH (g, &running, in_running)
    if (g->queue_length > 0 && g->helping < max_helpers) {
      g->helping++;
      run_replica (g, TAILQ_FIRST (&g->queue));
      g->helping--;
      return true;
    }
  return false;
}

/* Wait for what others run in G's phase.  A request inside a handle may itself
 * wait for this round: in a plugin that is a client of its own server, and
 * takes one request at a time.  That can't end, unless the server does: then
 * such replicas fail.  Needs "lock", and lets go of it meanwhile.
 */
static void
wait_for_others (struct group *g)
{
  struct timespec until;
  struct handle *h;
  bool ends;
  int err;

  if (clock_gettime (CLOCK_REALTIME, &until) == -1)
    abort ();
  until.tv_sec += LOOK_SECONDS;
  err = pthread_cond_timedwait (&g->phase_over, &lock, &until);
  if (err != ETIMEDOUT) {
    must (err);
    return;
  }
  unlock_groups ();
  ends = ops.server_ends ();
  lock_groups ();
  if (ends)
    LIST_FOREACH (h, &g->handles, in_group)
      if (h->replica == REPLICA_PENDING) {
        atomic_fetch_and (&h->state, ~PENDING);
        replica_done (g, h, ESHUTDOWN);
      }
}

/* Run what is queued, and wait for what others run.  Needs "lock", and lets
 * go of it meanwhile.
 */
static void
run_phase (struct group *g)
{
  if (g->queue_length > 1 && expected_ns[g->phase == 1] >= WORTH_HELP)
    call_help (g, 1);
  while (g->outstanding > 0)
    if (g->queue_length > 0)
      run_replica (g, TAILQ_FIRST (&g->queue));
    else
      wait_for_others (g);
}

/* Queue a replica of H for the second phase, if it needs one.  Needs
 * "lock".
 */
static void
second_phase (struct group *g, struct handle *h)
{
  /* A handle whose flush failed in this round is left to the next. */
  if (h->flushable && !h->closing && h->failed != g->round &&
      h->seen != g->written)
    queue_replica (g, h);
}

/* Returns 0 or the errno of a flush at close that failed in G: once, for the
 * caller must tell its client.  Needs "lock".
 */
static int
take_close_err (struct group *g)
{
  const int err = g->close_err;

  g->close_err = 0;
  return err;
}

/* Run one round for all that wait.  Needs "lock", and lets go of it
 * meanwhile.
 */
static void
run_round (struct group *g)
{
  struct waiter *batch = g->waiters, *w;
  struct handle *h, *flushed = NULL;
  bool unflushed;
  unsigned first;

  g->waiters = NULL;
  g->running = true;
  LIST_INSERT_HEAD (&running, g, in_running);
  g->round++;
  g->err = 0;
  for (w = batch; w != NULL && g->err == 0; w = w->next)
    if (w->client)
      g->err = take_close_err (g);
  g->replicas = 0;
  g->outstanding = g->writing;

  g->for_client = false;
  for (w = batch; w != NULL; w = w->next) {
    g->for_client |= w->client;
    if (w->handle != NULL)
      flushed = w->handle;
  }
  g->phase = 1;
  TAILQ_FOREACH (h, &g->marked, marked) {
    if (!(atomic_load (&h->state) & WRITE_DIRTY))
      break;
    if (h->flushable && (flushed != NULL || h->held > 0))
      queue_replica (g, h);
  }
  /* Any flush covers what a closed handle has left in the plugin. */
  h = flushed;
  unflushed = h != NULL && g->unflushed && h->flushable;
  if (unflushed) {
    g->unflushed = false;
    if (h->replica == NO_REPLICA)
      queue_replica (g, h);
  }
  if (policy.level == LEVEL_OFF && flushed != NULL)
    g->written++;               /* so that nobody has seen it */
  run_phase (g);
  if (unflushed && h->failed == g->round)
    g->unflushed = true;

  first = g->replicas;
  g->phase = 2;
  if (flushed == NULL)
    ;
  else if (policy.level == LEVEL_CONNECTION)
    TAILQ_FOREACH (h, &g->marked, marked)
      second_phase (g, h);
  else
    LIST_FOREACH (h, &g->handles, in_group)
      second_phase (g, h);
  run_phase (g);

  LIST_REMOVE (g, in_running);
  g->running = false;
  statistics.replicas += g->replicas;
  statistics.rounds += g->replicas > 0;
  for (w = batch; w != NULL; w = w->next) {
    w->result.err = g->err;
    w->result.replicated = true;
    w->result.replicas = g->replicas;
    w->result.phases = (first > 0) + (g->replicas > first);
    w->done = true;
    if (g->replicas == 0 && w->client)
      statistics.flushes_skipped_clean++;
  }
  must (pthread_cond_broadcast (&g->round_over));
}

/* A flush of H alone, which is passed on.  Needs "lock", and lets go of it
 * meanwhile.  Returns 0 or an errno.
 */
static int
plain_flush (struct group *g, struct handle *h)
{
  const bool whole = policy.level == LEVEL_FAST || h->multi_conn;
  const bool serialize = thread_model == SERIALIZE_HANDLE;
  struct handle *h2;
  int close_err, err;

  close_err = take_close_err (g);
  if (policy_skips_flushes (&policy) && write_dirty (g) == NULL &&
      !g->unflushed && g->writing == 0) {
    statistics.flushes_skipped_clean++;
    return close_err;
  }

  if (serialize)
    must (admit (h, 0, false));
  if (whole)
    while ((h2 = write_dirty (g)) != NULL)
      unmark (h2, WRITE_DIRTY);
  /* Without multi-conn the flush covers no other connection, and their
   * later flushes must still go through.
   */
  g->unflushed = !whole;
  err = flush_handle (h, serialize, true);
  if (err != 0)
    mark (h, WRITE_DIRTY);
  if (serialize)
    vacate (h, false);
  return close_err != 0 ? close_err : err;
}

/* Have a round run for ME.  Needs "lock", and lets go of it meanwhile. */
static void
await_round (struct group *g, struct waiter *me)
{
  me->next = g->waiters;
  g->waiters = me;
  while (!me->done)
    if (!g->running)
      run_round (g);
    else
      must (pthread_cond_wait (&g->round_over, &lock));
}

/* Order. */

/* Has H written nothing that no flush has covered?  Needs "lock". */
static bool
is_quiet (struct handle *h)
{
  const uint64_t s = atomic_load (&h->state);

  return WRITERS (s) == 0 && !(s & WRITE_DIRTY) && h->flushing == 0;
}

/* Have H, one of whose blocks another handle is to write, written back while
 * no write is inside.  Needs "lock", and lets go of it meanwhile.  Returns 0 or
 * an errno.
 */
static int
write_back (struct group *g, struct handle *h)
{
  uint32_t claim;
  int err = 0;

  statistics.conflicts++;
  h->held++;
  h->waiting++;
  atomic_fetch_or (&h->state, HELD | WAITING);
  while (err == 0 && !is_quiet (h))
    if (WRITERS (atomic_load (&h->state)) > 0 || h->flushing > 0 || h->closing)
      must (pthread_cond_wait (&h->changed, &lock));
    else {
      struct waiter me = { .handle = NULL };
      const uint64_t before = g->round;

      await_round (g, &me);
      if (h->failed > before)
        err = me.result.err;
    }
  if (err == 0) {               /* also if no flush was needed */
    claim = h->claim;
    h->claim = next_spell (claim);
    end_spell (h, claim);
  }
  h->held--;
  let_go (h);
  if (--h->waiting == 0)
    atomic_fetch_and (&h->state, ~WAITING);
  must (pthread_cond_broadcast (&h->changed));
  return err;
}

/* The blocks of the table that a write may change.  H's own may be larger. */
static uint64_t
first_block (const struct handle *h, uint64_t offset)
{
  return (offset & ~(uint64_t) (h->block - 1)) >> h->shift;
}

static uint64_t
last_block (const struct handle *h, uint64_t offset, uint64_t count)
{
  return ((offset + count - 1) | (h->block - 1)) >> h->shift;
}

bool
handle_claims (struct handle *h, uint64_t offset, uint64_t count)
{
  const uint32_t own = atomic_load (&h->claim);
  const uint64_t seen = atomic_load (&h->seen);
  const uint64_t last = last_block (h, offset, count);
  uint64_t block;
  _Atomic uint32_t *slot;

  for (block = first_block (h, offset); block <= last; block++) {
    slot = slot_of (h->order, block);
    if (atomic_load_explicit (slot, memory_order_acquire) != own &&
        !order_take (h->order, slot, own, seen))
      return false;
  }
  return true;
}

/* Have what other handles claim of the blocks that H will write be past, as
 * of write-back *OWED.  Needs "lock", and lets go of it meanwhile.  Returns 0 or
 * an errno.
 */
static int
write_back_others (struct handle *h, uint64_t offset, uint64_t count,
                   uint64_t *owed)
{
  const uint64_t last = last_block (h, offset, count);
  _Atomic uint32_t *slot;
  struct owner *owner;
  uint64_t block;
  uint32_t claim;
  int err;

  for (block = first_block (h, offset); block <= last; block++) {
    slot = slot_of (h->order, block);
    claim = atomic_load (slot);
    owner = owner_of (h->order, claim);
    if (claim == 0 || owner->handle == h)
      continue;
    if (!is_past (h->order, claim, UINT64_MAX)) {
      err = owner->handle ? write_back (h->group, owner->handle) : 0;
      if (err != 0)
        return err;
      /* It may only have looked like a later one. */
      atomic_compare_exchange_strong (slot, &claim,
                                      (claim & ~(SPELLS - 1)) | owner->flushed);
    }
    if (*owed < owner->wrote)
      *owed = owner->wrote;
  }
  return 0;
}

/* Let a request in, and count it.  A write has its blocks then.  Needs "lock",
 * and lets go of it meanwhile.  Returns 0 or an errno.
 */
static int
enter (struct handle *h, bool writes, uint64_t offset, uint64_t count)
{
  uint64_t owed = 0;
  int err;

  if (writes && h->order == NULL && (atomic_load (&h->state) & HELD)) {
    err = become_owner (h->group, h);
    if (err != 0)
      return err;
  }
  writes = writes && h->order != NULL;
  for (;;) {
    err = writes ? write_back_others (h, offset, count, &owed) : 0;
    if (err != 0)
      return err;
    notice_empty (h);
    owe (h, owed);
    err = admit (h, h->owed, writes);
    if (err != 0)
      return err;
    notice_empty (h);
    mark (h, READ_MARKED);
    if (!writes || handle_claims (h, offset, count))
      return 0;
    vacate (h, true);
  }
}

int
handle_enter (struct handle *h, bool writes, uint64_t offset, uint64_t count)
{
  int err;

  lock_groups ();
  err = enter (h, writes, offset, count);
  unlock_groups ();
  return err;
}

int
handle_meets_another (struct handle *h, uint64_t offset, uint64_t count)
{
  int err;

  lock_groups ();
  vacate (h, true);
  err = enter (h, true, offset, count);
  unlock_groups ();
  return err;
}

struct flushed
replicate_flush (struct handle *h)
{
  struct group *g = h->group;
  struct waiter me = { .handle = h, .client = true };
  const uint64_t start = now_ns ();

  lock_groups ();
  if (g->kind == REPLICATES)
    await_round (g, &me);
  else
    me.result.err = plain_flush (g, h);
  me.result.ns = now_ns () - start;
  latency_add (&statistics.client_flushes, me.result.ns);
  unlock_groups ();
  return me.result;
}

int
replicate_between (struct handle *h)
{
  struct waiter me = { .handle = h };
  struct handle *h2;
  uint64_t before;
  int err = 0;

  lock_groups ();
  before = h->group->round;
  await_round (h->group, &me);
  LIST_FOREACH (h2, &h->group->handles, in_group)
    if (h2->connection == h->connection && h2->failed > before)
      err = me.result.err;
  unlock_groups ();
  return err;
}

/* Groups come and go. */

static unsigned
bucket_of (const char *name)
{
  uint32_t hash = 2166136261;   /* FNV-1a */

  for (; name != NULL && *name != '\0'; name++)
    hash = (hash ^ (unsigned char) *name) * 16777619;
  return hash % BUCKETS;
}

static void
group_free (struct group *g)
{
  LIST_REMOVE (g, in_bucket);
  must (pthread_cond_destroy (&g->phase_over));
  must (pthread_cond_destroy (&g->round_over));
  order_free (g->order);
  free (g->name);
  free (g);
}

/* Find or make the group of NAME, and become a member.  Needs "lock".
 * Returns NULL if there is no memory.
 */
static struct group *
join_group (const char *name)
{
  const unsigned bucket = bucket_of (name);
  struct group *g;

  LIST_FOREACH (g, &groups[bucket], in_bucket)
    if (name == NULL ? g->name == NULL :
        g->name != NULL && strcmp (g->name, name) == 0) {
      if (g->members++ == 0 && g->name != NULL)
        remembered--;
      return g;
    }

  g = calloc (1, sizeof *g);
  if (g == NULL)
    return NULL;
  if (name != NULL && (g->name = strdup (name)) == NULL) {
    free (g);
    return NULL;
  }
  LIST_INIT (&g->handles);
  TAILQ_INIT (&g->marked);
  TAILQ_INIT (&g->queue);
  must (pthread_cond_init (&g->phase_over, NULL));
  must (pthread_cond_init (&g->round_over, NULL));
  LIST_INSERT_HEAD (&groups[bucket], g, in_bucket);
  /* This may be a forgotten group: one failure or flush too many is better
   * than one too few.
   */
  g->close_err = forgotten_err;
  g->unflushed = forgotten_unflushed;
  g->members = 1;
  return g;
}

/* Remove one member.  Needs "lock". */
static void
leave_group (struct group *g)
{
  if (--g->members > 0)
    return;
  g->kind = UNSETTLED;
  order_free (g->order);
  g->order = NULL;
  if (g->name == NULL)
    return;
  if (g->close_err != 0 || g->unflushed) {
    if (remembered < REMEMBERED_MAX) {
      remembered++;
      return;
    }
    if (g->close_err != 0)
      forgotten_err = g->close_err;
    forgotten_unflushed |= g->unflushed;
  }
  group_free (g);
}

/* Handles come and go. */

/* H, which counts as a member of G, will join it.  Needs "lock". */
static void
prepare (struct handle *h, struct group *g)
{
  h->group = g;
  h->seen = g->written;
  h->block = BLOCK_DEFAULT;
  h->gate = READ_MARKED | OWES;
  if (thread_model == SERIALIZE_HANDLE)
    h->gate |= PENDING | ~(ONE_INSIDE - 1);
  must (pthread_cond_init (&h->changed, NULL));
}

int
handle_opens (struct handle *h, const char *name)
{
  struct group *g;

  lock_groups ();
  g = join_group (name);
  if (g != NULL)
    prepare (h, g);
  unlock_groups ();
  if (g == NULL)
    errno = ENOMEM;
  return g != NULL ? 0 : -1;
}

bool
handle_settles (struct handle *h, bool replicate)
{
  struct group *g = h->group;
  bool replicates;

  lock_groups ();
  if (g->kind == UNSETTLED)
    g->kind = replicate ? REPLICATES : PASSES_ON;
  replicates = g->kind == REPLICATES;
  unlock_groups ();
  return replicates;
}

void
handle_opens_beside (struct handle *h, const struct handle *first)
{
  h->further = true;
  h->connection = first->connection;
  h->resolution = first->resolution;
  h->multi_conn = first->multi_conn;
  h->flushable = first->flushable;
  lock_groups ();
  first->group->members++;
  prepare (h, first->group);
  h->block = first->block;
  unlock_groups ();
}

void
handle_gives_up (struct handle *h)
{
  lock_groups ();
  statistics.handle_opens_failed += h->further;
  leave_group (h->group);
  unlock_groups ();
  must (pthread_cond_destroy (&h->changed));
}

void
handle_joins (struct handle *h)
{
  struct group *g = h->group;

  lock_groups ();
  LIST_INSERT_HEAD (&g->handles, h, in_group);
  if (!h->further) {
    statistics.connections_opened[h->resolution.verdict]++;
    if (++statistics.connections_open > statistics.connections_most_at_once)
      statistics.connections_most_at_once = statistics.connections_open;
  }
  if (++statistics.handles_open > statistics.handles_most_at_once)
    statistics.handles_most_at_once = statistics.handles_open;

  if (g->kind == REPLICATES && h->flushable)
    atomic_fetch_or (&h->state, HELD); /* until its first write */
  if (g->kind == REPLICATES && h->flushable && g->written + g->writing > h->seen) {
    /* A write-back that has not ended is left to its round's second phase. */
    mark (h, READ_MARKED);
    if (g->written > h->seen) {
      owe (h, g->written);
      /* If it fails it is still owed. */
      if (occupy (h, 0))
        run_owed (h);
    }
  }
  unlock_groups ();
}

static void
add_requests (struct statistics *s, struct handle *h)
{
  s->reads += atomic_load_explicit (&h->reads, memory_order_relaxed);
  s->writes += atomic_load_explicit (&h->writes, memory_order_relaxed);
}

/* Flush H, which closes, outside any round.  Needs "lock", and lets go of
 * it meanwhile.  Returns 0 or an errno.
 */
static int
flush_at_close (struct group *g, struct handle *h)
{
  const bool mine = occupy (h, 0);
  const uint64_t round = g->round;
  int err;

  statistics.flushes_at_close++;
  err = flush_handle (h, mine, true);
  /* Otherwise a round has failed with it, and tells a client. */
  if (err != 0 && (g->round == round || !g->for_client))
    g->close_err = err;
  return err;
}

int
handle_leaves (struct handle *h)
{
  struct group *g = h->group;
  int err = 0;

  lock_groups ();
  h->closing = true;
  while (h->replica != NO_REPLICA)
    if (h->replica == REPLICA_QUEUED)
      run_replica (g, h);
    else
      must (pthread_cond_wait (&h->changed, &lock));
  if (atomic_load (&h->state) & WRITE_DIRTY) {
    if (h->resolution.replicate && h->flushable && policy.flush_on_close)
      err = flush_at_close (g, h);
    else {
      /* The plugin may write them back as it closes. */
      g->written++;
      g->unflushed = true;
    }
  }

  unmark (h, MARKS);
  must (pthread_cond_broadcast (&h->changed));
  while (h->held > 0)
    must (pthread_cond_wait (&h->changed, &lock));
  if (h->order != NULL) {
    owner_of (h->order, h->claim)->wrote = g->written;
    order_leave (h->order, h->claim);
  }
  LIST_REMOVE (h, in_group);
  statistics.connections_open -= !h->further;
  statistics.handles_open--;
  add_requests (&statistics, h);
  leave_group (g);
  unlock_groups ();
  must (pthread_cond_destroy (&h->changed));
  return err;
}

struct statistics
replicate_statistics (void)
{
  struct statistics s;
  struct handle *h;
  struct group *g;
  unsigned i;

  lock_groups ();
  s = statistics;
  for (i = 0; i < BUCKETS; i++)
    LIST_FOREACH (g, &groups[i], in_bucket)
      LIST_FOREACH (h, &g->handles, in_group)
        add_requests (&s, h);
  unlock_groups ();
  return s;
}

void
replicate_init (const struct policy *p, const struct replicate_ops *o)
{
  policy = *p;
  ops = *o;
  helpers_init (&lock, help_a_round, ops.helper_starts);
}

void
replicate_set_thread_model (enum thread_model value)
{
  thread_model = value;
  max_helpers = policy.flush_threads ? policy.flush_threads :
    FLUSH_THREADS_MAX;
  max_helpers--;                /* the calling thread is always there */
  if (thread_model == SERIALIZE_ALL)
    max_helpers = 0;
}

void
replicate_free (void (*free_handle) (struct handle *h))
{
  struct handle *h;
  struct group *g;
  unsigned i;

  helpers_end ();
  for (i = 0; i < BUCKETS; i++)
    while ((g = LIST_FIRST (&groups[i])) != NULL) {
      while ((h = LIST_FIRST (&g->handles)) != NULL) {
        LIST_REMOVE (h, in_group);
        free_handle (h);
      }
      group_free (g);
    }
}
