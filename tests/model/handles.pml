/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Two handles of the plugin behind one connection (spread.c, requests.c), for
 * spin, which tries every interleaving of a few requests.  replicate.pml proves
 * the details of a round; here it has the same two phases, and one thread runs
 * it.
 *
 * The export is two ranges, 0 and 1, and each has a block that the plugin
 * caches as a whole.  One cell of the block is followed.  A write sets it; a
 * write to the neighbourhood makes the block dirty with the cell as it is in
 * the cache, or on the disk if it is not cached.  A request is for one range,
 * or crosses from 0 into 1.  It is split there, or a read is one call if nothing
 * is unflushed, on handle 0, which then sees what handle 1 has done.  A long zero
 * is one call on handle 0 for both.
 *
 * The thread model is SERIALIZE_REQUESTS.  In PARALLEL the plugin must keep the
 * order of what one handle gets at once, and the model would show nothing else.
 *
 * Clients send requests on the one connection; each waits for its reply.  The
 * cell's values only grow, and there is one write of a cell at a time, as two
 * at once have no order.  At the end the connection closes.
 *
 * With GROWS=1 only handle 0 is in use at first, and serves both ranges.  Another
 * thread takes handle 1 into use at any time, or never.
 *
 * With FAULTS so many flushes fail, in a client's flush or beside a long zero,
 * before anything is written back.  A request whose owed flush fails tries it
 * again here.
 *
 * Assertions:
 *   Own       a read that begins after the reply to a write returns that
 *             value, or a newer one, without any flush
 *   Durable   when a flush returns, the disk has each value whose write had
 *             its reply before the flush was entered
 *   Order     when all is closed the disk has the last value, or what a request
 *             that failed may have left
 *   Overlap   at SERIALIZE_REQUESTS one callback at a time runs on a handle
 *
 * Words such as NO_SPLIT take something away: "run" has the list, and gives
 * all others the value 0.  Each must make an assertion fail.
 */

#define when(condition, then) if :: condition -> then :: else fi

/* Of all clients together.  "run" has these numbers. */
byte writes = WRITES, neighbours = NEIGHBOURS, reads = READS;
byte flushes = FLUSHES, longs = LONGS, faults = FAULTS;

typedef block {
  bool valid, dirty, flushing;
  byte value;
};

typedef handle {
  bool write_dirty, read_marked, owes;
  byte seen;
  byte count;                   /* who is inside, by the state word */
  byte inside;                  /* callbacks that run */
  block at[2];
};

handle h[2];
byte disk[2];
byte written;                   /* write-backs that have ended */
bool round;                     /* one runs */
byte outside;                   /* flushes outside rounds, which it waits for */
byte begins;                    /* with this handle, if it may fail */

byte modulus = 2 - GROWS;       /* handles in use */

/* The gate: pieces that are inside, and the request that is alone. */
byte pieces;
bool alone;
bool unflushed;                 /* nobody is alone, but it needs a flush */

/* What is remembered for the assertions. */
byte newest[2], replied[2];
bool writing[2];
byte ended;

hidden byte Own, Durable, Order, Overlap;

/* Let a piece into handle H, or a flush that has it to itself.  An owed flush
 * comes first.
 */
#define free(i) (!serialize || h[i].count == 0 || NO_EXCLUSION)

inline enter (i)
{
  assert (Overlap || !serialize || h[i].inside == 0);
  h[i].inside++
}

inline leave (i)
{
  h[i].inside--
}

/* A plugin flush, by whoever is counted inside MINE times.  It begins and ends
 * separately; anything may happen in between.
 */
inline plugin_flush (i, mine)
{
  atomic {
    began = written;
    if
    :: faults > 0 -> faults--; fails = true
    :: fails = false
    fi;
    covers = (h[i].count == mine);
    was_dirty = h[i].write_dirty;
    h[i].write_dirty = false;
    when (covers, h[i].read_marked = false);
    enter (i);
    h[i].at[0].flushing = h[i].at[0].dirty;
    h[i].at[0].dirty = false;
    h[i].at[1].flushing = h[i].at[1].dirty;
    h[i].at[1].dirty = false
  }
  atomic {
    for (r : 0 .. 1) {
      if
      :: fails ->
         h[i].at[r].dirty = (h[i].at[r].dirty || h[i].at[r].flushing)
      :: !fails && h[i].at[r].flushing -> disk[r] = h[i].at[r].value
      :: else
      fi;
      h[i].at[r].flushing = false;
      h[i].at[r].valid = (h[i].at[r].dirty || fails && h[i].at[r].valid)
    }
    leave (i);
    if
    :: fails ->
       h[i].write_dirty = (h[i].write_dirty || was_dirty);
       h[i].read_marked = true;
       failed = true
    :: !fails && covers ->
       h[i].seen = (h[i].seen < began -> began : h[i].seen);
       h[i].owes = false
    :: else
    fi;
    when (!fails && was_dirty,
          when (covers && h[i].seen == written, h[i].seen++);
          written++);
    began = 0; covers = false; was_dirty = false; fails = false; r = 0
  }
}

/* Both phases, on this thread.  The handles come in either order where that
 * matters.
 */
#define nth(j) (begins ^ (j))

inline replicate ()
{
  atomic {
    !round -> round = true;
    failed = false;
    if
    :: begins = 0
    :: FAULTS > 0 -> begins = 1
    fi
  };
  j = 0;
  do
  :: j < 2 && h[nth (j)].write_dirty ->
#if ONE_FLUSHED
     when (j > 0, break);
#endif
     if
     :: serialize ->
        atomic { free (nth (j)) -> h[nth (j)].count++ };
        plugin_flush (nth (j), 1);
        h[nth (j)].count--
     :: else -> plugin_flush (nth (j), 0)
     fi;
     j++
  :: j < 2 && !h[nth (j)].write_dirty -> j++
  :: j == 2 && outside == 0 -> break
  od;
  for (j : 0 .. 1) {
    atomic {
      k = h[nth (j)].read_marked && h[nth (j)].seen != written;
      if
      :: k && h[nth (j)].count == 0 -> h[nth (j)].count++
      :: k && h[nth (j)].count > 0 -> h[nth (j)].owes = true; k = false
      :: else
      fi
    }
    when (k, plugin_flush (nth (j), 1); h[nth (j)].count--)
  }
  atomic { round = false; j = 0; k = false }
}

mtype = { WRITE, NEIGHBOUR, READ };

/* Get into handle I for a piece. */
inline begin_piece (i)
{
  do
  :: atomic { h[i].owes && h[i].count == 0 -> h[i].count++; outside++ };
     plugin_flush (i, 1);
     atomic { h[i].count--; outside-- }
  :: atomic {
       !h[i].owes && free (i) -> h[i].count++;
       when (!h[i].read_marked, h[i].seen = written; h[i].read_marked = true)
     };
     break
  od
}

inline end_piece (i, wrote)
{
  atomic {
    when (wrote, h[i].write_dirty = true);
    h[i].count--
  }
}

/* What the plugin does for range RANGE in a call on handle I.  OP and VALUE
 * are the client's.
 */
inline call (i, range)
{
  atomic {
    enter (i);
    missed = !h[i].at[range].valid;
    fetched = disk[range]
  };
  atomic {
    when (missed && !h[i].at[range].valid,
          h[i].at[range].value = fetched;
          h[i].at[range].valid = true);
    if
    :: op == WRITE ->
       h[i].at[range].value = value[range];
       h[i].at[range].dirty = true
    :: op == NEIGHBOUR -> h[i].at[range].dirty = true
    :: op == READ -> assert (Own || h[i].at[range].value >= value[range])
    fi;
    leave (i);
    missed = false; fetched = 0
  }
}

/* Wait until no request is alone, and count N more pieces or be ALONE_NEXT.
 * What the last one has left is flushed first; if that fails, the request is
 * refused.
 */
inline wait_for_others (n, alone_next)
{
  do
  :: atomic { !alone -> pieces = pieces + n; alone = alone_next }; break
  :: atomic { unflushed -> unflushed = false };
     replicate ();
     atomic {
       if
       :: failed -> refused = true;
          alone = !NO_UNFLUSHED;
          unflushed = !NO_UNFLUSHED;
          break
       :: else -> alone = false
       fi
     }
  od
}

/* The piece of a request on RANGE. */
inline piece (range)
{
#if !LONG_BESIDE
  wait_for_others (1, false);
#endif
  when (refused, break);
  if
  :: i = (modulus == 2 -> range : 0)
  :: ANY_HANDLE -> i = 1 - (modulus == 2 -> range : 0)
  fi;
  begin_piece (i);
  call (i, range);
  end_piece (i, op != READ);
#if !LONG_BESIDE
  pieces--
#endif
}

inline new_values ()
{
  for (r : first .. last) {
    writing[r] = true;
    newest[r]++;
    value[r] = newest[r]
  }
}

inline reply ()
{
  for (r : first .. last) {
    replied[r] = (refused -> replied[r] : value[r]);
    writing[r] = false
  }
}

/* Fewer states. */
inline clear ()
{
  value[0] = 0; value[1] = 0;
  first = 0; last = 0; at = 0; i = 0; r = 0;
  refused = false; failed = false;
  op = WRITE
}

#define dirty(i) (h[i].write_dirty && !WHOLE_DIRTY)
#define flushing(i) \
  ((h[i].at[0].flushing || h[i].at[1].flushing) && !WHOLE_BESIDE)
#define clean (!dirty (0) && !dirty (1) && !flushing (0) && !flushing (1))

inline read_whole ()
{
  wait_for_others (1, false);
  if
  :: refused
  :: else ->
     if
     :: clean
     :: else -> replicate (); refused = failed
     fi;
#if !WHOLE_OLD
     h[0].owes = h[0].owes || h[0].seen < written;
#endif
     if
     :: refused
     :: else ->
        begin_piece (0);
        call (0, 0);
        call (0, 1);
        end_piece (0, false)
     fi;
     pieces--
  fi;
  at = last + 1
}

/* Split, or as it comes. */
inline request ()
{
  at = first;
  if
  :: op == READ && first < last -> read_whole ()
  :: skip
  fi;
#if NO_SPLIT
  when (first < last,
        atomic { !alone -> pieces++ };
        begin_piece (0);
        call (0, 0);
        call (0, 1);
        end_piece (0, op != READ);
        pieces--;
        at = last + 1);
#endif
  do
  :: at <= last -> piece (at); at++
  :: else -> break
  od
}

inline zero_on_first ()
{
  begin_piece (0);
  atomic { enter (0) };
  atomic {
    for (r : 0 .. 1) {
      h[0].at[r].valid = true;
      h[0].at[r].dirty = true;
      h[0].at[r].value = value[r]
    }
    leave (0)
  };
  end_piece (0, true)
}

/* After another one that nobody has flushed, only handle 0 holds anything. */
inline long_zero ()
{
  if
#if !LONG_BESIDE
  :: atomic { unflushed -> unflushed = false };
     pieces == 0
  :: atomic { !alone -> alone = true };
     pieces == 0;
#else
  ::
#endif
#if !NO_FLUSH_BEFORE
     replicate ()
#else
     skip
#endif
  fi;
  if
  :: failed -> refused = true; alone = false
  :: else ->
     zero_on_first ();
#if LONG_BESIDE
     replicate ()
#else
#if NO_FLUSH_AFTER
     alone = false
#else
     unflushed = true
#endif
#endif
  fi
}

proctype client ()
{
  byte value[2], want[2], fetched, began, i, j, r, first, last, at;
  bool k, covers, was_dirty, missed, fails, failed, refused;
  mtype op;

  do
  :: if
     :: atomic {
          writes > 0 && !(writing[0] && writing[1]) -> writes--;
          op = WRITE;
          if
          :: !writing[0] -> first = 0; last = 0
          :: !writing[1] -> first = 1; last = 1
          :: !writing[0] && !writing[1] -> first = 0; last = 1
          fi;
          new_values ()
        }
     :: atomic {
          neighbours > 0 -> neighbours--;
          op = NEIGHBOUR;
          if
          :: first = 0
          :: first = 1
          fi;
          last = first
        }
     :: atomic {
          reads > 0 -> reads--;
          op = READ;
          value[0] = replied[0];
          value[1] = replied[1];
          if
          :: first = 0; last = 0
          :: first = 1; last = 1
          :: first = 0; last = 1
          fi
        }
     fi;
     request ();
     atomic {
       when (op == WRITE, reply ());
       clear ()
     }
  :: atomic {
       flushes > 0 -> flushes--;
       want[0] = replied[0];
       want[1] = replied[1]
     };
     replicate ();
     atomic {
       assert (Durable || failed || (disk[0] >= want[0] && disk[1] >= want[1]));
       want[0] = 0; want[1] = 0; failed = false
     }
  :: atomic {
       longs > 0 && !writing[0] && !writing[1] -> longs--;
       op = WRITE;
       first = 0;
       last = 1;
       new_values ()
     };
     long_zero ();
     atomic { reply (); clear () }
  :: break
  od;
  ended++
}

/* Take handle 1 into use, unless a flush fails. */
proctype opener ()
{
  byte began, j, r;
  bool k, covers, was_dirty, fails, failed, refused;

  if
  :: skip
  :: wait_for_others (0, true);
     if
     :: refused
     :: else ->
#if !GROWS_BESIDE
        pieces == 0;
#endif
#if !GROWS_UNFLUSHED
        replicate ();
#endif
        atomic { modulus = (failed -> 1 : 2); alone = false }
     fi
  fi;
  ended++
}

/* The server closes a connection when none of its requests is inside. */
proctype server ()
{
  byte began, j, r;
  bool covers, was_dirty, fails, failed;

  atomic { ended == CLIENTS + GROWS -> faults = 0 };
  for (j : 0 .. 1) {
#if ONE_CLOSED
    when (j == 1, break);
#endif
    when (h[j].write_dirty, plugin_flush (j, 0))
  }
  assert (Order || (disk[0] >= replied[0] && disk[1] >= replied[1]))
}

init {
  byte n;

  atomic {
    for (n : 1 .. CLIENTS) { run client () }
    when (GROWS, run opener ());
    run server ()
  }
}
