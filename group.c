/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Groups and handles come and go: see replicate.h, and "Closing" at the head
 * of replicate.c.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "group.h"
#include "helpers.h"

/* Look-up does not grow with the number of export names. */
#define BUCKETS 1024

/* Groups that are gone may have left something behind.  So many of them are
 * remembered by name; what others left applies to every new group.
 */
#define REMEMBERED_MAX 64

/* Guarded by the lock. */
static LIST_HEAD (, group) groups[BUCKETS];
static unsigned remembered;     /* groups without members */
static int forgotten_err;       /* of a group that was not remembered */
static bool forgotten_unflushed;

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
  if (shared.thread_model == SERIALIZE_HANDLE)
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
  shared.statistics.handle_opens_failed += h->further;
  leave_group (h->group);
  unlock_groups ();
  must (pthread_cond_destroy (&h->changed));
}

void
handle_joins (struct handle *h)
{
  struct statistics *s = &shared.statistics;
  struct group *g = h->group;

  lock_groups ();
  LIST_INSERT_HEAD (&g->handles, h, in_group);
  if (!h->further) {
    s->connections_opened[h->resolution.verdict]++;
    if (++s->connections_open > s->connections_most_at_once)
      s->connections_most_at_once = s->connections_open;
  }
  if (++s->handles_open > s->handles_most_at_once)
    s->handles_most_at_once = s->handles_open;

  if (g->kind == REPLICATES && h->flushable)
    atomic_fetch_or (&h->state, HELD); /* until its first write */
  if (g->kind == REPLICATES && h->flushable &&
      g->written + g->writing > h->seen) {
    /* A write-back that has not ended is left to its round's second phase. */
    mark (h, READ_MARKED);
    if (g->written > h->seen) {
      h->owed = g->written;     /* if it fails it is still owed */
      occupy (h, 0);            /* nothing is inside yet */
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
  s->pieces += atomic_load_explicit (&h->pieces, memory_order_relaxed);
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

  shared.statistics.flushes_at_close++;
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
  struct holder *holder;
  int err = 0;

  lock_groups ();
  h->closing = true;
  while (h->replica != NO_REPLICA)
    if (h->replica == REPLICA_QUEUED)
      run_replica (g, h);
    else
      must (pthread_cond_wait (&h->changed, &shared.lock));
  if (atomic_load (&h->state) & WRITE_DIRTY) {
    if (h->resolution.replicate && h->flushable &&
        shared.policy.flush_on_close)
      err = flush_at_close (g, h);
    else {
      /* The plugin may write them back as it closes. */
      g->written++;
      g->unflushed = true;
    }
  }

  unmark (h, MARKS);
  while ((holder = LIST_FIRST (&h->holders)) != NULL) {
    holder->handle = NULL;
    LIST_REMOVE (holder, of_handle);
  }
  must (pthread_cond_broadcast (&h->changed));
  if (h->order != NULL) {
    end_spell (h, h->claim);
    order_leave (h->order, h->claim);
  }
  LIST_REMOVE (h, in_group);
  shared.statistics.connections_open -= !h->further;
  shared.statistics.handles_open--;
  add_requests (&shared.statistics, h);
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
  s = shared.statistics;
  for (i = 0; i < BUCKETS; i++)
    LIST_FOREACH (g, &groups[i], in_bucket)
      LIST_FOREACH (h, &g->handles, in_group)
        add_requests (&s, h);
  unlock_groups ();
  return s;
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
