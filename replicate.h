/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The group of handles: marks, and the replicated flush.  The head of
 * replicate.c describes the protocol.
 *
 * A handle is the plugin's.  Nothing here depends on nbdkit: the caller
 * passes in what to do with a handle, and gets back what happened.
 */

#ifndef MCSHIM_REPLICATE_H
#define MCSHIM_REPLICATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "latency.h"
#include "order.h"
#include "policy.h"
#include "queue.h"

/* A handle's state is one word, so that each step of a request sees and
 * changes all of it at once.  Above the bits it counts what is inside the
 * plugin: requests, and flushes that have the handle to themselves; and once
 * more those requests that write.
 */
#define WRITE_DIRTY  ((uint64_t) 1 << 0)
#define READ_MARKED  ((uint64_t) 1 << 1)
#define OWES         ((uint64_t) 1 << 2) /* a flush, before the next request */
#define PENDING      ((uint64_t) 1 << 3) /* a replica, after this request */
#define WAITING      ((uint64_t) 1 << 4) /* someone waits for a change */
#define HELD         ((uint64_t) 1 << 5) /* no write may enter */
#define ONE_INSIDE   ((uint64_t) 1 << 8)
#define ONE_WRITER   ((uint64_t) 1 << 36)
#define INSIDE(s)    ((s) >> 8 & 0xfffffff)
#define WRITERS(s)   ((s) >> 36)

enum replica {
  NO_REPLICA,
  REPLICA_QUEUED,               /* on its group's queue */
  REPLICA_PENDING,              /* the request inside runs it as it ends */
  REPLICA_RUNNING,              /* inside the plugin's flush */
};

struct group;

struct connection;

/* What a request touches comes first, on a cache line that only requests
 * of this handle write to.
 */
struct handle {
  _Alignas (64) _Atomic uint64_t state;
  uint64_t gate;                /* what keeps a request out; constant */
  _Atomic uint64_t reads, writes; /* calls of the plugin, for statistics */
  void *plugin;                 /* the plugin's own; constant */
  struct order *order;          /* once it has written; constant then */
  _Atomic uint32_t claim;       /* of what it writes now */
  unsigned shift;               /* log2 of the table's block; constant, too */
  uint64_t block;               /* a write may change all of one; constant */

  /* Constant once the handle has joined. */
  struct group *group;
  struct resolution resolution;
  bool multi_conn;              /* plugin advertises it here */
  bool flushable;               /* a replicated flush may include it */
  bool further;                 /* its connection had one before */
  unsigned number;              /* among those of its connection */
  _Atomic uint64_t pieces;      /* the same as "reads", of longer requests */
  struct connection *connection;

  /* The rest is guarded by the lock of replicate.c. */
  bool closing;                 /* rounds leave it alone */
  enum replica replica;
  unsigned waiting;             /* for the handle to be free */
  LIST_HEAD (, holder) holders; /* writes of other handles */
  unsigned flushing;            /* flushes inside the plugin */
  uint64_t owed;                /* a write-back's number, as "seen" is */
  _Atomic uint64_t seen;        /* changes under the lock */
  uint64_t failed;              /* the last round in which its flush failed */
  pthread_cond_t changed;       /* the count, "replica" or "seen" */
  LIST_ENTRY (handle) in_group;
  TAILQ_ENTRY (handle) marked;
  TAILQ_ENTRY (handle) queued;
};

/* Since the start; see replicate_statistics. */
struct statistics {
  uint64_t connections_opened[NR_VERDICTS];
  uint64_t connections_open;
  uint64_t connections_most_at_once;
  uint64_t handles_open;
  uint64_t handles_most_at_once;
  uint64_t handle_opens_failed; /* of a connection that had one */
  struct latency client_flushes;
  struct latency plugin_flushes;
  uint64_t flushes_skipped_clean; /* client flushes that needed none */
  uint64_t replicas;            /* plugin flushes that rounds made */
  uint64_t rounds;              /* those that made any */
  uint64_t flushes_owed;        /* replicas left to a handle's next request */
  uint64_t owed_flushes;        /* plugin flushes that such requests made */
  uint64_t conflicts;           /* writes that had another handle flushed */
  uint64_t flushes_at_close;
  uint64_t failed_flushes;      /* of the plugin */
  uint64_t writes, reads, pieces;
};

/* The plugin's thread model, as far as it matters here. */
enum thread_model {
  SERIALIZE_ALL,                /* the server calls the plugin serially */
  SERIALIZE_HANDLE,             /* SERIALIZE_REQUESTS */
  PARALLEL,
};

/* What the plugin does for replicate.c. */
struct replicate_ops {
  /* Flush one handle.  Returns 0 or an errno.  May be called on any
   * thread, with no lock held.
   */
  int (*flush) (struct handle *h);
  void (*helper_starts) (void); /* called first on each helper thread */
  bool (*server_ends) (void);   /* on a server's thread, without the lock */
};

/* Call both before the first handle. */
extern void replicate_init (const struct policy *policy,
                            const struct replicate_ops *ops);
extern void replicate_set_thread_model (enum thread_model model);

/* End the threads and free all memory.  No handle may be in use, and the
 * plugin is not called.  FREE_HANDLE is called for each handle that never
 * left, which happens when the server ends in mid-connection.
 */
extern void replicate_free (void (*free_handle) (struct handle *h));

/* Before the plugin opens a handle: prepare H, which is zeroed, for the
 * group of the export NAME (NULL: the only group).  Returns 0, or -1 with
 * errno set.
 */
extern int handle_opens (struct handle *h, const char *name);

/* Does H's group replicate?  The first connection settles that, as REPLICATE
 * says, until the group is empty.
 */
extern bool handle_settles (struct handle *h, bool replicate);

/* The same as handle_opens for a further handle of FIRST's connection: it
 * joins that group, and copies what is known of FIRST.
 */
extern void handle_opens_beside (struct handle *h, const struct handle *first);

/* The plugin has opened it: "plugin", "resolution" and so on are set.  If
 * other handles' data was written back meanwhile, H is flushed.
 */
extern void handle_joins (struct handle *h);

/* Flush what H still holds, if the policy says so, and take it out of its
 * group.  From then on nothing is called on it, so the plugin may close it.
 * Waits for a plugin flush of this handle, and for no other.  Returns 0,
 * or the errno of a flush that failed: H's last writes are then lost, and
 * the next flush of the group will fail.
 */
extern int handle_leaves (struct handle *h);

/* Instead of the two above, for a handle that the plugin could not open or
 * that may not join.
 */
extern void handle_gives_up (struct handle *h);

struct flushed {
  int err;                      /* 0, or of the first flush that failed */
  uint64_t ns;                  /* how long it took */
  bool replicated;              /* by a round: the next two are set */
  unsigned replicas, phases;
};

/* A client's flush that came in on H. */
extern struct flushed replicate_flush (struct handle *h);

/* The same, for a request that goes to several handles at once: no client
 * has asked for this flush.  Returns 0, or an errno if a handle of H's
 * connection failed: what others can't flush is theirs.
 */
extern int replicate_for_connection (struct handle *h);

/* Is nothing unflushed on any handle of H's connection? */
extern bool connection_is_clean (struct handle *h);

/* Have H see what has been done on all handles of its connection.  Returns 0
 * or the errno of a flush.
 */
extern int handle_catches_up (struct handle *h);

/* Statistics of all handles, open and closed. */
extern struct statistics replicate_statistics (void);

/* Around every callback of a handle that is neither data nor flush. */
extern void control_begin (struct handle *h);
extern void control_end (struct handle *h);

/* Slow paths of the two functions below; not for anyone else. */
extern int handle_enter (struct handle *h);
extern int handle_enter_write (struct handle *h, uint64_t offset,
                               uint64_t count, bool inside);
extern bool handle_claims (struct handle *h, uint64_t offset, uint64_t count);
extern int handle_wrote (struct handle *h, int r);
extern int handle_left (struct handle *h, int r);

/* Claim the block that H, which is counted inside, will write.  Returns false
 * if it is not so easy: there are several, or neither H nor nobody has it.
 */
static inline bool
request_claims (struct handle *h, uint64_t offset, uint64_t count)
{
  const uint32_t own = atomic_load (&h->claim);
  _Atomic uint32_t *slot;
  uint32_t claim;

  if ((offset ^ (offset + count - 1)) >= h->block)
    return false;
  slot = slot_of (h->order, offset >> h->shift);
  claim = atomic_load (slot);
  return claim == own ||
    (claim == 0 && atomic_compare_exchange_strong (slot, &claim, own));
}

/* Let a request in if that is easy.  Otherwise *INSIDE says whether it is
 * counted: then it writes, and has not got its blocks.
 */
static inline __attribute__ ((always_inline)) bool
request_enters (struct handle *h, bool writes, uint64_t offset, uint64_t count,
                bool *inside)
{
  const uint64_t gate = h->gate | (writes ? HELD : 0);
  uint64_t s = atomic_load_explicit (&h->state, memory_order_relaxed);

  *inside = false;
  do
    if (__builtin_expect ((s & gate) != READ_MARKED, 0))
      return false;
  while (!atomic_compare_exchange_weak
         (&h->state, &s, s + ONE_INSIDE + (writes ? ONE_WRITER : 0)));

  *inside = true;
  return !writes || h->order == NULL ||
    __builtin_expect (request_claims (h, offset, count), 1);
}

/* Let it in where it was not.  Returns 0, or the errno of a flush that had to
 * come first.
 */
static inline int
request_waits (struct handle *h, bool writes, uint64_t offset, uint64_t count,
               bool inside)
{
  if (!writes)
    return handle_enter (h);
  return inside && handle_claims (h, offset, count) ? 0 :
    handle_enter_write (h, offset, count, inside);
}

/* Around every data callback of the plugin except flush.  WRITES is true for a
 * write, zero or trim, of COUNT bytes at OFFSET.  request_begin returns 0, or
 * the errno of a flush that had to come first; then neither the plugin nor
 * request_end must be called.  request_end leaves errno alone, and returns R,
 * which need not be saved meanwhile.
 */
static inline __attribute__ ((always_inline)) int
request_begin (struct handle *h, bool writes, uint64_t offset, uint64_t count)
{
  bool inside;

  return request_enters (h, writes, offset, count, &inside) ? 0 :
    request_waits (h, writes, offset, count, inside);
}

static inline __attribute__ ((always_inline)) int
request_end (struct handle *h, bool wrote, int r)
{
  const uint64_t one = ONE_INSIDE + (wrote ? ONE_WRITER : 0);

  /* This adds nothing, but unlike a load it makes what the plugin has stored
   * visible to whoever takes the mark from now on.
   */
  if (wrote && __builtin_expect (!(atomic_fetch_add (&h->state, 0) &
                                   WRITE_DIRTY), 0))
    r = handle_wrote (h, r);
  return __builtin_expect (atomic_fetch_sub (&h->state, one) &
                           (PENDING | WAITING), 0) ? handle_left (h, r) : r;
}

#endif /* MCSHIM_REPLICATE_H */
