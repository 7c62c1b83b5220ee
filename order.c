/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Which handle has written which block: see order.h. */

#include <errno.h>
#include <sys/mman.h>

#include "order.h"

struct order *
order_new (uint32_t block)
{
  struct order *o = mmap (NULL, sizeof *o, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (o == MAP_FAILED)
    return NULL;
  o->shift = __builtin_ctz (block);
  return o;
}

void
order_free (struct order *o)
{
  if (o != NULL)
    munmap (o, sizeof *o);
}

uint32_t
order_join (struct order *o, struct handle *h)
{
  uint32_t number = o->free;

  if (number != 0)
    o->free = o->owner[number].next;
  else if (o->owners < OWNERS - 1)
    number = ++o->owners;
  else {
    errno = EMFILE;
    return 0;
  }
  o->owner[number].handle = h;
  return next_spell (number << SPELL_BITS | o->owner[number].flushed);
}

void
order_flushed (struct order *o, uint32_t claim, uint64_t written)
{
  struct owner *owner = owner_of (o, claim);
  uint32_t spell = owner->flushed;

  while (is_later (claim, spell))
    owner->wrote[++spell % KEPT] = written; /* first: see is_past */
  owner->flushed = spell & (SPELLS - 1);
}

void
order_leave (struct order *o, uint32_t claim)
{
  struct owner *owner = owner_of (o, claim);

  owner->flushed = claim & (SPELLS - 1);
  owner->handle = NULL;
  owner->next = o->free;
  o->free = claim >> SPELL_BITS;
}

bool
order_take (struct order *o, _Atomic uint32_t *slot, uint32_t own,
            uint64_t seen)
{
  uint32_t claim = atomic_load (slot);

  do
    if (claim >> SPELL_BITS != own >> SPELL_BITS && !is_past (o, claim, seen))
      return false;
  while (!atomic_compare_exchange_weak (slot, &claim, own));
  return true;
}
