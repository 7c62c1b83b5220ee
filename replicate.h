/* The group of connections: marks, and the replicated flush.  The
 * protocol is written down at the head of replicate.c.
 */

#ifndef MCSHIM_REPLICATE_H
#define MCSHIM_REPLICATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "interpose/interpose.h"
#include "latency.h"
#include "policy.h"

/* A connection's state is one word, so that each step of a request sees
 * and changes all of it at once:
 */
#define WRITE_DIRTY  ((uint64_t) 1 << 0)
#define READ_MARKED  ((uint64_t) 1 << 1)
#define TOUCHED      ((uint64_t) 1 << 2) /* on its group's touched list */
#define DRAINING     ((uint64_t) 1 << 3) /* a flush waits for requests */
#define EPOCH        ((uint64_t) 1 << 4) /* which of the two counts below
                                          * a new request goes into */
#define ONE_REQUEST(epoch) ((uint64_t) 1 << ((epoch) ? 40 : 16))
#define REQUESTS(s, epoch) ((s) >> ((epoch) ? 40 : 16) & 0xffffff)

enum replica {
  NO_REPLICA,
  REPLICA_DRAINING,             /* flushed once its requests are out */
  REPLICA_QUEUED,               /* on its group's queue */
  REPLICA_RUNNING,              /* inside the plugin's flush */
};

#define UNASKED (-2)

struct group;

/* What a request touches comes first, on cache lines that only this
 * connection's requests write.
 */
struct connection {
  _Alignas (64) _Atomic uint64_t state;
  _Atomic uint64_t reads, writes; /* calls of the plugin, for statistics */
  void *handle;                 /* the plugin's; constant */
  struct context context;       /* shim.c's */
  bool exclusive;               /* "lock" is in use; constant */

  /* At SERIALIZE_REQUESTS: held around every callback on the handle. */
  pthread_mutex_t lock;

  /* Constant once the connection is open. */
  struct group *group;
  struct resolution resolution;
  int can_write, can_flush;     /* the plugin's answers, or UNASKED */
  bool multi_conn;              /* plugin advertises it here */
  bool flushable;               /* a replicated flush may include it */

  /* The rest is guarded by the lock of replicate.c. */
  LIST_ENTRY (connection) all;
  TAILQ_ENTRY (connection) touched;
  TAILQ_ENTRY (connection) queued;
  enum replica replica;
  uint64_t round;               /* the last round that flushed it */
  bool failed;                  /* and that flush failed */
  bool closing;                 /* rounds leave it alone */
};

/* Since the start; see replicate_statistics. */
struct statistics {
  uint64_t connections_opened;
  uint64_t connections_open;
  uint64_t connections_most_at_once;
  struct latency client_flushes;
  struct latency plugin_flushes;
  uint64_t flushes_skipped_clean; /* client flushes that needed none */
  uint64_t replicas;            /* plugin flushes that rounds made */
  uint64_t rounds;              /* those that made any */
  uint64_t flushes_at_close;
  uint64_t failed_flushes;      /* of the plugin */
  uint64_t writes, reads;
};

/* The plugin's thread model, as far as it matters here. */
enum concurrency {
  ONE_AT_A_TIME,                /* the server calls the plugin serially */
  ONE_PER_CONNECTION,           /* SERIALIZE_REQUESTS */
  PARALLEL,
};

/* Call both before the first connection.  FLUSH flushes one handle of
 * the plugin's and returns 0 or an errno.
 */
extern void replicate_init (const struct policy *policy,
                            int (*flush) (struct connection *c));
extern void replicate_set_concurrency (enum concurrency concurrency);

/* End the threads and free everything.  No connection may be in use, and
 * nothing of the plugin is called.
 */
extern void replicate_free (void);

/* A connection that belongs to no group yet, for the plugin's HANDLE.
 * Returns NULL, with errno set, if it can't be had.
 */
extern struct connection *connection_new (void *handle);
extern void connection_free (struct connection *c);

/* Let C, whose "resolution" and so on are set by now, join the group of
 * the export NAME (NULL: the one group of all).  Returns 0, or -1 with
 * errno set.
 */
extern int connection_join (struct connection *c, const char *name);

/* Flush what C still holds, if the policy says so, and take it out of
 * its group.  Nothing is called on its handle from then on, so that the
 * plugin may close it.  Waits for a plugin flush of this handle, and for
 * no other.
 */
extern void connection_leave (struct connection *c);

/* A client's flush that came in on C, replicated or not.  Returns 0, or
 * the errno of the first plugin flush that failed.
 */
extern int connection_flush (struct connection *c);

/* Statistics of all connections, open and closed. */
extern struct statistics replicate_statistics (void);

/* C's own lock, where C is "exclusive". */
extern void connection_lock (struct connection *c);
extern void connection_unlock (struct connection *c);

/* Slow paths of the two functions below; not for anyone else. */
extern void connection_touch (struct connection *c);
extern void connection_mark_written (struct connection *c, uint64_t one);
extern void connection_drained (struct connection *c);

/* Around every data callback of the plugin but flush.  request_begin
 * returns what request_end must be given.  MARK is WRITE_DIRTY or
 * READ_MARKED.  Neither changes errno.
 */
static inline uint64_t
request_begin (struct connection *c)
{
  uint64_t s, one;

  if (__builtin_expect (c->exclusive, 0))
    connection_lock (c);

  s = atomic_load_explicit (&c->state, memory_order_relaxed);
  do
    one = ONE_REQUEST (s & EPOCH);
  while (!atomic_compare_exchange_weak (&c->state, &s, s + one));

  if (__builtin_expect (!(s & TOUCHED), 0))
    connection_touch (c);
  return one;
}

static inline void
request_end (struct connection *c, uint64_t one, uint64_t mark)
{
  uint64_t s, next;

  s = atomic_load_explicit (&c->state, memory_order_relaxed);
  do {
    if (mark == WRITE_DIRTY && __builtin_expect (!(s & mark), 0)) {
      connection_mark_written (c, one);
      goto out;
    }
    next = (s - one) | mark;
  } while (!atomic_compare_exchange_weak (&c->state, &s, next));

  if (__builtin_expect (s & DRAINING, 0))
    connection_drained (c);
 out:
  if (__builtin_expect (c->exclusive, 0))
    connection_unlock (c);
}

#endif /* MCSHIM_REPLICATE_H */
