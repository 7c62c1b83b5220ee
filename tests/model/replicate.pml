/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The replication protocol of replicate.c, for spin, which tries every
 * interleaving of a few requests.  Names are those of replicate.c, whose
 * head comment explains the protocol; this one explains the model.
 *
 * Steps.  What the library does while it holds "lock" is one atomic step,
 * and so is each operation on a handle's state word.  Whoever waits on a
 * condition variable goes on only when it is signalled, so that a missing
 * signal is a deadlock here.  The thread that helps with replicas may be
 * gone at any time.
 *
 * Server.  Clients send requests on any connection and in any order until
 * the budgets below are used up.  A connection has one handle.  At
 * SERIALIZE_REQUESTS it has one request at a time, including flushes and the
 * close.  A close comes when no request of its connection is inside.
 * Flushes may also come in on a connection that carries nothing else; it
 * has no number.
 *
 * Plugin.  One block, of which one cell is followed: on the disk, and in
 * a cache per handle.  A write dirties the cell.  A read takes the cell
 * from the cache, or from the disk, and only then fills the cache, unless
 * that now has the cell; in PARALLEL anything may happen between the two.
 * So a read that has found the cell in the cache puts it back if it has
 * been dropped, as a second cache of the plugin does.
 * A write to the rest of the block ("neighbour") must fetch what
 * surrounds it, and so fills the cell in the same way.  A flush writes
 * back what was dirty when it began, and drops what is clean when it
 * begins or when it ends; with REFRESH it renews it instead, at its end.
 * With WHOLE the block is dirty as a whole, and is written back so: the
 * library knows its size, and a write of the neighbour counts as one of the
 * block.  Who would undo whose write is the same in both directions, so that
 * of the cell is enough.
 * With OPEN_COPY an open fetches the cell.  A close drops everything.
 *
 * Values.  The cell only grows.  Writes of it that overlap have no order, and
 * write the same value; once one of them has returned, the next begins after
 * the others.
 *
 * Order.  There is one slot.  With WIDE a write may meet another handle's in
 * some other block, once, when it has claimed this one.  A spell in which
 * nothing has been claimed goes on, which nobody can tell.  An owner's number
 * is its connection's.
 *
 * Assertions:
 *   Durable      when a flush returns success, the disk has every value
 *                whose write had returned before the flush was entered
 *   Visible      a read that begins from then on returns no older value;
 *                checked for reads, and for every cache that a request
 *                could begin to use at that moment without a flush before
 *   Own          with OWN: a read that enters while its handle is not being
 *                flushed returns no older value than the last that was written
 *                on its connection
 *   Order        nothing is written back over a newer value
 *   Overlap      at SERIALIZE_REQUESTS no two callbacks of a handle run
 *                at the same time
 *   After_close  no callback of a handle runs when its close begins, nor
 *                later
 *   Errors       each failed flush of the plugin makes one round fail, or
 *                the request that it was for
 *   Prompt       a round does not wait for a request on a handle that has
 *                nothing to write back
 * Spin also finds deadlocks; with ENDLESS it looks for a round that does
 * not end although everybody goes on.
 *
 * Words like NO_OWED take one guard of the protocol away; "run" has the
 * list, and gives all others the value 0.  Each must make an assertion fail:
 * otherwise the model is blind.
 */

#define when(condition, then) if :: condition -> then :: else fi

#define LEVEL_CONNECTION 0
#define LEVEL_FAST 1
#define LEVEL_OFF 2

/* Budgets, each for all clients together.  Opens are in the place of one that
 * has closed; faults are failing flushes of the plugin.
 */
byte writes = WRITES, neighbours = NEIGHBOURS, reads = READS;
byte flushes = FLUSHES, closes = CLOSES, opens = OPENS, faults = FAULTS;
byte wides = WIDE;              /* writes that meet another elsewhere too */

#if CONNECTIONS > 2
#define each_connection(what) what (0); what (1); what (2)
#define any_connection(what) (what (0) || what (1) || what (2))
#else
#define each_connection(what) what (0); what (1)
#define any_connection(what) (what (0) || what (1))
#endif

/* Of a client; the helper is process 0. */
#define me (_pid - 1)

#if CLIENTS > 2
#define each_client(what) what (0); what (1); what (2)
#else
#define each_client(what) what (0); what (1)
#endif

/* The protocol. */

mtype = { NO_REPLICA, REPLICA_QUEUED, REPLICA_PENDING, REPLICA_RUNNING };

typedef handle {
  /* The state word. */
  bool write_dirty, read_marked, owes, pending;
  byte count;                   /* inside */

  bool joined;                  /* on its group's list */
  byte own_write;               /* with OWN, the last that has returned */
  mtype replica = NO_REPLICA;
  bool closing;
  byte waiting;
  byte seen, owed;
  byte writers;                 /* in the state word too */
  byte held, flushing;
  byte spell = 1, past, wrote;  /* "past" is the last spell written back */
  bool flushed, failed;         /* in this round */
  bool outside;                 /* a write-back outside rounds runs ... */
  bool counted;                 /* ... so when the last round began */

  /* The server's. */
  bool open;
  byte users;                   /* requests, flushes included */

  /* The plugin's.  The cell has no value if it is not valid. */
  bool closed, valid, dirty;
  byte value;
  byte back;                    /* the last value that it wrote back */
  byte inside;                  /* callbacks that run */
};

handle conn[CONNECTIONS];

/* The group. */
byte written = ENDLESS;
byte writing_back;
bool running, phase_two, err, close_err;
byte outstanding;
bool phase_sleeps;              /* the thread of the round waits for it */
bool only_held;                 /* no client has asked for the round */

/* The slot of the block: an owner, from 1, and its spell. */
byte slot_owner, slot_spell;

/* The client flushes.  IN_BATCH: the running round is for them too. */
mtype = { NO_FLUSH, WAITING, IN_BATCH };
mtype waiter[CLIENTS] = NO_FLUSH;
bool finished_sleeps[CLIENTS];  /* the client waits for "round_over" */
byte sleeps_on[CLIENTS];        /* for "changed" of this handle, from 1 */
bool holds[CLIENTS];            /* what it waits for is a handle's flush */
bool round_failed[CLIENTS];     /* ... which has failed */

/* Remembered for the assertions. */

byte disk;
byte writing;                   /* writes of the cell that are on their way */
byte newest;                    /* ... with this value */
byte returned;                  /* the last value whose write returned */
byte want[CLIENTS];             /* the same when its flush was entered */
byte must;                      /* what each read from now on returns */
byte gone;                      /* a close lost the values up to this ... */
bool told;                      /* ... and a flush has failed since */
bool unreported;                /* a flush failed, but no round has yet ... */
bool unreported_close;          /* ... or one at a close since the last began */
bool told_owed[CLIENTS];        /* either, when its flush was entered */

/* Never true.  Spin reports the text of an assertion that fails. */
hidden byte Durable, Visible, Order, Overlap, After_close, Errors, Prompt, Own;

/* The plugin.  The client's "op" is what a request is. */

mtype = { WRITE, NEIGHBOUR, READ };

inline enter (i)
{
  assert (After_close || !conn[i].closed);
  assert (Overlap || !serialize || conn[i].inside == 0);
  conn[i].inside++
}

inline leave (i)
{
  assert (After_close || !conn[i].closed);
  conn[i].inside--
}

inline drop (i)
{
  conn[i].valid = false;
  conn[i].value = 0
}

/* To a request that begins now. */
inline up_to_date (i)
{
  assert (Visible || !conn[i].open || !conn[i].valid || conn[i].owes ||
          conn[i].value >= must)
}

inline request_enters (i)
{
  enter (i);
  if
  :: op == WRITE
  :: op != WRITE -> seen = (conn[i].valid -> conn[i].value : disk)
  fi
}

inline request_leaves (i)
{
  if
  :: op == WRITE ->
     conn[i].valid = true;
     conn[i].dirty = true;
     conn[i].value = newest
  :: op != WRITE && !conn[i].valid ->
     conn[i].valid = true;
     conn[i].value = seen
  :: else
  fi;
  conn[i].dirty = conn[i].dirty || (WHOLE && op == NEIGHBOUR);
  leave (i)
}

inline flush_enters (i)
{
  printf ("plugin: flush of connection %d begins\n", i);
  when (SPELL_AFTER, next_spell (i));
  enter (i);
  snapped = conn[i].dirty;
  snap = (snapped -> conn[i].value : 0);
  if
  :: true
  :: !REFRESH && !serialize && conn[i].valid && !conn[i].dirty ->
     drop (i);
     early = true
  fi
}

/* What a later flush of the handle has overtaken is not written back again. */
inline writes_back (i)
{
  when (snapped && snap >= conn[i].back,
        assert (Order || disk <= snap);
        disk = snap;
        conn[i].back = snap)
}

inline drop_or_renew (i)
{
  if
  :: REFRESH -> conn[i].value = disk
  :: else -> drop (i)
  fi
}

/* One that fails may have written back before it did. */
inline flush_leaves (i)
{
  if
  :: true
  :: faults > 0 -> failed = true
  :: faults > 0 && snapped -> failed = true; writes_back (i)
  fi;
  if
  :: failed -> faults--
  :: !failed ->
     writes_back (i);
     if
     :: conn[i].dirty && snapped && conn[i].value <= snap ->
        conn[i].dirty = false;
        drop_or_renew (i)
     :: conn[i].valid && !conn[i].dirty && !early -> drop_or_renew (i)
     :: else
     fi
  fi;
  printf ("plugin: flush of connection %d ends, failed %d, disk %d\n",
          i, failed, disk);
  snapped = false;
  snap = 0;
  early = false;
  leave (i)
}

inline plugin_close (i)
{
  printf ("plugin: close of connection %d\n", i);
  assert (After_close || (!conn[i].closed && conn[i].inside == 0));
  conn[i].closed = true;
  conn[i].dirty = false;
  drop (i)
}

/* Who waits. */

inline outstanding_one_less ()
{
  outstanding--;
  when (outstanding == 0, phase_sleeps = false)
}

#define wake(n) when (sleeps_on[n] == i + 1, sleeps_on[n] = 0)

inline broadcast_changed (i)
{
  each_client (wake)
}

/* Order. */

#define in_block (op == WRITE || (WHOLE && op != READ))

#define has(i, s) (slot_owner == i + 1 && slot_spell == s)

inline next_spell (i)
{
  claim = conn[i].spell;
  if
  :: conn[i].writers > 0 || has (i, claim) -> conn[i].spell++
  :: else -> claim--
  fi
}

inline end_spell (i)
{
  when (!NO_WROTE, conn[i].wrote = written);
  conn[i].past = (conn[i].past < claim -> claim : conn[i].past)
}

#define quiet(i) \
  (conn[i].writers == 0 && !conn[i].write_dirty && conn[i].flushing == 0)

#define owner (slot_owner - 1)
#define anothers(i) (!NO_LOOK && slot_owner > 0 && slot_owner != i + 1)

/* Not written back yet. */
#define is_live \
  (slot_spell > conn[owner].past && !(QUIET_PASSES && quiet (owner)))

#define is_older(i) (!NO_SEEN && conn[i].seen < conn[owner].wrote)

#define conflict_for(i) (anothers (i) && (is_live || is_older (i)))

inline take (i, s)
{
  slot_owner = i + 1;
  slot_spell = s
}

inline take_write (i)
{
  taken_write = conn[i].write_dirty;
  conn[i].write_dirty = false
}

/* Flushes.  flush_handle, to where it lets go of "lock"; MINE is 1 or 0. */
inline flush_starts (i, mine, write_back)
{
  when (!SPELL_AFTER, next_spell (i));
  ends = conn[i].writers == 0 || ENDS_ALWAYS;
  conn[i].flushing++;
  covers = conn[i].count == mine || ALWAYS_COVERS;
  when (!TAKE_AFTER, take_write (i));
  taken_read = conn[i].read_marked && (covers || TAKE_IN_FLIGHT);
  conn[i].read_marked = conn[i].read_marked && !taken_read;
  conn[i].owes = conn[i].owes && !(covers && OWED_CLEARED_EARLY);
  began = written;
  before = conn[i].seen;
  is_write = write_back || taken_write;
  when (is_write, writing_back++)
}

/* And from there on.  It ends with "failed" set or not. */
inline flush_runs (i)
{
  atomic { flush_enters (i) }
  atomic { flush_leaves (i) }
}

inline flush_ends (i)
{
  when (TAKE_AFTER, take_write (i));
  if
  :: failed ->
     conn[i].write_dirty = conn[i].write_dirty || taken_write && !NO_PUT_BACK;
     conn[i].read_marked = conn[i].read_marked || taken_read && !NO_PUT_BACK;
     conn[i].seen = before
  :: !failed && covers && (!conn[i].read_marked || NO_ENTERED) ->
     conn[i].seen = began;
     conn[i].owes = conn[i].owes && conn[i].seen < conn[i].owed
  :: else
  fi;
  when (is_write,
        writing_back--;
        when (!failed && (covers || OWN_IN_FLIGHT) && conn[i].seen == written,
              conn[i].seen++);
        when (!failed || !NO_NUMBER_AFTER_FAILURE, written++);
        conn[i].wrote = written;
        when (!failed && !covers && !NO_OWED_BESIDE,
              conn[i].owed = written;
              conn[i].owes = true));
  conn[i].flushing--;
  when (!failed && ends && (conn[i].flushing == 0 || ENDS_BESIDE),
        end_spell (i));
  claim = 0;
  ends = false;
  taken_write = false;
  taken_read = false;
  covers = false;
  began = 0;
  before = 0
}

/* The same for one outside rounds, which the last round may count. */
inline outside_starts (i, mine, write_back)
{
  flush_starts (i, mine, write_back);
  conn[i].outside = is_write
}

inline outside_ends (i)
{
  flush_ends (i);
  in_round = conn[i].counted && (!only_held || CLOSE_ERR_TO_WRITE);
  when (conn[i].counted,
        conn[i].counted = false;
        err = err || failed && !NO_OUTSIDE_ERR;
        unreported = unreported || failed;
        outstanding_one_less ());
  conn[i].outside = false;
  is_write = false
}

/* Replicas. */

#define queued(i) (conn[i].replica == REPLICA_QUEUED)

/* Lets C be one that is queued. */
inline pick ()
{
  if
  :: queued (0) -> c = 0
  :: queued (1) -> c = 1
#if CONNECTIONS > 2
  :: queued (2) -> c = 2
#endif
  fi
}

inline replica_done (i)
{
  conn[i].replica = NO_REPLICA;
  outstanding_one_less ()
}

#define busy(i) (conn[i].count > 0 && !NO_EXCLUSION)

/* run_replica, to where it lets go of "lock" for the first time; if it does
 * so for a flush, "runs" is set.
 */
inline replica_starts (i)
{
  if
  :: phase_two && busy (i) && !NO_OWED && !WAIT_IN_SECOND_PHASE ->
     conn[i].owed = written;
     conn[i].owes = true;
     replica_done (i)
  :: (!phase_two || WAIT_IN_SECOND_PHASE) && serialize && busy (i) ->
     assert (Prompt || !phase_two);
     conn[i].replica = REPLICA_PENDING;
     conn[i].pending = !NO_PENDING_BIT
  :: else ->
     conn[i].replica = REPLICA_RUNNING;
     conn[i].pending = false;
     mine = !busy (i);
     conn[i].count = conn[i].count + mine;
     runs = true;
     flush_starts (i, mine, !phase_two)
  fi
}

inline replica_goes_on (i)
{
  when (runs,
        flush_runs (i);
        d_step {
          as_of = began;
          flush_ends (i);
          when (!failed && phase_two && conn[i].seen < as_of && !NO_OWED,
                conn[i].owed = written;
                conn[i].owes = true);
          as_of = 0;
          is_write = false;
          conn[i].flushed = true;
          conn[i].failed = failed;
          err = err || failed;
          unreported = unreported || failed;
          failed = false;
          replica_done (i);
          conn[i].count = conn[i].count - mine;
          mine = 0;
          runs = false;
          when (!NO_SIGNAL_CHANGED, broadcast_changed (i))
        })
}

active proctype helper ()
{
  byte c, snap, began, before, mine, as_of;
  byte claim;
  bool taken_write, taken_read, snapped, early, failed, covers, is_write;
  bool runs, ends;

end_idle:
  do
  :: atomic { any_connection (queued) -> pick (); replica_starts (c) }
     replica_goes_on (c);
     c = 0
  :: break
  od
}

/* Rounds. */

inline into_batch (n)
{
  when (waiter[n] == WAITING,
        waiter[n] = IN_BATCH;
        only_held = only_held && holds[n])
}

inline first_phase (i)
{
  conn[i].flushed = false;
  conn[i].failed = false;
  conn[i].counted = conn[i].outside && !NO_WRITING_WAIT;
  when (conn[i].counted, outstanding++);
  when (conn[i].joined && conn[i].write_dirty &&
        (!only_held || conn[i].held > 0),
        conn[i].replica = REPLICA_QUEUED;
        outstanding++)
}

inline second_phase (i)
{
  if
  :: !conn[i].joined || conn[i].failed || conn[i].seen == written ||
     (LEVEL == LEVEL_CONNECTION && !conn[i].write_dirty &&
      !conn[i].read_marked && !conn[i].owes)
  :: conn[i].joined && conn[i].closing && !NO_CLOSING
  :: conn[i].joined && conn[i].replica != NO_REPLICA && ONE_PHASE
  :: conn[i].joined && conn[i].flushed && NO_REFLUSH
  :: else ->
     conn[i].replica = REPLICA_QUEUED;
     outstanding++
  fi
}

inline begin_second_phase ()
{
  phase_two = true;
  when (!only_held, each_connection (second_phase))
}

inline round_begins ()
{
  printf ("client %d: a round begins\n", me);
  running = true;
  only_held = true;
  each_client (into_batch);
  when (!only_held,
        err = close_err;
        unreported = unreported || unreported_close;
        unreported_close = false;
        close_err = close_err && KEEP_CLOSE_ERR);
  each_connection (first_phase);
  when (LEVEL == LEVEL_OFF && !only_held, written++);
  when (ONE_PHASE, begin_second_phase ())
}

/* A flush of the batch returns as soon as it can: then the assertions
 * demand the most.
 */
inline flush_returns (n)
{
  if
  :: waiter[n] == IN_BATCH && holds[n] ->
     waiter[n] = NO_FLUSH;
     holds[n] = false;
     round_failed[n] = err
  :: waiter[n] == IN_BATCH && !holds[n] ->
     printf ("client %d: flush returns, failed %d\n", n, err);
     waiter[n] = NO_FLUSH;
     if
     :: err -> told = true
     :: else ->
        assert (Durable || disk >= want[n] || (told && gone >= want[n]));
        assert (Errors || !(told_owed[n] && unreported));
        when (disk >= want[n] && must < want[n], must = want[n])
     fi;
     want[n] = 0;
     told_owed[n] = false
  :: else
  fi;
  finished_sleeps[n] = false
}

inline round_ends ()
{
  running = false;
  phase_two = false;
  assert (Errors || !err || unreported);
  when (err, unreported = false);
  each_client (flush_returns);
  err = false;
  only_held = false;
  each_connection (up_to_date)
}

/* The server and its clients. */

/* Clients are alike, and so are connections: let the first client begin,
 * and the first connection be used first.
 */
bool begun, used;
#define may_begin (begun || me == 0)
#define take_from(budget) budget = budget - !ENDLESS
#define may_use(i) (i == 0 || (used && !ENDLESS))
#define usable(i)                                               \
  (may_begin && may_use (i) &&                                  \
   conn[i].open && (!serialize || conn[i].users == 0))

inline begin_on (i)
{
  begun = true;
  used = true;
  conn[i].users++
}

#define options(i)                                              \
  :: usable (i) && reads > 0 ->                                 \
     take_from (reads);                                         \
     begin_on (i); c = i; op = READ; floor = must;              \
     goto request                                               \
  :: usable (i) && neighbours > 0 ->                            \
     neighbours--;                                              \
     begin_on (i); c = i; op = NEIGHBOUR;                       \
     goto request                                               \
  :: usable (i) && writes > 0 &&                                \
     (writing == 0 || newest == returned + 1) ->                \
     writes--;                                                  \
     begin_on (i); c = i; op = WRITE;                           \
     writing++; newest = returned + 1;                          \
     goto request                                               \
  :: usable (i) && flushes > 0 ->                               \
     flushes--;                                                 \
     begin_on (i); self = i;                                    \
     goto flush                                                 \
  :: may_begin && conn[i].open && conn[i].users == 0 &&         \
     closes > 0 ->                                              \
     printf ("client %d: close of connection %d begins\n",       \
             me, i);                                            \
     closes--;                                                  \
     begun = true; c = i; conn[i].open = false;                 \
     goto close                                                 \
  :: may_begin && conn[i].closed && opens > 0 ->                \
     opens--;                                                   \
     begun = true; c = i; conn[i].closed = false;               \
     goto open

inline request_returns (i)
{
  printf ("client %d: %e on connection %d returns, cell %d\n",
          me, op, i, (op == WRITE -> newest : seen));
  if
  :: op == WRITE ->
     returned = newest;
     writing--;
     conn[i].own_write = (OWN -> newest : 0)
  :: op == READ ->
     assert (Own || seen >= own_floor);
     assert (Visible || seen >= floor)
  :: else
  fi;
  request_is_over (i)
}

inline request_is_over (i)
{
  conn[i].users--;
  seen = 0;
  floor = 0;
  own_floor = 0;
  op = 0;
  c = 0
}

inline flush_is_over ()
{
  when (self < CONNECTIONS, conn[self].users--);
  self = 0
}

inline joins (i)
{
  conn[i].joined = true;
  conn[i].open = true
}

inline leaves (i)
{
  conn[i].joined = false;
  conn[i].write_dirty = false;
  conn[i].read_marked = false;
  conn[i].owes = false;
  conn[i].flushed = false;
  conn[i].failed = false;
  conn[i].closing = false;
  next_spell (i);
  end_spell (i);
  when (RECORD_DIES, conn[i].wrote = 0);
  claim = 0;
  broadcast_changed (i);
  conn[i].own_write = 0;
  conn[i].seen = 0;
  conn[i].owed = 0
}

/* left, to where it lets go of "lock" for the first time. */
inline something_left (i)
{
  if
  :: conn[i].replica == REPLICA_PENDING -> replica_starts (i)
  :: else -> broadcast_changed (i)
  fi
}

/* At this level an unmarked handle holds nothing. */
inline notice_empty (i)
{
  when (LEVEL == LEVEL_CONNECTION && !conn[i].read_marked &&
        (conn[i].flushing == 0 || SEEN_IN_FLUSH) &&
        !conn[i].write_dirty && !conn[i].owes,
        conn[i].seen = written)
}

#define gate(i) (conn[i].read_marked && (!conn[i].owes || NO_GATE))
#define keeps_out(i) (op != READ && conn[i].held > 0 && !NO_HOLD)

inline count_in (i)
{
  conn[i].count++;
  conn[i].writers = conn[i].writers + (op != READ -> 1 : 0);
  own = (in_block -> conn[i].spell : 0);
  /* Beside a flush the plugin's own cache may have lost it. */
  own_floor = (op == READ && conn[i].flushing == 0 -> conn[i].own_write : 0)
}

active [CLIENTS] proctype client ()
{
  byte self;                    /* what its flush came in on */
  byte c, seen, floor, own_floor, snap, began, before, mine, target, as_of;
  byte claim, own, other;
  mtype op;
  bool taken_write, taken_read, snapped, early, failed;
  bool covers, is_write, runs, in_round, refused, ends;

idle:
end_idle:
  atomic {
    if
    options (0)
    options (1)
#if CONNECTIONS > 2
    options (2)
#endif
    :: may_begin && flushes > 0 ->
       flushes--;
       begun = true;
       self = CONNECTIONS;
       goto flush
    fi
  }

request:
#if NO_MARK_AFTER
  conn[c].write_dirty = conn[c].write_dirty || op != READ;
#endif
#if LOOK_BEFORE
  atomic {
    if
    :: in_block && conflict_for (c) -> goto slow
    :: in_block && !conflict_for (c) ->
       own = conn[c].spell;
       take (c, own)
    :: !in_block
    fi
  }
#endif
  atomic {
    printf ("client %d: %e on connection %d begins\n", me, op, c);
    if
    :: gate (c) && !keeps_out (c) &&
       (!serialize || (!conn[c].pending && !busy (c))) ->
       count_in (c);
       when (in_block && !LOOK_BEFORE, goto claims);
       goto inside
    :: else -> goto slow
    fi
  }
claims:
  atomic {
    when (conflict_for (c), goto out);
#if NO_SWAP
  }
  atomic {
#endif
    take (c, own);
    if
    :: wides > 0 -> wides--; goto out
    :: true
    fi;
    goto inside
  }
out:
  atomic {
    own = 0;
    conn[c].count--;
    conn[c].writers--;
    something_left (c)
  }
  replica_goes_on (c);
  atomic { broadcast_changed (c); goto slow }
slow:
  /* handle_enter */
  atomic {
    when (in_block && anothers (c) && is_live,
          other = owner;
          conn[other].held++;
          conn[other].waiting++;
          goto conflict);
    notice_empty (c);
    when (in_block && anothers (c) && is_older (c),
          conn[c].owes = true;
          conn[c].owed = (conn[c].owed < conn[owner].wrote ->
                          conn[owner].wrote : conn[c].owed));
    conn[c].waiting++;
    target = conn[c].owed
  }
admit:
  atomic {
    if
    :: conn[c].replica == REPLICA_PENDING || keeps_out (c)
    :: else ->
       if
       :: conn[c].seen < target && !busy (c) ->
          conn[c].count++;
          outside_starts (c, 1, false);
          goto owed
       :: conn[c].seen >= target && (!serialize || !busy (c)) ->
          conn[c].waiting--;
          target = 0;
          notice_empty (c);
          conn[c].read_marked = true;
          count_in (c);
          if
          :: in_block -> goto claims
          :: else -> goto inside
          fi
       :: else
       fi
    fi;
    sleeps_on[me] = c + 1
  }
  atomic { sleeps_on[me] == 0; goto admit }
owed:
  flush_runs (c);
  atomic {
    outside_ends (c);
    in_round = false;
    refused = failed;
    failed = false;
    conn[c].count--;
    something_left (c)
  }
  replica_goes_on (c);
  atomic {
    broadcast_changed (c);
    when (!refused, goto admit);
    conn[c].waiting--;
    target = 0
  }
fails:
  atomic {
    printf ("client %d: %e on connection %d fails\n", me, op, c);
    refused = false;
    when (op == WRITE, writing--);
    request_is_over (c);
    goto idle
  }

conflict:
  /* write_back */
  atomic {
    if
    :: quiet (other) -> goto written_back
    :: !quiet (other) && (conn[other].flushing > 0 || conn[other].closing ||
                          conn[other].writers > 0) ->
       sleeps_on[me] = other + 1
    :: else ->
       printf ("client %d: connection %d is to be flushed\n", me, other);
       self = c;
       holds[me] = true;
       waiter[me] = WAITING;
       if
       :: !running -> round_begins (); goto round
       :: else -> finished_sleeps[me] = true; goto finished
       fi
    fi
  }
  atomic { sleeps_on[me] == 0; goto conflict }
held_round_over:
  atomic {
    c = self;
    self = 0;
    refused = round_failed[me];
    round_failed[me] = false;
    when (!refused && !LET_THROUGH, goto conflict);
    refused = refused && !LET_THROUGH
  }
written_back:
  atomic {
    when (!refused, next_spell (other); end_spell (other); claim = 0);
    conn[other].held--;
    conn[other].waiting--;
    broadcast_changed (other);
    other = 0;
    if
    :: refused -> goto fails
    :: else -> goto slow
    fi
  }

inside:
  atomic { own = 0; request_enters (c) }
  atomic { request_leaves (c) }
#if !NO_MARK_AFTER
  conn[c].write_dirty = conn[c].write_dirty || op != READ;
#endif
  atomic {
    conn[c].count--;
    conn[c].writers = conn[c].writers - (op != READ -> 1 : 0);
    if
    :: conn[c].pending || (conn[c].waiting > 0 && !NO_SLOW_END) ->
       goto slow_end
    :: else -> request_returns (c); goto idle
    fi
  }
slow_end:
  atomic { something_left (c) }
  replica_goes_on (c);
  atomic {
    broadcast_changed (c);
    request_returns (c);
    goto idle
  }

flush:
  atomic {
    printf ("client %d: flush begins\n", me);
    want[me] = returned;
    told_owed[me] = unreported || unreported_close;
    waiter[me] = (SHARE_RUNNING && running -> IN_BATCH : WAITING);
    if
    :: !running -> round_begins (); goto round
    :: else -> finished_sleeps[me] = true
    fi
  }
finished:
  atomic {
    !finished_sleeps[me];
    if
    :: waiter[me] == NO_FLUSH && op != 0 -> goto held_round_over
    :: waiter[me] == NO_FLUSH && op == 0 -> flush_is_over (); goto idle
    :: waiter[me] != NO_FLUSH && !running -> round_begins (); goto round
    :: else -> finished_sleeps[me] = true; goto finished
    fi
  }
round:
  do
  :: atomic { any_connection (queued) -> pick (); replica_starts (c) }
     replica_goes_on (c);
     c = 0
  :: atomic {
       outstanding > 0 && !any_connection (queued) ->
       phase_sleeps = true;
       !phase_sleeps
     }
  :: atomic {
       outstanding == 0 && !phase_two ->
       printf ("client %d: the second phase begins\n", me);
       begin_second_phase ()
     }
  :: atomic {
       outstanding == 0 && phase_two ->
       round_ends ();
       c = 0;
       if
       :: op != 0 -> goto held_round_over
       :: else -> flush_is_over (); goto idle
       fi
     }
  od;

open:
  conn[c].seen = written;
#if OPEN_COPY
  atomic { conn[c].valid = true; conn[c].value = disk }
#endif
  atomic {
    conn[c].joined = true;
    if
    :: written > conn[c].seen && !NO_OPEN_FLUSH ->
       conn[c].read_marked = true;
       conn[c].owed = written;
       conn[c].owes = true;
       conn[c].count++;
       outside_starts (c, 1, false);
       goto open_flush
    :: written == conn[c].seen && writing_back > 0 && !NO_OPEN_FLUSH ->
       conn[c].read_marked = true;
       goto opened
    :: else -> conn[c].seen = written; goto opened
    fi
  }
open_flush:
  flush_runs (c);
  atomic {
    outside_ends (c);
    in_round = false;
    failed = false;
    conn[c].count--;
    something_left (c)
  }
opened:
  atomic {
    conn[c].open = true;
    up_to_date (c);
    c = 0;
    goto idle
  }

close:
  conn[c].closing = true;
  do
  :: atomic { queued (c) -> replica_starts (c) }
     replica_goes_on (c)
#if NO_CLOSE_WAIT
  :: atomic {
       !queued (c) ->
#else
  :: atomic {
       conn[c].replica == REPLICA_RUNNING ||
       conn[c].replica == REPLICA_PENDING ->
       sleeps_on[me] = c + 1;
       sleeps_on[me] == 0
     }
  :: atomic {
       conn[c].replica == NO_REPLICA ->
#endif
       if
       :: conn[c].write_dirty && !NO_CLOSE_FLUSH ->
          conn[c].count++;
          outside_starts (c, 1, true);
          goto solo
       :: else ->
          when (conn[c].write_dirty, written++);
          leaves (c);
          goto left
       fi
     }
  od;
solo:
  atomic { flush_enters (c) }
  atomic {
    flush_leaves (c);
    when (failed && conn[c].dirty, gone = conn[c].value; told = false)
  }
  d_step {
    outside_ends (c);
    when (failed && !in_round,
          close_err = !NO_CLOSE_ERR;
          unreported_close = true);
    in_round = false;
    failed = false;
    conn[c].count--;
    leaves (c)
  }
left:
  atomic { plugin_close (c); c = 0; goto idle }
}

init {
  atomic { each_connection (joins) }
}

#if ENDLESS
ltl { [] (running -> <> !running) }
#endif
