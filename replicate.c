/* The group of connections: marks, and the replicated flush.
 *
 * The promise: when a flush returns success on any connection of a
 * group, every write, zero and trim that had returned on any of them
 * before the flush was entered is durable (Durable), and every read that
 * begins from then on sees it (Visible).  The plugin keeps its caches per
 * handle, so one client flush becomes a plugin flush, a replica, on each
 * handle that needs one.
 *
 * Marks.  A connection is WRITE_DIRTY once a write, zero or trim has
 * returned, READ_MARKED once a read, cache or extents has.  A mark is set
 * after the plugin returns and before the server hears of it, and taken
 * before the plugin's flush begins: so it goes only for requests that the
 * flush covers, and a request that overlaps the flush leaves its mark
 * behind.  A flush that fails puts back what it took.
 *
 * Requests in flight are counted as well, because what one of them has
 * fetched may reach its handle's cache only after a flush of it.  There
 * are two counts: to wait for the requests of now, and not for ever for
 * those that keep coming, a flush turns EPOCH over, so that new requests
 * go into the other count, and waits until the old one is zero
 * (DRAINING).  Marks and counts are one atomic word.
 *
 * A round is one replicated flush:
 *
 *   1. Write-backs.  Every WRITE_DIRTY connection gets a replica.  The
 *      round also waits for flushes outside rounds (a close's) that had
 *      begun: they have taken marks too.
 *   2. Once all of these are done, every connection that may hold an
 *      older copy gets a replica: one that is marked, or that has
 *      requests in flight, then when these are out.  That includes a
 *      connection of the first phase that was used meanwhile: its cache
 *      may have been filled before another's write-back, by a read or by
 *      a write that had to fetch what surrounds it.  Such a replica may
 *      write back again, and the others know nothing of it: the next
 *      round has a second phase to make up for that.
 *
 * At level "fast" the second phase goes to all connections that the
 * first left out, at "off" it does so even if nothing was write-dirty.
 *
 * Flushes that arrive while a round runs wait and share the next one:
 * the running one may have passed their connection already.
 *
 * "stale" stands for a second phase that is owed: something has been
 * written back (or was lost, or may have failed) since the read-marked
 * handles were last flushed.
 *
 * Exclusion.  "lock" guards the groups and everything that no comment
 * gives to someone else; it is never held during a callback.  At
 * SERIALIZE_REQUESTS a connection's own lock is held around each callback
 * on its handle, since replicas come from other connections' threads.
 * Order: the server's locks, a connection's lock, "lock".  Nobody waits
 * for a connection's lock while holding another's, or while holding
 * "lock".  At SERIALIZE_ALL_REQUESTS and below the server holds one lock
 * around every callback, and the replicas run on the thread that it calls
 * us on.
 *
 * Closing.  A connection that closes waits for a replica that is inside
 * its handle, runs one that is still queued by itself, and otherwise
 * flushes what is WRITE_DIRTY outside any round ("solo").  Then it leaves
 * the lists, under "lock", and nothing is called on its handle again.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "interpose/oldglibc.h"
#include "replicate.h"

struct waiter {
  struct waiter *next;
  bool done;
  int err;                      /* of the round, as the next two */
  unsigned replicas, phases;
};

/* All fields are guarded by "lock". */
struct group {
  LIST_ENTRY (group) groups;
  char *name;                   /* NULL if there is just one group */

  LIST_HEAD (, connection) all;
  /* Those with a mark or with requests in flight, and no others but for
   * the time that it takes to notice; the WRITE_DIRTY ones first.
   */
  TAILQ_HEAD (, connection) touched;

  unsigned replicating;         /* members whose mode is emulate */
  bool stale;                   /* a second phase is owed */
  int close_err;                /* a flush at close failed: fail once */
  unsigned solo;                /* plugin flushes outside rounds */

  struct waiter *waiters;       /* client flushes for the next round */
  bool running;                 /* a round is */
  uint64_t round;               /* its number, from 1 */
  int err;                      /* its first error */
  unsigned outstanding;         /* what its phase still waits for */
  unsigned replicas;            /* run in it so far */
  TAILQ_HEAD (, connection) queue;
  LIST_ENTRY (group) busy;      /* on "busy", for the threads, if running */

  pthread_cond_t phase;         /* outstanding is 0, or queue is not empty */
  pthread_cond_t finished;      /* a round has ended */
  pthread_cond_t left;          /* a replica has ended; some close may wait */
};

static struct policy policy;
static enum concurrency concurrency;
static int (*plugin_flush) (struct connection *c);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD (, group) groups = LIST_HEAD_INITIALIZER (groups);
static LIST_HEAD (, group) busy = LIST_HEAD_INITIALIZER (busy);
static bool forgotten;          /* a group with "stale" set is gone */
static struct statistics statistics;

/* None of these can fail unless memory is corrupt, and nothing that was
 * promised could be kept after it: nbdkit's own locks do the same.
 */
static void
must (int err)
{
  if (err != 0)
    abort ();
}

static void
lock_all (void)
{
  must (pthread_mutex_lock (&lock));
}

static void
unlock_all (void)
{
  must (pthread_mutex_unlock (&lock));
}

void
connection_lock (struct connection *c)
{
  must (pthread_mutex_lock (&c->lock));
}

void
connection_unlock (struct connection *c)
{
  must (pthread_mutex_unlock (&c->lock));
}

/* Marks and counts.  WRITE_DIRTY and TOUCHED change under "lock" only, so
 * that they say what the touched list says.
 */

static bool
in_flight (uint64_t s)
{
  return REQUESTS (s, false) + REQUESTS (s, true) > 0;
}

void
connection_touch (struct connection *c)
{
  int saved = errno;

  lock_all ();
  if (!(atomic_fetch_or (&c->state, TOUCHED) & TOUCHED))
    TAILQ_INSERT_TAIL (&c->group->touched, c, touched);
  unlock_all ();
  errno = saved;
}

/* Needs "lock". */
static void
set_write_dirty (struct connection *c)
{
  uint64_t s = atomic_fetch_or (&c->state, WRITE_DIRTY | TOUCHED);

  if (s & WRITE_DIRTY)
    return;
  if (s & TOUCHED)
    TAILQ_REMOVE (&c->group->touched, c, touched);
  TAILQ_INSERT_HEAD (&c->group->touched, c, touched);
}

void
connection_mark_written (struct connection *c, uint64_t one)
{
  int saved = errno;
  uint64_t s;

  lock_all ();
  set_write_dirty (c);
  s = atomic_fetch_sub (&c->state, one);
  unlock_all ();
  if (s & DRAINING)
    connection_drained (c);
  errno = saved;
}

/* Take the marks that the flush which is about to begin will cover, and
 * return them.  Needs "lock".
 */
static uint64_t
take_marks (struct connection *c)
{
  const uint64_t marks = WRITE_DIRTY | READ_MARKED;
  uint64_t taken = atomic_fetch_and (&c->state, ~marks) & marks;

  if (taken & WRITE_DIRTY) {
    TAILQ_REMOVE (&c->group->touched, c, touched);
    TAILQ_INSERT_TAIL (&c->group->touched, c, touched);
  }
  return taken;
}

/* After a failed flush.  Needs "lock". */
static void
put_back_marks (struct connection *c, uint64_t taken)
{
  atomic_fetch_or (&c->state, taken & READ_MARKED);
  if (taken & WRITE_DIRTY)
    set_write_dirty (c);
}

/* Take C off the touched list if nothing keeps it there.  Needs "lock". */
static void
untouch (struct connection *c)
{
  uint64_t s = atomic_load (&c->state);

  do
    if (!(s & TOUCHED) || s & (WRITE_DIRTY | READ_MARKED) || in_flight (s))
      return;
  while (!atomic_compare_exchange_weak (&c->state, &s, s & ~TOUCHED));
  TAILQ_REMOVE (&c->group->touched, c, touched);
}

/* The threads that help with a round.  They start when first needed, so
 * after the server's fork, and any of them serves any group.  When one
 * can't be had the round goes on with those that there are: the thread
 * that the server called us on is always one of them.
 */

/* What MCSHIM_FLUSH_THREADS=auto means.  A thread that waits in a plugin's
 * flush costs next to nothing, and 64 connections with a flush of 10 ms
 * then take four flushes, 41 ms ("make bench", flushes).
 */
#define FLUSH_THREADS_AUTO 16

/* A plugin flush that is shorter than this is not worth waking another
 * thread for, in nanoseconds.
 */
#define WORTH_A_THREAD 20000

static pthread_t threads[FLUSH_THREADS_MAX];
static unsigned nr_threads, nr_threads_idle, max_threads;
static bool stopping;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static uint64_t flush_ns = UINT64_MAX; /* a plugin flush takes about this */

static void run_replica (struct group *g, struct connection *c);

static void *
help (void *arg)
{
  struct group *g;

  (void) arg;
  server_error_thread ();
  lock_all ();
  while (!stopping) {
    LIST_FOREACH (g, &busy, busy)
      if (!TAILQ_EMPTY (&g->queue))
        break;
    if (g != NULL)
      run_replica (g, TAILQ_FIRST (&g->queue));
    else {
      nr_threads_idle++;
      must (pthread_cond_wait (&work, &lock));
      nr_threads_idle--;
    }
  }
  unlock_all ();
  return NULL;
}

/* Have up to N threads look for work.  Needs "lock". */
static void
call_help (unsigned n)
{
  unsigned i;

  if (flush_ns < WORTH_A_THREAD)
    return;
  for (i = 0; i < n && i < nr_threads_idle; i++)
    must (pthread_cond_signal (&work));
  for (; i < n && nr_threads < max_threads; i++)
    if (pthread_create (&threads[nr_threads], NULL, help, NULL) == 0)
      nr_threads++;
    else
      break;
}

/* One plugin flush.  Must not hold "lock".  Returns 0 or an errno. */
static int
flush_handle (struct connection *c, uint64_t *ns)
{
  uint64_t start = now_ns ();
  int err = plugin_flush (c);

  *ns = now_ns () - start;
  return err;
}

/* Needs "lock". */
static void
count_flush (int err, uint64_t ns)
{
  latency_add (&statistics.plugin_flushes, ns);
  statistics.failed_flushes += err != 0;
  flush_ns = flush_ns == UINT64_MAX ? ns : flush_ns - flush_ns / 4 + ns / 4;
}

/* C's part in the running round of G is over.  Needs "lock". */
static void
replica_done (struct group *g, struct connection *c, int err)
{
  c->replica = NO_REPLICA;
  c->round = g->round;
  c->failed = err != 0;
  if (g->err == 0)
    g->err = err;
  if (--g->outstanding == 0)
    must (pthread_cond_signal (&g->phase));
  must (pthread_cond_broadcast (&g->left));
}

/* Run the replica of C, which is queued.  Needs "lock", and lets go of it
 * meanwhile.
 */
static void
run_replica (struct group *g, struct connection *c)
{
  uint64_t taken, ns;
  int err;

  TAILQ_REMOVE (&g->queue, c, queued);
  c->replica = REPLICA_RUNNING;
  g->replicas++;
  if (c->exclusive) {
    unlock_all ();
    connection_lock (c);
    lock_all ();
  }
  taken = take_marks (c);
  unlock_all ();

  err = flush_handle (c, &ns);

  if (c->exclusive)
    connection_unlock (c);
  lock_all ();
  count_flush (err, ns);
  if (err != 0)
    put_back_marks (c, taken);
  if (err != 0 || taken & WRITE_DIRTY)
    g->stale = true;
  untouch (c);
  replica_done (g, c, err);
}

/* Needs "lock". */
static void
queue_replica (struct group *g, struct connection *c)
{
  c->replica = REPLICA_QUEUED;
  TAILQ_INSERT_TAIL (&g->queue, c, queued);
}

/* Run what is queued, and wait for what others run or what must first
 * drain.  Needs "lock", and lets go of it meanwhile.
 */
static void
run_phase (struct group *g)
{
  struct connection *c;

  if (g->outstanding > 1)
    call_help (g->outstanding - 1);
  while (g->outstanding > 0) {
    c = TAILQ_FIRST (&g->queue);
    if (c != NULL)
      run_replica (g, c);
    else
      must (pthread_cond_wait (&g->phase, &lock));
  }
}

/* The requests of C that a round waits for may be out. */
void
connection_drained (struct connection *c)
{
  int saved = errno;
  uint64_t s;

  lock_all ();
  s = atomic_load (&c->state);
  if (c->replica == REPLICA_DRAINING && REQUESTS (s, !(s & EPOCH)) == 0) {
    atomic_fetch_and (&c->state, ~DRAINING);
    queue_replica (c->group, c);
    must (pthread_cond_signal (&c->group->phase));
    call_help (1);
  }
  unlock_all ();
  errno = saved;
}

/* In the second phase: does C need a replica?  Queues it, or lets it
 * drain first.  Needs "lock".
 */
static void
second_phase (struct group *g, struct connection *c)
{
  uint64_t s = atomic_load (&c->state);

  /* What has failed in this round is left to the next. */
  if (!c->flushable || c->closing || (c->round == g->round && c->failed))
    return;

  while (in_flight (s))
    if (atomic_compare_exchange_weak (&c->state, &s,
                                      (s ^ EPOCH) | DRAINING)) {
      c->replica = REPLICA_DRAINING;
      g->outstanding++;
      return;
    }

  if (s & (WRITE_DIRTY | READ_MARKED) ||
      (policy.level != LEVEL_CONNECTION && c->round != g->round)) {
    queue_replica (g, c);
    g->outstanding++;
  }
}

/* The first of the touched list, if it is WRITE_DIRTY.  Needs "lock". */
static bool
any_write_dirty (struct group *g)
{
  struct connection *c = TAILQ_FIRST (&g->touched);

  return c != NULL && atomic_load (&c->state) & WRITE_DIRTY;
}

/* One round, for all that wait.  Needs "lock", and lets go of it
 * meanwhile.
 */
static void
run_round (struct group *g)
{
  struct waiter *batch = g->waiters, *w;
  struct connection *c;
  unsigned phases;

  g->waiters = NULL;
  g->running = true;
  LIST_INSERT_HEAD (&busy, g, busy);
  g->round++;
  g->err = g->close_err;
  g->close_err = 0;
  g->replicas = 0;
  g->outstanding = g->solo;

  TAILQ_FOREACH (c, &g->touched, touched) {
    if (!(atomic_load (&c->state) & WRITE_DIRTY))
      break;
    if (c->flushable) {
      queue_replica (g, c);
      g->outstanding++;
    }
  }
  run_phase (g);
  phases = g->replicas > 0;

  if (g->stale || policy.level == LEVEL_OFF) {
    g->stale = false;
    if (policy.level == LEVEL_CONNECTION)
      TAILQ_FOREACH (c, &g->touched, touched)
        second_phase (g, c);
    else
      LIST_FOREACH (c, &g->all, all)
        second_phase (g, c);
    phases += g->outstanding > 0;
    run_phase (g);
  }

  LIST_REMOVE (g, busy);
  g->running = false;
  statistics.replicas += g->replicas;
  statistics.rounds += g->replicas > 0;
  for (w = batch; w != NULL; w = w->next) {
    w->err = g->err;
    w->replicas = g->replicas;
    w->phases = phases;
    w->done = true;
    if (g->replicas == 0)
      statistics.flushes_skipped_clean++;
  }
  must (pthread_cond_broadcast (&g->finished));
}

/* Wait for a round that begins from now on, or run it.  Needs "lock", and
 * lets go of it meanwhile.
 */
static void
replicated_flush (struct group *g, struct waiter *me)
{
  me->next = g->waiters;
  g->waiters = me;
  while (!me->done)
    if (!g->running)
      run_round (g);
    else
      must (pthread_cond_wait (&g->finished, &lock));
}

/* A plugin flush outside any round, whose marks have been taken.  A round
 * that begins meanwhile waits for it, and fails if it fails.  Needs
 * "lock", and lets go of it meanwhile.  Returns 0 or an errno; *REPORTED
 * is set if a round has it too.
 */
static int
solo_flush (struct group *g, struct connection *c, bool *reported)
{
  uint64_t round = g->round, ns;
  int err;

  g->solo++;
  unlock_all ();
  if (c->exclusive)
    connection_lock (c);
  err = flush_handle (c, &ns);
  if (c->exclusive)
    connection_unlock (c);
  lock_all ();
  g->solo--;
  count_flush (err, ns);

  /* The round that counted us can't have ended. */
  *reported = g->round != round;
  if (*reported) {
    if (g->err == 0)
      g->err = err;
    if (--g->outstanding == 0)
      must (pthread_cond_signal (&g->phase));
  }
  return err;
}

/* A flush of this handle alone, in a group without a member that
 * replicates.  "stale" stands for a dirty group that no connection's mark
 * shows.  Needs "lock", and lets go of it meanwhile.
 */
static int
plain_flush (struct group *g, struct connection *c)
{
  bool whole = policy.level == LEVEL_FAST || c->multi_conn, reported;
  struct connection *c2;
  int err;

  if (policy.level != LEVEL_OFF &&
      !any_write_dirty (g) && !g->stale && g->solo == 0) {
    statistics.flushes_skipped_clean++;
    return 0;
  }

  if (whole)
    while (any_write_dirty (g)) {
      c2 = TAILQ_FIRST (&g->touched);
      take_marks (c2);
      untouch (c2);
    }
  else
    take_marks (c);
  untouch (c);
  /* Without multi-conn the flush says nothing of other connections, and
   * those of later flushes shall still go through.
   */
  g->stale = !whole;

  err = solo_flush (g, c, &reported);
  if (err != 0) {
    set_write_dirty (c);
    g->stale = true;
  }
  return err;
}

int
connection_flush (struct connection *c)
{
  struct group *g = c->group;
  struct waiter me = { .done = false };
  uint64_t start = now_ns (), ns;

  lock_all ();
  /* In auto the plugin may advertise multi-conn on some connections only.
   * One that has it flushes for the others too, and beside a round there
   * are none but rounds.
   */
  if (g->replicating > 0 || g->running)
    replicated_flush (g, &me);
  else
    me.err = plain_flush (g, c);
  ns = now_ns () - start;
  latency_add (&statistics.client_flushes, ns);
  unlock_all ();

  if (me.done)
    nbdkit_debug ("mcshim: flush: replicas %u, phases %u, %.3f ms",
                  me.replicas, me.phases, ns / 1e6);
  return me.err;
}

static void
group_free (struct group *g)
{
  LIST_REMOVE (g, groups);
  must (pthread_cond_destroy (&g->phase));
  must (pthread_cond_destroy (&g->finished));
  must (pthread_cond_destroy (&g->left));
  free (g->name);
  free (g);
}

/* Needs "lock".  Returns NULL, with errno set, if there is no memory. */
static struct group *
find_group (const char *name)
{
  struct group *g;

  LIST_FOREACH (g, &groups, groups)
    if (name == NULL || strcmp (g->name, name) == 0)
      return g;

  g = calloc (1, sizeof *g);
  if (g == NULL)
    return NULL;
  if (name != NULL && (g->name = strdup (name)) == NULL) {
    free (g);
    return NULL;
  }
  /* It may be that one: a flush too many is better than one too few. */
  g->stale = forgotten;
  LIST_INIT (&g->all);
  TAILQ_INIT (&g->touched);
  TAILQ_INIT (&g->queue);
  must (pthread_cond_init (&g->phase, NULL));
  must (pthread_cond_init (&g->finished, NULL));
  must (pthread_cond_init (&g->left, NULL));
  LIST_INSERT_HEAD (&groups, g, groups);
  return g;
}

struct connection *
connection_new (void *handle)
{
  struct connection *c;
  int err;

  err = posix_memalign ((void **) &c, _Alignof (struct connection), sizeof *c);
  if (err != 0) {
    errno = err;
    return NULL;
  }
  memset (c, 0, sizeof *c);
  c->handle = handle;
  c->exclusive = concurrency == ONE_PER_CONNECTION;
  must (pthread_mutex_init (&c->lock, NULL));
  return c;
}

void
connection_free (struct connection *c)
{
  must (pthread_mutex_destroy (&c->lock));
  free (c);
}

int
connection_join (struct connection *c, const char *name)
{
  struct group *g;

  lock_all ();
  g = find_group (name);
  if (g != NULL) {
    c->group = g;
    g->replicating += c->resolution.replicate;
    LIST_INSERT_HEAD (&g->all, c, all);
    statistics.connections_opened++;
    if (++statistics.connections_open > statistics.connections_most_at_once)
      statistics.connections_most_at_once = statistics.connections_open;
  }
  unlock_all ();
  return g != NULL ? 0 : -1;
}

static void
add_requests (struct statistics *s, struct connection *c)
{
  s->reads += atomic_load_explicit (&c->reads, memory_order_relaxed);
  s->writes += atomic_load_explicit (&c->writes, memory_order_relaxed);
}

/* Flush C, which closes, outside any round.  Needs "lock", and lets go of
 * it meanwhile.  Returns 0 or an errno.
 */
static int
flush_at_close (struct group *g, struct connection *c)
{
  bool reported;
  int err;

  take_marks (c);
  statistics.flushes_at_close++;
  err = solo_flush (g, c, &reported);
  if (err != 0 && !reported)
    g->close_err = err;
  return err;
}

void
connection_leave (struct connection *c)
{
  struct group *g = c->group;
  int err = 0;

  lock_all ();
  while (c->replica != NO_REPLICA)
    if (c->replica == REPLICA_QUEUED)
      run_replica (g, c);
    else
      must (pthread_cond_wait (&g->left, &lock));
  c->closing = true;
  if (atomic_load (&c->state) & WRITE_DIRTY) {
    if (c->resolution.replicate && policy.flush_on_close)
      err = flush_at_close (g, c);
    /* What other handles have cached may be older now. */
    g->stale = true;
  }

  if (atomic_load (&c->state) & TOUCHED)
    TAILQ_REMOVE (&g->touched, c, touched);
  LIST_REMOVE (c, all);
  g->replicating -= c->resolution.replicate;
  statistics.connections_open--;
  add_requests (&statistics, c);
  if (LIST_EMPTY (&g->all) && g->name != NULL && g->close_err == 0) {
    /* "stale" is for other connections, but for a later flush as well if
     * that speaks for this one.
     */
    if (g->stale && !c->resolution.replicate && c->multi_conn)
      forgotten = true;
    group_free (g);
  }
  unlock_all ();

  if (err != 0) {
    errno = err;
    nbdkit_error ("mcshim: the flush of a connection that closes failed, "
                  "its last writes are lost: %m");
  }
}

struct statistics
replicate_statistics (void)
{
  struct statistics s;
  struct connection *c;
  struct group *g;

  lock_all ();
  s = statistics;
  LIST_FOREACH (g, &groups, groups)
    LIST_FOREACH (c, &g->all, all)
      add_requests (&s, c);
  unlock_all ();
  return s;
}

void
replicate_init (const struct policy *p,
                int (*flush) (struct connection *c))
{
  policy = *p;
  plugin_flush = flush;
}

void
replicate_set_concurrency (enum concurrency value)
{
  concurrency = value;
  max_threads = policy.flush_threads ? policy.flush_threads :
    FLUSH_THREADS_AUTO;
  max_threads--;                /* the calling one is always there */
  if (concurrency == ONE_AT_A_TIME)
    max_threads = 0;
}

void
replicate_free (void)
{
  struct connection *c;
  struct group *g;

  lock_all ();
  stopping = true;
  must (pthread_cond_broadcast (&work));
  unlock_all ();
  while (nr_threads > 0)
    must (pthread_join (threads[--nr_threads], NULL));

  while ((g = LIST_FIRST (&groups)) != NULL) {
    while ((c = LIST_FIRST (&g->all)) != NULL) {
      LIST_REMOVE (c, all);
      connection_free (c);
    }
    group_free (g);
  }
}
