/* The replication protocol of replicate.c, for spin, which tries every
 * interleaving of a few requests.  Names are those of replicate.c, whose
 * head comment explains the protocol; here is what stands for what.
 *
 * Steps.  What the library does while it holds "lock" is one atomic step,
 * and so is each operation on a connection's state word.  A connection's
 * own lock is taken together with the step that follows it and let go of
 * together with the one before, which hides nothing: nobody can tell.
 * Whoever waits on a condition variable goes on when it is signalled and
 * not otherwise, so that a signal which is missing is a deadlock here.
 * The thread that helps with replicas may be gone at any time.
 *
 * Server.  Clients send requests on any connection and in any order until
 * the budgets below are used up.  At SERIALIZE_REQUESTS a connection has
 * one request at a time, flushes and the close included.  A close comes
 * when the requests of its connection are out.  Flushes may also come in
 * on a connection that carries nothing else; it has no number.
 *
 * Plugin.  One block, of which one cell is followed: on the disk, and in
 * a cache per handle.  A write dirties the cell.  A read that misses
 * takes the cell from the disk and only then fills the cache, unless that
 * has the cell by now; in PARALLEL anything may happen between the two.
 * A write to the rest of the block ("neighbour") has to fetch what
 * surrounds it, and so fills the cell in the same way.  A flush writes
 * back what was dirty when it began, and drops what is clean when it
 * begins or when it ends.  A close drops everything.
 *
 * Values.  The cell only grows.  There is one write of it at a time, and
 * one to another connection only after the last has been flushed: their
 * order would be undefined otherwise.
 *
 * Assertions, named in front of what they ask for:
 *   Durable      when a flush returns success, the disk has every value
 *                whose write had returned before the flush was entered
 *   Visible      a read that begins from then on returns no older value;
 *                asked of reads, and of every cache that one could begin
 *                to use at that moment
 *   Overlap      at SERIALIZE_REQUESTS no two callbacks of a handle run
 *                at the same time
 *   After_close  no callback of a handle runs when its close begins, nor
 *                later
 *   Errors       each failed flush of the plugin makes one round fail
 * Deadlocks spin finds by itself; with ENDLESS it also looks for a round
 * that does not end although everybody goes on.
 *
 * Words like NO_DRAIN take one guard of the protocol away; "run" has the
 * list.  Each must make an assertion fail: else the model is blind.
 */

/* Configuration. */

#ifndef CONNECTIONS
#define CONNECTIONS 2           /* 2 or 3 */
#endif
#ifndef CLIENTS
#define CLIENTS 2               /* 2 or 3 */
#endif

#ifdef SERIALIZE_REQUESTS
#define exclusive true
#else
#define exclusive false
#endif

#define LEVEL_CONNECTION 0
#define LEVEL_FAST 1
#define LEVEL_OFF 2
#ifndef LEVEL
#define LEVEL LEVEL_CONNECTION
#endif

/* Budgets, each for all clients together. */
#ifndef WRITES
#define WRITES 2
#endif
#ifndef NEIGHBOURS
#define NEIGHBOURS 1
#endif
#ifndef READS
#define READS 1
#endif
#ifndef FLUSHES
#define FLUSHES 2
#endif
#ifndef CLOSES
#define CLOSES 1
#endif
#ifndef OPENS                   /* in the place of one that has closed */
#define OPENS 0
#endif
#ifndef FAULTS                  /* failing flushes of the plugin: 0 or 1 */
#define FAULTS 0
#endif

byte writes = WRITES, neighbours = NEIGHBOURS, reads = READS;
byte flushes = FLUSHES, closes = CLOSES, opens = OPENS, faults = FAULTS;

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

mtype = { NO_REPLICA, REPLICA_DRAINING, REPLICA_QUEUED, REPLICA_RUNNING };

typedef connection {
  /* The state word. */
  bool write_dirty, read_marked, touched, draining, epoch;
  byte requests[2];

  bool locked;                  /* its own lock, at SERIALIZE_REQUESTS */

  bool joined;                  /* on its group's list of all */
  mtype replica = NO_REPLICA;
  bool flushed;                 /* its "round" is that of the group */
  bool failed;
  bool closing;
  bool solo;                    /* one of those that the group counts ... */
  bool counted;                 /* ... so when the last round began */
  bool left_sleeps;             /* its close waits for "left" */

  /* The server's. */
  bool open;
  byte users;                   /* requests, flushes included */

  /* The plugin's.  The cell has no value if it is not valid. */
  bool closed, valid, dirty;
  byte value;
  byte inside;                  /* callbacks that run */
};

connection conn[CONNECTIONS];

/* The group. */
#ifdef ENDLESS
bool stale = true;
#else
bool stale;
#endif
bool running, phase_two, err, close_err;
byte outstanding;
bool phase_sleeps;              /* the thread of the round waits for "phase" */

/* The client flushes.  IN_BATCH: the running round is for them too. */
mtype = { NO_FLUSH, WAITING, IN_BATCH };
mtype waiter[CLIENTS] = NO_FLUSH;
bool finished_sleeps[CLIENTS];  /* the client waits for "finished" */

/* What is remembered for the assertions. */

byte disk;
bool writing;                   /* a write of the cell is on its way ... */
byte last;                      /* ... or the last one was, on this one */
byte returned;                  /* the last value whose write returned */
byte want[CLIENTS];             /* the same when its flush was entered */
byte must;                      /* what each read from now on returns */
byte gone;                      /* a close lost the values up to this ... */
bool told;                      /* ... and a flush has failed since */
bool unreported;                /* a flush failed, but no round has yet */
bool owed[CLIENTS];             /* the same when its flush was entered */

/* Never true.  Spin reports the text of an assertion that fails. */
hidden byte Durable, Visible, Overlap, After_close, Errors;

/* The plugin.  The client's "op" is what a request is. */

mtype = { WRITE, NEIGHBOUR, READ };

inline enter (i)
{
  assert (After_close || !conn[i].closed);
  assert (Overlap || !exclusive || conn[i].inside == 0);
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

/* To a read that begins now. */
inline up_to_date (i)
{
  assert (Visible ||
          !conn[i].open || !conn[i].valid || conn[i].value >= must)
}

inline request_enters (i)
{
  enter (i);
  if
  :: op == WRITE
  :: op != WRITE && conn[i].valid -> seen = conn[i].value
  :: op != WRITE && !conn[i].valid -> seen = disk; miss = true
  fi
}

inline request_leaves (i)
{
  if
  :: op == WRITE ->
     conn[i].valid = true;
     conn[i].dirty = true;
     conn[i].value = returned + 1
  :: op != WRITE && miss && !conn[i].valid ->
     conn[i].valid = true;
     conn[i].value = seen;
     up_to_date (i)
  :: else
  fi;
  miss = false;
  leave (i)
}

inline flush_enters (i)
{
  printf ("plugin: flush of connection %d begins\n", i);
  enter (i);
  snapped = conn[i].dirty;
  snap = (snapped -> conn[i].value : 0);
  if
  :: true
  :: !exclusive && conn[i].valid && !conn[i].dirty ->
     drop (i);
     early = true
  fi
}

/* One that fails may have written back before it did. */
inline flush_leaves (i)
{
  if
  :: true
  :: faults > 0 -> failed = true
  :: faults > 0 && snapped -> failed = true; disk = snap
  fi;
  if
  :: failed ->
     faults--;
     unreported = true
  :: !failed && snapped ->
     disk = snap;
     if
     :: conn[i].dirty && conn[i].value == snap ->
        conn[i].dirty = false;
        drop (i)
     :: else
     fi
  :: !failed && !snapped && !conn[i].dirty && !early -> drop (i)
  :: else
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

/* Marks and counts. */

#define in_flight(i) (conn[i].requests[0] + conn[i].requests[1] > 0)
#define marked(i) (conn[i].write_dirty || conn[i].read_marked)

inline mark (i)
{
  if
  :: op == READ -> conn[i].read_marked = true
  :: else -> conn[i].write_dirty = true
  fi
}

inline take_marks (i)
{
  taken_write = conn[i].write_dirty;
  taken_read = conn[i].read_marked;
  conn[i].write_dirty = false;
  conn[i].read_marked = false
}

inline put_back_marks (i)
{
  conn[i].write_dirty = conn[i].write_dirty || taken_write;
  conn[i].read_marked = conn[i].read_marked || taken_read
}

inline untouch (i)
{
  if
#ifdef UNTOUCH_IN_FLIGHT
  :: !marked (i) -> conn[i].touched = false
#else
  :: !marked (i) && !in_flight (i) -> conn[i].touched = false
#endif
  :: else
  fi
}

/* Replicas. */

#define queued(i) (conn[i].replica == REPLICA_QUEUED)

inline queue_replica (i)
{
  conn[i].replica = REPLICA_QUEUED
}

inline signal_phase ()
{
  phase_sleeps = false
}

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

inline outstanding_one_less ()
{
  outstanding--;
  if
  :: outstanding == 0 -> signal_phase ()
  :: else
  fi
}

#if defined (SERIALIZE_REQUESTS) && !defined (NO_EXCLUSION)
#define TAKE_LOCK 1
#else
#define TAKE_LOCK 0
#endif

/* run_replica, to where it lets go of "lock" for the first time. */
inline replica_starts (i)
{
  conn[i].replica = REPLICA_RUNNING;
#if !TAKE_LOCK && !defined (TAKE_AFTER)
  take_marks (i)
#endif
}

/* And from there on. */
inline replica_goes_on (i)
{
  atomic {
#if TAKE_LOCK
    !conn[i].locked;
    conn[i].locked = true;
#ifndef TAKE_AFTER
    take_marks (i);
#endif
#endif
    flush_enters (i)
  }
  atomic {
    flush_leaves (i);
#if TAKE_LOCK
    conn[i].locked = false
#endif
  }
  d_step {
#ifdef TAKE_AFTER
    take_marks (i);
#endif
    if
#ifndef NO_PUT_BACK
    :: failed -> put_back_marks (i)
#endif
    :: else
    fi;
    if
#ifndef NO_STALE_AFTER_FAILURE
    :: failed -> stale = true
#endif
#ifdef NO_STALE_IN_SECOND_PHASE
    :: !failed && taken_write && !phase_two -> stale = true
#else
    :: !failed && taken_write -> stale = true
#endif
    :: else
    fi;
    untouch (i);
    conn[i].replica = NO_REPLICA;
    conn[i].flushed = true;
    conn[i].failed = failed;
    err = err || failed;
    outstanding_one_less ();
#ifndef NO_SIGNAL_LEFT
    conn[i].left_sleeps = false;
#endif
    taken_write = false;
    taken_read = false;
    failed = false
  }
}

active proctype helper ()
{
  byte c, snap;
  bool taken_write, taken_read, snapped, early, failed;

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
  if
  :: waiter[n] == WAITING -> waiter[n] = IN_BATCH
  :: else
  fi
}

inline first_phase (i)
{
  conn[i].flushed = false;
  conn[i].failed = false;
#ifndef NO_SOLO_WAIT
  conn[i].counted = conn[i].solo;
#endif
  if
  :: conn[i].counted -> outstanding++
  :: else
  fi;
  if
  :: conn[i].touched && conn[i].write_dirty ->
     queue_replica (i);
     outstanding++
  :: else
  fi
}

inline second_phase (i)
{
  if
  :: !conn[i].joined || (LEVEL == LEVEL_CONNECTION && !conn[i].touched) ||
     (conn[i].flushed && conn[i].failed)
#ifndef NO_CLOSING
  :: conn[i].joined && conn[i].closing
#endif
#ifdef NO_RECHECK
  :: conn[i].joined && conn[i].flushed
#endif
#ifdef ONE_PHASE
  :: conn[i].joined && conn[i].replica != NO_REPLICA
#endif
  :: else ->
     if
#if !defined (NO_IN_FLIGHT) && !defined (NO_DRAIN)
     :: in_flight (i) ->
        conn[i].epoch = !conn[i].epoch;
        conn[i].draining = true;
        conn[i].replica = REPLICA_DRAINING;
        outstanding++
     :: !in_flight (i) &&
#elif defined (NO_DRAIN)
     :: in_flight (i) ||
#else
     ::
#endif
        (marked (i) || (LEVEL != LEVEL_CONNECTION && !conn[i].flushed)) ->
        queue_replica (i);
        outstanding++
     :: else
     fi
  fi
}

#define need_second_phase \
  (!phase_two && (stale || LEVEL == LEVEL_OFF))

inline begin_second_phase ()
{
  stale = false;
  phase_two = true;
  each_connection (second_phase)
}

inline round_begins ()
{
  printf ("client %d: a round begins\n", me);
  running = true;
  each_client (into_batch);
  err = close_err;
#ifndef KEEP_CLOSE_ERR
  close_err = false;
#endif
  each_connection (first_phase);
#ifdef ONE_PHASE
  if
  :: stale || outstanding > 0 -> begin_second_phase ()
  :: else
  fi
#endif
}

/* A flush of the batch returns as soon as it can: that is when the most
 * is asked of it.
 */
inline flush_returns (n)
{
  if
  :: waiter[n] == IN_BATCH ->
     printf ("client %d: flush returns, failed %d\n", n, err);
     waiter[n] = NO_FLUSH;
     if
     :: err -> told = true
     :: else ->
        assert (Durable || disk >= want[n] || (told && gone >= want[n]));
        assert (Errors || !(owed[n] && unreported));
        if
        :: disk >= want[n] && must < want[n] -> must = want[n]
        :: else
        fi
     fi;
     want[n] = 0;
     owed[n] = false
  :: else
  fi;
  finished_sleeps[n] = false
}

inline round_ends ()
{
  running = false;
  phase_two = false;
  assert (Errors || !err || unreported);
  if
  :: err -> unreported = false
  :: else
  fi;
  each_client (flush_returns);
  err = false;
  each_connection (up_to_date)
}

/* What nbdkit's multi-conn filter does: a mark is set before the request
 * and cleared after the flush, there is one pass, it excludes no request,
 * and a close does not flush.
 */
bool filter_locked;

inline filter_flush (i)
{
  if
  :: conn[i].joined &&
     (conn[i].write_dirty || (one && conn[i].read_marked)) ->
     atomic { flush_enters (i) }
     atomic { flush_leaves (i) }
     d_step {
       conn[i].write_dirty = false;
       conn[i].read_marked = false;
       failed = false
     }
  :: else
  fi
}

/* The server and its clients. */

/* Clients are alike, and connections too: it is the first client that
 * begins, and the first connection that is used first.
 */
bool begun, used;
#define may_begin (begun || me == 0)
#ifdef ENDLESS
#define take_from(budget) skip
#define may_use(i) (i == 0)
#else
#define take_from(budget) budget--
#define may_use(i) (used || i == 0)
#endif
#define usable(i)                                               \
  (may_begin && may_use (i) &&                                  \
   conn[i].open && (!exclusive || conn[i].users == 0))

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
     !writing && (last == i || must == returned) ->             \
     writes--;                                                  \
     begin_on (i); c = i; op = WRITE;                           \
     writing = true; last = i;                                  \
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
     begun = true; joins (i);                                   \
     goto idle

inline request_returns (i)
{
  printf ("client %d: %e on connection %d returns, cell %d\n",
          me, op, i, (op == WRITE -> returned + 1 : seen));
  if
  :: op == WRITE -> returned++; writing = false
  :: op == READ -> assert (Visible || seen >= floor)
  :: else
  fi;
  conn[i].locked = false;
  conn[i].users--;
  seen = 0;
  floor = 0;
  op = 0;
  c = 0
}

inline flush_is_over ()
{
  if
  :: self < CONNECTIONS -> conn[self].users--
  :: else
  fi;
  self = 0
}

inline joins (i)
{
  conn[i].closed = false;
  conn[i].joined = true;
  conn[i].open = true
}

inline leaves (i)
{
  conn[i].joined = false;
  conn[i].touched = false;
  conn[i].write_dirty = false;
  conn[i].read_marked = false;
  conn[i].epoch = false;
  conn[i].flushed = false;
  conn[i].failed = false;
  conn[i].closing = false;
  conn[i].counted = false
}

active [CLIENTS] proctype client ()
{
  byte self;                    /* what its flush came in on */
  byte c, seen, floor, snap;
  mtype op;
  bool one, miss, taken_write, taken_read, snapped, early, failed;

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
#if defined (NO_MARK_AFTER) || defined (FILTER)
  atomic {
    !filter_locked;
    mark (c);
    conn[c].touched = true
  }
#endif
  atomic {
    !conn[c].locked;
    conn[c].locked = exclusive;
    printf ("client %d: %e on connection %d begins\n", me, op, c);
    one = conn[c].epoch;
    conn[c].requests[one]++;
    if
    :: conn[c].touched -> goto touched
    :: else
    fi
  }
  conn[c].touched = true;
touched:
  atomic { request_enters (c) }
  atomic { request_leaves (c) }
  atomic {
#if !defined (NO_MARK_AFTER) && !defined (FILTER)
    mark (c);
#endif
    conn[c].requests[one]--;
    one = false;
    if
    :: conn[c].draining -> goto drained
    :: else -> request_returns (c); goto idle
    fi
  }
drained:
  atomic {
    if
    :: conn[c].replica == REPLICA_DRAINING &&
#ifdef NO_EPOCH
       !in_flight (c) ->
#else
       conn[c].requests[1 - conn[c].epoch] == 0 ->
#endif
       conn[c].draining = false;
       queue_replica (c)
#ifndef NO_SIGNAL_DRAINED
       ; signal_phase ()
#endif
    :: else
    fi;
    request_returns (c);
    goto idle
  }

flush:
#ifdef FILTER
  atomic {
    !filter_locked;
    filter_locked = true;
    want[me] = returned;
    waiter[me] = IN_BATCH;
    one = conn[0].write_dirty || conn[1].write_dirty
  }
  filter_flush (0);
  filter_flush (1);
  atomic {
    filter_locked = false;
    one = false;
    round_ends ();
    flush_is_over ();
    goto idle
  }
#else
  atomic {
    printf ("client %d: flush begins\n", me);
    want[me] = returned;
    owed[me] = unreported;
#ifdef SHARE_RUNNING
    waiter[me] = (running -> IN_BATCH : WAITING);
#else
    waiter[me] = WAITING;
#endif
    if
    :: !running -> round_begins (); goto round
    :: else -> finished_sleeps[me] = true
    fi
  }
finished:
  atomic {
    !finished_sleeps[me];
    if
    :: waiter[me] == NO_FLUSH -> flush_is_over (); goto idle
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
       outstanding == 0 && need_second_phase ->
       printf ("client %d: the second phase begins\n", me);
       begin_second_phase ()
     }
  :: atomic {
       outstanding == 0 && !need_second_phase ->
       round_ends ();
       flush_is_over ();
       goto idle
     }
  od;
#endif

close:
#ifdef FILTER
  atomic {
    !filter_locked;
    leaves (c);
    goto left
  }
#endif
  do
  :: atomic { queued (c) -> replica_starts (c) }
     replica_goes_on (c)
#ifdef NO_CLOSE_WAIT
  :: atomic {
       !queued (c) ->
#else
  :: atomic {
       conn[c].replica == REPLICA_RUNNING ||
       conn[c].replica == REPLICA_DRAINING ->
       conn[c].left_sleeps = true;
       !conn[c].left_sleeps
     }
  :: atomic {
       conn[c].replica == NO_REPLICA ->
#endif
       conn[c].closing = true;
       if
#ifndef NO_CLOSE_FLUSH
       :: conn[c].write_dirty ->
          take_marks (c);
          taken_write = false;
          taken_read = false;
          conn[c].solo = true;
          goto solo
#endif
       :: else ->
          stale = stale || conn[c].write_dirty;
          leaves (c);
          goto left
       fi
     }
  od;
solo:
  atomic {
    !conn[c].locked;
    conn[c].locked = exclusive;
    flush_enters (c)
  }
  atomic {
    flush_leaves (c);
    conn[c].locked = false;
    if
    :: failed && conn[c].dirty -> gone = conn[c].value; told = false
    :: else
    fi
  }
  d_step {
    conn[c].solo = false;
    if
    :: conn[c].counted ->
#ifndef NO_SOLO_ERR
       err = err || failed;
#endif
       outstanding_one_less ()
#ifndef NO_CLOSE_ERR
    :: !conn[c].counted && failed -> close_err = true
#endif
    :: else
    fi;
    failed = false;
#ifndef NO_STALE_AFTER_CLOSE
    stale = true;
#endif
    leaves (c)
  }
left:
  atomic { plugin_close (c); c = 0; goto idle }
}

init {
  atomic { each_connection (joins) }
}

#ifdef ENDLESS
ltl { [] (running -> <> !running) }
#endif
