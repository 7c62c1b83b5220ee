/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* How a request gets into its handle, and a write gets its blocks: see "Order"
 * at the head of replicate.c.
 */

#include <errno.h>

#include "group.h"

/* At level "connection" an unmarked handle holds nothing, unless a flush of it
 * fails.  Needs "lock".
 */
static void
notice_empty (struct handle *h)
{
  if (shared.policy.level == LEVEL_CONNECTION && h->flushing == 0 &&
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
  if (LIST_FIRST (&h->holders) == NULL &&
      h->block <= (uint64_t) 1 << h->shift)
    atomic_fetch_and (&h->state, ~HELD);
}

/* H, whose first write this is, becomes an owner of blocks.  Needs "lock".
 * Returns 0 or an errno.
 */
static int
become_owner (struct group *g, struct handle *h)
{
  struct owner *owner;
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
  owner = owner_of (h->order, claim);
  owe (h, wrote_by (owner, owner->flushed, owner->flushed));
  return 0;
}

/* Has H written nothing that no flush has covered?  Needs "lock". */
static bool
is_quiet (struct handle *h)
{
  const uint64_t s = atomic_load (&h->state);

  return WRITERS (s) == 0 && !(s & WRITE_DIRTY) && h->flushing == 0;
}

/* Have H, one of whose blocks another handle is to write, written back while
 * no write is inside.  Needs "lock", and lets go of it meanwhile.  Returns 0
 * or an errno.
 */
static int
write_back (struct group *g, struct handle *h)
{
  struct holder me = { .handle = h };
  uint32_t claim;
  int err = 0;

  shared.statistics.conflicts++;
  LIST_INSERT_HEAD (&h->holders, &me, of_handle);
  h->waiting++;
  atomic_fetch_or (&h->state, HELD | WAITING);
  while (err == 0 && me.handle != NULL && !is_quiet (h))
    if (WRITERS (atomic_load (&h->state)) > 0 || h->flushing > 0 || h->closing)
      must (pthread_cond_wait (&h->changed, &shared.lock));
    else {
      struct waiter waiter = { .handle = NULL };
      const uint64_t before = g->round;

      await_round (g, &waiter);
      if (me.handle != NULL && h->failed > before)
        err = waiter.result.err;
    }
  if (me.handle == NULL)        /* it has closed, and its claims are past */
    return 0;

  if (err == 0) {               /* also if no flush was needed */
    claim = h->claim;
    h->claim = next_spell (claim);
    end_spell (h, claim);
  }
  LIST_REMOVE (&me, of_handle);
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
  return (offset & ~(h->block - 1)) >> h->shift;
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

/* Have what other handles claim of the blocks that H will write be past, as of
 * write-back *OWED.  Needs "lock", and lets go of it meanwhile.  Returns 0 or
 * an errno.
 */
static int
write_back_others (struct handle *h, uint64_t offset, uint64_t count,
                   uint64_t *owed)
{
  const uint64_t last = last_block (h, offset, count);
  _Atomic uint32_t *slot;
  struct owner *owner;
  uint64_t block, wrote;
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
      atomic_compare_exchange_strong (slot, &claim, owner->flushed |
                                      (claim & ~(SPELLS - 1)));
    }
    wrote = wrote_by (owner, claim, owner->flushed);
    if (*owed < wrote)
      *owed = wrote;
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
  bool claims;
  int err;

  if (writes && h->order == NULL && (atomic_load (&h->state) & HELD)) {
    err = become_owner (h->group, h);
    if (err != 0)
      return err;
  }
  claims = writes && h->order != NULL;
  for (;;) {
    err = claims ? write_back_others (h, offset, count, &owed) : 0;
    if (err != 0)
      return err;
    notice_empty (h);
    owe (h, owed);
    err = admit (h, h->owed, writes);
    if (err != 0)
      return err;
    notice_empty (h);
    mark (h, READ_MARKED);
    if (!claims || handle_claims (h, offset, count))
      return 0;
    vacate (h, true);
  }
}

int
handle_enter (struct handle *h)
{
  int err;

  lock_groups ();
  err = enter (h, false, 0, 0);
  unlock_groups ();
  return err;
}

int
handle_enter_write (struct handle *h, uint64_t offset, uint64_t count,
                    bool inside)
{
  int err;

  lock_groups ();
  if (inside)
    vacate (h, true);
  err = enter (h, true, offset, count);
  unlock_groups ();
  return err;
}

int
handle_wrote (struct handle *h, int r)
{
  int saved = errno;

  lock_groups ();
  mark (h, WRITE_DIRTY);
  unlock_groups ();
  errno = saved;
  return r;
}

int
handle_left (struct handle *h, int r)
{
  int saved = errno;

  lock_groups ();
  left (h);
  unlock_groups ();
  errno = saved;
  return r;
}

void
control_begin (struct handle *h)
{
  if (shared.thread_model != SERIALIZE_HANDLE)
    return;
  lock_groups ();
  must (admit (h, 0, false));
  unlock_groups ();
}

void
control_end (struct handle *h)
{
  int saved = errno;

  if (shared.thread_model != SERIALIZE_HANDLE)
    return;
  lock_groups ();
  vacate (h, false);
  unlock_groups ();
  errno = saved;
}
