/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* spread.c: which handle serves a request, and when it waits.
 *
 * Most tests are scripts (script.h), of these words:
 *
 *   e1=0       a request for stripe 1 enters, and has handle 0
 *   l0         it leaves that handle
 *   a z        one is alone; its end
 *   t1=0       a request with handle 1 takes the first one besides; -1: no
 *   r1         handle 1 is left alone
 *   o g        more handles could be used; that so often that all are open
 *   p          pieces pay, as far as is known
 *   x          the end: no more are opened
 *   k          one that is inside sees that it must wait; i: it is inside
 *
 *   O[ O] O|   the plugin's open waits; goes on; one does
 *   O!3 O!     it fails from the third on; it no longer does
 *   F[ F] F!EIO F!  the same for the flush
 *
 *   .late      time passes; .alone: the next thread can't be had
 *   $name=1    what is counted, or is so
 *
 * What is not as usual comes first: ANY handle may serve a request; SHARED, it
 * takes many; HELPED, other threads may call the plugin.
 */

#include "spread.h"
#include "threads.h"

#define STRIPE 4096
#define MOST 4

static struct handle handles[HANDLES_MAX];
static struct spread *s;

struct call {
  char letter;
  unsigned arg;
};

static int do_call (struct call call);

#include "script.h"

/* Returns the number of the handle, if it gets one; an errno is negative. */
static int
do_call (struct call call)
{
  struct handle *h;

  errno = 0;
  switch (call.letter) {
  case 'e':
    h = spread_enter (s, (uint64_t) call.arg * (STRIPE + 1));
    return h ? h - handles : -errno;
  case 'a': return -spread_alone_begin (s);
  case 'z':
    errno = E2BIG;
    spread_alone_end (s);
    CHECK (errno == E2BIG, "spread_alone_end changes errno");
    return 0;
  case 't':
    h = spread_take_first (s, &handles[call.arg]);
    return h ? h - handles : -1;
  case 'k': return spread_look (s);
  case 'x': spread_close (s); return 0;
  }
  bad_word ();
}

static struct gate opens, flushes;
static unsigned nr_opens, nr_flushes; /* begun; guarded by "world" */
static unsigned nr_opened;
static unsigned fail_from = HANDLES_MAX; /* the open of this number fails */
static int flush_err;
static unsigned said, said_nr;

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
  return &handles[++nr_opened];
}

static void
gives_up (struct connection *c, unsigned nr, const char *why)
{
  CHECK (nr_held == 0);
  CHECK ((struct handle *) c == &handles[0]);
  CHECK (strncmp (why, "number ", 7) == 0 || strstr (why, "read"), "%s", why);
  said++;
  said_nr = nr;
}

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
starts (void)
{
}

static void
begin (bool any, bool shared, bool helped)
{
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

  nr_opened = 0;
  helpers_init (&lock, starts);
  handles[0].connection = (struct connection *) &handles[0];
  s = spread_new (&ops, &handles[0], MOST, STRIPE, any, shared, helped);
  CHECK (s != NULL);
}

static void
end (void)
{
  join_actors ();
  spread_close (s);
  helpers_end ();
  spread_free (s);
  CHECK (allocated == 0);
  CHECK (conds == 0);
  CHECK (threads == 0);
}

static unsigned locks;          /* that the last call has taken */

static void
leave (unsigned n)
{
  const unsigned before = locks_taken;

  errno = E2BIG;
  spread_leave (s, &handles[n]);
  CHECK (errno == E2BIG, "spread_leave changes errno");
  locks = locks_taken - before;
  CHECK (nr_held == 0);
  settle ();
}

static void
grow (void)
{
  unsigned i;

  for (i = 1; i < MOST; i++)
    spread_opens (s);
}

static void
play_call (const char *p, bool on_thread)
{
  const unsigned before = locks_taken;
  char *end;
  const struct call call = { *p, strtoul (p + 1, &end, 10) };
  int r;

  if (on_thread) {
    start (call);
    return;
  }
  r = do_call (call);
  locks = locks_taken - before;
  settle ();
  if (*end != '\0')
    expect_number (end, r);
  else if (call.letter != 'e')
    expect (r, 0);
}

static void
play_counter (const char *p)
{
  const struct name counters[] = {
    { "opens", nr_opens }, { "flushes", nr_flushes }, { "said", said },
    { "of", said_nr }, { "locks", locks }, { "width", spread_width (s) },
    { "cuts", spread_cuts (s) }, { "spare", spread_spare (s, 0) },
    { "inside", s->inside },
    { "idle", s->idle }, { "nr", s->nr },
    { "over", actors_over () }, { NULL, 0 }
  };
  const int n = look_up (counters, &p);

  expect_number (p, n);
}

static void
play_word (const char *p)
{
  static bool begun, any, shared, helped;

  if (strcmp (p, "ANY") == 0)
    any = true;
  else if (strcmp (p, "SHARED") == 0)
    shared = true;
  else if (strcmp (p, "HELPED") == 0)
    helped = true;
  else {
    if (!begun)
      begin (any, shared, helped);
    begun = true;
    switch (*p) {
    case '1'...'9': play_actor (p); break;
    case '$': play_counter (p + 1); break;
    case '&': play_call (p + 1, true); break;
    case 'l': leave (atoi (p + 1)); break;
    case 'r': spread_rests (s, &handles[atoi (p + 1)]); break;
    case 'o': spread_opens (s); settle (); break;
    case 'g': grow (); break;
    case 'i': s->inside++; break;
    case 'p': s->enough = false; break;
    case 'O':
      if (p[1] == '!')
        fail_from = p[2] ? atoi (p + 2) : HANDLES_MAX;
      else
        play_gate (p[1], &opens);
      break;
    case 'F':
      if (p[1] == '!')
        flush_err = p[2] ? EIO : 0;
      else
        play_gate (p[1], &flushes);
      break;
    case '.':
      if (strcmp (p, ".late") == 0)
        elapse (UINT64_C (61000000000));
      else
        fail_threads = 1;
      break;
    default: play_call (p, false);
    }
  }
}

static const struct script scripts[] = {

  /* By range. */

  { "each range has its handle",
    "e0=0 l0 e1=0 l0 e2=0 l0 e7=0 l0 $opens=0 $flushes=0 g $opens=3 $width=4 "
    /* From one to two, and to four. */
    "$flushes=2 e0=0 l0 e1=1 l1 e2=2 l2 e3=3 l3 e4=0 l0 e7=3 l3 "
    "e0=0 e0=0 l0 l0 $opens=3" },
  { "handles are opened while requests go on",
    "HELPED O[ e0=0 &e0 1=0 $opens=1 e1=0 $locks=0 $opens=1 "
    /* It is not used while requests are inside, nor do any come in. */
    "O| $width=1 &e1 2? l0 l0 2? F[ l0 2? $width=1 F] 2=1 l1 "
    "$width=2 $opens=2 O| $width=2 $opens=3 O] $width=4 $flushes=2" },
  { "the request opens one if nobody else does",
    "e0=0 &e0 $opens=1 1? l0 1=0 l0 $width=2 e1=1 l1 "
    "e0=0 &e0 $opens=2 2=0 l0 l0 e0=0 &e0 $opens=3 3? l0 3=0 l0 $width=4" },
  { "or if no thread can be had",
    "HELPED ANY .alone o $opens=1 $width=2 p o $opens=3 $width=4" },
  { "when a request may be cut, and for how many threads",
    "HELPED $cuts=1 $spare=1 e0 $spare=0 l0 o $opens=3 $width=4 "
    "e0 $cuts=1 $spare=3 e0 e0 e0 e0 $spare=0 l0 l0 l0 l0 l0 o $opens=3 "
    "a z $spare=4 e0 $spare=3 l0" },
  { "when a request may be cut, any",
    "HELPED ANY $cuts=1 o $width=2 o $width=2 p o $width=4 $cuts=1 "
    "e0=0 $cuts=0 $spare=3 l0 $cuts=1" },
  { "when a request may be cut: if many run on a handle",
    "HELPED SHARED $cuts=1 e0 $spare=63 l0" },
  { "when a request may be cut, any: not if many run on a handle",
    "HELPED ANY SHARED $cuts=0" },
  { "when a request may be cut: not if no other thread may", "$cuts=0" },
  { "the end waits for one that is being opened",
    "HELPED ANY O[ p o $opens=1 &x 1? O] 1=0 $opens=1 $nr=2" },
  /* All that are open are used; the next open comes some time later. */
  { "a handle that can't be opened",
    "HELPED O!3 o $said=1 $of=3 $width=3 e0=0 l0 e1=1 l1 e2=2 l2 e3=0 l0 e5=2 "
    "l2 $flushes=2 o e0=0 e1=1 $locks=0 l1 $opens=3 l0 .late o $opens=4 "
    "$said=1 "
    "O! .late o $width=4" },
  /* What the handles hold stays with them. */
  { "no more are used if the flush before it fails",
    "HELPED F!EIO o $opens=1 $flushes=1 $width=1 $inside=0 e1=0 l0 "
    "F! .late o $opens=3 $width=4" },

  /* Any. */

  { "any: the first that is idle, and a wait",
    "ANY e0=0 l0 e1=0 l0 e0=0 e0=1 e0=2 e0=3 $opens=3 &e0 &e0 1? 2? $opens=3 "
    "l2 $over=1 l1 1 2 $idle=0 l3 e0=3 l3 l2 l0 l1 $idle=15 e0=0 $locks=0 "
    "l0 $locks=0" },
  { "any: what is being opened keeps nobody waiting",
    "ANY e0=0 O[ &e0 &e0 &e0 &e0 $opens=1 $over=0 l0 $over=1 $opens=1 O] "
    "1 2 3 4 $idle=0 l0 l1 l2 l3 $idle=15" },
  { "any: one that is open is used while the next one opens",
    "HELPED ANY O[ e0=0 &e0 &e0 $over=0 O| $over=1 O] 1 2 l0 l1 l2" },
  { "any: no more than can be opened",
    "ANY O!1 e0=0 &e0 &e0 $opens=1 $said=1 $of=1 1? 2? l0 $over=1 l0 1=0 2=0 "
    "l0 e0=0 l0" },
  /* l2 only wakes the one that waits. */
  { "any: a handle that is left alone for a while",
    "HELPED ANY o p o e0=0 e0=1 t0=-1 &t1 l2 1? l0 1=0 l0 $locks=0 r1 $said=1 "
    "$of=3 $cuts=1 o e0=0 e0=2 r2 $said=1 l0 .late o e0=0 e0=1 e0=2 e0=3 "
    "l0 l1 l2 l3" },
  { "any: until all the others are busy",
    "HELPED ANY o p o e0=0 e0=1 l0 r1 .late e0=0 e0=2 e0=3 e0=1 l0 l1 l2 l3" },
  { "not by range: it may have written", "HELPED o t1=-1" },
  { "any: a busy one, where it may be",
    "ANY SHARED e0=0 e0=1 e0=2 e0=3 e0=0 e6=2 $opens=3 l0 l1 l2 l3 e0=0 l0" },
  { "any: a busy one, but none that is left alone",
    "ANY SHARED e0=0 e0=1 e0=2 e0=3 r3 e3=0 e2=2 .late e0=3 l3" },

  /* Alone; nobody comes in meanwhile. */

  { "alone",
    "g e0=0 e1=1 &a 1? &e0 2? l0 1? l1 1=0 $flushes=3 2? z 2=0 l0 "
    "$flushes=4 $inside=0 e0=0 l0" },
  /* The second one needs no flush after the first. */
  { "alone, twice",
    "g e0 &a &a l0 $over=1 $flushes=3 z $over=2 z $flushes=3 e0=0 $flushes=4 "
    "l0 $inside=0 a z a &e0 3? z 3=0 l0" },
  { "alone, with others that wait",
    "g e0 e0 e0 e0 &a &e0 &e0 &e0 l0 1? l0 1? l0 1? l0 1=0 z 2=0 3=0 4=0 "
    /* One more is inside, and has not seen yet that it must wait. */
    "&a i l0 l0 l0 5? &k 5=0 z 6=0 l0 $inside=0" },
  { "alone: the flush before fails",
    "g F!EIO F[ &a &e0 1? 2? F] 1=-EIO 2=0 l0 $flushes=3 $inside=0" },
  /* Nobody comes in before one that does not; one of them flushes. */
  { "alone: the flush after fails",
    "g a F!EIO &e0 z 1=-EIO e0=-EIO a z e1=-EIO $flushes=6 "
    "F! F[ &e1 &e0 $flushes=7 2? 3? F] 2=1 3=0 l1 l0 a z $flushes=8 "
    "e0=0 l0 $inside=0" },
};

/* Of the first piece, which stays in its stripe. */
static uint32_t
length (uint64_t offset, uint32_t len)
{
  return spread_length (s, offset, len, s->stripe);
}

static void
test_lengths (void)
{
  unsigned i;

  begin (false, false, false);
  CHECK (length (10, STRIPE) == STRIPE, "one handle serves all");
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (!spread_fits (s, 10, STRIPE));
  CHECK (spread_fits (s, 10, STRIPE - 10));
  CHECK (spread_fits (s, 3 * STRIPE, STRIPE));
  grow ();
  CHECK (spread_handle (s, 0) == &handles[0]);
  CHECK (spread_handle (s, MOST - 1) == &handles[MOST - 1]);
  CHECK (spread_handle (s, MOST) == NULL);
  CHECK (handles[2].number == 2);
  CHECK (length (0, 1) == 1);
  CHECK (length (0, STRIPE) == STRIPE);
  CHECK (length (0, STRIPE + 1) == STRIPE);
  CHECK (length (0, UINT32_MAX) == STRIPE);
  CHECK (length (10, STRIPE) == STRIPE - 10);
  CHECK (length (STRIPE - 1, 1) == 1);
  CHECK (length (STRIPE - 1, 2) == 1);
  CHECK (length (5 * (uint64_t) STRIPE << 30, 2 * STRIPE) == STRIPE);
  CHECK (spread_length (s, 10, UINT32_MAX, 3 * STRIPE) == 3 * STRIPE - 10);
  CHECK (spread_longest (s, UINT32_MAX) == STRIPE);
  s->modulus = 3;
  CHECK (spread_longest (s, 4 * STRIPE) == 2 * STRIPE);
  CHECK (spread_longest (s, 3 * STRIPE + 1) == 2 * STRIPE);
  CHECK (spread_longest (s, 3 * STRIPE) == STRIPE);
  s->modulus = 2;
  CHECK (spread_longest (s, UINT32_MAX) == 2 * STRIPE);
  s->modulus = MOST;
  CHECK (spread_idle_at (s, 3 * STRIPE + 1) == 3 * STRIPE);
  handles[3].state = handles[0].state = ONE_INSIDE;
  CHECK (spread_idle_at (s, 3 * STRIPE + 1) == 5 * STRIPE);
  handles[1].state = handles[2].state = ONE_INSIDE;
  CHECK (spread_idle_at (s, 3 * STRIPE + 1) == 3 * STRIPE + 1);
  for (i = 0; i < MOST; i++)
    handles[i].state = 0;
  CHECK (spread_spare (s, 3) == 1 && spread_spare (s, MOST) == 0);
  CHECK (!spread_is_long (s, 1));
  CHECK (!spread_is_long (s, 4 * MOST * STRIPE));
  CHECK (!spread_is_long (s, 4 * MOST * STRIPE + STRIPE - 1));
  CHECK (spread_is_long (s, 4 * MOST * STRIPE + STRIPE));
  CHECK (spread_is_long (s, UINT32_MAX));
  end ();

  begin (true, false, false);
  CHECK (length (10, UINT32_MAX) == UINT32_MAX);
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (spread_fits (s, 10, STRIPE));
  CHECK (!spread_fits (s, 0, STRIPE + 1));
  end ();

  /* A stripe can be as large as anything. */
  s = spread_new (&ops, &handles[0], 2, (uint64_t) 1 << 32, false, false,
                  false);
  nr_opens = nr_opened = 0;
  grow ();
  CHECK (nr_opens == 1);
  CHECK (length (1, UINT32_MAX) == UINT32_MAX);
  CHECK (length (2, UINT32_MAX) == UINT32_MAX - 1);
  CHECK (!spread_is_long (s, UINT32_MAX));
  CHECK (spread_enter (s, 0) == &handles[0]);
  CHECK (spread_enter (s, (uint64_t) 1 << 32) == &handles[1]);
  end ();
}

/* How many of N requests of 64 KiB are cut, where a whole one takes WHOLE and
 * one that is cut CUT nanoseconds?
 */
static unsigned
cuts (unsigned n, uint64_t whole, uint64_t cut)
{
  struct ways *w = &s->whole;
  unsigned i, count = 0;
  bool pays;

  for (i = 0; i < n; i++) {
    pays = spread_pays (s, w);
    spread_took (w, pays, pays ? 262144 : 65536, pays ? 4 * cut : whole);
    count += pays;
  }
  return count;
}

static void
test_pays (void)
{
  begin (true, false, false);
  s->closing = true;            /* no handle is opened */
  CHECK (cuts (1, 100, 50) == 0, "one handle");
  s->nr = 2;
  CHECK (cuts (256, 100, 50) == 256);
  CHECK (cuts (256, 100, 50) == 255, "tried again, and it is as it was");
  CHECK (cuts (1, 40, 50) == 0, "it has changed");
  CHECK (cuts (255, 40, 50) == 0);
  s->nr = 3;
  CHECK (cuts (256, 40, 50) == 1, "no reason to try it at once");
  s->nr = MOST;
  CHECK (cuts (1, 40, 30) == 1, "with twice as many it is tried again");
  CHECK (cuts (1, 40, 50) == 1, "the second counts");
  CHECK (cuts (200, 40, 50) == 0);
  /* Slower by a quarter of what it was, and at most by a quarter each time. */
  CHECK (cuts (1, 80, 50) == 0 && s->whole.took[false] == 50);
  s->whole.took[false] = 66;
  CHECK (cuts (1, 67, 50) == 0 && s->whole.took[false] == 66, "less than a quarter");
  s->whole.took[false] = 67;
  CHECK (cuts (1, 67, 500) == 1 && s->whole.took[true] == 62);
  CHECK (cuts (1, 58, 70) == 0 && s->whole.took[false] == 58);
  s->whole.tried = s->whole.took[false] = 0;
  CHECK (cuts (3, 20, 10) == 2, "nothing is known of whole ones");
  CHECK (cuts (100, 20, 10) == 100);
  s->nr = 3;
  s->most = 3;
  CHECK (cuts (2, 20, 50) == 2, "these are all");
  CHECK (cuts (100, 20, 50) == 0);
  s->nr = 1;
  end ();
}

static void
test_enough (void)
{
  begin (true, false, false);
  spread_opens (s);
  CHECK (cuts (4, 20, 50) == 2);
  grow ();
  CHECK (s->nr == 2, "it does not pay, and no more are opened");
  CHECK (spread_enter (s, 0) && spread_enter (s, 0) && s->nr == 2);
  CHECK (spread_enter (s, 0) == &handles[2], "requests side by side");
  CHECK (cuts (1, 20, 50) == 0);
  grow ();
  CHECK (s->nr == 3);
  CHECK (cuts (251, 20, 50) == 0 && cuts (20, 100, 50) > 1);
  grow ();
  CHECK (s->nr == MOST, "now it does");
  end ();

  begin (true, false, false);
  spread_opens (s);
  spread_opens (s);
  spread_took (&s->whole, false, 65536, 100);
  CHECK (cuts (1, 100, 50) == 1 && s->nr == 2);
  CHECK (cuts (1, 100, 50) == 1 && s->nr == 3, "once one has been faster");
  end ();

  begin (false, false, false);
  spread_opens (s);
  CHECK (cuts (4, 20, 50) == 2);
  grow ();
  CHECK (s->nr == MOST, "ranges");
  end ();
}

static void
test_no_memory (void)
{
  fail_allocation = 1;
  CHECK (spread_new (&ops, &handles[0], MOST, STRIPE, true, true, true) ==
         NULL);
  CHECK (errno == ENOMEM);
  CHECK (allocated == 0 && conds == 0);
  spread_free (NULL);
}

/* Many threads: where any handle will do, no two are in the same one; and
 * nothing is inside with the one that is alone.
 */
static atomic_uint in_handle[HANDLES_MAX], in_all;

static void *
pass (void *arg)
{
  unsigned i, n;

  for (i = 0; i < 3000; i++) {
    if (!s->any && i % 50 == 0) {
      CHECK (spread_alone_begin (s) == 0);
      CHECK (in_all == 0);
      spread_alone_end (s);
    }
    n = spread_enter (s, (uintptr_t) arg + (uint64_t) i * STRIPE) - handles;
    in_all++;
    CHECK (atomic_fetch_add (&in_handle[n], 1) == 0 || !s->any);
    in_handle[n]--;
    in_all--;
    spread_leave (s, &handles[n]);
  }
  return arg;
}

static void
test_many (void)
{
  pthread_t t[8];
  unsigned any, i;

  free_running = true;
  for (any = 0; any <= 1; any++) {
    begin (any, false, false);
    for (i = 0; i < 8; i++)
      start_thread (&t[i], pass, (void *) (uintptr_t) i);
    for (i = 0; i < 8; i++)
      __wrap_pthread_join (t[i], NULL);
    end ();
  }
}

static void
play (const void *script)
{
  play_words (script, play_word);
  end ();
}

int
main (void)
{
  static const struct unit_test functions[] = {
    { "how a request is split", test_lengths },
    { "any: whether it pays to cut a request is learnt", test_pays },
    { "no more handles for pieces that do not pay", test_enough },
    { "no memory", test_no_memory },
    { "many threads", test_many },
    { NULL, NULL }
  };

  return scripts_main ("spread", scripts, sizeof scripts / sizeof scripts[0],
                       play, functions);
}
