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

static bool helped;             /* other threads may call the plugin */

static const struct spread_ops ops = { open_handle, gives_up, flush_handles };

static void
starts (void)
{
}

static void
begin (bool any, bool shared)
{
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

  helpers_init (&lock, starts);
  handles[0].connection = (struct connection *) &handles[0];
  s = spread_new (&ops, &handles[0], MOST, STRIPE, any, shared, helped);
  CHECK (s != NULL);
}

static void
end (void)
{
  spread_close (s);
  helpers_end ();
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

/* Two are inside, often enough for all handles to be opened. */
static void
grow (void)
{
  unsigned i;

  for (i = 1; i < MOST; i++) {
    struct handle *h = spread_enter (s, 0);
    struct actor another = { .offset = 0 };

    start (&another);
    spread_leave (s, h);
    settle ();
    CHECK (got (&another) == 0);
    leave (0);
  }
}

static void
test_lengths (void)
{
  begin (false, false);
  CHECK (spread_length (s, 10, STRIPE) == STRIPE, "one handle serves all");
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (!spread_fits (s, 10, STRIPE));
  CHECK (spread_fits (s, 10, STRIPE - 10));
  CHECK (spread_fits (s, 3 * STRIPE, STRIPE));
  grow ();
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
  spread_close (s);
  spread_free (s);

  begin (true, false);
  CHECK (spread_length (s, 10, UINT32_MAX) == UINT32_MAX);
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (spread_fits (s, 10, STRIPE));
  CHECK (!spread_fits (s, 0, STRIPE + 1));
  spread_close (s);
  spread_free (s);

  /* A stripe can be as large as anything. */
  s = spread_new (&ops, &handles[0], 2, (uint64_t) 1 << 32, false, false,
                  false);
  nr_opens = 0;
  grow ();
  CHECK (nr_opens == 1);
  CHECK (spread_length (s, 1, UINT32_MAX) == UINT32_MAX);
  CHECK (spread_length (s, 2, UINT32_MAX) == UINT32_MAX - 1);
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (pass (0) == 0);
  CHECK (pass ((uint64_t) 1 << 32) == 1);
  end ();
}

static bool closed;

static void *
close_spread (void *arg)
{
  spread_close (s);
  closed = true;
  return arg;
}

static void
test_ranges (void)
{
  unsigned i;

  begin (false, false);
  for (i = 0; i < 2 * MOST; i++)
    CHECK (pass (i * STRIPE) == 0, "one at a time needs one handle");
  CHECK (nr_opens == 0 && nr_flushes == 0);
  grow ();
  CHECK (nr_opens == MOST - 1);
  CHECK (nr_flushes == 2, "from one to two, and to four");
  for (i = 0; i < 2 * MOST; i++)
    CHECK (pass (i * STRIPE + i) == (int) i % MOST);
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, 10) == &handles[0], "many may use a handle");
  leave (0);
  leave (0);
  CHECK (nr_opens == MOST - 1);
  CHECK (spread_handle (s, 0) == &handles[0]);
  CHECK (spread_handle (s, MOST - 1) == &handles[MOST - 1]);
  CHECK (spread_handle (s, MOST) == NULL);
  CHECK (handles[2].number == 2);
  end ();
}

/* Another thread opens them, one at a time, and requests go on. */
static void
test_opened_beside (void)
{
  struct actor second = { .offset = 0 }, later = { .offset = STRIPE };

  helped = true;
  begin (false, false);
  gate_shut (&opens);
  CHECK (spread_enter (s, 0) == &handles[0]);
  start (&second);
  CHECK (got (&second) == 0, "it does not wait for the open");
  CHECK (nr_opens == 1);
  CHECK (spread_enter (s, STRIPE) == &handles[0]);
  settle ();
  CHECK (nr_opens == 1, "one at a time");
  gate_let_one (&opens);
  CHECK (spread_width (s) == 1, "not while requests are inside");
  start (&later);
  CHECK (!over (&later), "nor do any come in");
  leave (0);
  leave (0);
  CHECK (!over (&later));
  gate_shut (&flushes);
  leave (0);
  CHECK (!over (&later) && spread_width (s) == 1, "before a flush");
  gate_open (&flushes);
  CHECK (got (&later) == 1);
  leave (1);
  CHECK (spread_width (s) == 2 && nr_opens == 2);
  gate_let_one (&opens);
  CHECK (spread_width (s) == 2 && nr_opens == 3, "it doubles");
  gate_open (&opens);
  CHECK (spread_width (s) == 4);
  CHECK (nr_flushes == 2);
  end ();
}

/* A request that could be cut has them opened, too. */
static void
test_cuts (void)
{
  helped = true;
  begin (false, false);
  CHECK (spread_cuts (s));
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (!spread_cuts (s), "not beside another request");
  leave (0);
  spread_opens (s);
  settle ();
  CHECK (nr_opens == MOST - 1 && spread_width (s) == MOST);
  CHECK (spread_cuts (s));
  spread_opens (s);
  CHECK (nr_opens == MOST - 1);
  spread_close (s);
  spread_free (s);

  begin (true, false);
  CHECK (spread_cuts (s));
  nr_opens = 0;
  spread_opens (s);
  settle ();
  CHECK (spread_width (s) == MOST && spread_cuts (s));
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (!spread_cuts (s));
  leave (0);
  CHECK (spread_cuts (s));
  spread_close (s);
  spread_free (s);

  begin (false, true);
  CHECK (!spread_cuts (s), "a parallel plugin would gain nothing");
  spread_close (s);
  spread_free (s);
  helped = false;
  begin (false, false);
  CHECK (!spread_cuts (s), "no other thread may call the plugin");
  end ();
}

/* If no thread can be had, the request opens one, before it comes in. */
static void
test_no_thread (void)
{
  helped = true;
  begin (true, false);
  fail_threads = 1;
  spread_opens (s);
  CHECK (nr_opens == 1 && spread_width (s) == 2);
  end ();
}

static void
test_closes (void)
{
  pthread_t closer;

  helped = true;
  begin (true, false);
  gate_shut (&opens);
  spread_opens (s);
  settle ();
  CHECK (nr_opens == 1);
  start_thread (&closer, close_spread, NULL);
  settle ();
  CHECK (!closed);
  gate_open (&opens);
  CHECK (closed);
  __wrap_pthread_join (closer, NULL);
  CHECK (nr_opens == 1, "no more are opened");
  CHECK (spread_handle (s, 1) == &handles[1], "it is closed with the others");
  end ();
}

/* After an open that has failed, all that are open are used; the next one
 * comes some time later.
 */
static void
test_gives_up (void)
{
  unsigned i;

  helped = true;
  begin (false, false);
  fail_from = 3;
  spread_opens (s);
  settle ();
  CHECK (said == 1 && said_nr == 3);
  CHECK (strcmp (said_why, "number 3") == 0, "%s", said_why);
  CHECK (spread_width (s) == 3);
  for (i = 0; i < 6; i++)
    CHECK (pass (i * STRIPE) == (int) i % 3);
  CHECK (nr_flushes == 2);
  spread_opens (s);
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (pass (STRIPE) == 1);
  CHECK (nr_opens == 3, "not now");
  leave (0);
  elapse (UINT64_C (61000000000));
  spread_opens (s);
  settle ();
  CHECK (nr_opens == 4 && said == 1, "this is said once");
  fail_from = HANDLES_MAX;
  nr_opens = 2;
  elapse (UINT64_C (61000000000));
  spread_opens (s);
  settle ();
  CHECK (spread_width (s) == 4);
  end ();
}

/* If what the handles hold can't be flushed, it stays with them. */
static void
test_flush_fails (void)
{
  helped = true;
  begin (false, false);
  flush_err = EIO;
  spread_opens (s);
  settle ();
  CHECK (nr_opens == 1 && nr_flushes == 1);
  CHECK (spread_width (s) == 1 && s->inside == 0);
  CHECK (pass (STRIPE) == 0);
  flush_err = 0;
  elapse (UINT64_C (61000000000));
  spread_opens (s);
  settle ();
  CHECK (nr_opens == 3 && spread_width (s) == 4);
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

static struct handle *first_taken;

static void *
take_first (void *arg)
{
  first_taken = spread_take_first (s, arg);
  return arg;
}

/* A handle with which a read has failed, and not with the first one. */
static void
test_rests (void)
{
  pthread_t taker;
  unsigned i;

  helped = true;
  begin (true, false);
  spread_opens (s);
  settle ();
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, 0) == &handles[1]);
  CHECK (spread_take_first (s, &handles[0]) == NULL);
  start_thread (&taker, take_first, &handles[1]);
  settle ();
  leave (2);                    /* it was not taken: only to wake the other */
  CHECK (first_taken == NULL, "it waits for the first one");
  leave (0);
  __wrap_pthread_join (taker, NULL);
  CHECK (first_taken == &handles[0]);
  leave (0);
  spread_rests (s, &handles[1]);
  CHECK (said == 1 && said_nr == MOST - 1);
  CHECK (spread_cuts (s), "the others are idle");
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, 0) == &handles[2]);
  spread_rests (s, &handles[2]);
  CHECK (said == 1);
  leave (0);
  elapse (UINT64_C (61000000000));
  spread_opens (s);
  for (i = 0; i < MOST; i++)
    CHECK (spread_enter (s, 0) == &handles[i], "all are used again");
  for (i = 0; i < MOST; i++)
    leave (i);
  end ();

  begin (false, false);
  CHECK (spread_take_first (s, &handles[1]) == NULL, "it may have written");
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
  CHECK (spread_look (s) == 0);
  return arg;
}

static void
test_alone (void)
{
  struct actor alone = { .alone = true }, second = { .alone = true },
    later = { .offset = 0 };

  begin (false, false);
  grow ();
  nr_flushes = 0;
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
  errno = E2BIG;
  spread_alone_end (s);
  CHECK (errno == E2BIG);
  settle ();
  /* They have no order.  The second one needs no flush after the first. */
  if (over (&later)) {
    CHECK (got (&later) == 0);
    leave (0);
    CHECK (got (&second) == -1);
    CHECK (nr_flushes == 3);
    spread_alone_end (s);
  }
  else {
    CHECK (got (&second) == -1);
    CHECK (nr_flushes == 1);
    spread_alone_end (s);
    settle ();
    CHECK (nr_flushes == 2);
    CHECK (got (&later) == 0);
    leave (0);
  }
  CHECK (pass (0) == 0);
  CHECK (s->inside == 0);
  end ();
}

/* Others wait beside it: it is woken all the same. */
static void
test_alone_is_woken (void)
{
  struct actor alone = { .alone = true }, later[3] = { { .offset = 0 } };
  unsigned i;

  begin (false, false);
  grow ();
  nr_flushes = 0;
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
  spread_alone_end (s);
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
  spread_alone_end (s);
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
  grow ();
  nr_flushes = 0;
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
  grow ();
  nr_flushes = 0;
  CHECK (spread_alone_begin (s) == 0);
  flush_err = EIO;
  start (&waits);
  spread_alone_end (s);
  settle ();
  CHECK (got (&waits) == -EIO);
  CHECK (spread_enter (s, 0) == NULL && errno == EIO);
  CHECK (nr_flushes == 3);
  CHECK (spread_alone_begin (s) == 0, "it needs none");
  spread_alone_end (s);
  CHECK (spread_enter (s, STRIPE) == NULL && errno == EIO);
  CHECK (nr_flushes == 4);

  flush_err = 0;
  gate_shut (&flushes);
  start (&next);
  start (&waits);
  CHECK (nr_flushes == 5, "one of them flushes");
  CHECK (!over (&next) && !over (&waits));
  gate_open (&flushes);
  CHECK (got (&waits) >= 0);
  CHECK (got (&next) >= 0);
  spread_leave (s, waits.got);
  spread_leave (s, next.got);
  CHECK (spread_alone_begin (s) == 0);
  spread_alone_end (s);
  CHECK (nr_flushes == 6);
  CHECK (pass (0) == waits.got - handles);
  end ();
}

/* How many of N requests of 64 KiB are cut, where a whole one takes WHOLE and one
 * that is cut CUT nanoseconds?
 */
static unsigned
cuts (unsigned n, uint64_t whole, uint64_t cut)
{
  unsigned i, count = 0;
  bool pays;

  for (i = 0; i < n; i++) {
    pays = spread_pays (s);
    spread_took (s, pays, 65536, pays ? cut : whole);
    count += pays;
  }
  return count;
}

static void
test_pays (void)
{
  begin (true, false);
  CHECK (cuts (6, 100, 50) == 3, "both are tried");
  CHECK (cuts (250, 100, 50) == 250);
  CHECK (cuts (256, 100, 50) == 252, "tried again, and it is as it was");
  CHECK (cuts (512, 20, 50) == 4, "it has changed");
  s->nr = 2;
  CHECK (cuts (1, 20, 50) == 1, "with twice as many both are tried again");
  CHECK (cuts (5, 20, 50) == 2);
  CHECK (cuts (250, 20, 50) == 0);
  CHECK (cuts (256, 20, 50) == 4);
  s->nr = 1;
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
  static atomic_uint of_class[MOST]; /* who is inside, and in which handle */
  unsigned seen;
  struct handle *h;

  for (i = 0; i < 3000; i++) {
    seed = seed * 1103515245 + 12345;
    class = seed >> 16 & (MOST - 1);
    if (i % 50 == 0) {
      CHECK (spread_alone_begin (s) == 0);
      CHECK (in_all == 0);
      spread_alone_end (s);
    }
    h = spread_enter (s, (uint64_t) class * STRIPE);
    in_all++;
    seen = of_class[class];
    do
      CHECK (seen < 256 || seen % 256 == h - handles, "two handles for a range");
    while (!atomic_compare_exchange_weak (&of_class[class], &seen,
                                          (seen / 256 + 1) * 256 +
                                          (h - handles)));
    of_class[class] -= 256;
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
    { "each range has its handle", test_ranges },
    { "handles are opened while requests go on", test_opened_beside },
    { "when a request may be cut", test_cuts },
    { "the request opens one if nobody else does", test_no_thread },
    { "the end waits for one that is being opened", test_closes },
    { "a handle that can't be opened", test_gives_up },
    { "no more are used if the flush before it fails", test_flush_fails },
    { "any: the first that is idle, and a wait", test_any },
    { "any: what is being opened keeps nobody waiting", test_any_opens },
    { "any: no more than can be opened", test_any_gives_up },
    { "any: a handle that is left alone for a while", test_rests },
    { "any: a busy one, where it may be", test_shared },
    { "any: whether it pays to cut a request is learnt", test_pays },
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
