/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What replicate.c shares with group.c and enter.c: the group, and the lock.
 */

#ifndef MCSHIM_GROUP_H
#define MCSHIM_GROUP_H

#include "interpose/oldglibc.h"
#include "must.h"
#include "replicate.h"

#define MARKS (WRITE_DIRTY | READ_MARKED | OWES)

struct waiter {
  struct waiter *next;
  struct handle *handle;        /* which the client flushes; NULL: only those
                                 * that are held */
  bool client;                  /* a client has asked for it */
  bool done;
  struct flushed result;
};

/* Keeps writes out of a handle while it is written back, for a write of
 * another one.
 */
struct holder {
  LIST_ENTRY (holder) of_handle;
  struct handle *handle;        /* NULL once it has closed */
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

extern struct shared {
  pthread_mutex_t lock;
  struct statistics statistics; /* guarded by it */

  /* Constant once the server is ready. */
  struct policy policy;
  struct replicate_ops ops;
  enum thread_model thread_model;
} shared;

static inline void
lock_groups (void)
{
  must (pthread_mutex_lock (&shared.lock));
}

static inline void
unlock_groups (void)
{
  must (pthread_mutex_unlock (&shared.lock));
}

/* All of these need the lock, and those of the second part let go of it
 * meanwhile.  They are described in replicate.c.
 */
extern void mark (struct handle *h, uint64_t bits);
extern void unmark (struct handle *h, uint64_t bits);
extern bool occupy (struct handle *h, uint64_t flag);
extern void owe (struct handle *h, uint64_t number);
extern void end_spell (struct handle *h, uint32_t claim);

extern void left (struct handle *h);
extern void vacate (struct handle *h, bool writes);
extern int admit (struct handle *h, uint64_t owed, bool writes);
extern int run_owed (struct handle *h);
extern int flush_handle (struct handle *h, unsigned mine, bool write_back);
extern void run_replica (struct group *g, struct handle *h);
extern void await_round (struct group *g, struct waiter *me);

#endif /* MCSHIM_GROUP_H */
