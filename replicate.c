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
 * handle.  At SERIALIZE_ALL the server holds one lock around every
 * callback, and the replicas run on the thread on which it calls us.  Lock
 * order: the server's locks, a handle, "lock".  Whoever has a handle does
 * not wait for another one.
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
#include "group.h"

struct shared shared = { .lock = PTHREAD_MUTEX_INITIALIZER };

static LIST_HEAD (, group) running = LIST_HEAD_INITIALIZER (running);

/* How often whoever waits for a round looks whether the server ends. */
#define LOOK_SECONDS 1

/* Marks.  They change only under "lock", so that they agree with the list.
 * All of these functions need it.
 */

void
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

void
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
bool
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

static bool help_a_round (struct job *job);
static struct job rounds = JOB_INITIALIZER (help_a_round);

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
  helpers_call (&rounds, n);
}

/* All that H wrote up to CLAIM's spell has been written back.  Needs "lock".
 */
void
end_spell (struct handle *h, uint32_t claim)
{
  order_flushed (h->order, claim, h->group->written);
}

/* Flush H.  MINE is 1 if the caller has the handle, and is counted inside
 * it, and 0 if requests may go on.  WRITE_BACK: count the flush as one even
 * if H is not WRITE_DIRTY; a round that begins meanwhile then fails as well.
 * Needs "lock", and lets go of it meanwhile.  Returns 0 or an errno.
 */
int
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
  err = shared.ops.flush (h);
  ns = now_ns () - start;
  lock_groups ();
  g->writing -= write_back;
  h->flushing--;

  latency_add (&shared.statistics.plugin_flushes, ns);
  expected = &expected_ns[write_back];
  *expected = *expected == UINT64_MAX ? ns :
    *expected - *expected / 4 + ns / 4;

  if (err != 0) {
    shared.statistics.failed_flushes++;
    mark (h, taken);
    h->seen = seen;             /* a flush beside this one may have ended */
  }
  else if (covers && !(atomic_load (&h->state) & READ_MARKED))
    /* Otherwise a request that has entered meanwhile may have taken what was
     * about to be dropped, and may put it into another cache of the handle.
     */
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
    /* It may even have fetched what H has written over, and now it is not in
     * the cache any more.  A client's round would find that H has not seen the
     * write-back, but there is none if a write of another handle asks for it.
     */
    if (err == 0 && !covers && g->kind == REPLICATES)
      owe (h, g->written);
  }
  /* What another flush has taken may still be on its way. */
  if (err == 0 && claim != 0 && ends && h->flushing == 0)
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

/* Something has come out of H.  Needs "lock", and may let go of it. */
void
left (struct handle *h)
{
  if (h->replica == REPLICA_PENDING)
    run_replica (h->group, h);
  must (pthread_cond_broadcast (&h->changed));
}

/* The caller, which WRITES or not, no longer has H.  Needs "lock", and may let
 * go of it.
 */
void
vacate (struct handle *h, bool writes)
{
  atomic_fetch_sub (&h->state, ONE_INSIDE + (writes ? ONE_WRITER : 0));
  left (h);
}

/* Run the flush that H, which the caller has, owes.  Needs "lock", and lets
 * go of it meanwhile.  Returns 0 or an errno.
 */
int
run_owed (struct handle *h)
{
  int err;

  shared.statistics.owed_flushes++;
  err = flush_handle (h, 1, false);
  vacate (h, false);
  return err;
}

/* Let the caller in, which WRITES or not, and count it, once the handle has
 * seen write-back OWED.  What the handle owes beyond that is for those that
 * come later, so that flushes never keep a request out for long.  Needs
 * "lock", and may let go of it.  Returns 0, or the errno of an owed flush.
 */
int
admit (struct handle *h, uint64_t owed, bool writes)
{
  const bool serialize = shared.thread_model == SERIALIZE_HANDLE;
  int err = 0;

  h->waiting++;
  atomic_fetch_or (&h->state, WAITING);
  for (;;) {
    if (h->replica == REPLICA_PENDING || (writes && LIST_FIRST (&h->holders)))
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
    must (pthread_cond_wait (&h->changed, &shared.lock));
  }
  if (--h->waiting == 0)
    atomic_fetch_and (&h->state, ~WAITING);
  if (err == 0 && writes)
    atomic_fetch_add (&h->state, ONE_WRITER);
  return err;
}

/* H flushes before its next request, unless it has seen write-back NUMBER.
 * Needs "lock".
 */
void
owe (struct handle *h, uint64_t number)
{
  if (h->seen >= number)
    return;
  if (h->owed < number)
    h->owed = number;
  mark (h, OWES);
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
  shared.statistics.flushes_owed++;
}

/* Run the replica of H, which is queued or pending, or leave it to the
 * request that has the handle.  Needs "lock", and lets go of it meanwhile.
 */
void
run_replica (struct group *g, struct handle *h)
{
  const bool serialize = shared.thread_model == SERIALIZE_HANDLE;
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
help_a_round (struct job *job)
{
  struct group *g;

  (void) job;
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

  must (clock_gettime (CLOCK_REALTIME, &until));
  until.tv_sec += LOOK_SECONDS;
  err = pthread_cond_timedwait (&g->phase_over, &shared.lock, &until);
  if (err != ETIMEDOUT) {
    must (err);
    return;
  }
  unlock_groups ();
  ends = shared.ops.server_ends ();
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
    if (h->flushable && (flushed != NULL || LIST_FIRST (&h->holders)))
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
  if (shared.policy.level == LEVEL_OFF && flushed != NULL)
    g->written++;               /* so that nobody has seen it */
  run_phase (g);
  if (unflushed && h->failed == g->round)
    g->unflushed = true;

  first = g->replicas;
  g->phase = 2;
  if (flushed == NULL)
    ;
  else if (shared.policy.level == LEVEL_CONNECTION)
    TAILQ_FOREACH (h, &g->marked, marked)
      second_phase (g, h);
  else
    LIST_FOREACH (h, &g->handles, in_group)
      second_phase (g, h);
  run_phase (g);

  LIST_REMOVE (g, in_running);
  g->running = false;
  shared.statistics.replicas += g->replicas;
  shared.statistics.rounds += g->replicas > 0;
  for (w = batch; w != NULL; w = w->next) {
    w->result.err = g->err;
    w->result.replicated = true;
    w->result.replicas = g->replicas;
    w->result.phases = (first > 0) + (g->replicas > first);
    w->done = true;
    if (g->replicas == 0 && w->client)
      shared.statistics.flushes_skipped_clean++;
  }
  must (pthread_cond_broadcast (&g->round_over));
}

/* A flush of H alone, which is passed on.  Needs "lock", and lets go of it
 * meanwhile.  Returns 0 or an errno.
 */
static int
plain_flush (struct group *g, struct handle *h)
{
  const bool whole = shared.policy.level == LEVEL_FAST || h->multi_conn;
  const bool serialize = shared.thread_model == SERIALIZE_HANDLE;
  struct handle *h2;
  int close_err, err;

  close_err = take_close_err (g);
  if (policy_skips_flushes (&shared.policy) && write_dirty (g) == NULL &&
      !g->unflushed && g->writing == 0) {
    shared.statistics.flushes_skipped_clean++;
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
  /* Put back what was taken: whoever has written is READ_MARKED as well. */
  if (err != 0)
    LIST_FOREACH (h2, &g->handles, in_group)
      if (h2 == h || (whole && (atomic_load (&h2->state) & READ_MARKED)))
        mark (h2, WRITE_DIRTY);
  if (serialize)
    vacate (h, false);
  return close_err != 0 ? close_err : err;
}

/* Have a round run for ME.  Needs "lock", and lets go of it meanwhile. */
void
await_round (struct group *g, struct waiter *me)
{
  me->next = g->waiters;
  g->waiters = me;
  while (!me->done)
    if (!g->running)
      run_round (g);
    else
      must (pthread_cond_wait (&g->round_over, &shared.lock));
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
  latency_add (&shared.statistics.client_flushes, me.result.ns);
  unlock_groups ();
  return me.result;
}

int
replicate_for_connection (struct handle *h)
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

bool
connection_is_clean (struct handle *h)
{
  struct handle *h2;
  bool clean;

  lock_groups ();
  /* Otherwise a flush that is under way may have taken any mark. */
  clean = h->group->kind == REPLICATES || h->group->writing == 0;
  LIST_FOREACH (h2, &h->group->handles, in_group)
    if (h2->connection == h->connection &&
        ((atomic_load (&h2->state) & WRITE_DIRTY) || h2->flushing > 0))
      clean = false;
  unlock_groups ();
  return clean;
}

int
handle_catches_up (struct handle *h)
{
  const int err = connection_is_clean (h) ? 0 : replicate_for_connection (h);

  lock_groups ();
  owe (h, h->group->written);
  unlock_groups ();
  return err;
}

void
replicate_init (const struct policy *p, const struct replicate_ops *o)
{
  shared.policy = *p;
  shared.ops = *o;
  helpers_init (&shared.lock, shared.ops.helper_starts);
  helpers_list (&rounds);
}

void
replicate_set_thread_model (enum thread_model value)
{
  shared.thread_model = value;
  max_helpers = shared.policy.flush_threads ? shared.policy.flush_threads :
    FLUSH_THREADS_MAX;
  max_helpers--;                /* the calling thread is always there */
  if (shared.thread_model == SERIALIZE_ALL)
    max_helpers = 0;
}
