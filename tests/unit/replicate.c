/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* replicate.c: every rule of the replicated flush.
 *
 * Most tests are scripts, in the table at the end.  A script is words.  The
 * letters a to h are handles, each of a connection of its own, and the cells
 * that belong to them, a block for each:
 *
 *   ab:      a and b open, in mode emulate
 *   a:plain  flushes are passed on; a:multi: and it has multi-conn
 *   a:stuck  it has no flush; a:16 its blocks are of 16 cells
 *   a:opens  all but the last of plugin.h's steps; a:joins is that
 *   a:/x     in the group of x
 *   b:+a     b is a further handle of a's connection; and of these all that
 *            go together, as in a:plain,opens/x
 *   ax ag    a closes; it gives up
 *   arb aw1  a reads the cell of b; a writes 1; awb1: to the cell of b;
 *            awbc1: to those from b to c; aw*1: to all, 4 GiB - 1
 *   ac af    a callback that is neither data nor flush; a flush
 *   ai       a flush for which no client has asked
 *   au       a is to see what its connection has done
 *
 * Its result may follow, as in arb=1, aw1=-EIO or af=EIO.  Without one it is
 * 0; that of a read is any.  With & before it, it runs on a thread of its own:
 * see script.h.
 *
 *   a[r a]r  requests wait inside the plugin; they go on; a|r: one does
 *   a[f a]f  the same for flushes
 *   a:f a:r  those that come do not wait; those that are inside do
 *   a!EIO a! flushes fail; they no longer do
 *   a^5      a flush takes 5 ns
 *   a~       the plugin has its write to flush once more
 *   a( a) a. a request gets in, and no further; it is just going; it is gone
 *
 *   .late    time passes; .ends: it does, as the server is ending
 *   .nomem   there is no memory for a table, once; .full: there are no more
 *            numbers in it; .old: what a has claimed looks new, as it is old
 *   .alone   no thread can be had; .helped: they can
 *
 * What must be so:
 *
 *   a#1 a%1  so many flushes have entered the plugin; so many requests
 *   a*1 *1   so many are inside it; in all handles
 *   a@1      what is on the disk; a@=1 puts it there
 *   a<b      the last flush of b began after that of a had ended
 *   .locked  the last request took a lock; .free: it did not
 *   .empty   nothing is allocated; .bounded: it is not much
 *   .table   there is a table of who wrote what; .none: there is not
 *   $name=1  a counter of the statistics; $threads=1: that have been made
 *
 * A word after S: is only for SERIALIZE_REQUESTS, one after P: for PARALLEL.
 *
 * What is not as usual comes first: the level, FAST or OFF; the mode, PLUGIN;
 * KEEP, no flush at close; T1, one thread for flushes; REFRESH, what flushes
 * of the plugin do; NEAR or PAIR, a block has eight or two cells.
 */

#include <limits.h>
#include <stddef.h>

#include "plugin.h"

static const struct name counters[] = {
#define COUNTER(name, field) { name, offsetof (struct statistics, field) }
  COUNTER ("flushes", client_flushes.count),
  COUNTER ("skipped", flushes_skipped_clean),
  COUNTER ("replicas", replicas),
  COUNTER ("rounds", rounds),
  COUNTER ("owed", flushes_owed),
  COUNTER ("paid", owed_flushes),
  COUNTER ("closes", flushes_at_close),
  COUNTER ("failed", failed_flushes),
  COUNTER ("conflicts", conflicts),
  COUNTER ("opened", connections_opened[EMULATE]),
  COUNTER ("open", connections_open),
  COUNTER ("most", connections_most_at_once),
  COUNTER ("handles", handles_open),
  COUNTER ("most-handles", handles_most_at_once),
  COUNTER ("open-fails", handle_opens_failed),
  COUNTER ("pieces", pieces), COUNTER ("reads", reads),
  COUNTER ("writes", writes),
  COUNTER ("ns", client_flushes.sum),
  COUNTER ("plugin-ns", plugin_flushes.sum),
  COUNTER ("plugin-flushes", plugin_flushes.count),
  { NULL, 0 }
};

static struct conn *by_letter[8];
static unsigned locks;          /* that the last request has taken */

static int
counter (const char **p)
{
  const struct statistics s = replicate_statistics ();

  return *(const uint64_t *) ((const char *) &s + look_up (counters, p));
}

static struct conn *
letter (char c)
{
  if (c < 'a' || c > 'h' || by_letter[c - 'a'] == NULL)
    bad_word ();
  return by_letter[c - 'a'];
}

/* All but the last step.  PLUS: the handle that is there, or NULL. */
static void
open_begins (struct conn *c, const char *name, const char *plus)
{
  struct handle *first;

  if (plus == NULL)
    CHECK (handle_opens (&c->h, name) == 0);
  else {
    first = &letter (plus[1])->h;
    /* Until it is told. */
    c->h.flushable = !first->flushable;
    c->h.multi_conn = !first->multi_conn;
    c->h.resolution = (struct resolution) { .verdict = NR_VERDICTS };
    handle_opens_beside (&c->h, first);
    CHECK (c->h.flushable == first->flushable);
    CHECK (c->h.multi_conn == first->multi_conn);
    CHECK (c->h.block == first->block);
    CHECK (c->h.resolution.verdict == first->resolution.verdict);
    CHECK (c->h.resolution.replicate == first->resolution.replicate);
    CHECK (c->h.connection == first->connection);
    CHECK (c->h.further && !first->further);
  }
  CHECK (nr_held == 0);
  plugin_open (c);
}

static void
play_open (const char *p, bool on_thread)
{
  const char *how = strchr (p, ':') + 1, *slash = strchr (how, '/');
  const char *plus = strchr (how, '+');
  struct conn *c;

  for (; *p != ':'; p++) {
    if (strcmp (how, "joins") == 0) {
      joins (letter (*p));
      continue;
    }
    if (*p < 'a' || *p > 'h')
      bad_word ();
    c = by_letter[*p - 'a'];
    if (c != NULL && !c->open)
      renew (c);
    else if (c == NULL)
      by_letter[*p - 'a'] = c = another ();
    else
      bad_word ();
    c->h.multi_conn = strstr (how, "multi");
    c->h.resolution.replicate = !strstr (how, "plain") && !c->h.multi_conn;
    c->h.flushable = !strstr (how, "stuck");
    c->block = atoi (how) * spacing;
    if (on_thread) {
      start ((struct call) { 'o', c, 0, 0, 0 });
      continue;
    }
    open_begins (c, slash ? slash + 1 : NULL, plus);
    if (!strstr (how, "opens"))
      joins (c);
  }
}

static void
play_request (struct conn *c, const char *p, bool on_thread)
{
  const unsigned before = locks_taken;
  struct call call = { .letter = *p++, .c = c, .cell = c->cell };
  int r;

  if (call.letter == 'r')
    call.cell = letter (*p++)->cell;
  if (call.letter == 'w') {
    call.count = 512;
    if (*p == '*') {
      p++;
      call.cell = 0;
      call.count = LONG;
    }
    else if (*p >= 'a') {
      call.cell = letter (*p++)->cell;
      if (*p >= 'a')
        call.count += (letter (*p++)->cell - call.cell) * spacing;
    }
    call.value = number (&p);
  }
  if (on_thread) {
    start (call);
    return;
  }
  r = do_call (call);
  locks = locks_taken - before;
  settle ();
  if (*p != '\0')
    expect_number (p, r);
  else if (call.letter != 'r')
    expect (r, 0);
}

static void
play_handle (const char *p, bool on_thread)
{
  struct conn *c = letter (*p++);
  struct gate *gate = p[1] == 'r' ? &c->requests : &c->flushes;

  switch (*p++) {
  case '[': case ']': case '|': play_gate (p[-1], gate); break;
  case '!': c->flush_err = *p ? number (&p) : 0; break;
  case ':':                     /* the gate wakes nobody */
    world_lock ();
    gate->shut = false;
    world_unlock ();
    break;
  case '~': c->own[c->cell].flushed = 0; break;
  case '^': c->flush_ns = number (&p); break;
  case '(': CHECK (request_begin (&c->h, false, 0, 512) == 0); break;
  case ')': atomic_fetch_sub (&c->h.state, ONE_INSIDE); break;
  case '.': handle_left (&c->h, 0); settle (); break;
  case 'g': handle_gives_up (&c->h); c->open = false; break;
  case '#': expect (c->nr_flushes, number (&p)); break;
  case '%': expect (c->nr_requests, number (&p)); break;
  case '*': expect (c->inside, number (&p)); break;
  case '<': expect (letter (*p)->flush_began > c->flush_ended, true); break;
  case '@':
    if (*p == '=') {
      p++;
      disk[c->cell] = number (&p);
    }
    else
      expect (disk[c->cell], number (&p));
    break;
  default: play_request (c, p - 1, on_thread);
  }
}

/* So many flushes later. */
static void
age (struct handle *h)
{
  owner_of (h->order, h->claim)->flushed ^= SPELLS / 2;
  h->claim ^= SPELLS / 2;
}

static void
play_word (const char *p)
{
  const bool on_thread = *p == '&';
  int n;

  p += on_thread;
  if (*p >= '1' && *p <= '9')
    play_actor (p);
  else if (*p == '*') {
    p++;
    expect (inside_all, number (&p));
  }
  else if (strncmp (p, "$threads", 8) == 0)
    expect_number (p + 8, threads_made);
  else if (*p == '$') {
    p++;
    n = counter (&p);
    expect_number (p, n);
  }
  else if (strcmp (p, ".late") == 0)
    expire ();
  else if (strcmp (p, ".ends") == 0) {
    ends = true;
    expire ();
    ends = false;
  }
  else if (strcmp (p, ".empty") == 0)
    expect (allocated, 0);
  else if (strcmp (p, ".bounded") == 0)
    expect (allocated <= 256, true);
  else if (strcmp (p, ".alone") == 0)
    fail_threads = INT_MAX;
  else if (strcmp (p, ".helped") == 0)
    fail_threads = 0;
  else if (strcmp (p, ".nomem") == 0)
    fail_mapping = 1;
  else if (strcmp (p, ".full") == 0)
    letter ('a')->h.order->owners = OWNERS - 1;
  else if (strcmp (p, ".old") == 0)
    age (&letter ('a')->h);
  else if (strcmp (p, ".table") == 0 || strcmp (p, ".none") == 0)
    expect (mapped, p[1] == 't');
  else if (*p == '.')
    expect (locks > 0, strcmp (p, ".locked") == 0);
  else if (strchr (p, ':') && strcmp (p + 1, ":f") != 0 &&
           strcmp (p + 1, ":r") != 0)
    play_open (p, on_thread);
  else
    play_handle (p, on_thread);
}

static enum level level;
static bool begun;

/* Returns false if it is no option, which come first. */
static bool
is_option (const char *p)
{
  if (strcmp (p, "FAST") == 0)
    level = LEVEL_FAST;
  else if (strcmp (p, "OFF") == 0)
    level = LEVEL_OFF;
  else if (strcmp (p, "PLUGIN") == 0)
    policy.mode = MODE_PLUGIN;
  else if (strcmp (p, "KEEP") == 0)
    policy.flush_on_close = false;
  else if (*p == 'T')
    policy.flush_threads = atoi (p + 1);
  else if (strcmp (p, "REFRESH") == 0)
    refreshes = true;
  else if (strcmp (p, "NEAR") == 0)
    spacing = 512;
  else if (strcmp (p, "PAIR") == 0)
    spacing = 2048;
  else
    return false;
  return true;
}

static void
play_any (const char *p)
{
  if (!begun && is_option (p))
    return;
  if (!begun)
    begin (level);
  begun = true;
  if (strncmp (p, "S:", 2) == 0 || strncmp (p, "P:", 2) == 0) {
    if ((*p == 'P') != (model == PARALLEL))
      return;
    p += 2;
  }
  play_word (p);
}

static void
play (const char *script)
{
  level = LEVEL_CONNECTION;
  begun = false;
  memset (by_letter, 0, sizeof by_letter);
  play_words (script, play_any);
}

/* What does not fit into a script. */

/* What the plugin sees of the three scripts: their flushes go to how many
 * handles?
 */
static void
test_scripts (void)
{
  static const struct {
    const char *options, *how;
    unsigned flushes[3];
  } table[] = {
    { "OFF", "", { 6, 12, 12 } },
    { "OFF PLUGIN", "plain", { 2, 3, 4 } },
    { "OFF PLUGIN", "multi", { 2, 3, 4 } },
    { "", "", { 0, 4, 4 } },
    { "PLUGIN", "plain", { 0, 3, 4 } },
    { "PLUGIN", "multi", { 0, 2, 2 } },
    { "FAST", "", { 0, 8, 6 } },
    { "FAST PLUGIN", "plain", { 0, 2, 2 } },
    { "FAST PLUGIN", "multi", { 0, 2, 2 } },
    /* In auto nothing is skipped. */
    { "OFF", "multi", { 2, 3, 4 } },
    { "", "multi", { 2, 3, 4 } },
    { "FAST", "multi", { 2, 3, 4 } },
  };
  static const char *const scripts[] = {
    "%s abc:%s af ara af",
    "%s abcd:%s ara bw1 df cw1 ara df df",
    "%s abc:%s ara bw1 af bf ara cw1 af cf",
  };
  unsigned row, script, i, n;
  char text[80];

  for (row = 0; row < sizeof table / sizeof table[0]; row++)
    for (script = 0; script < 3; script++) {
      policy = (struct policy) { .flush_on_close = true };
      memset (conns, 0, sizeof conns);
      nr_conns = 0;
      snprintf (text, sizeof text, scripts[script], table[row].options,
                table[row].how);
      play (text);
      for (i = n = 0; i < nr_conns; i++)
        n += conns[i].nr_flushes;
      CHECK (n == table[row].flushes[script], "%s: %u, not %u", text, n,
             table[row].flushes[script]);
      end ();
    }
}

/* Words for each of N names, and again, in which %u is its number. */
static const struct many {
  const char *name, *begin;
  unsigned n;
  const char *once, *again, *last;
} many[] = {
  /* No error is lost. */
  { "groups of names: what is remembered is bounded", "", 2000,
    "a:/%u aw1 a!EIO ax=EIO .bounded ", "a:/%u af=EIO af ax ", ".empty" },
  /* A group that comes back is not one of these, nor is the one without a
   * name.
   */
  { "groups of names: the same again and again", "", 100,
    "a: aw1 a!EIO ax=EIO ", "a:/x aw1 a!EIO ax=EIO ", "a:/y af" },
  { "groups of names: many closed unflushed", "PLUGIN ", 200,
    "a:multi/%u aw1 ax ", "a:multi/%u af a#1 ax ", ".empty" },
};

static void
play_many (const void *arg)
{
  static char text[1 << 18];
  const struct many *m = arg;
  char *p = stpcpy (text, m->begin);
  unsigned i;

  for (i = 0; i < m->n; i++)
    p += sprintf (p, m->once, i);
  for (i = 0; i < m->n; i++)
    p += sprintf (p, m->again, i);
  strcpy (p, m->last);
  play (text);
  end ();
}

/* One allocation fails after the other. */
static void
test_no_memory (void)
{
  struct conn *a;
  int n = 0;

  begin (LEVEL_CONNECTION);
  a = another ();
  for (fail_allocation = 1; handle_opens (&a->h, "x") != 0;
       fail_allocation = n + 1) {
    n++;
    CHECK (errno == ENOMEM);
    CHECK (nr_held == 0);
    CHECK (allocated == 0 && conds == 0);
  }
  CHECK (n > 1);
  fail_allocation = 0;
  plugin_open (a);
  joins (a);
  CHECK (do_flush (a).err == 0);
  end ();
}

static void
test_free (void)
{
  play ("ac:/x b:/y aw1 bw1 &af 1=0");
  replicate_free (free_handle);
  CHECK (!conns[0].open && !conns[1].open && !conns[2].open);
  CHECK (letter ('b')->nr_flushes == 0, "nothing of the plugin is called");
  CHECK (allocated == 0 && mapped == 0);
  CHECK (conds == 0);
  CHECK (threads == 0);
}

/* What the caller of a flush is told of it. */
static void
test_flushed (void)
{
  struct flushed f;

  play ("ab: ara bra aw1 a^3000 b^5000");
  f = do_flush (letter ('b'));
  CHECK (f.err == 0 && f.replicated);
  CHECK (f.replicas == 2 && f.phases == 2);
  CHECK (f.ns == 8000, "%llu", (unsigned long long) f.ns);
  f = do_flush (letter ('b'));
  CHECK (f.err == 0 && f.replicated);
  CHECK (f.replicas == 0 && f.phases == 0);
  do_write (letter ('a'), 2);
  f = do_flush (letter ('a'));
  CHECK (f.replicas == 1 && f.phases == 1);
  end ();
}

/* Of 66 flushes 64 run at once. */
static void
test_most_threads (void)
{
  unsigned i, round;

  begin (LEVEL_CONNECTION);
  for (i = 0; i < 66; i++) {
    do_open (another (), NULL);
    conns[i].flush_ns = 10000000;
  }
  for (round = 0; round < 2; round++) {
    for (i = 0; i < 66; i++) {
      do_write (&conns[i], 1);
      gate_shut (&conns[i].flushes);
    }
    start ((struct call) { 'f', &conns[0], 0, 0, 0 });
    CHECK (inside_all == 64, "%u", inside_all);
    for (i = 0; i < 66; i++)
      gate_open (&conns[i].flushes);
  }
  CHECK (threads_made == 63, "%d", threads_made);
  end ();
}

/* The thread models in which a test makes sense.  With SERIALIZE_ALL, nothing
 * can be called while one thread waits.
 */
#define ALL        (1 << SERIALIZE_ALL)
#define SERIAL     (1 << SERIALIZE_HANDLE)
#define PARA       (1 << PARALLEL)
#define TWO        (SERIAL | PARA)
#define ANY        (ALL | TWO)

/* Three write, and all see all: the one that was flushed first is flushed
 * once more, and so is the second one.
 */
#define REFRESHES(n)                                                    \
  "aw" n " bw" n " cw" n " df arb=" n " arc=" n " bra=" n " brc=" n     \
  " cra=" n " crb=" n " dra=" n " drb=" n " drc=" n " "

/* All have old copies.  Parts of one block, in NEAR, and all of one. */
#define LATER                                                           \
  "abc: ara bra cra aw1 bwa2 bwb3 awb4 cwc5 cf a@2 b@4 c@5 "            \
  "bwa6 awa7 cf ara=7 arb=4 arc=5 bra=7 brb=4 brc=5 cra=7 crb=4 crc=5"

/* Of two requests on a handle, at SERIALIZE_REQUESTS the second one waits. */
#define PAIR(x, y) "a[r &a" x " &a" y " S:a*1 P:a*2 a]r "
#define PAIRS(x) PAIR (x, "ra") PAIR (x, "w1") PAIR (x, "c")

/* A replica of B fails, so it keeps its old copies.  Then B is dirty, owes a
 * flush, and has an old copy of A's cell; a request is inside, and another, 2,
 * waits for it to go.
 */
#define IN_DEBT                                                         \
  "T1 ab: bra=0 aw1 b!EIO af=EIO b! b[r &bw2 b( aw2 af b]r 1=0 b[r "    \
  "&bra 2? b#1 "
/* A replica, 3, is inside; what is owed runs beside it and is done; then the
 * replica fails, so that what it would have dropped is still there.  What 2
 * has fetched is put back later than 4 reads.
 */
#define FAILS_BESIDE                                                    \
  " b. b!EIO b]f 3=EIO b! b:r &bra b]r 4=2 2"

/* Four write, and the flush of H has INSIDE of theirs run at once. */
#define FOUR(n) "aw" n " bw" n " cw" n " dw" n " a[f b[f c[f d[f &hf "
#define AT_ONCE(n, inside)                                              \
  FOUR (n) "*" inside " a]f b]f c]f d]f a@" n " b@" n " c@" n " d@" n " "
#define SLOW "a^50000000 b^50000000 c^50000000 d^50000000 "

static const struct {
  const char *name;
  unsigned models;
  const char *script;
} scripts[] = {

  /* Durable. */

  { "what has returned is durable", ANY,
    "ab: aw1 a@0 bf a@1 a#1 b#0 aw2 af a@2 a#2 af a#2" },
  { "a flush waits for the write-back", TWO,
    "ab: aw1 a[f &bf 1? a]f 1=0 a@1" },
  /* It is not covered, and keeps its mark. */
  { "a write in flight", TWO, "ab: a[r &aw1 bf a]r 1=0 bf a@1" },
  { "a write in flight on a dirty handle", TWO,
    "ab: aw1 a[r &aw2 &bf P:2 S:2? a]r 1=0 2=0 P:a@1 S:a@2 bf a@2 "
    "P:a#2 S:a#1" },
  { "a write beside the flush of its handle", TWO,
    "ab: aw1 a[f &bf &aw2 P:2 S:2? a]f 1=0 2=0 a@1 bf a@2 a#2" },
  { "a flush beside a round that has passed", TWO,
    "abc: cra aw1 c[f &af 1? bw1 b[f &af 1? 2? c]f 1=0 b#1 2? b]f 2=0 b@1 "
    "b#1" },

  /* Visible. */

  { "what is durable is visible", ANY,
    "abc: bra=0 aw1 bra=0 cf bra=1 a#1 b#1 c#0 a<b" },
  { "the flusher sees it, too", ANY, "ab: bra=0 aw1 bf bra=1" },
  { "a flush waits for idle handles with old copies", TWO,
    "ab: bra aw1 b[f &af b#1 1? b]f 1=0" },
  { "a read in flight: its handle owes a flush", TWO,
    "ab: b[r &bra aw1 af b#0 $owed=1 $paid=0 b]r 1=0 bra=1 b#1 $paid=1 "
    "bra=1 af b#1" },
  /* It has had to fetch. */
  { "a request that is just going", SERIAL,
    "ab: bw1 b( &af 1? b) &bra 2? b%1 b. 1=0 2=0" },
  { "a write in flight: its handle owes a flush", TWO,
    "ab: b[r &bw5 aw1 af b]r 1=0 bra=1 b#1 b@5 af b@5" },
  { "an owed flush waits for what is inside", TWO,
    "ab: b[r b[f &bra aw1 af &bra &bra 1? 2? 3? b%1 b#0 b]r 1=0 2? 3? b%1 "
    "b#1 b]f 2=1 3=1 b#1" },
  { "a round pays what an idle handle owes", TWO,
    "ab: b[r &bra aw1 af b]r 1 aw2 af b#1 bra=2 b#1" },
  { "what is owed twice is paid once", TWO,
    "ab: b[r &bra aw1 af aw2 af aw3 af $owed=3 b]r 1 bra=3 b#1" },
  /* It is for the requests after it. */
  { "a write-back beside an owed flush", TWO,
    "ab: b[r &bra aw1 af b]r 1 b[f &bra b#1 aw2 af b]f 2 bra=2" },
  { "what is owed never starves a request", TWO,
    "OFF ab: b[r b[f &bra af af af &bra b#0 b]r 1 b#1 af af af b|f 2 b#1 "
    "b]f bra=0 b#2" },
  /* Others have not seen it. */
  { "a write-back in the second phase", TWO,
    "abc: bra aw1 a[f &af bw7 b[f a]f b#1 crb=0 b]f 1=0 b@7 af crb=7" },
  /* It does not make them new. */
  { "a request on a handle with old copies", TWO,
    "ab: bra=0 aw1 ax b[r &bra &bra b]r 1=0 2=0 bf bra=1" },
  { "old copies beside a write-back", PARA,
    "ab: bw1 aw1 b[r &bra af b#1 b]r 1=0 bra=1 b#2" },
  /* It may put back what the flush drops. */
  { "a request beside the second phase", TWO,
    "ab: bra aw1 b[f &af &bra P:2 S:2? b]f 1=0 2=1 bra=1 P:b#2 S:b#1" },
  { "a request beside the first phase", TWO,
    "ab: aw1 bw1 a[f &bf 1? b#1 &arb P:2 S:2? a]f 1=0 2 P:a#2 S:a#1" },
  { "a handle used in mid-round", TWO,
    "T1 abc: aw1 bw1 a[f b[f &cf b#1 a#0 b]f a#1 bra=0 a]f 1=0 b#2 a#1 "
    "bra=1" },
  { "a request in flight across a round", TWO,
    "ab: aw1 bw1 af aw2 bw2 a[r bf bw3 &arb bf a]r 1=2 arb=3" },
  { "a write before the second phase", TWO,
    "T1 abcd: bra crb drb aw1 a[f &af bw1 cw1 a]f 1=0 brc crb drb af b@1 "
    "c@1 brc=1 crb=1 drb=1 drc=1" },

  /* Opening. */

  { "an open beside a write-back flushes", ANY,
    "REFRESH a: b:opens aw1 af b:joins b#1 bra=1 aw2 c:opens c:joins c#0" },
  { "an open in mid-write-back", TWO,
    "REFRESH a: aw1 a[f &af b:opens a]f 1=0 b:joins b#1 bra=1" },
  { "an open does not wait for a write-back", TWO,
    "REFRESH a: aw1 a[f &af &b: 2 a]f 1=0 b#1 bra=1" },
  { "the flush of an open fails", ANY,
    "REFRESH a: b:opens aw1 af b!EIO b:joins b#1 bra=-EIO b! bra=1 b#3" },
  { "an open without replication does not flush", ANY,
    "a:plain b:opens aw1 af b:joins b#0" },

  { "a further handle's open beside a write-back", ANY,
    "REFRESH FAST a: aw1 b:opens+a af b:joins b#1 bra=1" },
  { "one that gives up", ANY, "a:opens/x ag .empty $opened=0" },
  { "while one opens, its group keeps its kind", ANY,
    "b: a:plain,opens bx a:joins c: aw1 cf a@1" },
  { "one that gives up was the last of its group", ANY,
    "b: a:plain,opens bx ag c:plain d: cw1 df c@0" },
  { "further handles of a connection", TWO,
    "a:16/x b:+a c:/x bw1 cf b@1 arb=1 $opened=2 $open=2 $most=2 $handles=3 "
    "$most-handles=3 bx $open=2 $handles=2 $most-handles=3 "
    "d:opens+a dg $open-fails=1 $handles=2 cx e:/x ew1 af e@1 "
    "f:opens+a ax ex f:joins fw2 ff f#1" },

  /* Requests of one handle. */

  { "a request that waits as another connection is flushed", SERIAL,
    "ab: b[r &bc &bra aw1 af b]r 1 2=1 af b#0" },
  { "requests on one handle", TWO,
    "a: " PAIRS ("ra") PAIRS ("w1") PAIRS ("c") },
  { "many requests on one handle", TWO,
    "a: a[r &ara &aw0 &ara &aw0 P:a%4 S:a%1 a|r S:a%2 a|r S:a%3 a|r S:a%4 "
    "a|r 1 2 3 4 a]r" },
  /* It leaves no mark. */
  { "requests that are not data", TWO, "ab: bc bra bc aw1 af b#1 bra=1" },
  { "requests beside their handle's flush", PARA,
    "ab: aw1 a[f &bf ara aw2 ac 1? a]f 1=0" },
  { "a replica goes before those that wait", SERIAL,
    "ab: aw1 a[r &ara &ara &ac &bf 4? a%2 a#0 a|r 1 4=0 a#1 2? 3? a]r 2 3" },
  { "closed without a flush, and connected anew", ANY,
    "KEEP abc: bra aw1 ax a#0 $closes=0 a@=1 cf bra=1 c#1 cf c#1" },
  { "a flush that a request waits for ends with the server", SERIAL,
    "ab: aw1 a[r &ara &bf .late 2? .ends 2=ESHUTDOWN a@0 a]r 1 a#0 bf a@1" },
  { "a flush waits for one request", SERIAL,
    "ab: aw1 a[r &arb &arb &arb &arb &bf a|r 5=0 1 2? 3? 4? a]r" },
  { "what is ready is flushed first: the busy one is the last", SERIAL,
    "T1 abcd: aw1 bw1 cw1 a[r &arb &df 2? a#0 b@1 c@1 a]r 1 2=0 a#1 a@1" },
  { "what is ready is flushed first: it is the second", SERIAL,
    "T1 abcd: bw1 aw1 cw1 a[r &arb &df 2? a#0 b@1 c@1 a]r 1 2=0 a#1 a@1" },
  { "what is ready is flushed first: the first", SERIAL,
    "T1 abcd: bw1 cw1 aw1 a[r &ac &df 2? a#0 b@1 c@1 a]r 1 2=0 a#1 a@1" },
  { "a hung read", TWO,
    "abc: bra b[r &bra crb aw1 &cf 2=0 cra=1 1? b]r 1" },
  { "many busy handles", TWO,
    "abcd: b[r c[r d[r &bra &bra &cra &cra &dra &dra aw1 &af 7=0 b#0 c#0 d#0 "
    "b]r c]r d]r bra=1 cra=1 dra=1 b#1 c#1 d#1" },

  /* Closing. */

  { "a close flushes", ANY,
    "ab: bra aw1 ax a#1 a@1 $closes=1 bf bra=1 b#1 c: crb cx c#0 $closes=1" },
  { "a close does not flush if told so", ANY,
    "KEEP ab: bra aw1 ax a#0 $closes=0 a@=1 bf bra=1" },
  { "a flush waits for one at close", TWO,
    "ab: aw1 a[f &ax &bf 1? 2? a]f 1=0 2=0 a@1 a#1" },
  { "a flush fails with one at close", TWO,
    "ab: aw1 a!ENOSPC a[f &ax &bf a]f 1=ENOSPC 2=ENOSPC bf" },
  { "a flush waits for two closes", TWO,
    "abc: aw1 bw1 a[f b[f &ax &bx &cf a]f 1=0 2? 3? b]f 2=0 3=0" },
  /* What it writes back came after the flush. */
  { "a flush at close that a round has no part in", TWO,
    "abc: aw1 a[f &cf bw1 b!EIO b[f &bx a]f 1=0 b]f 2=EIO cf=EIO cf" },
  { "a close waits for its replica", TWO,
    "ab: aw1 a[f &bf &ax 2? a]f 1=0 2=0 a#1" },
  { "a close waits in the second phase", TWO,
    "ab: aw1 bra b[f &af b#1 &bx 2? b]f 1=0 2=0 b#1" },
  { "a close waits for a replica beside a request", PARA,
    "ab: bw1 b[r b[f &bra &af b#1 b]r 1 &bx 3? b]f 2=0 3=0 b#1" },
  { "a close runs its replica", TWO,
    "T1 abc: aw1 bw1 a[f b[f &cf b#1 a#0 &ax a#1 a]f 2=0 1? b]f 1=0 a#1 "
    "b#1" },
  { "a round leaves alone what closes", TWO,
    "FAST abc: aw1 bw1 b[f &bx a[f &cf a#1 b#1 b]f 1=0 a]f 2=0 b#1" },
  { "open and close beside a hung flush", TWO,
    "abc: aw1 bw0 cf aw2 a[f &cf &d: 2 bw1 &bx 3=0 b@1 1? a]f 1=0" },

  { "a handle that is to see what its connection has done", TWO,
    "abc: bw1 au a#0 b#0 aw1 au a#1 b#1 aw2 a!EIO au=EIO a! cf b#1 "
    "aw3 a[f &cf 1? &au 2? a]f 1=0 2=0" },
  { "the same, and another's write-back is owed", TWO,
    "ab: arb=0 bw1 bx au arb=1 a#1 arb a#1" },

  /* Order. */

  { "the later write wins", ANY, LATER },
  { "the later write wins, level fast", ANY, "REFRESH FAST " LATER },
  { "the later write wins, level off", ANY, "OFF " LATER },
  { "parts of a block", ANY, "NEAR " LATER },
  { "parts of a block, level fast", ANY, "NEAR REFRESH FAST " LATER },
  { "parts of a block, level off", ANY, "NEAR OFF " LATER },
  { "a write that meets nobody takes no lock", ANY,
    "abcd: aw1 .locked bw1 .locked awc2 .free bwd3 .free bwb1 .free af ara "
    "aw2 awbd5 .free $conflicts=0 a#1 b#1 bf b@5 d@5" },
  { "one that does has one handle flushed", ANY,
    "abcd: cra=0 dw1 aw1 bwa2 a#1 b#0 c#0 d#0 cra=0 $conflicts=1 cf a@2 d@1" },
  { "a write waits for one that is inside", PARA,
    "abc: aw1 a[r &aw2 &bwa3 2? &arb &awc4 3? 4? a*2 a]r 1=0 2=0 3 4=0 a@2 cf "
    "a@3 c@4 $conflicts=1" },
  { "two wait for one", PARA,
    "abcd: aw1 a[r &aw2 &bwa3 &cwa3 &awd4 2? 3? 4? a]r 1=0 2=0 3=0 4=0 awa5 "
    "aw6 .free df a@6 d@4" },
  { "a write waits for the request that is inside", SERIAL,
    "abc: aw1 a[r &arb &arb &bwa2 3? a#0 a|r 1 3=0 2? a#1 a]r cf a@2" },
  { "a write waits for a flush of the other handle", TWO,
    "abc: aw1 a[f &cf &bwa2 2? a]f 1=0 2=0 a@1 cf a@2" },
  { "a flush beside a write covers no more than it", PARA,
    "abc: aw1 a[r &aw2 cf a@1 a]r 1=0 bwa3 a@2 $conflicts=1 cf a@3" },
  { "one's own write, which a read beside it has not seen", PARA,
    "NEAR abc: a[r &ara a:r aw1 bw2 $conflicts=1 a#1 a]r 1=0 ara=1 a#2 ara=1 "
    "a#2 cf a@1 b@2" },
  /* 4 is a replica, and 5 runs what is owed beside it, which is done first. */
  { "a flush that is still on its way", PARA,
    "abcde: a[r &aw1 &awd5 &arb bw1 bf a|r 1=0 a[f &cf 4? a]r 2=0 3 a:f &are "
    "5 a#2 &bwa2 6? a]f 4=0 6=0 bx a@2" },
  { "the other's flush fails", ANY,
    "abc: aw1 a!ENOSPC bwa2=-ENOSPC b%0 bra=0 cf=ENOSPC a! bwa2 a@1 cf a@2 "
    "aw3 bra a!EIO bwa4=-EIO a! bwa4 a@3 cf a@4" },
  { "the flush of a third one fails", TWO,
    "abcdef: ew1 e[f &fwe2 aw1 dw1 d!EIO &bwa2 &cf e]f 1=0 2=0 3=EIO d! cf "
    "a@2" },
  { "the other one closes", TWO,
    "abc: aw1 a[f &ax &bwa2 2? a]f 1=0 2=0 a@1 a#1 cf a@2" },
  { "the other one closes, and its flush fails", TWO,
    "abc: aw1 a!EIO a[f &ax &bwa2 2? a]f 1=EIO 2=0 cf=EIO cf a@2" },
  { "the other one closes as it is flushed", TWO,
    "abc: aw1 a[f &bwa2 &ax 1? 2? a]f 1=0 2=0 a@1 a#1 cf a@2" },
  { "the other one closes as it is flushed, which fails", TWO,
    "abc: aw1 a!EIO a[f &bwa2 &ax a|f 1=-EIO a! a]f 2=0 a@1 a#2 bwa3 cf a@3" },
  { "the other one closes, and waits for nobody", TWO,
    "abcde: ew1 e[f &cf aw1 &bwa2 2? ax a@1 a#1 2? e]f 1=0 2=0 df a@2" },
  { "the other one has closed unflushed", ANY,
    "NEAR KEEP abc: bra=0 aw1 ax a@=5 bw2 a@5 cf a@5 b@2" },
  { "the other one closes unflushed", TWO,
    "KEEP abc: aw1 a[f &bwa2 &ax a]f 1=0 2=0 a@1 cf a@2" },
  { "a flush at close fails beside a round without a client", TWO,
    "abcd: aw1 a!EIO a[f &ax &bi a]f 1=EIO 2=0 cf=EIO cf "
    "bw1 dw1 b!EIO b[f &bx &cwd2 b]f 3=EIO 4=0 cf=EIO cf d@2" },
  { "the number of one that has closed", ANY,
    "NEAR abcd: dra=0 aw1 ax dw2 a@1 bf a@1 d@2" },
  { "the number of one that has closed, another's write", ANY,
    "abc: bw1 aw1 ax cw1 bwa2 $conflicts=0 b#1 cf a@2 b@1 c@1" },
  /* B pays what it owes, and C takes the block, in the same moment. */
  { "two want what is past", TWO,
    "abcd: b[r &bra aw1 df cw1 b]r 1 b[f &bwa5 2? cwa6 .free b]f 2=0 a@6 "
    "$conflicts=1 df a@5" },
  { "one that has claimed a block, and waits for another", TWO,
    "abcd: awd1 cw1 df ara crd bw1 b[f &cwab2 1? awa3 a%3 $conflicts=2 b]f "
    "1=0 a@3 df a@2 b@2" },
  /* What A has written, which is in the disk by then, is not undone by B. */
  { "one that has claimed a past block, and waits for another", TWO,
    "PAIR abcde: ew1 df bra aw1 ax ere cw1 c[f &ewbc2 1? bw5 $conflicts=2 c]f "
    "1=0 df a@1 b@2 c@2" },
  { "a write of one that waits", PARA,
    "abcd: awd1 cw1 bw1 df ara crd brd b[r &bwb1 &cwab2 1? 2? cwa4 c%3 awa3 "
    "a@4 2? b]r 1=0 2=0 df a@2 b@2" },
  { "what is owed is only raised", TWO,
    "REFRESH FAST abcd: b[r &bra aw1 df b]r 1 b[f &brd cw1 df &bwa5 3? b]f 2 "
    "3=0 brc=1" },
  { "old claims that look new", ANY,
    "abc: aw1 af .old ara bwa2 $conflicts=1 a#1 ara .free cf a@2" },
  { "old claims of one that has closed look new", ANY,
    "abc: aw1 ax .old bwa2 $conflicts=0 bf a@2" },
  { "no memory for the table", ANY,
    "ab: .none .nomem aw1=-ENOMEM a%0 .none ara=0 aw1 .table bf a@1" },
  { "too many that write", ANY,
    "abc: aw1 .full bw1=-EMFILE b%0 brb=0 ax bw2 cw1=-EMFILE bf b@2" },
  { "large blocks", ANY,
    "abc:16 ara bra aw1 bw2 cw3 aw4 .locked aw5 .free cf a@5 b@2 c@3" },
  { "larger blocks than the table's", ANY,
    "a: bc:16 d: bra cra aw1 bw2 .locked bw3 .locked cw4 .locked dw5 aw6 cf "
    "a@6 b@3 c@4 d@5" },
  { "smaller blocks than the table's", ANY,
    "ab:16 c: ara bra cra aw1 bw2 cw3 .locked cw4 .free bf a@1 b@2 c@4" },
  { "4 GiB - 1", ANY, "abc: aw1 bw*2 .locked cw3 aw*4 bw*5 af a@5 b@5 c@5" },
  { "no table where flushes are passed on", ANY,
    "a:plain b: aw1 bwa2 .none aw3 .free" },

  /* Errors. */

  { "the first error, and all are flushed", ANY,
    "T1 abc: aw1 bw1 cw1 a!EIO b!ENOSPC c!ENXIO cf=ENXIO a#1 b#1 c#1 "
    "$failed=3 a! b! af=ENXIO a@1 b@1 c@0 c! af c@1 $failed=4" },
  { "a failed flush leaves its marks", ANY,
    "abc: bra cra aw1 a!EIO bf=EIO b#1 bra=0 bf=EIO a#2 a! c!EIO cra bf=EIO "
    "a@1 bra=1 a#3 c! bf cra=1 a#3" },
  { "what has failed is not tried twice in a round", ANY,
    "FAST ab: aw1 bw1 a!EIO bf=EIO a#1 bf=EIO a#2 a! bf bra=1 arb=1" },
  { "the same at level off", ANY,
    "OFF ab: aw1 bw1 a!EIO af=EIO a#1 bf=EIO a#2 a! bf bra=1 arb=1" },
  { "an error beside a write", TWO,
    "ab: aw1 a!EIO a[f &bf &aw2 a]f 1=EIO 2=0 a! bf a@2 a#2 bf a#2" },
  /* Whatever has entered meanwhile, it is as old as it was. */
  { "a flush that fails beside a read", PARA,
    "ab: bra aw1 b[f b!EIO &af bra=1 b]f 1=EIO b! af a#1 b#2" },
  /* 3 is a replica, 4 runs what is owed.  What the replica should have written
   * is left to the next round.
   */
  { "a flush that fails beside an owed one", PARA,
    "ab: b[r &bw5 &bra aw1 af b|r 1=0 b[f &af b]r 2 &bra b#2 b*2 b!EIO b|f "
    "3=EIO 4? b! b~ b]f 4 af b#3 b@5" },
  { "a flush that fails after an owed one", PARA,
    IN_DEBT "b[f &af b#2 b:f b)" FAILS_BESIDE },
  { "a flush that fails after an owed one, nothing inside", PARA,
    IN_DEBT "b) b[f &af b#2 b:f" FAILS_BESIDE },
  /* Each that waits has a try of its own. */
  { "an owed flush that fails, and those that wait", TWO,
    "ab: b[r &bra aw1 af b!EIO b[f &bra &bra b]r 1 b#1 b|f b#2 b%1 b! b]f "
    "b%2 $failed=1 bra=1 b#2" },
  { "an error at close fails the next flush once", ANY,
    "abc: aw1 bw1 a!ENOSPC ax=ENOSPC cf=ENOSPC b@1 cf bf "
    "cra bw2 b!EIO bx=EIO cf=EIO c#1" },
  { "an owed flush that fails fails the request", TWO,
    "ab: b[r &bra aw1 af b]r 1 b!ENOSPC bra=-ENOSPC bw1=-ENOSPC b%1 b#2 "
    "$failed=2 $paid=2 b! bra=1 b#3" },
  { "an owed flush that fails, and a replica", TWO,
    "ab: bw1 af b[r &bw2 aw1 af b]r 1=0 b!EIO b[f &bra &af b|f 2=-EIO b! "
    "b]f 3 af b@2 bra=1" },

  /* Work and cost. */

  { "a request that finds its marks takes no lock", ANY,
    "ab: ara aw1 ara .free aw2 .free bf ara .locked ara .free aw3 .locked "
    "aw4 .free" },
  { "a request after an owed flush takes no lock", TWO,
    "ab: b[r &bra aw1 af b]r 1 bra b#1 bra .free bw1 b[r &bra &af b]r 3=0 2 "
    "bra bra .free" },
  { "flushes share a round", TWO,
    "abc: cra aw1 c[f &af bw1 b[f &bf &af &bf &af c]f 1=0 2? 3? 4? 5? b]f "
    "2=0 3=0 4=0 5=0 b#1 $rounds=2 $flushes=5" },
  { "flushes share an error", TWO,
    "abc: cra aw1 c[f &af bw1 b!EIO &bf &af c]f 1=0 2=EIO 3=EIO b#1" },
  { "a flush that no client has asked for", TWO,
    "ab: ai bra aw1 bi a@1 bra=1 $flushes=0 $skipped=0 $rounds=1 $replicas=2 "
    "aw2 a!EPERM ai=EPERM a! bi a@2 "
    /* Another connection's error is its own, one at close a client's. */
    "bw1 b!EPERM ai b! aw3 a!EPERM bi ai=EPERM ax=EPERM bi bf=EPERM bf" },
  { "an unused handle holds nothing", ANY,
    "ab: bc aw1 af b#0 aw2 af bra=2 af b#0" },
  { "level fast: a plugin that refreshes", ANY,
    "REFRESH T1 FAST abcd: " REFRESHES ("1") "a#1 b#2 c#2 d#1 "
    REFRESHES ("2") "d#2" },
  { "level off: a plugin that refreshes", ANY,
    "REFRESH T1 OFF abcd: " REFRESHES ("1") "a#1 b#2 c#2 d#1 "
    REFRESHES ("2") "d#2" },
  { "level fast: copies of an open", TWO,
    "REFRESH FAST abc: c[r &cra aw1 af bra=1 c#0 c]r 1 cra=1" },

  { "statistics", ANY,
    "abc: cx ara bra aw1 a^3000 b^5000 bf bf aw2 af ara ax $opened=3 $open=1 "
    "$most=3 $reads=3 $writes=2 $pieces=5 $flushes=3 $ns=11000 "
    "$plugin-flushes=3 "
    "$plugin-ns=11000 $skipped=1 $replicas=3 $rounds=2 $owed=0 $paid=0 "
    "$closes=0 $failed=0" },

  /* Threads that help. */

  { "helpers: none for one", PARA,
    "ah: a^50000000 aw1 a[f &hf a*1 a]f aw2 a[f &hf a*1 a]f $threads=0" },
  { "helpers: 1", PARA,
    "T1 abcdh: " SLOW AT_ONCE ("1", "1") AT_ONCE ("2", "1") "$threads=0" },
  { "helpers: 2", PARA,
    "T2 abcdh: " SLOW AT_ONCE ("1", "2") AT_ONCE ("2", "2") "$threads=1" },
  { "helpers: more than are needed", PARA,
    "T5 abcdh: " SLOW AT_ONCE ("1", "4") AT_ONCE ("2", "4") "$threads=3" },
  { "helpers: auto", PARA,
    "abcdh: " SLOW AT_ONCE ("1", "4") AT_ONCE ("2", "4") "$threads=3" },
  /* Until one turns out to be slow. */
  { "helpers: not for fast flushes", PARA,
    "abcdh: aw0 hf " AT_ONCE ("1", "1") AT_ONCE ("2", "1") AT_ONCE ("3", "1")
    AT_ONCE ("4", "1") AT_ONCE ("5", "1") "$threads=0 "
    SLOW FOUR ("6") "*1 d]f *3 $threads=2 a]f b]f c]f a@6" },
  { "helpers: slow flushes among fast ones", PARA,
    "abcdefgh: " SLOW "era fra gra " AT_ONCE ("1", "4") "e#1 f#1 g#1 "
    "era fra gra " AT_ONCE ("2", "4") "era fra gra " AT_ONCE ("3", "4")
    "g#3" },
  { "helpers: one after the other", PARA,
    "T2 abcdh: " FOUR ("1") "*2 d]f *2 c]f *2 b]f a]f 1=0" },
  { "helpers: each group has its own", PARA,
    "T3 abcd:/x efgh:/y ew1 fw1 gw1 hw1 e[f f[f g[f aw1 bw1 cw1 dw1 "
    "a[f b[f c[f d[f &af *3 h[f &hf *6 e]f f]f g]f h]f 2=0 1? "
    "a]f b]f c]f d]f 1=0 $threads=4" },
  { "helpers: no threads to be had", PARA,
    "abcdh: " SLOW ".alone " AT_ONCE ("1", "1")
    ".helped " AT_ONCE ("2", "4") },

  /* Flushes that are passed on. */

  { "passed on: own handle", ANY,
    "PLUGIN ab:plain af a#0 $skipped=1 aw1 bf a#0 b#1 a@0 af a#1 a@1 af a#2 "
    "$replicas=0" },
  { "passed on: multi-conn", ANY,
    "PLUGIN abc:multi aw1 cw1 bf a#0 b#1 af bf cf a#0 b#1 c#0 bw2 bf b#2" },
  { "passed on: errors", ANY,
    "PLUGIN ab:multi aw1 b!EIO bf=EIO bf=EIO b#2 b! bf bf b#3 $failed=2 aw2 "
    "a!EIO af=EIO ax bf b#4" },
  { "passed on: another's error", ANY,
    "PLUGIN ab:plain aw1 bw1 a!EIO bf b@1 af=EIO a! af a@1" },
  { "passed on: a flush waits for its handle", TWO,
    "a:plain aw1 a[r &ara &af P:2 S:2? a]r 1 2=0 aw2 a[f &af &ara P:4 S:4? "
    "a]f 3=0 4" },
  /* The first one may fail still. */
  { "passed on: beside another flush", TWO,
    "PLUGIN ab:multi aw1 a[f &af &bf b#1 2=0 &aw2 a]f 1=0 3=0 af a@2 a#2" },
  { "passed on: a connection is not clean while others flush", TWO,
    "a:multi b:+a c:multi bw1 c[f &cf &au 2? c]f 1=0 2=0 b#1 au b#1" },
  { "passed on: nor if that fails", TWO,
    "a:multi b:+a c:multi bw1 c!EIO cf=EIO au a#0 b#1 b@1 au b#1" },
  { "passed on: closed unflushed", ANY,
    "PLUGIN abc:multi aw1 ax a#0 bf b#1 bf b#1 cw1 cx b!EIO bf=EIO b! bf b#3 "
    "bf b#3" },
  { "passed on: closed, and connected anew", ANY,
    "PLUGIN a:plain/x aw1 ax b:plain/y bf b#0 bx c:multi/x cf c#1 cf c#1" },

  /* One kind of group: the first connection settles it. */

  { "a group replicates, also for one that would not", ANY,
    "a: b:multi aw1 bf a@1 ax c:plain cw1 bf c@1" },
  { "a group passes on, also for one that would replicate", ANY,
    "a:multi b: aw1 bf a@0 b#1 ax c: cw1 bf c@0" },
  { "until it is empty", ANY,
    "a:multi b: ax bx c: d:multi cw1 df c@1 cx dx e:plain f: ew1 ff e@0 ex fx "
    "g:plain/x gw1 gx h:/x hf h#1" },
  { "closed unflushed, and then it replicates", ANY,
    "a:plain aw1 ax a#0 bc: b!EIO bf=EIO b! bf b#2 bf b#2 c#0" },
  { "the same where that flush is due for its own writes too", ANY,
    "a:multi aw1 ax bc: bw1 b!EIO bf=EIO b! cf b#2 c#1 b@1 "
    "bw2 b!EIO bf=EIO b! cf b#4 c#1" },
  { "an error at close, and then flushes are passed on", ANY,
    "a: aw1 a!ENOSPC ax=ENOSPC b:multi bw1 bf=ENOSPC b@1 bf" },
  { "or skipped", ANY,
    "PLUGIN a: aw1 a!ENOSPC ax=ENOSPC b:multi bf=ENOSPC b#0 bf" },
  { "a handle that can't be flushed", ANY,
    "OFF a: b:stuck bra bw1 aw1 af bf a#2 b#0 bx b#0" },

  /* Groups of names. */

  { "groups of names", TWO,
    "FAST ab:/x c:/y aw1 cf c#0 cw1 bf a#1 b#1 c#0 c[f &cf aw2 bf 1? c]f 1=0 "
    "a#2 c#1" },
  /* It is in the same bucket. */
  { "no name is not the empty name", ANY,
    "a:/ b: aw1 bf a@0 c: cw1 bf c@1" },
  { "groups of names: an error at close", ANY,
    "a:/x aw1 a!ENOSPC ax=ENOSPC b:/y bf bx c:/x cx d:/x df=ENOSPC df dx "
    ".empty" },
};

static const struct {
  struct unit_test test;
  unsigned models;
} functions[] = {
  { { "flush counts of three scripts", test_scripts }, ANY },
  { { "no memory for a group", test_no_memory }, ANY },
  { { "what a flush tells", test_flushed }, ANY },
  { { "the end with open connections", test_free }, TWO },
  { { "helpers: as many as may be", test_most_threads }, PARA },
};

#define LENGTH(array) (sizeof array / sizeof array[0])

static void
play_and_end (const void *script)
{
  play (script);
  end ();
}

int
main (void)
{
  static const char *const programs[] = {
    [SERIALIZE_ALL] = "replicate, one at a time",
    [SERIALIZE_HANDLE] = "replicate, one per handle",
    [PARALLEL] = "replicate, parallel",
  };
  unsigned i;

  for (model = SERIALIZE_ALL; model <= PARALLEL; model++) {
#ifdef __SANITIZE_THREAD__
    if (model == SERIALIZE_ALL)
      continue;                 /* there is one thread */
#endif
    unit_program = programs[model];
    for (i = 0; i < LENGTH (scripts); i++)
      if (scripts[i].models & (1 << model))
        unit_run (scripts[i].name, play_and_end, scripts[i].script);
    for (i = 0; i < LENGTH (many); i++)
      unit_run (many[i].name, play_many, &many[i]);
    for (i = 0; i < LENGTH (functions); i++)
      if (functions[i].models & (1 << model))
        unit_run (functions[i].test.name, unit_call, &functions[i].test);
  }
  return unit_status;
}
