/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* order.c: the table alone.  tests/unit/replicate.c has what it is for. */

#include "order.h"
#include "unit.h"

#define HANDLE ((struct handle *) 64)

static struct order *
table (uint32_t block)
{
  struct order *o = order_new (block);

  CHECK (o != NULL);
  return o;
}

static uint32_t
join (struct order *o)
{
  const uint32_t claim = order_join (o, HANDLE);

  CHECK (claim != 0);
  CHECK (owner_of (o, claim)->handle == HANDLE);
  return claim;
}

/* Near blocks are apart, and so are those that are a table's size apart. */
static void
test_slots (void)
{
  const uint64_t slots = (uint64_t) 1 << SLOT_BITS;
  struct order *o = table (4096);
  uint64_t i;

  CHECK (o->shift == 12);
  for (i = 0; i < slots; i++)
    CHECK (atomic_fetch_add (slot_of (o, i), 1) == 0);
  for (i = 1; i < 1000; i++) {
    CHECK (slot_of (o, i * slots) != slot_of (o, 0));
    CHECK (slot_of (o, i * slots) != slot_of (o, (i - 1) * slots));
  }
  for (i = 1; i < slots << 20; i *= 3)
    CHECK (*slot_of (o, i) == 1);
  order_free (o);
  order_free (NULL);

  o = table (65536);
  CHECK (o->shift == 16);
  order_free (o);
}

static void
test_numbers (void)
{
  struct order *o = table (4096);
  uint32_t first, second, claim, i;

  first = join (o);
  second = join (o);
  CHECK (first >> SPELL_BITS == 1 && second >> SPELL_BITS == 2);
  for (i = 3; i < OWNERS; i++)
    CHECK (join (o) >> SPELL_BITS == i);
  errno = 0;
  CHECK (order_join (o, HANDLE) == 0 && errno == EMFILE);

  /* What has gone is past, and its numbers come again, with new spells. */
  order_leave (o, first);
  order_leave (o, next_spell (second));
  CHECK (owner_of (o, first)->handle == NULL);
  CHECK (is_past (o, first, 0) && is_past (o, next_spell (second), 0));
  claim = join (o);
  CHECK (claim == next_spell (next_spell (second)));
  CHECK (is_past (o, second, 0) && !is_past (o, claim, 0));
  CHECK (join (o) == next_spell (first));
  CHECK (order_join (o, HANDLE) == 0);
  order_free (o);
}

static void
test_take (void)
{
  struct order *o = table (4096);
  const uint32_t a = join (o), b = join (o);
  _Atomic uint32_t *slot = slot_of (o, 7);

  CHECK (order_take (o, slot, a, 0) && *slot == a);
  CHECK (!order_take (o, slot, b, UINT64_MAX) && *slot == a);
  CHECK (order_take (o, slot, next_spell (a), 0) && *slot == next_spell (a));

  /* Flushed, but not that far; then B has not seen it; then it has. */
  order_flushed (o, a, 5);
  CHECK (!order_take (o, slot, b, 5));
  order_flushed (o, next_spell (a), 5);
  CHECK (!order_take (o, slot, b, 4) && *slot == next_spell (a));
  CHECK (order_take (o, slot, b, 5) && *slot == b);
  order_free (o);
}

/* Each of the last spells has a write-back of its own, and all older ones have
 * the oldest of these.
 */
static void
test_kept (void)
{
  struct order *o = table (4096);
  const uint32_t a = join (o);
  uint32_t i, spell;

  for (i = 0; i < 3 * KEPT; i++) {
    order_flushed (o, a + i, 10 * i + 10);
    for (spell = 0; spell <= i; spell++) {
      const uint32_t kept = i - spell < KEPT ? spell : i - (KEPT - 1);

      CHECK (is_past (o, a + spell, 10 * kept + 10));
      CHECK (!is_past (o, a + spell, 10 * kept + 9));
    }
  }
  /* Two that end at once; and one that is past already. */
  order_flushed (o, a + i + 1, 500);
  CHECK (is_past (o, a + i, 500) && !is_past (o, a + i, 499));
  order_flushed (o, a + i, 600);
  CHECK (is_past (o, a + i + 1, 500));
  order_free (o);
}

/* A claim is new, and past once it is flushed, however often spells wrap.  One
 * of long ago may look new, and another handle's never changes hands by it.
 */
static void
test_spells_wrap (void)
{
  struct order *o = table (4096);
  uint32_t claim = join (o), before = claim, i;
  const uint32_t old = claim;
  unsigned looks_new = 0;

  CHECK (is_later (claim, claim - 1) && !is_later (claim, claim));
  for (i = 0; i < 3 * SPELLS; i++) {
    CHECK (claim >> SPELL_BITS == 1);
    CHECK (!is_past (o, claim, UINT64_MAX));
    owner_of (o, claim)->flushed = claim & (SPELLS - 1);
    CHECK (is_past (o, claim, 0) && is_past (o, before, 0));
    looks_new += !is_past (o, old, 0);
    before = claim;
    claim = next_spell (claim);
    CHECK (claim != before);
  }
  CHECK (looks_new > SPELLS && looks_new < 2 * SPELLS, "%u", looks_new);
  order_free (o);
}

int
main (void)
{
  static const struct unit_test tests[] = {
    { "slots", test_slots },
    { "numbers", test_numbers },
    { "who takes a slot", test_take },
    { "spells that are kept", test_kept },
    { "spells wrap", test_spells_wrap },
    { NULL, NULL }
  };

  return unit_main ("order", tests);
}
