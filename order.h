/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which handle has written which block of the disk, and has it been written
 * back?  replicate.c keeps a table of this for each group that replicates, and
 * explains what for.
 *
 * A handle that writes is an owner.  It has a number, and counts its flushes:
 * what it writes between two of them is a spell.  Each block has a slot in the
 * table, which names the owner and the spell of the block's last write.
 * Blocks share slots, those that are near each other only in a large disk.  So
 * a slot may name an owner that has not written the block, which costs a flush
 * too many; it never fails to name one that has.
 */

#ifndef MCSHIM_ORDER_H
#define MCSHIM_ORDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLOT_BITS  20           /* 4 GiB of blocks of 4 KiB are all apart */
#define SPELL_BITS 18           /* of a slot; the rest is the owner's number */
#define SPELLS     ((uint32_t) 1 << SPELL_BITS)
#define OWNERS     ((uint32_t) 1 << (32 - SPELL_BITS))
#define KEPT       4            /* spells of an owner; divides SPELLS */

struct handle;

/* A record stays when its handle has gone, and another handle may get it. */
struct owner {
  /* In which write-back of the group each of its last spells was. */
  _Atomic uint64_t wrote[KEPT];
  _Atomic uint32_t flushed;     /* its last spell that was written back */
  uint32_t next;                /* of those that no handle has */
  struct handle *handle;        /* or NULL */
};

/* 4.8 MiB, of which memory is used where something is written. */
struct order {
  _Atomic uint32_t slot[(size_t) 1 << SLOT_BITS];
  struct owner owner[OWNERS];   /* from number 1 */
  uint32_t owners, free;        /* how many there have been; the first free */
  unsigned shift;               /* log2 of a block; constant */
};

/* For blocks of BLOCK bytes, a power of two.  Returns NULL with errno set. */
extern struct order *order_new (uint32_t block);
extern void order_free (struct order *o);

/* Give H a number.  Returns its first claim, or 0 with errno set.  The rest of
 * the table, unlike the slots, is guarded by the caller's lock.
 */
extern uint32_t order_join (struct order *o, struct handle *h);

/* All that was claimed up to CLAIM's spell has been written back, as of the
 * group's write-back WRITTEN.
 */
extern void order_flushed (struct order *o, uint32_t claim, uint64_t written);

/* H, whose claim is the last, has nothing left to write back. */
extern void order_leave (struct order *o, uint32_t claim);

static inline struct owner *
owner_of (struct order *o, uint32_t claim)
{
  return &o->owner[claim >> SPELL_BITS];
}

/* The claim of the next spell. */
static inline uint32_t
next_spell (uint32_t claim)
{
  return (claim & ~(SPELLS - 1)) | ((claim + 1) & (SPELLS - 1));
}

/* Is CLAIM's spell a later one than SPELL?  They are taken as near each other:
 * after very many spells an old one may look new, which is the safe side.
 */
static inline bool
is_later (uint32_t claim, uint32_t spell)
{
  return ((claim - spell - 1) & (SPELLS - 1)) < SPELLS / 2;
}

/* By which write-back of the group everything was written back that OWNER's
 * CLAIM, whose spell is not later than FLUSHED, stands for.  For a spell that
 * is not kept this is the oldest that is.
 */
static inline uint64_t
wrote_by (const struct owner *owner, uint32_t claim, uint32_t flushed)
{
  const bool kept = ((flushed - claim) & (SPELLS - 1)) < KEPT;

  return atomic_load (&owner->wrote[(kept ? claim : flushed + 1) % KEPT]);
}

/* Has what CLAIM stands for been written back, and has a handle that has
 * seen write-back SEEN seen that too?
 */
static inline bool
is_past (struct order *o, uint32_t claim, uint64_t seen)
{
  const struct owner *owner = owner_of (o, claim);
  const uint32_t flushed = atomic_load (&owner->flushed);

  /* "wrote" is stored first. */
  return claim == 0 ||
    (!is_later (claim, flushed) && wrote_by (owner, claim, flushed) <= seen);
}

static inline _Atomic uint32_t *
slot_of (struct order *o, uint64_t block)
{
  return &o->slot[(block + (block >> SLOT_BITS) * 0x9e3779b1) &
                  (((uint64_t) 1 << SLOT_BITS) - 1)];
}

/* Take SLOT for OWN, the claim of a handle that has seen write-back SEEN.
 * Returns false if it is another's, and not past.
 */
extern bool order_take (struct order *o, _Atomic uint32_t *slot, uint32_t own,
                        uint64_t seen);

#endif /* MCSHIM_ORDER_H */
