/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* spread.c: which handle serves a request, and when it waits. */

#include "spread.h"
#include "threads.h"

#define STRIPE 4096
#define MOST 4

static struct handle handles[HANDLES_MAX];
static struct spread *s;

/* How the test's open behaves. */
static struct gate opens;
static unsigned nr_opens;       /* that have been begun; guarded by "world" */
static unsigned fail_from = HANDLES_MAX; /* the open of this number fails */
static unsigned said, said_nr;
static char said_why[64];

static struct handle *
open_handle (struct connection *c, char *why, size_t size)
{
  unsigned n;

  CHECK (nr_held == 0, "the plugin is called with a lock");
  CHECK ((struct handle *) c == &handles[0]);
  world_lock ();
  n = ++nr_opens;
  world_unlock ();
  gate_pass (&opens);
  if (n >= fail_from) {
    snprintf (why, size, "number %u", n);
    return NULL;
  }
  return &handles[n];
}

static void
gives_up (struct connection *c, unsigned nr, const char *why)
{
  CHECK (nr_held == 0);
  CHECK ((struct handle *) c == &handles[0]);
  said++;
  said_nr = nr;
  snprintf (said_why, sizeof said_why, "%s", why);
}

static int flush_err;           /* of each flush, until it is set to 0 */
static unsigned nr_flushes;
static struct gate flushes;

static int
flush_handles (struct handle *h)
{
  CHECK (nr_held == 0);
  CHECK (h == &handles[0]);
  CHECK (s->inside & ALONE);
  world_lock ();
  nr_flushes++;
  world_unlock ();
  gate_pass (&flushes);
  return flush_err;
}

static const struct spread_ops ops = { open_handle, gives_up, flush_handles };

static void
begin (bool any, bool shared)
{
  handles[0].connection = (struct connection *) &handles[0];
  s = spread_new (&ops, &handles[0], MOST, STRIPE, any, shared, false);
  CHECK (s != NULL);
}

static void
end (void)
{
  spread_free (s);
  CHECK (allocated == 0);
  CHECK (conds == 0);
  CHECK (threads == 0);
}

/* Threads that enter, and go as far as they can. */

struct actor {
  pthread_t thread;
  uint64_t offset;
  bool alone;
  int err;                      /* where there is no handle */
  struct handle *got;
  bool over;                    /* guarded by "world" */
};

static void *
act (void *arg)
{
  struct actor *a = arg;

  a->err = errno = 0;
  if (a->alone)
    a->err = spread_alone_begin (s);
  else if ((a->got = spread_enter (s, a->offset)) == NULL)
    a->err = errno;
  CHECK (nr_held == 0);
  world_lock ();
  a->over = true;
  world_unlock ();
  return NULL;
}

static void
start (struct actor *a)
{
  start_thread (&a->thread, act, a);
  settle ();
}

static bool
over (struct actor *a)
{
  bool r;

  world_lock ();
  r = a->over;
  world_unlock ();
  return r;
}

/* Returns the number of its handle. */
static int
got (struct actor *a)
{
  CHECK (over (a));
  __wrap_pthread_join (a->thread, NULL);
  a->over = false;
  if (a->err != 0)
    return -a->err;
  return a->alone ? -1 : (int) (a->got - handles);
}

static void
leave (unsigned number)
{
  errno = E2BIG;
  spread_leave (s, &handles[number]);
  CHECK (errno == E2BIG, "spread_leave changes errno");
  CHECK (nr_held == 0);
  settle ();
}

/* Enter and leave.  Returns the number of the handle. */
static int
pass (uint64_t offset)
{
  struct handle *h = spread_enter (s, offset);

  CHECK (nr_held == 0);
  leave (h - handles);
  return h - handles;
}

static void
test_lengths (void)
{
  begin (false, false);
  CHECK (spread_length (s, 0, 1) == 1);
  CHECK (spread_length (s, 0, STRIPE) == STRIPE);
  CHECK (spread_length (s, 0, STRIPE + 1) == STRIPE);
  CHECK (spread_length (s, 0, UINT32_MAX) == STRIPE);
  CHECK (spread_length (s, 10, STRIPE) == STRIPE - 10);
  CHECK (spread_length (s, STRIPE - 1, 1) == 1);
  CHECK (spread_length (s, STRIPE - 1, 2) == 1);
  CHECK (spread_length (s, 5 * (uint64_t) STRIPE << 30, 2 * STRIPE) == STRIPE);
  CHECK (!spread_is_long (s, 1));
  CHECK (!spread_is_long (s, 4 * MOST * STRIPE));
  CHECK (!spread_is_long (s, 4 * MOST * STRIPE + STRIPE - 1));
  CHECK (spread_is_long (s, 4 * MOST * STRIPE + STRIPE));
  CHECK (spread_is_long (s, UINT32_MAX));
  spread_free (s);

  begin (true, false);
  CHECK (spread_length (s, 10, UINT32_MAX) == STRIPE - 10);
  CHECK (!spread_is_long (s, UINT32_MAX));
  spread_free (s);

  /* A stripe can be as large as anything. */
  s = spread_new (&ops, &handles[0], 2, (uint64_t) 1 << 32, false, false,
                  false);
  CHECK (spread_length (s, 1, UINT32_MAX) == UINT32_MAX);
  CHECK (spread_length (s, 2, UINT32_MAX) == UINT32_MAX - 1);
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (pass (0) == 0);
  CHECK (pass ((uint64_t) 1 << 32) == 1);
  end ();
}

static void
test_classes (void)
{
  begin (false, false);
  CHECK (pass (2 * STRIPE) == 0, "the first one is there");
  CHECK (nr_opens == 0);
  CHECK (pass (2 * STRIPE + 10) == 0);
  CHECK (pass (6 * STRIPE - 1) == 1);
  CHECK (pass (0) == 2);
  CHECK (pass (7 * STRIPE) == 3);
  CHECK (nr_opens == MOST - 1);
  CHECK (pass (6 * STRIPE) == 0);
  CHECK (pass (1 * STRIPE) == 1);
  CHECK (pass (4 * STRIPE) == 2);
  CHECK (pass (3 * STRIPE) == 3);
  CHECK (nr_opens == MOST - 1);
  CHECK (spread_handle (s, 0) == &handles[0]);
  CHECK (spread_handle (s, MOST - 1) == &handles[MOST - 1]);
  CHECK (spread_handle (s, MOST) == NULL);
  CHECK (handles[2].number == 2);
  end ();
}

/* Many may use a handle at once; spread.c does not make them take turns. */
static void
test_class_is_shared (void)
{
  begin (false, false);
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, 10) == &handles[0]);
  leave (0);
  leave (0);
  CHECK (nr_opens == 0);
  end ();
}

static void
test_class_opens (void)
{
  struct actor first = { .offset = STRIPE }, second = { .offset = STRIPE },
    other = { .offset = 2 * STRIPE };

  begin (false, false);
  CHECK (pass (0) == 0);
  gate_shut (&opens);
  start (&first);
  start (&second);
  CHECK (!over (&first) && !over (&second));
  CHECK (nr_opens == 1, "both wait for one");
  CHECK (pass (0) == 0, "others go on");
  start (&other);
  CHECK (nr_opens == 1, "one at a time");
  gate_let_one (&opens);
  CHECK (got (&first) == 1);
  CHECK (got (&second) == 1);
  CHECK (!over (&other) && nr_opens == 2);
  gate_open (&opens);
  CHECK (got (&other) == 2);
  leave (1);
  leave (1);
  leave (2);
  CHECK (pass (STRIPE) == 1);
  CHECK (pass (2 * STRIPE) == 2);
  end ();
}

/* If a handle can't be opened, its class stays with another handle. */
static void
test_class_gives_up (void)
{
  begin (false, false);
  fail_from = 2;
  CHECK (pass (0) == 0);
  CHECK (pass (STRIPE) == 1);
  CHECK (said == 0);
  CHECK (pass (2 * STRIPE) == 0);
  CHECK (said == 1 && said_nr == 2);
  CHECK (strcmp (said_why, "number 2") == 0, "%s", said_why);
  CHECK (pass (3 * STRIPE) == 1);
  CHECK (pass (2 * STRIPE) == 0);
  CHECK (nr_opens == 2, "no more are opened");
  CHECK (said == 1);
  CHECK (spread_handle (s, 1) == &handles[1]);
  CHECK (spread_handle (s, 2) == NULL);
  end ();
}

static void
test_two_give_up (void)
{
  struct actor one = { .offset = STRIPE }, two = { .offset = 2 * STRIPE };

  begin (false, false);
  fail_from = 1;
  CHECK (pass (0) == 0);
  gate_shut (&opens);
  start (&one);
  start (&two);
  CHECK (nr_opens == 1);
  gate_open (&opens);
  CHECK (got (&one) == 0);
  CHECK (got (&two) == 0);
  CHECK (nr_opens == 1, "the other one is told");
  CHECK (said == 1 && said_nr == 1);
  leave (0);
  leave (0);
  end ();
}

static void
test_any (void)
{
  struct actor fifth = { .offset = 0 }, sixth = { .offset = 0 };
  unsigned i, before;

  begin (true, false);
  CHECK (pass (0) == 0);
  CHECK (pass (STRIPE) == 0, "it is idle");
  for (i = 0; i < MOST; i++)
    CHECK (spread_enter (s, 0) == &handles[i]);
  CHECK (nr_opens == MOST - 1);
  start (&fifth);
  start (&sixth);
  CHECK (!over (&fifth) && !over (&sixth));
  CHECK (nr_opens == MOST - 1);
  leave (2);
  CHECK (over (&fifth) != over (&sixth), "one handle is for one of them");
  leave (1);
  i = got (&fifth);
  CHECK (i == 1 || i == 2);
  CHECK (got (&sixth) == (int) (3 - i));
  leave (3);
  CHECK (pass (0) == 3);
  leave (2);
  leave (0);
  leave (1);
  before = locks_taken;
  CHECK (pass (0) == 0);
  CHECK (locks_taken == before, "nobody waits any more");
  end ();
}

/* While one is being opened, others go on with what there is. */
static void
test_any_opens (void)
{
  struct actor a = { .offset = 0 }, b = { .offset = 0 }, c = { .offset = 0 },
    d = { .offset = 0 };

  begin (true, false);
  CHECK (spread_enter (s, 0) == &handles[0]);
  gate_shut (&opens);
  start (&a);
  start (&b);
  start (&c);
  start (&d);
  CHECK (nr_opens == 1, "one at a time");
  CHECK (!over (&b) && !over (&c) && !over (&d));
  leave (0);
  CHECK (over (&b) + over (&c) + over (&d) == 1, "others use what is there");
  CHECK (nr_opens == 1);
  gate_open (&opens);
  CHECK (got (&a) + got (&b) + got (&c) + got (&d) == 1 + 2 + 3);
  leave (0);
  leave (1);
  leave (2);
  leave (3);
  end ();
}

static void
test_any_gives_up (void)
{
  struct actor a = { .offset = 0 }, b = { .offset = 0 };

  begin (true, false);
  fail_from = 1;
  CHECK (spread_enter (s, 0) == &handles[0]);
  start (&a);
  start (&b);
  CHECK (nr_opens == 1 && said == 1 && said_nr == 1);
  CHECK (!over (&a) && !over (&b), "they wait for what there is");
  leave (0);
  CHECK (over (&a) != over (&b));
  leave (0);
  CHECK (got (&a) == 0);
  CHECK (got (&b) == 0);
  leave (0);
  CHECK (pass (0) == 0);
  end ();
}

static void
test_shared (void)
{
  unsigned i;

  begin (true, true);
  for (i = 0; i < MOST; i++)
    CHECK (spread_enter (s, 0) == &handles[i]);
  CHECK (spread_enter (s, 0) == &handles[0], "a busy one");
  CHECK (spread_enter (s, 6 * STRIPE) == &handles[2]);
  CHECK (nr_opens == MOST - 1);
  for (i = 0; i < MOST; i++)
    leave (i);
  CHECK (pass (0) == 0);
  end ();
}

static pthread_t waiter;

static void *
wait_for_it (void *arg)
{
  CHECK (spread_wait (s) == 0);
  return arg;
}

static void
test_alone (void)
{
  struct actor alone = { .alone = true }, second = { .alone = true },
    later = { .offset = 0 };

  begin (false, false);
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, STRIPE) == &handles[1]);
  start (&alone);
  CHECK (!over (&alone));
  start (&later);
  CHECK (!over (&later), "nobody comes in");
  start (&second);
  leave (0);
  CHECK (!over (&alone));
  leave (1);
  CHECK (got (&alone) == -1);
  CHECK (nr_flushes == 1);
  CHECK (!over (&second) && !over (&later));
  CHECK (spread_alone_end (s) == 0);
  settle ();
  /* They have no order. */
  if (over (&later)) {
    CHECK (got (&later) == 0);
    leave (0);
    CHECK (got (&second) == -1);
    CHECK (spread_alone_end (s) == 0);
  }
  else {
    CHECK (got (&second) == -1);
    CHECK (spread_alone_end (s) == 0);
    settle ();
    CHECK (got (&later) == 0);
    leave (0);
  }
  settle ();
  CHECK (nr_flushes == 4);
  CHECK (s->inside == 0);
  CHECK (pass (0) == 0);
  end ();
}

/* Others wait beside it: it is woken all the same. */
static void
test_alone_is_woken (void)
{
  struct actor alone = { .alone = true }, later[3] = { { .offset = 0 } };
  unsigned i;

  begin (false, false);
  for (i = 0; i < 4; i++)
    CHECK (spread_enter (s, 0) == &handles[0]);
  start (&alone);
  for (i = 0; i < 3; i++)
    start (&later[i]);
  for (i = 0; i < 3; i++) {
    leave (0);
    CHECK (!over (&alone));
  }
  leave (0);
  settle ();
  CHECK (got (&alone) == -1);
  CHECK (spread_alone_end (s) == 0);
  settle ();
  for (i = 0; i < 3; i++)
    CHECK (got (&later[i]) == 0);

  /* One more has been counted, and has not seen yet that it must wait. */
  start (&alone);
  s->inside++;
  for (i = 0; i < 3; i++)
    leave (0);
  CHECK (!over (&alone));
  start_thread (&waiter, wait_for_it, NULL);
  settle ();
  CHECK (got (&alone) == -1);
  CHECK (spread_alone_end (s) == 0);
  settle ();
  __wrap_pthread_join (waiter, NULL);
  leave (0);
  CHECK (s->inside == 0);
  end ();
}

/* The flush before fails: nothing has come of it. */
static void
test_alone_fails_before (void)
{
  struct actor alone = { .alone = true }, later = { .offset = 0 };

  begin (false, false);
  flush_err = EIO;
  gate_shut (&flushes);
  start (&alone);
  start (&later);
  CHECK (!over (&alone) && !over (&later));
  gate_open (&flushes);
  CHECK (got (&alone) == -EIO);
  CHECK (got (&later) == 0);
  leave (0);
  CHECK (nr_flushes == 1);
  CHECK (s->inside == 0);
  end ();
}

/* The flush after fails: nobody comes in before one that does not. */
static void
test_alone_fails_after (void)
{
  struct actor waits = { .offset = 0 }, next = { .offset = STRIPE };

  begin (false, false);
  CHECK (spread_alone_begin (s) == 0);
  flush_err = EIO;
  start (&waits);
  CHECK (spread_alone_end (s) == EIO);
  settle ();
  CHECK (got (&waits) == -EIO);
  CHECK (spread_enter (s, 0) == NULL && errno == EIO);
  CHECK (spread_alone_begin (s) == EIO);
  CHECK (nr_flushes == 5);

  flush_err = 0;
  gate_shut (&flushes);
  start (&next);
  start (&waits);
  CHECK (nr_flushes == 6, "one of them flushes");
  CHECK (!over (&next) && !over (&waits));
  gate_open (&flushes);
  CHECK (got (&waits) >= 0);
  CHECK (got (&next) >= 0);
  spread_leave (s, waits.got);
  spread_leave (s, next.got);
  CHECK (spread_alone_begin (s) == 0);
  CHECK (spread_alone_end (s) == 0);
  CHECK (nr_flushes == 8);
  CHECK (s->inside == 0);
  CHECK (pass (0) == waits.got - handles);
  end ();
}

static void
test_no_memory (void)
{
  fail_allocation = 1;
  CHECK (spread_new (&ops, &handles[0], MOST, STRIPE, true, true, true) == NULL);
  CHECK (errno == ENOMEM);
  CHECK (allocated == 0 && conds == 0);
  spread_free (NULL);
}

/* Many threads: with a handle for each, no two are in the same one, and
 * nothing is inside with the one that is alone.
 */

static atomic_uint in_handle[HANDLES_MAX];
static atomic_uint in_all;

static void *
run_any (void *arg)
{
  struct handle *h;
  unsigned i;

  for (i = 0; i < 3000; i++) {
    h = spread_enter (s, i);
    CHECK (atomic_fetch_add (&in_handle[h - handles], 1) == 0);
    atomic_fetch_sub (&in_handle[h - handles], 1);
    spread_leave (s, h);
  }
  return arg;
}

static void *
run_ranges (void *arg)
{
  unsigned i, class, seed = (uintptr_t) arg;
  static _Atomic (struct handle *) of_class[MOST];
  struct handle *h, *known;

  for (i = 0; i < 3000; i++) {
    seed = seed * 1103515245 + 12345;
    class = seed >> 16 & (MOST - 1);
    if (i % 50 == 0) {
      CHECK (spread_alone_begin (s) == 0);
      CHECK (in_all == 0);
      CHECK (spread_alone_end (s) == 0);
    }
    h = spread_enter (s, (uint64_t) class * STRIPE);
    in_all++;
    known = NULL;
    CHECK (atomic_compare_exchange_strong (&of_class[class], &known, h) ||
           known == h, "a class has one handle");
    in_all--;
    spread_leave (s, h);
  }
  return arg;
}

static void
run_all (void *(*run) (void *))
{
  pthread_t t[8];
  uintptr_t i;

  free_running = true;
  for (i = 0; i < 8; i++)
    start_thread (&t[i], run, (void *) i);
  for (i = 0; i < 8; i++)
    __wrap_pthread_join (t[i], NULL);
  end ();
}

static void
test_many_any (void)
{
  begin (true, false);
  run_all (run_any);
}

static void
test_many_ranges (void)
{
  begin (false, false);
  run_all (run_ranges);
}

int
main (void)
{
  static const struct unit_test tests[] = {
    { "how a request is split", test_lengths },
    { "each class has its handle", test_classes },
    { "a class may be used by many", test_class_is_shared },
    { "a class whose handle is being opened", test_class_opens },
    { "a class without a handle of its own", test_class_gives_up },
    { "two that can't be opened are said once", test_two_give_up },
    { "any: the first that is idle, and a wait", test_any },
    { "any: what is being opened keeps nobody waiting", test_any_opens },
    { "any: no more than can be opened", test_any_gives_up },
    { "any: a busy one, where it may be", test_shared },
    { "alone", test_alone },
    { "alone, with others that wait", test_alone_is_woken },
    { "alone: the flush before fails", test_alone_fails_before },
    { "alone: the flush after fails", test_alone_fails_after },
    { "no memory", test_no_memory },
    { "many threads, any handle", test_many_any },
    { "many threads, ranges", test_many_ranges },
    { NULL, NULL }
  };

  return unit_main ("spread", tests);
}
