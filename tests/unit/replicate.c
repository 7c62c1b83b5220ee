/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* replicate.c: every rule of the replicated flush.
 *
 * The tests run in each thread model for which they matter: those that wait
 * for another thread at SERIALIZE_REQUESTS and in PARALLEL, the counts of
 * flushes also in the strictest.
 */

#include "plugin.h"

/* Durable. */

static void
test_durable (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  CHECK (disk[a->cell] == 0);
  CHECK (flush (b) == 0);
  CHECK (disk[a->cell] == 1);
  CHECK (a->nr_flushes == 1);
  CHECK (b->nr_flushes == 0, "it holds nothing");

  do_write (a, 2);
  CHECK (flush (a) == 0);
  CHECK (disk[a->cell] == 2);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 2, "nothing is left to flush");
  end ();
}

static void
test_waits_for_write_back (void)
{
  struct conn *a, *b;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  CHECK (!over (f));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  CHECK (disk[a->cell] == 1);
  end ();
}

/* A write that has not returned is not covered, and keeps its mark. */
static void
test_write_in_flight (void)
{
  struct conn *a, *b;
  struct actor *w;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&a->requests);
  w = start (WRITE, a, 1);
  CHECK (flush (b) == 0);
  gate_open (&a->requests);
  CHECK (result (w) == 0);
  CHECK (flush (b) == 0);
  CHECK (disk[a->cell] == 1);
  end ();
}

/* The same while its handle is dirty already. */
static void
test_second_write_in_flight (void)
{
  struct conn *a, *b;
  struct actor *w, *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->requests);
  w = start (WRITE, a, 2);
  f = start (FLUSH, b, 0);
  CHECK (over (f) == (model == PARALLEL));
  gate_open (&a->requests);
  CHECK (result (w) == 0);
  CHECK (result (f) == 0);
  CHECK (disk[a->cell] == (model == PARALLEL ? 1 : 2));
  CHECK (flush (b) == 0);
  CHECK (disk[a->cell] == 2);
  CHECK (a->nr_flushes == (model == PARALLEL ? 2 : 1));
  end ();
}

/* A write that returns while its handle is being flushed keeps its mark. */
static void
test_write_beside_flush (void)
{
  struct conn *a, *b;
  struct actor *f, *w;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  w = start (WRITE, a, 2);
  CHECK (over (w) == (model == PARALLEL));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  CHECK (result (w) == 0);
  CHECK (disk[a->cell] == 1);
  CHECK (flush (b) == 0);
  CHECK (disk[a->cell] == 2);
  CHECK (a->nr_flushes == 2);
  end ();
}

/* Stop a round in its second phase: it does not cover what is written from
 * now on.  Returns that flush; the gate to open is the reader's.
 */
static struct actor *
start_round (struct conn *writer, struct conn *reader)
{
  struct actor *f;

  do_read (reader, 0);
  do_write (writer, writer->newest + 1);
  gate_shut (&reader->flushes);
  f = start (FLUSH, writer, 0);
  CHECK (!over (f));
  return f;
}

/* A round that has passed a handle does not cover a later write on it. */
static void
test_flush_beside_round (void)
{
  struct conn *a, *b, *c;
  struct actor *f1, *f2;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  f1 = start_round (a, c);
  do_write (b, 1);
  gate_shut (&b->flushes);
  f2 = start (FLUSH, a, 0);
  CHECK (!over (f1) && !over (f2));
  gate_open (&c->flushes);
  CHECK (result (f1) == 0);
  CHECK (b->nr_flushes == 1 && !over (f2));
  gate_open (&b->flushes);
  CHECK (result (f2) == 0);
  CHECK (disk[b->cell] == 1);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* Visible. */

static void
test_visible (void)
{
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  CHECK (do_read (b, a->cell) == 0);
  do_write (a, 1);
  CHECK (do_read (b, a->cell) == 0);
  CHECK (flush (c) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1 && c->nr_flushes == 0);
  CHECK (b->flush_began > a->flush_ended);
  end ();
}

/* The handle that flushes may have old copies, like any other. */
static void
test_visible_to_itself (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  CHECK (do_read (b, a->cell) == 0);
  do_write (a, 1);
  CHECK (flush (b) == 0);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* A flush does not return before idle handles have dropped old copies. */
static void
test_waits_for_idle (void)
{
  struct conn *a, *b;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (b, a->cell);
  do_write (a, 1);
  gate_shut (&b->flushes);
  f = start (FLUSH, a, 0);
  CHECK (b->nr_flushes == 1);
  CHECK (!over (f));
  gate_open (&b->flushes);
  CHECK (result (f) == 0);
  end ();
}

/* A request in flight may cache what is old after the flush. */
static void
test_owed (void)
{
  struct conn *a, *b;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 0, "it is not waited for");
  CHECK (replicate_statistics ().flushes_owed == 1);
  CHECK (replicate_statistics ().owed_flushes == 0);
  gate_open (&b->requests);
  CHECK (result (r) == 0);

  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 1);
  CHECK (replicate_statistics ().owed_flushes == 1);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 1, "it owes nothing any more");
  end ();
}

/* The same with a write in flight, which has had to fetch. */
static void
test_owed_by_write (void)
{
  struct conn *a, *b;
  struct actor *w;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  w = start (WRITE, b, 5);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  CHECK (result (w) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 1);
  CHECK (disk[b->cell] == 5);
  CHECK (flush (a) == 0);
  CHECK (disk[b->cell] == 5);
  end ();
}

/* An owed flush waits for what is inside, and the next requests for it. */
static void
test_owed_waits (void)
{
  struct conn *a, *b;
  struct actor *r1, *r2, *r3;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  gate_shut (&b->flushes);
  r1 = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  r2 = start (READ, b, a->cell);
  r3 = start (READ, b, a->cell);
  CHECK (!over (r1) && !over (r2) && !over (r3));
  CHECK (b->nr_requests == 1 && b->nr_flushes == 0);

  gate_open (&b->requests);
  CHECK (result (r1) == 0);
  CHECK (!over (r2) && !over (r3));
  CHECK (b->nr_requests == 1 && b->nr_flushes == 1);
  gate_open (&b->flushes);
  CHECK (result (r2) == 1);
  CHECK (result (r3) == 1);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* The one that waits runs it, and goes on. */
static void
test_owed_and_one_waits (void)
{
  struct conn *a, *b;
  struct actor *r1, *r2;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r1 = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  r2 = start (READ, b, a->cell);
  gate_open (&b->requests);
  CHECK (result (r1) == 0);
  CHECK (result (r2) == 1);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* A round finds a handle that owes and is idle: it pays. */
static void
test_owed_and_idle (void)
{
  struct conn *a, *b;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  result (r);
  do_write (a, 2);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == 2);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* What it owes grows while it is busy, and is paid at once. */
static void
test_owed_twice (void)
{
  struct conn *a, *b;
  struct actor *r;
  int i;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  for (i = 1; i <= 3; i++) {
    do_write (a, i);
    CHECK (flush (a) == 0);
  }
  CHECK (replicate_statistics ().flushes_owed == 3);
  gate_open (&b->requests);
  result (r);
  CHECK (do_read (b, a->cell) == 3);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* A write-back while the owed flush runs is for the requests after it. */
static void
test_owed_again (void)
{
  struct conn *a, *b;
  struct actor *r1, *r2;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r1 = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  result (r1);

  gate_shut (&b->flushes);
  r2 = start (READ, b, a->cell);
  CHECK (b->nr_flushes == 1);
  do_write (a, 2);
  CHECK (flush (a) == 0);
  gate_open (&b->flushes);
  CHECK (result (r2) >= 1, "it began before the second flush returned");
  CHECK (do_read (b, a->cell) == 2);
  end ();
}

/* Others have not seen what a replica of the second phase writes back. */
static void
test_write_back_in_second_phase (void)
{
  struct conn *a, *b, *c;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_read (b, 0);
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, a, 0);
  do_write (b, 7);
  gate_shut (&b->flushes);
  gate_open (&a->flushes);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (c, b->cell) == 0);
  gate_open (&b->flushes);
  CHECK (result (f) == 0);
  CHECK (disk[b->cell] == 7);
  CHECK (flush (a) == 0);
  CHECK (do_read (c, b->cell) == 7);
  end ();
}

/* A request on a handle with old copies does not make them new. */
static void
test_request_on_old_copies (void)
{
  struct conn *a, *b;
  struct actor *r1, *r2;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  CHECK (do_read (b, a->cell) == 0);
  do_write (a, 1);
  CHECK (do_close (a) == 0);
  gate_shut (&b->requests);
  r1 = start (READ, b, a->cell);
  r2 = start (READ, b, a->cell); /* has to wait, or not */
  gate_open (&b->requests);
  CHECK (result (r1) == 0);
  CHECK (result (r2) == 0);
  CHECK (flush (b) == 0);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* A handle that is written back beside a request keeps its copies, and the
 * mark of them.
 */
static void
test_old_copies_beside_write_back (void)
{
  struct conn *a, *b;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (b, 1);
  do_write (a, 1);
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 1);
  gate_open (&b->requests);
  CHECK (result (r) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 2);
  end ();
}

/* A flush that fails leaves a handle as old as it was, whatever has entered
 * meanwhile.
 */
static void
test_error_beside_read (void)
{
  struct conn *a, *b;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (b, a->cell);
  do_write (a, 1);
  gate_shut (&b->flushes);
  b->flush_err = EIO;
  f = start (FLUSH, a, 0);
  CHECK (do_read (b, a->cell) == 1);
  gate_open (&b->flushes);
  CHECK (result (f) == EIO);
  b->flush_err = 0;
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 2);
  end ();
}

/* A replica fails beside an owed flush that does not: what it should have
 * written is flushed by the next round.
 */
static void
test_error_beside_owed (void)
{
  struct conn *a, *b;
  struct actor *w, *r1, *r2, *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  w = start (WRITE, b, 5);
  r1 = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_let_one (&b->requests);
  CHECK (result (w) == 0);

  gate_shut (&b->flushes);
  f = start (FLUSH, a, 0);      /* a replica, beside the read */
  gate_open (&b->requests);
  result (r1);
  r2 = start (READ, b, a->cell); /* runs what is owed */
  CHECK (b->nr_flushes == 2 && b->inside == 2);
  b->flush_err = EIO;
  gate_let_one (&b->flushes);
  CHECK (result (f) == EIO);
  CHECK (!over (r2));
  b->flush_err = 0;
  b->dirty = true;              /* the replica had it */
  gate_open (&b->flushes);
  CHECK (result (r2) >= 0);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 3);
  CHECK (disk[b->cell] == 5);
  end ();
}

/* A request that comes while a handle is flushed in the second phase may put
 * back what the flush drops: there is another before the next one.
 */
static void
test_request_beside_second_phase (void)
{
  struct conn *a, *b;
  struct actor *f, *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (b, a->cell);
  do_write (a, 1);
  gate_shut (&b->flushes);
  f = start (FLUSH, a, 0);
  r = start (READ, b, a->cell);
  CHECK (over (r) == (model == PARALLEL));
  gate_open (&b->flushes);
  CHECK (result (f) == 0);
  CHECK (result (r) == 1);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == (model == PARALLEL ? 2 : 1));
  end ();
}

/* The same in the first phase, after another's write-back. */
static void
test_request_beside_first_phase (void)
{
  struct conn *a, *b;
  struct actor *f, *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  do_write (b, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  CHECK (!over (f) && b->nr_flushes == 1, "the last writer is the first");
  r = start (READ, a, b->cell);
  CHECK (over (r) == (model == PARALLEL));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  result (r);
  CHECK (a->nr_flushes == (model == PARALLEL ? 2 : 1));
  end ();
}

/* Used between its own write-back and another's. */
static void
test_used_in_round (void)
{
  struct conn *a, *b, *c, *first, *last;
  struct actor *f;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  gate_shut (&a->flushes);
  gate_shut (&b->flushes);
  f = start (FLUSH, c, 0);
  first = a->nr_flushes ? a : b;
  last = a->nr_flushes ? b : a;
  gate_open (&first->flushes);
  CHECK (last->nr_flushes == 1);
  CHECK (do_read (first, last->cell) == 0);
  gate_open (&last->flushes);
  CHECK (result (f) == 0);
  CHECK (first->nr_flushes == 2);
  CHECK (last->nr_flushes == 1);
  CHECK (do_read (first, last->cell) == 1);
  end ();
}

/* In flight across the write-back of its own handle, and of another. */
static void
test_in_flight_across_round (void)
{
  struct conn *a, *b;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  do_write (b, 1);
  CHECK (flush (a) == 0);
  do_write (a, 2);
  do_write (b, 2);
  gate_shut (&a->requests);
  CHECK (flush (b) == 0);
  do_write (b, 3);
  r = start (READ, a, b->cell);
  CHECK (flush (b) == 0);
  gate_open (&a->requests);
  CHECK (result (r) == 2);
  CHECK (do_read (a, b->cell) == 3);
  end ();
}

/* The second phase writes back, too, what came in meanwhile: then others
 * have old copies of that.
 */
static void
test_write_before_second_phase (void)
{
  struct conn *a, *b, *c, *d;
  struct actor *f;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  d = opened ();
  do_read (b, a->cell);
  do_read (c, b->cell);
  do_read (d, b->cell);
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, a, 0);
  do_write (b, 1);
  do_write (c, 1);
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  do_read (b, c->cell);
  do_read (c, b->cell);
  do_read (d, b->cell);
  CHECK (flush (a) == 0);
  CHECK (disk[b->cell] == 1 && disk[c->cell] == 1);
  CHECK (do_read (b, c->cell) == 1);
  CHECK (do_read (c, b->cell) == 1);
  CHECK (do_read (d, b->cell) == 1 && do_read (d, c->cell) == 1);
  end ();
}

/* A handle that is opened beside a write-back. */
static void
test_open_beside_write_back (void)
{
  struct conn *a, *b, *c;

  refreshes = true;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = another ();
  CHECK (handle_opens (&b->h, NULL) == 0);
  plugin_open (b);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  joins (b);
  settle ();
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == 1);

  c = another ();
  do_write (a, 2);
  CHECK (handle_opens (&c->h, NULL) == 0);
  plugin_open (c);
  joins (c);
  CHECK (c->nr_flushes == 0, "nothing was written back meanwhile");
  end ();
}

/* The write-back has begun before the open, and ends during it. */
static void
test_open_in_write_back (void)
{
  struct conn *a, *b;
  struct actor *f;

  refreshes = true;
  begin (LEVEL_CONNECTION);
  a = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, a, 0);
  b = another ();
  CHECK (handle_opens (&b->h, NULL) == 0);
  plugin_open (b);
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  joins (b);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* The write-back goes on after the open, which does not wait for it. */
static void
test_open_before_write_back_ends (void)
{
  struct conn *a, *b;
  struct actor *f, *o;

  refreshes = true;
  begin (LEVEL_CONNECTION);
  a = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, a, 0);
  b = another ();
  o = start (OPEN, b, 0);
  result (o);
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* If the flush of an open fails, it is owed. */
static void
test_open_flush_fails (void)
{
  struct conn *a, *b;

  refreshes = true;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = another ();
  CHECK (handle_opens (&b->h, NULL) == 0);
  plugin_open (b);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  b->flush_err = EIO;
  joins (b);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == -EIO);
  b->flush_err = 0;
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 3);
  end ();
}

/* Where nothing is replicated, no open flushes. */
static void
test_open_without_replication (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, false);
  b = another ();
  b->h.resolution = a->h.resolution;
  CHECK (handle_opens (&b->h, NULL) == 0);
  plugin_open (b);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  joins (b);
  CHECK (b->nr_flushes == 0);
  end ();
}

/* Two handles in the model's names for each: no overlap, no starving. */

/* At SERIALIZE_REQUESTS each of them waits for the one inside. */
static void
test_one_at_a_time (void)
{
  const enum what what[] = { READ, WRITE, CONTROL };
  struct conn *a;
  struct actor *x, *y;
  unsigned i, j;

  begin (LEVEL_CONNECTION);
  a = opened ();
  do_read (a, 0);
  for (i = 0; i < 3; i++)
    for (j = 0; j < 3; j++) {
      gate_shut (&a->requests);
      x = start (what[i], a, 1);
      y = start (what[j], a, 1);
      CHECK (a->inside == (model == PARALLEL ? 2 : 1));
      gate_let_one (&a->requests);
      CHECK (over (x));
      CHECK (!over (y));
      CHECK (a->inside == 1);
      gate_open (&a->requests);
      result (x);
      result (y);
    }
  end ();
}

/* What is neither data nor flush is counted only if necessary. */
static void
test_control (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_control (b);
  do_read (b, a->cell);
  do_control (b);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 1, "it is idle");
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* All get in, one after the other. */
static void
test_many_wait (void)
{
  struct actor *r[8];
  struct conn *a;
  unsigned i, n;

  begin (LEVEL_CONNECTION);
  a = opened ();
  gate_shut (&a->requests);
  for (i = 0; i < 8; i++)
    r[i] = start (i % 2 ? READ : WRITE, a, 0);
  for (n = 1; n <= 8; n++) {
    CHECK (a->nr_requests == (model == PARALLEL ? 8 : n));
    gate_let_one (&a->requests);
  }
  for (i = 0; i < 8; i++)
    result (r[i]);
  gate_open (&a->requests);
  end ();
}

/* A replica goes next, before the requests that wait for the handle. */
static void
test_replica_goes_next (void)
{
  struct actor *r1, *r2, *r3, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->requests);
  r1 = start (READ, a, 0);
  r2 = start (READ, a, 0);
  r3 = start (CONTROL, a, 0);
  f = start (FLUSH, b, 0);
  CHECK (!over (f));
  CHECK (a->nr_requests == 2 && a->nr_flushes == 0);
  gate_let_one (&a->requests);
  CHECK (over (r1));
  CHECK (result (f) == 0);
  CHECK (a->nr_flushes == 1);
  CHECK (!over (r2) && !over (r3));
  gate_open (&a->requests);
  result (r2);
  result (r3);
  end ();
}

/* A replica of B has failed: it keeps its old copies. */
static void
fail_replica (struct conn *a, struct conn *b)
{
  CHECK (do_read (b, a->cell) == 0);
  do_write (a, 1);
  b->flush_err = EIO;
  CHECK (flush (a) == EIO);
  b->flush_err = 0;
}

/* A request has left the plugin but has not run the replica yet: the next
 * request sees it.
 */
static void
test_replica_of_one_that_goes (void)
{
  struct conn *a, *b;
  struct actor *r, *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (b, 1);
  CHECK (request_begin (&b->h, false, 0, 512) == 0);
  f = start (FLUSH, a, 0);
  CHECK (!over (f));
  atomic_fetch_sub (&b->h.state, ONE_INSIDE);
  r = start (READ, b, 0);
  CHECK (!over (r) && b->nr_requests == 1);
  handle_left (&b->h);
  settle ();
  CHECK (result (f) == 0);
  CHECK (result (r) == 0);
  end ();
}

/* What is owed grows faster than it can be paid: a request goes in. */
static void
test_owed_never_starves (void)
{
  struct actor *r1, *r2;
  struct conn *a, *b;
  int i;

  begin (LEVEL_OFF);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  gate_shut (&b->flushes);
  r1 = start (READ, b, 0);
  for (i = 0; i < 3; i++)
    CHECK (flush (a) == 0);
  r2 = start (READ, b, 0);
  CHECK (b->nr_flushes == 0);
  gate_open (&b->requests);
  CHECK (over (r1));
  CHECK (b->nr_flushes == 1);
  for (i = 0; i < 3; i++)
    CHECK (flush (a) == 0);
  gate_let_one (&b->flushes);
  CHECK (over (r2));
  CHECK (b->nr_flushes == 1);
  gate_open (&b->flushes);
  CHECK (do_read (b, 0) == 0);
  CHECK (b->nr_flushes == 2);
  result (r1);
  result (r2);
  end ();
}

/* In PARALLEL, requests go on while their handle is flushed. */
static void
test_requests_beside_replica (void)
{
  struct conn *a, *b;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  do_read (a, 0);
  do_write (a, 2);
  do_control (a);
  CHECK (!over (f));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  end ();
}

/* Closing. */

static void
test_flush_at_close (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (b, a->cell);
  do_write (a, 1);
  CHECK (do_close (a) == 0);
  CHECK (a->nr_flushes == 1);
  CHECK (disk[a->cell] == 1);
  CHECK (replicate_statistics ().flushes_at_close == 1);
  CHECK (flush (b) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 1, "its copy was older");

  a = opened ();
  do_read (a, b->cell);
  CHECK (do_close (a) == 0);
  CHECK (a->nr_flushes == 0, "it has written nothing");
  CHECK (replicate_statistics ().flushes_at_close == 1);
  end ();
}

/* The knob: then the plugin may write back as it closes. */
static void
test_no_flush_at_close (void)
{
  struct conn *a, *b;

  policy.flush_on_close = false;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (b, a->cell);
  do_write (a, 1);
  CHECK (do_close (a) == 0);
  CHECK (a->nr_flushes == 0);
  CHECK (replicate_statistics ().flushes_at_close == 0);
  disk[a->cell] = 1;            /* as it does */
  CHECK (flush (b) == 0);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* A flush waits for one at close, which has taken the marks. */
static void
test_flush_beside_close (void)
{
  struct actor *x, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  x = start (CLOSE, a, 0);
  f = start (FLUSH, b, 0);
  CHECK (!over (x) && !over (f));
  gate_open (&a->flushes);
  CHECK (result (x) == 0);
  CHECK (result (f) == 0);
  CHECK (disk[a->cell] == 1);
  CHECK (a->nr_flushes == 1);
  end ();
}

/* And fails if that one fails; but only once. */
static void
test_flush_beside_close_fails (void)
{
  struct actor *x, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  a->flush_err = ENOSPC;
  gate_shut (&a->flushes);
  x = start (CLOSE, a, 0);
  f = start (FLUSH, b, 0);
  gate_open (&a->flushes);
  CHECK (result (x) == ENOSPC);
  CHECK (result (f) == ENOSPC);
  CHECK (flush (b) == 0);
  end ();
}

/* Two at once, and the flush waits for both. */
static void
test_flush_beside_closes (void)
{
  struct actor *x, *y, *f;
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  gate_shut (&a->flushes);
  gate_shut (&b->flushes);
  x = start (CLOSE, a, 0);
  y = start (CLOSE, b, 0);
  f = start (FLUSH, c, 0);
  gate_open (&a->flushes);
  CHECK (result (x) == 0);
  CHECK (!over (y) && !over (f));
  gate_open (&b->flushes);
  CHECK (result (y) == 0);
  CHECK (result (f) == 0);
  end ();
}

/* A close that begins in a round that it does not belong to. */
static void
test_close_beside_round (void)
{
  struct actor *x, *f;
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, c, 0);
  do_write (b, 1);
  b->flush_err = EIO;
  gate_shut (&b->flushes);
  x = start (CLOSE, b, 0);
  gate_open (&a->flushes);
  CHECK (result (f) == 0, "that write was after it");
  gate_open (&b->flushes);
  CHECK (result (x) == EIO);
  CHECK (flush (c) == EIO);
  CHECK (flush (c) == 0);
  end ();
}

/* A close waits for a replica inside its handle. */
static void
test_close_waits_for_replica (void)
{
  struct actor *x, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  x = start (CLOSE, a, 0);
  CHECK (!over (x));
  gate_open (&a->flushes);
  CHECK (result (x) == 0);
  CHECK (result (f) == 0);
  CHECK (a->nr_flushes == 1);
  end ();
}

/* And in the second phase. */
static void
test_close_waits_in_second_phase (void)
{
  struct actor *x, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  do_read (b, 0);
  gate_shut (&b->flushes);
  f = start (FLUSH, a, 0);
  CHECK (b->nr_flushes == 1);
  x = start (CLOSE, b, 0);
  CHECK (!over (x));
  gate_open (&b->flushes);
  CHECK (result (x) == 0);
  CHECK (result (f) == 0);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* It runs one that is queued itself, as it is. */
static void
test_close_runs_replica (void)
{
  struct conn *a, *b, *c, *first, *last;
  struct actor *x, *f;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  gate_shut (&a->flushes);
  gate_shut (&b->flushes);
  f = start (FLUSH, c, 0);
  first = a->nr_flushes ? a : b;
  last = a->nr_flushes ? b : a;
  CHECK (last->nr_flushes == 0);
  x = start (CLOSE, last, 0);
  CHECK (last->nr_flushes == 1);
  gate_open (&last->flushes);
  CHECK (result (x) == 0);
  CHECK (!over (f));
  gate_open (&first->flushes);
  CHECK (result (f) == 0);
  CHECK (first->nr_flushes == 1 && last->nr_flushes == 1);
  end ();
}

/* A close waits for a replica that has begun beside a request. */
static void
test_close_after_request (void)
{
  struct conn *a, *b;
  struct actor *r, *f, *x;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (b, 1);
  gate_shut (&b->requests);
  gate_shut (&b->flushes);
  r = start (READ, b, 0);
  f = start (FLUSH, a, 0);
  CHECK (b->nr_flushes == 1);
  gate_open (&b->requests);
  result (r);
  x = start (CLOSE, b, 0);
  CHECK (!over (x));
  gate_open (&b->flushes);
  CHECK (result (f) == 0);
  CHECK (result (x) == 0);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* Rounds leave alone what closes. */
static void
test_closing_is_left_alone (void)
{
  struct actor *x, *f;
  struct conn *a, *b, *c;

  begin (LEVEL_FAST);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  gate_shut (&b->flushes);
  x = start (CLOSE, b, 0);
  gate_shut (&a->flushes);
  f = start (FLUSH, c, 0);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1);
  gate_open (&b->flushes);
  CHECK (result (x) == 0);
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* Open and close do not wait for other handles' flushes. */
static void
test_come_and_go_beside_hung_flush (void)
{
  struct conn *a, *b, *c;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 0);
  CHECK (flush (c) == 0);
  do_write (a, 2);
  gate_shut (&a->flushes);
  f = start (FLUSH, c, 0);
  result (start (OPEN, another (), 0));
  do_write (b, 1);
  CHECK (result (start (CLOSE, b, 0)) == 0);
  CHECK (disk[b->cell] == 1);
  CHECK (!over (f));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  end ();
}

/* Errors. */

static void
test_first_error (void)
{
  struct conn *a, *b, *c, *first;
  int err;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  do_write (c, 1);
  a->flush_err = EIO;
  b->flush_err = ENOSPC;
  c->flush_err = ENXIO;
  err = flush (c);
  first = a;
  if (b->flush_began < first->flush_began)
    first = b;
  if (c->flush_began < first->flush_began)
    first = c;
  CHECK (err == first->flush_err, "%d", err);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1 && c->nr_flushes == 1,
         "the others are flushed all the same, and none twice");
  CHECK (replicate_statistics ().failed_flushes == 3);

  a->flush_err = b->flush_err = 0;
  CHECK (flush (a) == ENXIO);
  CHECK (disk[a->cell] == 1 && disk[b->cell] == 1 && disk[c->cell] == 0);
  c->flush_err = 0;
  CHECK (flush (a) == 0);
  CHECK (disk[c->cell] == 1);
  CHECK (replicate_statistics ().failed_flushes == 4);
  end ();
}

/* Nothing that a failed flush leaves is taken for clean. */
static void
test_error_keeps_marks (void)
{
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_read (b, a->cell);
  do_read (c, a->cell);
  do_write (a, 1);
  a->flush_err = EIO;
  CHECK (flush (b) == EIO);
  CHECK (flush (b) == EIO);
  CHECK (a->nr_flushes == 2);
  a->flush_err = 0;
  c->flush_err = EIO;
  do_read (c, a->cell);
  CHECK (flush (b) == EIO);
  CHECK (disk[a->cell] == 1);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (a->nr_flushes == 3);
  c->flush_err = 0;
  CHECK (flush (b) == 0);
  CHECK (do_read (c, a->cell) == 1);
  CHECK (a->nr_flushes == 3, "that one was done");
  end ();
}

/* What has failed in the first phase waits for the next round. */
static void
test_error_not_twice (void)
{
  struct conn *a, *b;

  begin (LEVEL_FAST);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  do_write (b, 1);
  a->flush_err = EIO;
  CHECK (flush (b) == EIO);
  CHECK (a->nr_flushes == 1, "%u", a->nr_flushes);
  CHECK (flush (b) == EIO);
  CHECK (a->nr_flushes == 2, "%u", a->nr_flushes);
  a->flush_err = 0;
  CHECK (flush (b) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (do_read (a, b->cell) == 1);
  end ();
}

/* A write that went beside a failing flush is dirty as before. */
static void
test_error_beside_write (void)
{
  struct actor *f, *w;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  a->flush_err = EIO;
  gate_shut (&a->flushes);
  f = start (FLUSH, b, 0);
  w = start (WRITE, a, 2);
  gate_open (&a->flushes);
  CHECK (result (f) == EIO);
  CHECK (result (w) == 0);
  a->flush_err = 0;
  CHECK (flush (b) == 0);
  CHECK (disk[a->cell] == 2);
  CHECK (a->nr_flushes == 2);
  CHECK (flush (b) == 0);
  CHECK (a->nr_flushes == 2);
  end ();
}

/* The first flush after a failed one at close fails, once. */
static void
test_close_error (void)
{
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_write (a, 1);
  do_write (b, 1);
  a->flush_err = ENOSPC;
  CHECK (do_close (a) == ENOSPC);
  CHECK (flush (c) == ENOSPC);
  CHECK (disk[b->cell] == 1, "the others are flushed all the same");
  CHECK (flush (c) == 0);
  CHECK (flush (b) == 0);

  do_read (c, 0);
  do_write (b, 2);
  b->flush_err = EIO;
  CHECK (do_close (b) == EIO);
  CHECK (flush (c) == EIO);
  CHECK (c->nr_flushes == 1, "its copy may be older");
  end ();
}

static void
test_owed_error (void)
{
  struct conn *a, *b;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  result (r);

  b->flush_err = ENOSPC;
  CHECK (do_read (b, a->cell) == -ENOSPC);
  CHECK (do_write (b, 1) == -ENOSPC);
  CHECK (b->nr_requests == 1, "the plugin is not entered");
  CHECK (b->nr_flushes == 2);
  CHECK (replicate_statistics ().failed_flushes == 2);
  CHECK (replicate_statistics ().owed_flushes == 2);
  b->flush_err = 0;
  CHECK (do_read (b, a->cell) == 1);
  CHECK (b->nr_flushes == 3);
  end ();
}

/* Those that wait with it get a try of their own, and get through. */
static void
test_owed_error_and_waiters (void)
{
  struct actor *r1, *r2, *r3;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r1 = start (READ, b, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  b->flush_err = EIO;
  gate_shut (&b->flushes);
  r2 = start (READ, b, a->cell);
  r3 = start (READ, b, a->cell);
  gate_open (&b->requests);
  result (r1);
  CHECK (b->nr_flushes == 1);
  gate_let_one (&b->flushes);
  CHECK (over (r2) != over (r3));
  CHECK (b->nr_flushes == 2);
  b->flush_err = 0;
  gate_open (&b->flushes);
  CHECK (result (r2) + result (r3) == 1 - EIO);
  end ();
}

/* A replica that waits for a request's owed flush to fail gets its turn. */
static void
test_owed_error_and_replica (void)
{
  struct actor *r1, *r2, *f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (b, 1);
  CHECK (flush (a) == 0);
  gate_shut (&b->requests);
  r1 = start (WRITE, b, 2);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  result (r1);

  b->flush_err = EIO;
  gate_shut (&b->flushes);
  r2 = start (READ, b, a->cell); /* runs the owed flush */
  f = start (FLUSH, a, 0);      /* wants one too, for b is dirty */
  gate_let_one (&b->flushes);
  CHECK (over (r2));
  CHECK (result (r2) == -EIO);
  b->flush_err = 0;
  gate_open (&b->flushes);
  /* It may have shared the owed one, and its error. */
  CHECK (result (f) == 0 || result (f) == EIO);
  CHECK (flush (a) == 0);
  CHECK (disk[b->cell] == 2);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* Prompt. */

/* A hung read keeps nobody from flushing. */
static void
test_hung_read (void)
{
  struct conn *a, *b, *c;
  struct actor *r;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  do_read (b, 0);
  gate_shut (&b->requests);
  r = start (READ, b, 0);
  do_read (c, 0);
  do_write (a, 1);
  CHECK (result (start (FLUSH, c, 0)) == 0);
  CHECK (do_read (c, a->cell) == 1);
  CHECK (!over (r));
  gate_open (&b->requests);
  result (r);
  end ();
}

/* With its own write to be flushed, where requests are serialized, it does
 * not keep other handles waiting; in whatever order they come.
 */
static void
test_ready_first (void)
{
  struct conn *a, *b, *c, *d;
  struct actor *r, *f;
  unsigned order;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  for (order = 0; order < 6; order++) {
    a = opened ();
    b = opened ();
    c = opened ();
    d = opened ();
    if (order % 3 == 0)
      do_write (a, 1);
    do_write (b, 1);
    if (order % 3 == 1)
      do_write (a, 1);
    do_write (c, 1);
    if (order % 3 == 2)
      do_write (a, 1);
    gate_shut (&a->requests);
    r = start (order < 3 ? READ : CONTROL, a, b->cell);
    f = start (FLUSH, d, 0);
    CHECK (!over (f));
    CHECK (a->nr_flushes == 0);
    CHECK (disk[b->cell] == 1 && disk[c->cell] == 1, "order %u", order);
    gate_open (&a->requests);
    result (r);
    CHECK (result (f) == 0);
    CHECK (a->nr_flushes == 1);
    CHECK (disk[a->cell] == 1);
    CHECK (do_close (a) + do_close (b) + do_close (c) + do_close (d) == 0);
  }
  end ();
}

/* A busy handle waits for the one inside, and for none that came after. */
static void
test_waits_for_one (void)
{
  struct actor *r[16], *f;
  struct conn *a, *b;
  unsigned i, n;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_write (a, 1);
  gate_shut (&a->requests);
  for (i = 0; i < 16; i++)
    r[i] = start (READ, a, b->cell);
  f = start (FLUSH, b, 0);
  gate_let_one (&a->requests);
  CHECK (result (f) == 0);
  for (i = n = 0; i < 16; i++)
    n += over (r[i]);
  CHECK (n == 1, "%u requests have passed the flush", n);
  gate_open (&a->requests);
  end ();
}

/* Busy handles with older copies cost a flush nothing. */
static void
test_many_busy (void)
{
  struct conn *a, *b[8];
  struct actor *r;
  unsigned i;

  begin (LEVEL_CONNECTION);
  a = opened ();
  for (i = 0; i < 8; i++) {
    b[i] = opened ();
    gate_shut (&b[i]->requests);
    start (READ, b[i], a->cell);
    start (READ, b[i], a->cell);
  }
  do_write (a, 1);
  CHECK (result (start (FLUSH, a, 0)) == 0);
  for (i = 0; i < 8; i++) {
    CHECK (b[i]->nr_flushes == 0);
    gate_open (&b[i]->requests);
  }
  for (i = 0; i < 8; i++) {
    r = start (READ, b[i], a->cell);
    CHECK (result (r) == 1);
    CHECK (b[i]->nr_flushes == 1);
  }
  end ();
}

/* Threads that help, by MCSHIM_FLUSH_THREADS. */

/* Write on N connections, and flush: how many are flushed at once? */
static unsigned
at_once (struct conn **c, unsigned n, struct conn *flusher)
{
  unsigned i, inside = 0;
  struct actor *f;

  for (i = 0; i < n; i++) {
    do_write (c[i], c[i]->newest + 1);
    gate_shut (&c[i]->flushes);
  }
  f = start (FLUSH, flusher, 0);
  for (i = 0; i < n; i++)
    inside += waiting_at (&c[i]->flushes);
  gates_open (&c[0]->flushes, n, sizeof *c[0]);
  CHECK (result (f) == 0);
  for (i = 0; i < n; i++)
    CHECK (disk[c[i]->cell] == c[i]->newest);
  return inside;
}

static void
check_at_once (unsigned knob, unsigned dirty, unsigned expected)
{
  struct conn *c[66], *flusher;
  unsigned i, n;

  policy.flush_threads = knob;
  begin (LEVEL_CONNECTION);
  for (i = 0; i < dirty; i++) {
    c[i] = opened ();
    c[i]->flush_ns = 10000000;
  }
  flusher = opened ();
  for (i = 0; i < 2; i++) {
    n = at_once (c, dirty, flusher);
    CHECK (n == expected, "%u, not %u", n, expected);
    CHECK (threads_made == (int) expected - 1, "%d", threads_made);
  }
  end ();
}

static void test_threads_auto_1 (void) { check_at_once (0, 1, 1); }
static void test_threads_auto_2 (void) { check_at_once (0, 2, 2); }
static void test_threads_auto_66 (void) { check_at_once (0, 66, 64); }
static void test_threads_1 (void) { check_at_once (1, 8, 1); }
static void test_threads_2 (void) { check_at_once (2, 8, 2); }
static void test_threads_5 (void) { check_at_once (5, 4, 4); }

/* No thread is woken for what is fast, until it turns out to be slow. */
static void
test_fast_flushes (void)
{
  struct conn *c[8], *flusher;
  struct actor *f;
  unsigned i, n;

  begin (LEVEL_CONNECTION);
  for (i = 0; i < 8; i++)
    c[i] = opened ();
  flusher = opened ();
  CHECK (at_once (c, 1, flusher) == 1);
  for (i = 0; i < 5; i++)
    CHECK (at_once (c, 8, flusher) == 1);
  CHECK (threads_made == 0, "%d", threads_made);

  for (i = 0; i < 8; i++) {
    do_write (c[i], 100);
    gate_shut (&c[i]->flushes);
    c[i]->flush_ns = 50000000;
  }
  f = start (FLUSH, flusher, 0);
  for (i = n = 0; i < 8; i++)
    n += c[i]->nr_flushes > (i == 0 ? 6 : 5);
  CHECK (n == 1);
  CHECK (threads_made == 0);
  for (i = 0; i < 8; i++)
    if (waiting_at (&c[i]->flushes))
      break;
  CHECK (i < 8);
  gate_open (&c[i]->flushes);
  for (i = n = 0; i < 8; i++)
    n += waiting_at (&c[i]->flushes);
  CHECK (n == 7, "%u", n);
  CHECK (threads_made == 6, "%d", threads_made);
  for (i = 0; i < 8; i++)
    gate_open (&c[i]->flushes);
  CHECK (result (f) == 0);
  end ();
}

/* A thread that has helped looks for more. */
static void
test_helps_again (void)
{
  struct conn *c[4], *flusher;
  unsigned i, n, pass;
  struct actor *f;

  policy.flush_threads = 2;
  begin (LEVEL_CONNECTION);
  for (i = 0; i < 4; i++) {
    c[i] = opened ();
    do_write (c[i], 1);
    gate_shut (&c[i]->flushes);
  }
  flusher = opened ();
  f = start (FLUSH, flusher, 0);
  for (pass = 0; pass < 2; pass++) {
    for (i = n = 0; i < 4; i++)
      n += c[i]->nr_flushes;
    CHECK (n == 2 * (pass + 1), "%u", n);
    for (i = 0; i < 4; i++)
      if (waiting_at (&c[i]->flushes)) {
        gate_open (&c[i]->flushes);
        if (++n % 2 == 0)
          break;
      }
  }
  for (i = 0; i < 4; i++)
    gate_open (&c[i]->flushes);
  CHECK (result (f) == 0);
  end ();
}

/* Slow flushes are not averaged away by fast ones. */
static void
test_slow_and_fast (void)
{
  struct conn *writers[4], *readers[8], *flusher;
  unsigned i, round;

  begin (LEVEL_CONNECTION);
  for (i = 0; i < 4; i++) {
    writers[i] = opened ();
    writers[i]->flush_ns = 50000000;
  }
  for (i = 0; i < 8; i++)
    readers[i] = opened ();
  flusher = opened ();
  for (round = 0; round < 3; round++) {
    for (i = 0; i < 8; i++)
      do_read (readers[i], 0);
    CHECK (at_once (writers, 4, flusher) == 4);
    for (i = 0; i < 8; i++)
      CHECK (readers[i]->nr_flushes == round + 1);
  }
  end ();
}

/* A hung flush of one group leaves the other one its help. */
static void
test_help_for_each_group (void)
{
  struct conn *x[4], *y[4];
  struct actor *fx, *fy;
  unsigned i, n;

  policy.flush_threads = 3;
  begin (LEVEL_CONNECTION);
  for (i = 0; i < 4; i++) {
    x[i] = opened_as ("x");
    y[i] = opened_as ("y");
    do_write (x[i], 1);
    do_write (y[i], 1);
    gate_shut (&x[i]->flushes);
    gate_shut (&y[i]->flushes);
  }
  fx = start (FLUSH, x[0], 0);
  for (i = n = 0; i < 4; i++)
    n += x[i]->nr_flushes;
  CHECK (n == 3, "%u", n);
  fy = start (FLUSH, y[0], 0);
  for (i = n = 0; i < 4; i++)
    n += y[i]->nr_flushes;
  CHECK (n == 3, "%u", n);
  for (i = 0; i < 4; i++)
    gate_open (&y[i]->flushes);
  CHECK (result (fy) == 0);
  CHECK (!over (fx));
  for (i = 0; i < 4; i++)
    gate_open (&x[i]->flushes);
  CHECK (result (fx) == 0);
  CHECK (threads_made <= 4, "%d", threads_made);
  end ();
}

static void
test_no_threads (void)
{
  struct conn *c[8], *flusher;
  unsigned i, n;

  begin (LEVEL_CONNECTION);
  for (i = 0; i < 8; i++) {
    c[i] = opened ();
    c[i]->flush_ns = 1000000;
  }
  flusher = opened ();
  fail_threads = 1000000;
  CHECK (at_once (c, 8, flusher) == 1);
  fail_threads = 0;
  n = at_once (c, 8, flusher);
  CHECK (n == 8, "%u", n);
  end ();
}

/* Least work. */

/* What the plugin sees of the three scripts. */
static void
test_scripts (void)
{
  static const struct {
    enum level level;
    enum mode mode;
    int multi_conn;             /* -1: either */
    unsigned flushes[3];
  } table[] = {
    { LEVEL_OFF, MODE_EMULATE, -1, { 6, 12, 12 } },
    { LEVEL_OFF, MODE_PLUGIN, -1, { 2, 3, 4 } },
    { LEVEL_CONNECTION, MODE_EMULATE, -1, { 0, 4, 4 } },
    { LEVEL_CONNECTION, MODE_PLUGIN, false, { 0, 3, 4 } },
    { LEVEL_CONNECTION, MODE_PLUGIN, true, { 0, 2, 2 } },
    { LEVEL_FAST, MODE_EMULATE, -1, { 0, 8, 6 } },
    { LEVEL_FAST, MODE_PLUGIN, -1, { 0, 2, 2 } },
    { LEVEL_OFF, MODE_AUTO, -1, { 2, 3, 4 } },
    { LEVEL_CONNECTION, MODE_AUTO, -1, { 2, 3, 4 } },
    { LEVEL_FAST, MODE_AUTO, -1, { 2, 3, 4 } },
  };
  static const char *const scripts[] = {
    "f0 r0 f0",
    "r0 w1 f3 w2 r0 f3 f3",
    "r0 w1 f0 f1 r0 w2 f0 f2",
  };
  const unsigned connections[] = { 3, 4, 3 };
  unsigned row, script, multi_conn, i, n, groups = 0;
  struct conn *c[4];
  const char *p;
  char name[8];

  for (row = 0; row < sizeof table / sizeof table[0]; row++)
    for (multi_conn = 0; multi_conn < 2; multi_conn++)
      for (script = 0; script < 3; script++) {
        if (table[row].multi_conn != -1 &&
            table[row].multi_conn != (int) multi_conn)
          continue;
        snprintf (name, sizeof name, "%u", groups++);
        nr_conns = 0;
        memset (conns, 0, sizeof conns);
        policy.mode = table[row].mode;
        begin (table[row].level);
        for (i = 0; i < connections[script]; i++)
          c[i] = policy.mode == MODE_EMULATE ? opened_as (name) :
            opened_plain (name, multi_conn);
        for (p = scripts[script]; *p != '\0'; p += p[2] ? 3 : 2)
          switch (*p) {
          case 'f': CHECK (flush (c[p[1] - '0']) == 0); break;
          case 'r': do_read (c[p[1] - '0'], 0); break;
          case 'w': do_write (c[p[1] - '0'], 1); break;
          }
        for (i = n = 0; i < connections[script]; i++)
          n += c[i]->nr_flushes;
        CHECK (n == table[row].flushes[script],
               "row %u, multi-conn %u, script %u: %u, not %u", row, multi_conn,
               script, n, table[row].flushes[script]);
        for (i = 0; i < connections[script]; i++)
          CHECK (do_close (c[i]) == 0);
      }
  end ();
}

/* Flushes that come while a round runs share the next one. */
static void
test_share_a_round (void)
{
  struct conn *a, *b, *c;
  struct actor *f[5];
  unsigned i;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  f[0] = start_round (a, c);
  do_write (b, 1);
  gate_shut (&b->flushes);
  for (i = 1; i < 5; i++)
    f[i] = start (FLUSH, i % 2 ? b : a, 0);
  gate_open (&c->flushes);
  CHECK (result (f[0]) == 0);
  for (i = 1; i < 5; i++)
    CHECK (!over (f[i]));
  gate_open (&b->flushes);
  for (i = 1; i < 5; i++)
    CHECK (result (f[i]) == 0);
  CHECK (b->nr_flushes == 1);
  CHECK (replicate_statistics ().rounds == 2);
  CHECK (replicate_statistics ().client_flushes.count == 5);
  end ();
}

/* And its error. */
static void
test_share_an_error (void)
{
  struct conn *a, *b, *c;
  struct actor *f1, *f2, *f3;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  c = opened ();
  f1 = start_round (a, c);
  do_write (b, 1);
  b->flush_err = EIO;
  f2 = start (FLUSH, b, 0);
  f3 = start (FLUSH, a, 0);
  gate_open (&c->flushes);
  CHECK (result (f1) == 0);
  CHECK (result (f2) == EIO);
  CHECK (result (f3) == EIO);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* A group's flushes are its own. */
static void
test_groups (void)
{
  struct conn *x1, *x2, *y;
  struct actor *f;

  begin (LEVEL_FAST);
  x1 = opened_as ("x");
  x2 = opened_as ("x");
  y = opened_as ("y");
  do_write (x1, 1);
  do_write (y, 1);
  CHECK (flush (x2) == 0);
  CHECK (x1->nr_flushes == 1 && x2->nr_flushes == 1 && y->nr_flushes == 0);
  gate_shut (&y->flushes);
  f = start (FLUSH, y, 0);
  do_write (x1, 2);
  CHECK (flush (x2) == 0);
  CHECK (!over (f));
  gate_open (&y->flushes);
  CHECK (result (f) == 0);
  CHECK (x1->nr_flushes == 2 && y->nr_flushes == 1);
  end ();
}

/* A request that finds its marks takes no lock. */
static void
test_no_lock (void)
{
  struct conn *a, *b;
  unsigned before;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_read (a, 0);
  do_write (a, 1);
  before = locks_taken;
  do_read (a, 0);
  do_write (a, 2);
  CHECK (locks_taken == before);

  CHECK (flush (b) == 0);
  do_read (a, 0);
  CHECK (locks_taken > before);
  before = locks_taken;
  do_read (a, 0);
  CHECK (locks_taken == before);
  do_write (a, 3);
  CHECK (locks_taken > before);
  before = locks_taken;
  do_write (a, 4);
  CHECK (locks_taken == before);
  end ();
}

/* Nor does one on a handle that owed a flush, or that had one pending. */
static void
test_no_lock_any_more (void)
{
  struct conn *a, *b;
  struct actor *r, *f;
  unsigned before;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  gate_shut (&b->requests);
  r = start (READ, b, 0);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  gate_open (&b->requests);
  result (r);
  do_read (b, 0);
  CHECK (b->nr_flushes == 1);
  before = locks_taken;
  do_read (b, 0);
  CHECK (locks_taken == before);

  do_write (b, 1);
  gate_shut (&b->requests);
  r = start (READ, b, 0);
  f = start (FLUSH, a, 0);
  gate_open (&b->requests);
  CHECK (result (f) == 0);
  result (r);
  do_read (b, 0);
  before = locks_taken;
  do_read (b, 0);
  CHECK (locks_taken == before);
  end ();
}

/* Levels. */

/* At "fast" a flush goes to all if any has written, else to none. */
static void
test_level_fast (void)
{
  struct conn *a, *b, *c;

  begin (LEVEL_FAST);
  a = opened ();
  b = opened ();
  c = opened ();
  do_read (b, 0);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes + b->nr_flushes + c->nr_flushes == 0);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1 && c->nr_flushes == 1);
  CHECK (flush (b) == 0);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1 && c->nr_flushes == 1);
  end ();
}

/* At "off" to all, always. */
static void
test_level_off (void)
{
  struct conn *a, *b;

  begin (LEVEL_OFF);
  a = opened ();
  b = opened ();
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 1 && b->nr_flushes == 1);
  do_write (b, 1);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 2 && b->nr_flushes == 2);
  CHECK (replicate_statistics ().flushes_skipped_clean == 0);
  end ();
}

/* A plugin that refreshes its copy at a flush: the handle that was written
 * back first has to see the last one too.
 */
static void
check_refresh (enum level level)
{
  struct conn *a, *b, *c, *d;
  unsigned i;

  policy.flush_threads = 1;
  refreshes = true;
  begin (level);
  a = opened ();
  b = opened ();
  c = opened ();
  d = opened ();
  for (i = 1; i < 4; i++) {
    do_write (a, i);
    do_write (b, i);
    do_write (c, i);
    CHECK (flush (d) == 0);
    CHECK (do_read (a, b->cell) == (int) i && do_read (a, c->cell) == (int) i);
    CHECK (do_read (b, a->cell) == (int) i && do_read (b, c->cell) == (int) i);
    CHECK (do_read (c, a->cell) == (int) i && do_read (c, b->cell) == (int) i);
    CHECK (do_read (d, a->cell) == (int) i);
    /* The last one of three was the last. */
    CHECK (a->nr_flushes + b->nr_flushes + c->nr_flushes == 5 * i, "%u",
           a->nr_flushes + b->nr_flushes + c->nr_flushes);
    CHECK (d->nr_flushes == i);
  }
  end ();
}

static void test_refresh_fast (void) { check_refresh (LEVEL_FAST); }
static void test_refresh_off (void) { check_refresh (LEVEL_OFF); }

/* An idle handle with a copy from its open, and one that is busy. */
static void
test_copy_of_open (void)
{
  struct conn *a, *b, *c;
  struct actor *r;

  refreshes = true;
  begin (LEVEL_FAST);
  a = opened ();
  b = opened ();
  c = opened ();
  gate_shut (&c->requests);
  r = start (READ, c, a->cell);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (do_read (b, a->cell) == 1);
  CHECK (c->nr_flushes == 0);
  gate_open (&c->requests);
  result (r);
  CHECK (do_read (c, a->cell) == 1);
  end ();
}

/* At "connection" a handle that was not used has nothing. */
static void
test_unused (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  do_control (b);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 0);
  do_write (a, 2);
  CHECK (flush (a) == 0);
  CHECK (do_read (b, a->cell) == 2);
  CHECK (flush (a) == 0);
  CHECK (b->nr_flushes == 0, "what it has read is the newest");
  end ();
}

/* Modes without replication. */

/* A flush goes to its own handle, and does not cover the others. */
static void
test_plain (void)
{
  struct conn *a, *b;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, false);
  b = opened_plain (NULL, false);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 0);
  CHECK (replicate_statistics ().flushes_skipped_clean == 1);
  do_write (a, 1);
  CHECK (flush (b) == 0);
  CHECK (a->nr_flushes == 0 && b->nr_flushes == 1);
  CHECK (disk[a->cell] == 0);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 1);
  CHECK (disk[a->cell] == 1);
  CHECK (flush (a) == 0);
  CHECK (a->nr_flushes == 2, "there may be others'");
  CHECK (replicate_statistics ().replicas == 0);
  CHECK (!do_flush (a).replicated);
  end ();
}

/* With multi-conn it says that all is clean. */
static void
test_plain_multi_conn (void)
{
  struct conn *a, *b, *c;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, true);
  b = opened_plain (NULL, true);
  c = opened_plain (NULL, true);
  do_write (a, 1);
  do_write (c, 1);
  CHECK (flush (b) == 0);
  CHECK (a->nr_flushes == 0 && b->nr_flushes == 1);
  CHECK (flush (a) == 0);
  CHECK (flush (b) == 0);
  CHECK (flush (c) == 0);
  CHECK (a->nr_flushes + b->nr_flushes + c->nr_flushes == 1);
  do_write (b, 2);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 2);
  end ();
}

static void
test_plain_error (void)
{
  struct conn *a, *b;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, true);
  b = opened_plain (NULL, true);
  do_write (a, 1);
  b->flush_err = EIO;
  CHECK (flush (b) == EIO);
  CHECK (flush (b) == EIO);
  CHECK (b->nr_flushes == 2);
  b->flush_err = 0;
  CHECK (flush (b) == 0);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 3);
  CHECK (replicate_statistics ().failed_flushes == 2);

  /* The one whose flush has failed closes: the others' goes through. */
  do_write (a, 2);
  a->flush_err = EIO;
  CHECK (flush (a) == EIO);
  CHECK (do_close (a) == 0);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 4);
  end ();
}

/* At SERIALIZE_REQUESTS it has its handle to itself. */
static void
test_plain_waits (void)
{
  struct actor *r1, *r2, *f;
  struct conn *a;

  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, false);
  do_write (a, 1);
  gate_shut (&a->requests);
  r1 = start (READ, a, 0);
  f = start (FLUSH, a, 0);
  CHECK (over (f) == (model == PARALLEL));
  gate_open (&a->requests);
  result (r1);
  CHECK (result (f) == 0);

  do_write (a, 2);
  gate_shut (&a->flushes);
  f = start (FLUSH, a, 0);
  r2 = start (READ, a, 0);
  CHECK (over (r2) == (model == PARALLEL));
  gate_open (&a->flushes);
  CHECK (result (f) == 0);
  result (r2);
  end ();
}

/* A write beside it stays dirty, as does one whose flush is under way. */
static void
test_plain_beside (void)
{
  struct actor *f1, *f2, *w;
  struct conn *a, *b;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, true);
  b = opened_plain (NULL, true);
  do_write (a, 1);
  gate_shut (&a->flushes);
  f1 = start (FLUSH, a, 0);
  f2 = start (FLUSH, b, 0);
  CHECK (b->nr_flushes == 1, "the first one may fail still");
  CHECK (result (f2) == 0);
  w = start (WRITE, a, 2);
  gate_open (&a->flushes);
  CHECK (result (f1) == 0);
  CHECK (result (w) == 0);
  CHECK (flush (a) == 0);
  CHECK (disk[a->cell] == 2);
  CHECK (a->nr_flushes == 2);
  end ();
}

/* What has closed unflushed in another mode is flushed by the next. */
static void
test_plain_close (void)
{
  struct conn *a, *b;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, true);
  b = opened_plain (NULL, true);
  do_write (a, 1);
  CHECK (do_close (a) == 0);
  CHECK (a->nr_flushes == 0, "the knob is for emulate");
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 1);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* Also when the whole group was gone in the meantime. */
static void
test_plain_reconnect (void)
{
  struct conn *a, *b;
  enum mode mode;

  for (mode = MODE_PLUGIN; mode <= MODE_UNSAFE; mode++) {
    policy.mode = mode;
    begin (LEVEL_CONNECTION);
    a = opened_plain ("x", false);
    do_write (a, 1);
    CHECK (do_close (a) == 0);
    b = opened_plain ("y", false);
    CHECK (flush (b) == 0);
    CHECK (b->nr_flushes == 0, "it counts for its own name");
    CHECK (do_close (b) == 0);
    b = opened_plain ("x", true);
    CHECK (flush (b) == 0);
    CHECK (b->nr_flushes == 1);
    CHECK (flush (b) == 0);
    CHECK (b->nr_flushes == 1);
    CHECK (do_close (b) == 0);
  }
  end ();
}

/* One kind of group. */

/* The first connection settles it, until the group is empty. */
static void
test_settles (void)
{
  static const char *const names[] = { NULL, "x" };
  struct conn *a, *b, *c;
  bool replicates = true;
  unsigned i;

  begin (LEVEL_CONNECTION);
  for (i = 0; i < 8; i++) {
    const char *name = names[i / 2 % 2];

    a = replicates ? opened_as (name) : opened_plain (name, true);
    b = replicates ? opened_plain (name, true) : opened_as (name);
    CHECK (b->h.resolution.replicate == replicates);
    do_read (b, a->cell);
    do_write (a, 1);
    CHECK (do_flush (b).replicated == replicates);
    CHECK (disk[a->cell] == replicates);
    CHECK (do_close (a) == 0);
    c = replicates ? opened_plain (name, false) : opened_as (name);
    CHECK (do_flush (c).replicated == replicates);

    /* It is not empty while one opens. */
    renew (a);
    CHECK (handle_opens (&a->h, name) == 0);
    CHECK (do_close (b) + do_close (c) == 0);
    CHECK (handle_settles (&a->h, !replicates) == replicates);
    handle_gives_up (&a->h);
    replicates = !replicates;
  }
  end ();
}

/* No name is not the empty name, which is in the same bucket. */
static void
test_no_name (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened_as ("");
  b = opened ();
  CHECK (a->h.group != b->h.group);
  CHECK (opened_as ("")->h.group == a->h.group);
  CHECK (opened ()->h.group == b->h.group);
  end ();
}

/* What flushes that were passed on have left behind. */
static void
test_kind_after_plain (void)
{
  struct conn *a, *b, *c;

  begin (LEVEL_CONNECTION);
  a = opened_plain (NULL, false);
  do_write (a, 1);
  CHECK (do_close (a) == 0);
  CHECK (a->nr_flushes == 0);
  b = opened ();
  c = opened ();
  b->flush_err = EIO;
  CHECK (flush (b) == EIO);
  b->flush_err = 0;
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 2);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 2 && c->nr_flushes == 0);
  CHECK (do_close (b) + do_close (c) == 0);

  /* The flush is due for its own writes too. */
  a = opened_plain (NULL, true);
  do_write (a, 2);
  CHECK (do_close (a) == 0);
  b = opened ();
  c = opened ();
  do_write (b, 1);
  b->flush_err = EIO;
  CHECK (flush (b) == EIO);
  b->flush_err = 0;
  CHECK (flush (c) == 0);
  CHECK (b->nr_flushes == 2 && c->nr_flushes == 1);
  CHECK (disk[b->cell] == 1);

  /* And where nobody has closed. */
  do_write (b, 2);
  b->flush_err = EIO;
  CHECK (flush (b) == EIO);
  b->flush_err = 0;
  CHECK (flush (c) == 0);
  CHECK (b->nr_flushes == 4 && c->nr_flushes == 1);
  end ();
}

/* An error at close is told by the next flush, replicated or passed on, and
 * also where that one is skipped.
 */
static void
test_kind_after_close_error (void)
{
  struct conn *a, *b;
  unsigned i;

  for (i = 0; i < 4; i++) {
    policy.mode = i % 2 ? MODE_PLUGIN : MODE_AUTO;
    begin (LEVEL_CONNECTION);
    a = opened ();
    do_write (a, 1);
    a->flush_err = ENOSPC;
    CHECK (do_close (a) == ENOSPC);
    b = opened_plain (NULL, true);
    if (i > 1)
      do_write (b, 1);
    CHECK (!b->h.resolution.replicate);
    CHECK (flush (b) == ENOSPC);
    CHECK (b->nr_flushes == (i != 1));
    CHECK (disk[b->cell] == (i > 1), "it is flushed all the same");
    CHECK (flush (b) == 0);
    CHECK (do_close (b) == 0);
  }
  end ();
}

/* A member without a working flush is not flushed. */
static void
test_not_flushable (void)
{
  struct conn *a, *b;

  begin (LEVEL_OFF);
  a = opened ();
  b = another ();
  b->h.flushable = false;
  b->h.resolution = (struct resolution) { .verdict = DISABLE_SET };
  do_open (b, NULL);
  do_read (b, 0);
  do_write (b, 1);
  do_write (a, 1);
  CHECK (flush (a) == 0);
  CHECK (flush (b) == 0);
  CHECK (a->nr_flushes == 2 && b->nr_flushes == 0);
  CHECK (do_close (b) == 0);
  CHECK (b->nr_flushes == 0);
  end ();
}

/* Groups that come and go. */

static void
test_close_error_by_name (void)
{
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened_as ("x");
  do_write (a, 1);
  a->flush_err = ENOSPC;
  CHECK (do_close (a) == ENOSPC);
  b = opened_as ("y");
  CHECK (flush (b) == 0);
  CHECK (do_close (b) == 0);
  b = opened_as ("x");
  CHECK (do_close (b) == 0);
  b = opened_as ("x");
  CHECK (flush (b) == ENOSPC);
  CHECK (flush (b) == 0);
  CHECK (do_close (b) == 0);
  CHECK (allocated == 0, "nothing is remembered any more");
  end ();
}

/* However many names there are, what is remembered is bounded, and no error
 * is lost.
 */
static void
test_many_names (void)
{
  const unsigned names = 2000;
  int most = 0;
  char name[16];
  struct conn *a;
  unsigned i;

  begin (LEVEL_CONNECTION);
  a = another ();
  for (i = 0; i < names; i++) {
    snprintf (name, sizeof name, "%u", i);
    renew (a);
    do_open (a, name);
    do_write (a, 1);
    a->flush_err = i % 2 ? EIO : ENOSPC;
    CHECK (do_close (a) != 0);
    if (allocated > most)
      most = allocated;
  }
  CHECK (most <= 256, "%d allocations", most);
  for (i = 0; i < names; i++) {
    snprintf (name, sizeof name, "%u", i);
    renew (a);
    do_open (a, name);
    CHECK (flush (a) != 0, "%u", i);
    CHECK (flush (a) == 0, "%u", i);
    CHECK (do_close (a) == 0);
  }
  CHECK (allocated == 0);
  end ();
}

/* A group that comes back is not one of these, nor is the one without a name.
 */
static void
test_same_name (void)
{
  struct conn *a;
  unsigned i;

  begin (LEVEL_CONNECTION);
  a = another ();
  for (i = 0; i < 200; i++) {
    renew (a);
    do_open (a, i < 100 ? NULL : "x");
    do_write (a, 1);
    a->flush_err = EIO;
    CHECK (do_close (a) == EIO);
  }
  renew (a);
  do_open (a, "y");
  CHECK (flush (a) == 0);
  end ();
}

/* The same of what closed unflushed. */
static void
test_many_names_unflushed (void)
{
  char name[16];
  struct conn *a;
  unsigned i, pass;

  policy.mode = MODE_PLUGIN;
  begin (LEVEL_CONNECTION);
  a = another ();
  for (pass = 0; pass < 2; pass++)
    for (i = 0; i < 200; i++) {
      snprintf (name, sizeof name, "%u", i);
      renew (a);
      a->h.resolution = (struct resolution) { .verdict = PLUGIN_HAS_FLAG };
      a->h.multi_conn = true;
      do_open (a, name);
      if (pass == 0)
        do_write (a, 1);
      else {
        CHECK (flush (a) == 0);
        CHECK (a->nr_flushes == 1, "%u", i);
      }
      CHECK (do_close (a) == 0);
    }
  CHECK (allocated == 0);
  end ();
}

static void
test_gives_up (void)
{
  struct conn *a;

  begin (LEVEL_CONNECTION);
  a = another ();
  CHECK (handle_opens (&a->h, "x") == 0);
  CHECK (allocated > 0);
  handle_gives_up (&a->h);
  CHECK (allocated == 0);
  CHECK (conds == 0);
  CHECK (replicate_statistics ().connections_opened[EMULATE] == 0);
  CHECK (handle_opens (&a->h, NULL) == 0);
  handle_gives_up (&a->h);
  end ();
}

/* Fail one allocation of OPENS after the other, until A's handle opens.
 * Returns how many there were.
 */
static int
failing_allocations (int (*opens) (struct handle *h, const char *name),
                     struct conn *a)
{
  int n = 0;

  for (;;) {
    fail_allocation = n + 1;
    if (opens (&a->h, "x") == 0)
      break;
    CHECK (errno == ENOMEM);
    CHECK (nr_held == 0);
    CHECK (allocated == 0 && conds == 0);
    n++;
  }
  fail_allocation = 0;
  return n;
}

static void
test_no_memory (void)
{
  struct conn *a;

  begin (LEVEL_CONNECTION);
  a = another ();
  CHECK (failing_allocations (handle_opens, a) > 0);
  plugin_open (a);
  joins (a);
  CHECK (flush (a) == 0);
  end ();
}

/* Several handles of one connection. */

static void
test_beside (void)
{
  struct conn *a, *b, *c;
  struct statistics s;

  begin (LEVEL_CONNECTION);
  a = opened_as ("x");
  a->h.connection = (struct connection *) a;
  b = opened_beside (a);
  c = opened_as ("x");
  CHECK (b->h.connection == a->h.connection);
  CHECK (b->h.further && !a->h.further);
  CHECK (b->h.flushable && b->h.resolution.replicate);
  do_write (b, 1);
  CHECK (flush (c) == 0);
  CHECK (disk[b->cell] == 1);
  CHECK (do_read (a, b->cell) == 1);

  /* One client has two handles. */
  s = replicate_statistics ();
  CHECK (s.connections_opened[EMULATE] == 2 && s.connections_open == 2 &&
         s.connections_most_at_once == 2);
  CHECK (s.handles_open == 3 && s.handles_most_at_once == 3);
  CHECK (do_close (b) == 0);
  s = replicate_statistics ();
  CHECK (s.connections_open == 2);
  CHECK (s.handles_open == 2 && s.handles_most_at_once == 3);

  renew (b);
  handle_opens_beside (&b->h, &a->h);
  handle_gives_up (&b->h);
  s = replicate_statistics ();
  CHECK (s.handle_opens_failed == 1 && s.handles_open == 2);
  CHECK (do_close (c) == 0);
  c = opened_as ("x");
  do_write (c, 1);
  CHECK (flush (a) == 0);
  CHECK (disk[c->cell] == 1, "it is the group that there was");

  /* A group ends with the last of them. */
  renew (b);
  handle_opens_beside (&b->h, &a->h);
  CHECK (do_close (a) == 0);
  CHECK (do_close (c) == 0);
  plugin_open (b);
  joins (b);
  do_write (b, 2);
  CHECK (flush (b) == 0);
  CHECK (b->nr_flushes == 1);
  end ();
}

/* A write-back that a further handle's open has overlapped. */
static void
test_beside_write_back (void)
{
  struct conn *a, *b;

  refreshes = true;
  begin (LEVEL_FAST);
  a = opened ();
  do_write (a, 1);
  b = another ();
  handle_opens_beside (&b->h, &a->h);
  plugin_open (b);
  CHECK (flush (a) == 0);
  joins (b);
  CHECK (b->nr_flushes == 1);
  CHECK (do_read (b, a->cell) == 1);
  end ();
}

/* A flush for which no client has asked is not counted as a client's. */
static void
test_between (void)
{
  struct conn *a, *b;
  struct statistics s;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  CHECK (replicate_between (&a->h) == 0);
  do_read (b, a->cell);
  do_write (a, 1);
  CHECK (replicate_between (&b->h) == 0);
  CHECK (nr_held == 0);
  CHECK (disk[a->cell] == 1);
  CHECK (do_read (b, a->cell) == 1);
  s = replicate_statistics ();
  CHECK (s.client_flushes.count == 0);
  CHECK (s.flushes_skipped_clean == 0);
  CHECK (s.rounds == 1 && s.replicas == 2);

  do_write (a, 2);
  a->flush_err = EPERM;
  CHECK (replicate_between (&b->h) == EPERM);
  a->flush_err = 0;
  CHECK (replicate_between (&b->h) == 0);
  CHECK (disk[a->cell] == 2);

  /* Another connection's error is its own. */
  a->h.connection = (struct connection *) a;
  do_write (a, 3);
  a->flush_err = EPERM;
  CHECK (replicate_between (&b->h) == 0);
  CHECK (replicate_between (&a->h) == EPERM);

  /* An error at close is for a client's flush. */
  do_write (a, 3);
  a->flush_err = EPERM;
  CHECK (do_close (a) == EPERM);
  CHECK (replicate_between (&b->h) == 0);
  CHECK (flush (b) == EPERM);
  CHECK (flush (b) == 0);
  end ();
}

static void
test_free (void)
{
  struct conn *a, *b;
  struct actor *f;

  begin (LEVEL_CONNECTION);
  a = opened_as ("x");
  b = opened_as ("y");
  opened_as ("x");
  do_write (a, 1);
  do_write (b, 1);
  f = start (FLUSH, a, 0);
  CHECK (result (f) == 0);
  replicate_free (free_handle);
  CHECK (!a->open && !b->open && !conns[2].open);
  CHECK (b->nr_flushes == 0, "nothing of the plugin is called");
  CHECK (allocated == 0);
  CHECK (conds == 0);
  CHECK (threads == 0);
}

static void
test_statistics (void)
{
  struct statistics s;
  struct flushed f;
  struct conn *a, *b;

  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  CHECK (do_close (opened ()) == 0);
  do_read (a, 0);
  do_read (b, 0);
  do_write (a, 1);
  a->flush_ns = 3000;
  b->flush_ns = 5000;
  f = do_flush (b);
  CHECK (f.err == 0 && f.replicated);
  CHECK (f.replicas == 2 && f.phases == 2);
  CHECK (f.ns == 8000, "%llu", (unsigned long long) f.ns);
  f = do_flush (b);
  CHECK (f.err == 0 && f.replicated);
  CHECK (f.replicas == 0 && f.phases == 0);
  do_write (a, 2);
  f = do_flush (a);
  CHECK (f.replicas == 1 && f.phases == 1);
  do_read (a, 0);
  CHECK (do_close (a) == 0);

  s = replicate_statistics ();
  CHECK (s.connections_opened[EMULATE] == 3);
  CHECK (s.connections_open == 1);
  CHECK (s.connections_most_at_once == 3);
  CHECK (s.reads == 3 && s.writes == 2);
  CHECK (s.client_flushes.count == 3);
  CHECK (s.client_flushes.sum == 11000);
  CHECK (s.plugin_flushes.count == 3);
  CHECK (s.plugin_flushes.sum == 11000);
  CHECK (s.flushes_skipped_clean == 1);
  CHECK (s.replicas == 3);
  CHECK (s.rounds == 2);
  CHECK (s.flushes_owed == 0 && s.owed_flushes == 0);
  CHECK (s.flushes_at_close == 0);
  CHECK (s.failed_flushes == 0);
  end ();
}

/* B is dirty, owes a flush, and has an old copy of A's
 * cell; a request is inside, and another waits for it to go.
 */
static struct actor *
wait_in_debt (struct conn *a, struct conn *b)
{
  struct actor *w, *r;

  fail_replica (a, b);
  gate_shut (&b->requests);
  w = start (WRITE, b, 2);
  CHECK (request_begin (&b->h, false, 0, 512) == 0); /* one more is inside */
  do_write (a, 2);
  CHECK (flush (a) == 0);       /* so B owes */
  gate_open (&b->requests);
  CHECK (result (w) == 0);
  gate_shut (&b->requests);
  r = start (READ, b, a->cell);
  CHECK (!over (r) && b->nr_flushes == 1);
  return r;
}

/* The replica F1 is inside; what is owed, F2, runs beside it and is done; then
 * F1 fails, so that what it would have dropped is still there.
 */
static void
fail_after_owed (struct conn *a, struct conn *b, bool gone_before)
{
  struct actor *r, *f, *r2;

  r = wait_in_debt (a, b);
  if (gone_before)
    atomic_fetch_sub (&b->h.state, ONE_INSIDE);
  gate_shut (&b->flushes);
  f = start (FLUSH, a, 0);
  CHECK (b->nr_flushes == 2);
  world_lock ();
  b->flushes.shut = false;      /* for F2; F1 is inside still */
  world_unlock ();
  if (!gone_before)
    atomic_fetch_sub (&b->h.state, ONE_INSIDE);
  handle_left (&b->h);
  settle ();
  b->flush_err = EIO;
  gate_open (&b->flushes);
  CHECK (result (f) == EIO);
  b->flush_err = 0;
  /* F2 is now either over, or yet to come. */
  world_lock ();
  b->requests.shut = false;     /* R is inside, with what it has fetched */
  world_unlock ();
  r2 = start (READ, b, a->cell);
  gate_open (&b->requests);     /* what it owes waits for R */
  CHECK (result (r2) == 2, "stale: it reads %d after the flush of 2",
         r2->result);
  result (r);
  end ();
}

static void
test_fails_after_owed (void)
{
  struct conn *a, *b;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  fail_after_owed (a, b, false);
}

static void
test_fails_after_owed_by_turn (void)
{
  struct conn *a, *b;

  policy.flush_threads = 1;
  begin (LEVEL_CONNECTION);
  a = opened ();
  b = opened ();
  fail_after_owed (a, b, true);
}

/* Which of them make sense in which thread model. */

static const struct unit_test in_any[] = {
  { "flush counts of three scripts", test_scripts },
  { "what has returned is durable", test_durable },
  { "what is durable is visible", test_visible },
  { "the flusher sees it, too", test_visible_to_itself },
  { "an open beside a write-back flushes", test_open_beside_write_back },
  { "the flush of an open fails", test_open_flush_fails },
  { "the first of a group settles its kind", test_settles },
  { "no name and the empty name", test_no_name },
  { "what a group of another kind has left", test_kind_after_plain },
  { "an error at close, and another kind", test_kind_after_close_error },
  { "an open without replication does not flush",
    test_open_without_replication },
  { "a close flushes", test_flush_at_close },
  { "a close does not flush if told so", test_no_flush_at_close },
  { "the first error, and all are flushed", test_first_error },
  { "a failed flush leaves its marks", test_error_keeps_marks },
  { "what has failed is not tried twice in a round", test_error_not_twice },
  { "an error at close fails the next flush once", test_close_error },
  { "groups of names: an error at close", test_close_error_by_name },
  { "groups of names: what is remembered is bounded", test_many_names },
  { "groups of names: the same again and again", test_same_name },
  { "groups of names: many closed unflushed", test_many_names_unflushed },
  { "level fast", test_level_fast },
  { "level off", test_level_off },
  { "level fast: a plugin that refreshes", test_refresh_fast },
  { "level off: a plugin that refreshes", test_refresh_off },
  { "an unused handle holds nothing", test_unused },
  { "without replication: own handle", test_plain },
  { "without replication: multi-conn", test_plain_multi_conn },
  { "without replication: errors", test_plain_error },
  { "without replication: closed unflushed", test_plain_close },
  { "without replication: closed, and connected anew",
    test_plain_reconnect },
  { "a handle that can't be flushed", test_not_flushable },
  { "a handle that gives up", test_gives_up },
  { "a request that finds its marks takes no lock", test_no_lock },
  { "no memory for a group", test_no_memory },
  { "statistics", test_statistics },
  { NULL, NULL }
};

/* Another thread can call while one waits. */
static const struct unit_test in_two[] = {
  { "a flush waits for the write-back", test_waits_for_write_back },
  { "a write in flight", test_write_in_flight },
  { "a write in flight on a dirty handle", test_second_write_in_flight },
  { "a write beside the flush of its handle", test_write_beside_flush },
  { "a flush beside a round that has passed", test_flush_beside_round },
  { "a flush waits for idle handles with old copies", test_waits_for_idle },
  { "a read in flight: its handle owes a flush", test_owed },
  { "a write in flight: its handle owes a flush", test_owed_by_write },
  { "an owed flush waits for what is inside", test_owed_waits },
  { "an owed flush is run by the one that waits", test_owed_and_one_waits },
  { "a round pays what an idle handle owes", test_owed_and_idle },
  { "what is owed twice is paid once", test_owed_twice },
  { "a write-back beside an owed flush", test_owed_again },
  { "a write-back in the second phase", test_write_back_in_second_phase },
  { "a request on a handle with old copies", test_request_on_old_copies },
  { "a request beside the second phase", test_request_beside_second_phase },
  { "a request beside the first phase", test_request_beside_first_phase },
  { "a handle used in mid-round", test_used_in_round },
  { "a request in flight across a round", test_in_flight_across_round },
  { "a write before the second phase", test_write_before_second_phase },
  { "an open in mid-write-back", test_open_in_write_back },
  { "an open does not wait for a write-back",
    test_open_before_write_back_ends },
  { "requests on one handle", test_one_at_a_time },
  { "requests that are not data", test_control },
  { "many requests on one handle", test_many_wait },
  { "a flush waits for one at close", test_flush_beside_close },
  { "a flush fails with one at close", test_flush_beside_close_fails },
  { "a flush waits for two closes", test_flush_beside_closes },
  { "a flush at close that a round has no part in", test_close_beside_round },
  { "a close waits for its replica", test_close_waits_for_replica },
  { "a close waits in the second phase", test_close_waits_in_second_phase },
  { "a close runs its replica", test_close_runs_replica },
  { "a round leaves alone what closes", test_closing_is_left_alone },
  { "open and close beside a hung flush", test_come_and_go_beside_hung_flush },
  { "an error beside a write", test_error_beside_write },
  { "an owed flush that fails fails the request", test_owed_error },
  { "an owed flush that fails, and those that wait",
    test_owed_error_and_waiters },
  { "an owed flush that fails, and a replica", test_owed_error_and_replica },
  { "what is owed never starves a request", test_owed_never_starves },
  { "a hung read", test_hung_read },
  { "many busy handles", test_many_busy },
  { "a request after an owed flush takes no lock", test_no_lock_any_more },
  { "flushes share a round", test_share_a_round },
  { "flushes share an error", test_share_an_error },
  { "groups of names", test_groups },
  { "level fast: copies of an open", test_copy_of_open },
  { "without replication: a flush waits for its handle", test_plain_waits },
  { "without replication: beside another flush", test_plain_beside },
  { "the end with open connections", test_free },
  { "further handles of a connection", test_beside },
  { "a further handle's open beside a write-back", test_beside_write_back },
  { "a flush that no client has asked for", test_between },
  { NULL, NULL }
};

static const struct unit_test serialized[] = {
  { "a replica goes before those that wait", test_replica_goes_next },
  { "a request that is just going", test_replica_of_one_that_goes },
  { "what is ready is flushed first", test_ready_first },
  { "a flush waits for one request", test_waits_for_one },
  { NULL, NULL }
};

static const struct unit_test parallel[] = {
  { "requests beside their handle's flush", test_requests_beside_replica },
  { "old copies beside a write-back", test_old_copies_beside_write_back },
  { "a flush that fails beside a read", test_error_beside_read },
  { "a flush that fails beside an owed one", test_error_beside_owed },
  { "a flush that fails after an owed one", test_fails_after_owed },
  { "a flush that fails after an owed one, by turn",
    test_fails_after_owed_by_turn },
  { "a close waits for a replica beside a request", test_close_after_request },
  { "helpers: auto, one dirty", test_threads_auto_1 },
  { "helpers: auto, two dirty", test_threads_auto_2 },
  { "helpers: auto, 66 dirty", test_threads_auto_66 },
  { "helpers: 1", test_threads_1 },
  { "helpers: 2", test_threads_2 },
  { "helpers: 5", test_threads_5 },
  { "helpers: not for fast flushes", test_fast_flushes },
  { "helpers: slow flushes among fast ones", test_slow_and_fast },
  { "helpers: one after the other", test_helps_again },
  { "helpers: each group has its own", test_help_for_each_group },
  { "helpers: no threads to be had", test_no_threads },
  { NULL, NULL }
};

int
main (void)
{
  int r = EXIT_SUCCESS;

  /* Where there is one thread there is nothing for the thread sanitizer. */
#ifndef __SANITIZE_THREAD__
  model = SERIALIZE_ALL;
  r |= unit_main ("replicate, one at a time", in_any);
#endif
  model = SERIALIZE_HANDLE;
  r |= unit_main ("replicate, one per handle", in_any);
  r |= unit_main ("replicate, one per handle", in_two);
  r |= unit_main ("replicate, one per handle", serialized);
  model = PARALLEL;
  r |= unit_main ("replicate, parallel", in_any);
  r |= unit_main ("replicate, parallel", in_two);
  r |= unit_main ("replicate, parallel", parallel);
  return r;
}
