/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Looks for writes that a server with several connections lost, or showed
 * too late.
 *
 * Each thread has a block which no other thread writes, and stamps it with
 * versions that only grow.  In a loop it writes the next version on one
 * connection, perhaps others on others, each after the reply to the one
 * before, flushes on another (or writes with FUA), then reads its own
 * block and another thread's on others.  A version is published when the
 * reply to that flush has come; every read that begins later, on any
 * connection, must find it or a newer one; and so must a new connection at
 * the end, with everything closed.
 *
 * The checker asks only for what the NBD protocol promises:
 *
 * - A write that got no reply may reach the disk at any later time, for
 *   the server may still have it when the client has cut the connection.
 *   The thread leaves that block alone and goes on with a fresh one.
 * - A flush without a good reply publishes nothing.
 * - Of two writes, the second begun after the reply to the first, the second
 *   wins, on whichever connections.
 * - With --allow-errors, a write that failed may be there or not, and may
 *   still come later, until a flush succeeds: that flush publishes nothing.
 *   Nor does it if the write's connection was closed before the reply:
 *   the flush before that close may be the one that failed, and another
 *   client got the error.
 * - Zeroes carry no version.  They are right as long as no write is
 *   published that is newer than the newest zero.
 * - After a trim anything is right, until a newer write is published.
 * - A block status that says zero counts as a read of zeroes, and one that
 *   says data is never wrong.
 *
 * With --own-order each connection is tested alone for what it promises
 * without any flush: a request that begins after the reply to another sees
 * what that one did.  Each thread then has a run of blocks.  All its
 * requests go to one connection, and begin and end anywhere in the run.  A
 * reply publishes, and readers on the same connection must see the version.
 * With --churn a connection is replaced once it has nothing in flight and
 * has been flushed.
 *
 * Commands go through libnbd's asynchronous calls, so that several are in
 * flight on one connection.  There is no thread for each connection: whoever
 * waits for a reply polls the socket, and handles whatever arrives.
 */

#define _GNU_SOURCE             /* For the kind of a lock. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libnbd.h>

#include "checker.h"

#define REPLY_TIMEOUT 30        /* Seconds. */
#define MOST_WRITES 3           /* Without a flush between. */
#define CHURN_EVERY 32          /* Loops, on average. */
#define RUN 12                  /* Blocks that one command may cover. */

enum op { READ, CACHE, STATUS, WRITE, ZERO, TRIM, FLUSH };

/* How a connection ends: when its commands are done, by an NBD_CMD_DISC
 * beside them, or without one.  Errors are normal in the last two.
 */
enum end { ORDERLY, EARLY, CUT };

struct connection {
  struct nbd_handle *nbd;
  pthread_mutex_t turn;         /* --one-at-a-time: held by a command. */
  pthread_mutex_t reply_lock;   /* One thread at a time looks for replies. */
  unsigned number;              /* In order of opening. */
  atomic_uint users;            /* Commands, and the slot. */
  atomic_int end;               /* An enum end. */
};

/* Versions start at 1; 0 is none yet.  Only the owner changes them. */
struct block {
  atomic_uint begun;            /* The newest that was sent, */
  atomic_uint zeroed, trimmed;  /* the newest sent as a zero, as a trim, */
  atomic_uint published;        /* and the newest that must be seen. */
  /* For the report: by which connections the last were written and flushed, */
  atomic_uint written_on[MOST_WRITES + 1], flushed_on;
  atomic_uint before;           /* what was published before, */
  atomic_bool through, closed;  /* whether FUA published it, or a flush after
                                 * its connection was closed. */
};

struct command {
  struct connection *conn;      /* NULL if there is nothing to wait for. */
  enum op op;
  struct block *block;          /* The first, */
  unsigned count;               /* of so many, */
  unsigned floors[RUN];         /* A read must not find less than these. */
  uint64_t *data;
  int wake;                     /* The thread's. */
  int error;
  atomic_bool done;
};

struct thread {
  pthread_t id;
  unsigned index;
  uint64_t random_state;
  int wake;                     /* eventfd: one of its commands is done. */
  struct command command;
  struct command *ahead;        /* Reads beside the write and the flush. */
  struct block *own;            /* --own-order: the first of the run. */
  _Atomic (struct block *) shown; /* Own, once it has a published version. */
  unsigned version;             /* The last that it has sent. */
  /* What the newest version of its own block waits for: nothing, a flush
   * that publishes it, or a flush that does not, but after which a version
   * that has not come yet can no longer come.
   */
  enum { SETTLED, UNFLUSHED, UNKNOWN } own_is;
  bool unanswered;              /* A command got no reply. */
  unsigned written_slot, written_on, flushed_on;
  uint64_t operations;
};

static struct thread *threads;
static struct block *blocks;
static uint64_t nr_blocks;
static uint32_t salt;           /* Tells our data from earlier runs'. */
static atomic_uint next_block, next_number;
static const struct server *server;

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection **slots;

static double began;
static atomic_bool stop, failed, killed;
static atomic_ulong wrong, errors, reconnections, publications;
static atomic_ulong flushes, reads;

/* Print what made the test impossible, unless something did before. */
static void
fail (const char *what, const char *why)
{
  if (!atomic_exchange (&failed, true))
    fprintf (stderr, "consistency: %s: %s\n", what, why);
  stop = true;
}

static unsigned
pick (struct thread *t, unsigned n)
{
  return mix (&t->random_state) % n;
}

static void *
allocate (size_t n, size_t size)
{
  void *p = calloc (n + 1, size);

  if (!p) {
    perror ("consistency: calloc");
    exit (2);
  }
  return p;
}

/* Connections ***********************************************************/

/* A connection with one user, the caller.  Returns NULL on error. */
static struct connection *
open_connection (void)
{
  struct connection *conn = allocate (1, sizeof *conn);

  conn->nbd = server->open ();
  if (!conn->nbd) {
    errors += !killed;
    if (!allow_errors && !killed)
      fail ("connect", server->error ());
    free (conn);
    return NULL;
  }
  pthread_mutex_init (&conn->turn, NULL);
  pthread_mutex_init (&conn->reply_lock, NULL);
  conn->users = 1;
  conn->number = next_number++;
  return conn;
}

/* For connections that are indispensable. */
static struct connection *
open_at_last (void)
{
  struct connection *conn = NULL;

  for (unsigned i = 0; !conn && !failed && i < 100; ++i)
    conn = open_connection ();
  if (!conn) {
    fail (uri, nbd_get_error ());
    exit (2);
  }
  return conn;
}

static struct connection *
get_connection (unsigned slot)
{
  struct connection *conn;

  pthread_mutex_lock (&slots_lock);
  conn = slots[slot];
  conn->users++;
  pthread_mutex_unlock (&slots_lock);
  return conn;
}

static void
put_connection (struct connection *conn)
{
  if (--conn->users > 0)
    return;
  if (conn->end == ORDERLY)
    nbd_shutdown (conn->nbd, 0);
  nbd_close (conn->nbd);
  free (conn);
}

/* Put a connection in a slot, and end the old one in one of the ways. */
static void
replace_connection (struct thread *t, unsigned slot, struct connection *conn)
{
  struct connection *old;
  enum end end = pick (t, CUT + 1);
  unsigned busy;

  pthread_mutex_lock (&slots_lock);
  old = slots[slot];
  slots[slot] = conn;
  busy = old->users - 1;
  pthread_mutex_unlock (&slots_lock);

  /* In the PARALLEL model, nbdkit 1.32 aborts when two replies to one
   * client fail ("raw_send_socket: Assertion `sock >= 0' failed").
   */
  if (end == CUT && busy > 1 && !hard_cuts)
    end = EARLY;
  /* Commands that fail use up fresh blocks: none may fail when these run
   * out.
   */
  if (next_block + 2 * nr_threads >= nr_blocks)
    end = ORDERLY;

  old->end = end;               /* First: commands fail from here on. */
  if (end == EARLY)
    nbd_aio_disconnect (old->nbd, 0);
  else if (end == CUT)
    shutdown (nbd_aio_get_fd (old->nbd), SHUT_RDWR);
  put_connection (old);
  reconnections++;
}

/* Commands **************************************************************/

static int
completed (void *opaque, int *error)
{
  struct command *cmd = opaque;
  const int wake = cmd->wake;

  cmd->error = *error;
  cmd->done = true;             /* From here on *cmd is the thread's. */
  eventfd_write (wake, 1);
  return 1;
}

static uint64_t
offset_of (const struct block *b)
{
  return range_offset + (b - blocks) * block_size;
}

/* A block that is reported as zero counts as read as zeroes.  (The data of
 * the others is already filled in.)
 */
static int
mapped (void *opaque, const char *context, uint64_t offset,
        uint32_t *entries, size_t nr_entries, int *error)
{
  struct command *cmd = opaque;
  uint8_t *data = (uint8_t *) cmd->data;
  const uint64_t end = cmd->count * block_size;
  uint64_t at = offset - offset_of (cmd->block);

  (void) context;
  (void) error;
  for (size_t i = 0; i + 1 < nr_entries && at < end; i += 2) {
    const uint64_t n = entries[i] < end - at ? entries[i] : end - at;

    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      memset (data + at, 0, n);
    at += n;
  }
  return 0;
}

/* COUNT blocks from B on.  Takes over the caller's reference to the
 * connection.
 */
static void
submit (struct thread *t, struct command *cmd, enum op op,
        struct connection *conn, struct block *b, unsigned count,
        uint32_t flags)
{
  struct nbd_handle *nbd = conn->nbd;
  const nbd_completion_callback cb = { completed, cmd, NULL };
  const nbd_extent_callback map = { mapped, cmd, NULL };
  const uint64_t offset = offset_of (b), length = count * block_size;
  void *data = (uint8_t *) cmd->data;
  int64_t r = -1;

  if (one_at_a_time)
    pthread_mutex_lock (&conn->turn);
  cmd->conn = conn;
  cmd->op = op;
  cmd->block = b;
  cmd->count = count;
  cmd->wake = t->wake;
  cmd->done = false;
  switch (op) {
  case READ: r = nbd_aio_pread (nbd, data, length, offset, cb, 0); break;
  case CACHE: r = nbd_aio_cache (nbd, length, offset, cb, 0); break;
  case STATUS:
    r = nbd_aio_block_status (nbd, length, offset, map, cb, 0);
    break;
  case WRITE: r = nbd_aio_pwrite (nbd, data, length, offset, cb, flags); break;
  case ZERO: r = nbd_aio_zero (nbd, length, offset, cb, flags); break;
  case TRIM: r = nbd_aio_trim (nbd, length, offset, cb, flags); break;
  case FLUSH: r = nbd_aio_flush (nbd, cb, 0); break;
  }
  if (r == -1) {
    cmd->error = EIO;
    cmd->done = true;
  }
}

static struct pollfd
poll_of (struct nbd_handle *nbd)
{
  const unsigned dir = nbd_aio_get_direction (nbd);

  return (struct pollfd) {
    .fd = nbd_aio_get_fd (nbd),
    .events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
      (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0)
  };
}

/* Wait for the reply, and let go of the connection.  Returns true if the
 * command succeeded.
 */
static bool
finish (struct thread *t, struct command *cmd)
{
  struct connection *conn = cmd->conn;
  struct nbd_handle *nbd = conn->nbd;

  while (!cmd->done) {
    struct pollfd fds[2] = { poll_of (nbd), { t->wake, POLLIN, 0 } };
    eventfd_t ignore;

    if (poll (fds, 2, REPLY_TIMEOUT * 1000) == 0) {
      fprintf (stderr, "consistency: no reply on connection %u for %d s\n",
               conn->number, REPLY_TIMEOUT);
      exit (2);
    }
    if (fds[1].revents)
      eventfd_read (t->wake, &ignore);

    /* Another thread may have been faster.  If libnbd is told of a reply that
     * is not there, it waits for one, and sends nothing before it.
     */
    pthread_mutex_lock (&conn->reply_lock);
    fds[0] = poll_of (nbd);
    if (poll (fds, 1, 0) == 1) {
      if (fds[0].revents & ~POLLOUT)
        nbd_aio_notify_read (nbd);
      else
        nbd_aio_notify_write (nbd);
    }
    pthread_mutex_unlock (&conn->reply_lock);
  }

  if (one_at_a_time)
    pthread_mutex_unlock (&conn->turn);
  if (cmd->error && (conn->end >= EARLY || killed))
    t->unanswered = true;
  else if (cmd->error) {
    errors++;
    if (!allow_errors || nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd))
      fail ("a command", strerror (cmd->error));
  }
  put_connection (conn);
  cmd->conn = NULL;
  return cmd->error == 0;
}

static bool
flush_slot (struct thread *t, unsigned slot)
{
  struct connection *conn = get_connection (slot);

  t->flushed_on = conn->number;
  flushes++;
  submit (t, &t->command, FLUSH, conn, t->own, 0, 0);
  return finish (t, &t->command);
}

/* Reads *****************************************************************/

static uint64_t
stamp (const struct block *b, unsigned version)
{
  return (uint64_t) (uint32_t) (b - blocks + 1 + salt) << 32 | version;
}

/* Has this word been written to the block, by this run? */
static bool
is_stamp (const struct block *b, uint64_t word)
{
  return word != 0 && word >> 32 == stamp (b, 0) >> 32;
}

/* Returns the first word that the blocks must not hold, or NULL, and sets
 * *WHICH to its block.  Each word is checked by itself, for a read that
 * overlaps a write may find some of both.
 */
static const uint64_t *
find_bad_word (const struct command *cmd, unsigned *which)
{
  const uint64_t *w = cmd->data, *end = cmd->data;

  for (unsigned i = *which = 0; i < cmd->count; *which = ++i) {
    const struct block *b = cmd->block + i;
    const unsigned floor = cmd->floors[i], begun = b->begun,
      zeroed = b->zeroed;

    end += block_size / 8;
    if (b->trimmed > 0 && b->trimmed >= floor)
      w = end;
    for (; w < end; ++w)
      if (*w == 0 ? zeroed < floor :
          is_stamp (b, *w) ? (uint32_t) *w < floor || (uint32_t) *w > begun :
          floor > 0)
        return w;
  }
  return NULL;
}

static void
start_read (struct thread *t, struct command *cmd, enum op op,
            struct connection *conn, struct block *block, unsigned count)
{
  for (unsigned i = 0; i < count; ++i) {
    cmd->floors[i] = block[i].published;
    for (uint64_t j = 0; op == STATUS && j < block_size / 8; ++j)
      cmd->data[i * block_size / 8 + j] = stamp (&block[i], block[i].begun);
  }
  submit (t, cmd, op, conn, block, count, 0);
  reads++;
}

static unsigned
writer_of (const struct block *b, uint32_t version)
{
  return b->written_on[version % (MOST_WRITES + 1)];
}

/* For a person: what was written and published, and what a read found. */
static void
tell_story (const struct block *b, unsigned read_on, uint64_t word,
            bool status, bool at_end)
{
  const uint64_t at = offset_of (b);
  const unsigned writer = writer_of (b, b->published) + 1;
  /* Was what it found written after what was published before? */
  const bool trim = !is_stamp (b, word) && b->trimmed > b->before;
  const unsigned older = is_stamp (b, word) ? (uint32_t) word :
    trim ? b->trimmed : word == 0 ? b->zeroed : 0;
  const bool order = !own_order && !check && older > b->before &&
    older < b->published && writer_of (b, older) + 1 != writer;

  if (order)
    printf ("step: connection %u %s at %" PRIu64 "\n",
            writer_of (b, older) + 1, trim ? "trimmed" : word ? "wrote B" :
            "zeroed", at);
  if (own_order && b->trimmed)
    printf ("step: connection %u trimmed at %" PRIu64 "\n", writer, at);
  printf ("step: connection %u %s at %" PRIu64 "%s\n", writer,
          b->zeroed == b->published ? "zeroed" : "wrote A", at,
          b->through ? " with FUA" : "");
  if (b->closed)
    printf ("step: connection %u closed\n", writer);
  if (!own_order && !b->through)
    printf ("step: connection %u flushed\n", b->flushed_on + 1);
  if (check)
    puts ("step: the server was killed and started again");
  else if (at_end)
    puts ("step: all connections were closed");
  printf ("step: ");
  if (at_end)
    printf ("a new connection ");
  else
    printf ("connection %u ", read_on + 1);
  printf ("%s at %" PRIu64 "%s\n", status ? "was told of zeroes" :
          word == 0 ? "read zeroes" : is_stamp (b, word) ? "read B" :
          "read what was there before", at,
          is_stamp (b, word) ? ", which is older" : "");
  printf ("found: %s\n", check ? "crash" : status ? "extents" :
          own_order ? "own" : order ? "order" :
          at_end || b->closed ? "lost" : "overlap");
}

static void
finish_read (struct thread *t, struct command *cmd, bool at_end)
{
  struct connection *conn = cmd->conn;
  bool status = cmd->op == STATUS;
  const uint64_t *bad = NULL;
  struct block *b;
  unsigned which;
  uint64_t word;

  conn->users++;
  if (finish (t, cmd) && cmd->op != CACHE)
    bad = find_bad_word (cmd, &which);
  if (!bad || wrong++ > 0) {
    put_connection (conn);
    return;
  }
  word = *bad;                  /* The buffer is used again. */
  b = cmd->block + which;
  which = conn->number;
  /* Are the extents wrong, or is the data? */
  start_read (t, cmd, READ, conn, b, 1);
  status &= finish (t, cmd) && !find_bad_word (cmd, &(unsigned) { 0 });
  tell_story (b, which, word, status, at_end);
}

/* One of the requests that may leave something in a cache. */
static enum op
pick_read (struct thread *t)
{
  const unsigned kind = pick (t, 8);

  return !mixed ? READ : kind == 0 && server->can_cache ? CACHE :
    kind <= 2 && server->can_map ? STATUS : READ;
}

/* Start to read a block on some connection, unless it has no published
 * version.  The choice is made in any case, so that a seed can be replayed.
 */
static void
start_read_somewhere (struct thread *t, struct command *cmd, struct block *b)
{
  const unsigned slot = pick (t, nr_connections);
  const enum op op = pick_read (t);

  if (b->published > 0)
    start_read (t, cmd, op, get_connection (slot), b, 1);
}

static void
read_block (struct thread *t, struct block *b)
{
  start_read_somewhere (t, &t->command, b);
  if (t->command.conn)
    finish_read (t, &t->command, false);
}

static struct thread *
another (struct thread *t)
{
  unsigned i = t->index;

  if (nr_threads > 1)
    i = (i + 1 + pick (t, nr_threads - 1)) % nr_threads;
  return &threads[i];
}

/* Writes ****************************************************************/

static void
take_fresh_block (struct thread *t)
{
  const unsigned i = next_block++;

  t->own_is = SETTLED;
  if (i < nr_blocks)
    t->own = &blocks[i];
  else
    fail ("the export is too small", "no fresh block is left");
}

/* What a reply has promised must survive this. */
static void
kill_server (void)
{
  if (atomic_exchange (&killed, true))
    return;
  stop = true;
  if (kill (victim, SIGKILL) == -1)
    fail ("kill", strerror (errno));
}

static void
publish (struct thread *t, unsigned flushed_on, bool through)
{
  t->own_is = SETTLED;
  t->own->flushed_on = flushed_on;
  t->own->through = through;
  t->own->closed = false;
  t->own->before = t->own->published;
  t->own->published = t->own->begun;
  t->shown = t->own;
  if (++publications == max_operations && victim)
    kill_server ();
}

/* Write, zero or trim. */
static void
start_version (struct thread *t, struct connection *conn, enum op op,
               struct block *b, unsigned count, uint32_t flags)
{
  struct command *cmd = &t->command;
  const unsigned version = ++t->version;

  for (unsigned i = 0; i < count; ++i) {
    for (uint64_t j = 0; j < block_size / 8; ++j)
      cmd->data[i * block_size / 8 + j] = stamp (&b[i], version);
    t->written_on = conn->number;
    b[i].written_on[version % (MOST_WRITES + 1)] = conn->number;
    if (op == ZERO)
      b[i].zeroed = version;
    if (op == TRIM)
      b[i].trimmed = version;
    b[i].begun = version;
  }
  submit (t, cmd, op, conn, b, count, flags);
}

/* Some writes, each after the reply to the one before, on whichever
 * connections: the last must win.
 */
static void
write_own (struct thread *t)
{
  bool ok = true;

  t->unanswered = false;
  t->own_is = UNFLUSHED;
  for (unsigned left = pick (t, MOST_WRITES) + 1; left > 0 && ok; --left) {
    const unsigned slot = t->written_slot = pick (t, nr_connections);
    const unsigned kind = pick (t, 8), fua = pick (t, 4);
    const uint32_t flags = server->can_fua && fua == 0 ?
      LIBNBD_CMD_FLAG_FUA : 0;
    /* What a trim leaves is known only after a write. */
    const enum op op = kind <= 1 && server->can_zero ? ZERO :
      kind == 2 && server->can_trim && left > 1 ? TRIM : WRITE;

    start_version (t, get_connection (slot), op, t->own, 1, flags);
    ok = finish (t, &t->command);
    if (ok && op != TRIM && flags)
      publish (t, t->written_on, true);
    else
      t->own_is = UNFLUSHED;
  }
  if (t->unanswered)
    take_fresh_block (t);
  else if (!ok)
    t->own_is = UNKNOWN;
}

static void
flush_own (struct thread *t)
{
  struct connection *conn;
  bool closed;

  if (!flush_slot (t, pick (t, nr_connections)))
    return;
  conn = get_connection (t->written_slot);
  closed = conn->number != t->written_on;
  put_connection (conn);
  if (t->own_is == UNFLUSHED && !(allow_errors && closed)) {
    publish (t, t->flushed_on, false);
    t->own->closed = closed;
  }
  t->own_is = SETTLED;
}

static bool
goes_on (const struct thread *t)
{
  const uint64_t share = max_operations / nr_threads +
    (t->index < max_operations % nr_threads);

  return !stop && (seconds == 0 || now () - began < seconds) &&
    (max_operations == 0 || victim || t->operations < share);
}

static void *
work (void *arg)
{
  struct thread *t = arg;

  while (goes_on (t)) {
    struct connection *spare;

    if (reads_first) {
      read_block (t, t->own);
      read_block (t, another (t)->shown);
    }
    for (unsigned i = 0; i < nr_ahead; ++i)
      start_read_somewhere (t, &t->ahead[i], another (t)->shown);
    /* Opened now, so that there is no time for another thread's flush
     * between the write and the end of its connection.
     */
    spare = churn && pick (t, CHURN_EVERY) == 0 ? open_connection () : NULL;
    if (spare) {                /* Has it begun with an old copy? */
      spare->users++;
      start_read (t, &t->command, pick_read (t), spare, another (t)->shown, 1);
      finish_read (t, &t->command, false);
    }
    if (t->own_is == SETTLED)
      write_own (t);
    if (spare)
      replace_connection (t, pick (t, 2) ? t->written_slot :
                          pick (t, nr_connections), spare);
    if (t->own_is != SETTLED)
      flush_own (t);
    for (unsigned i = 0; i < nr_ahead; ++i)
      if (t->ahead[i].conn)
        finish_read (t, &t->ahead[i], false);
    read_block (t, t->own);
    read_block (t, another (t)->shown);
    t->operations++;
  }
  return NULL;
}

/* A connection's own order **********************************************/

/* The first block of a thread's run, which lies across a multiple of the
 * stripe, and does not overlap another thread's.
 */
static uint64_t
run_of (unsigned index)
{
  const uint64_t step = stripe / block_size;

  if (step == 0)
    return index * RUN;
  return (index + 1) * step * ((RUN + step - 1) / step) - RUN / 2;
}

static void
start_read_of_run (struct thread *t, struct command *cmd, struct thread *owner)
{
  const unsigned first = pick (t, RUN), count = 1 + pick (t, RUN - first);

  start_read (t, cmd, pick_read (t),
              get_connection (owner->index % nr_connections),
              owner->own + first, count);
}

static void
write_in_run (struct thread *t)
{
  const unsigned first = pick (t, RUN), count = 1 + pick (t, RUN - first);
  const unsigned kind = pick (t, 8), fua = pick (t, 8);
  const enum op op = kind == 0 && server->can_zero ? ZERO :
    kind == 1 && server->can_trim ? TRIM : WRITE;
  struct block *b = t->own + first;

  start_version (t, get_connection (t->index % nr_connections), op, b, count,
                 server->can_fua && fua == 0 ? LIBNBD_CMD_FLAG_FUA : 0);
  /* A trim may do nothing. */
  if (finish (t, &t->command) && op != TRIM)
    for (unsigned i = 0; i < count; ++i)
      b[i].published = b[i].begun;
}

/* Held to read by threads with commands in flight, to write for none. */
static pthread_rwlock_t in_flight =
  PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

/* Replace the thread's connection by a new one. */
static void
renew_connection (struct thread *t)
{
  const unsigned slot = t->index % nr_connections;
  struct connection *spare;

  pthread_rwlock_wrlock (&in_flight);
  spare = flush_slot (t, slot) ? open_connection () : NULL;
  if (spare)
    replace_connection (t, slot, spare);
  pthread_rwlock_unlock (&in_flight);
}

static void *
work_in_order (void *arg)
{
  struct thread *t = arg;

  while (goes_on (t)) {
    if (churn && pick (t, CHURN_EVERY) == 0)
      renew_connection (t);
    pthread_rwlock_rdlock (&in_flight);
    for (unsigned i = 0; i < nr_ahead; ++i)
      start_read_of_run (t, &t->ahead[i], another (t));
    for (unsigned i = 1 + pick (t, 3); i > 0; --i)
      write_in_run (t);
    if (pick (t, 4) == 0)
      flush_slot (t, t->index % nr_connections);
    start_read_of_run (t, &t->command, t);
    finish_read (t, &t->command, false);
    for (unsigned i = 0; i < nr_ahead; ++i)
      finish_read (t, &t->ahead[i], false);
    pthread_rwlock_unlock (&in_flight);
    t->operations++;
  }
  /* What is written is checked once more when everything is closed. */
  pthread_rwlock_rdlock (&in_flight);
  for (unsigned i = 0; i < 100 && !failed; ++i)
    if (flush_slot (t, t->index % nr_connections))
      break;
  pthread_rwlock_unlock (&in_flight);
  return NULL;
}

/* The end ***************************************************************/

/* Close everything: what cannot be read then is lost. */
static void
check_all_blocks (void)
{
  for (unsigned i = 0; i < nr_connections; ++i)
    put_connection (slots[i]);
  if (failed)
    return;
  slots[0] = open_at_last ();
  for (uint64_t i = 0; i < nr_blocks; ++i) {
    if (blocks[i].published > 0) {
      start_read (&threads[0], &threads[0].command, READ, get_connection (0),
                  &blocks[i], 1);
      finish_read (&threads[0], &threads[0].command, true);
    }
  }
  put_connection (slots[0]);
}

/* What the blocks must hold when the server runs again. */
static void
save_blocks (void)
{
  FILE *fp = fopen (save, "w");

  if (!fp || fwrite (&salt, sizeof salt, 1, fp) != 1 ||
      fwrite (blocks, sizeof *blocks, nr_blocks, fp) != nr_blocks ||
      fclose (fp) == EOF) {
    perror (save);
    exit (2);
  }
}

static void
load_blocks (void)
{
  FILE *fp = fopen (check, "r");

  if (!fp || fread (&salt, sizeof salt, 1, fp) != 1 ||
      fread (blocks, sizeof *blocks, nr_blocks, fp) != nr_blocks) {
    fprintf (stderr, "consistency: %s: must be what --save wrote\n", check);
    exit (2);
  }
  fclose (fp);
}

static void
prepare (struct thread *t, unsigned index)
{
  t->index = index;
  t->random_state = seed + index;
  t->random_state = mix (&t->random_state);
  t->wake = eventfd (0, EFD_CLOEXEC|EFD_NONBLOCK);
  t->command.data = allocate (RUN, block_size);
  t->ahead = allocate (nr_ahead, sizeof *t->ahead);
  for (unsigned i = 0; i < nr_ahead; ++i)
    t->ahead[i].data = allocate (RUN, block_size);
  if (!own_order)
    take_fresh_block (t);
  else if (run_of (index) + RUN <= nr_blocks)
    t->own = &blocks[run_of (index)];
  else
    fail ("the export is too small", "no room for the threads' blocks");
  t->shown = t->own;
}

int
check_overlaps (const struct server *with)
{
  uint64_t operations = 0;
  double took;

  server = with;
  salt = now () * 1000;
  slots = allocate (nr_connections, sizeof *slots);
  for (unsigned i = 0; i < nr_connections; ++i)
    slots[i] = open_at_last ();
  nr_blocks = server->size / block_size;
  blocks = allocate (nr_blocks, sizeof *blocks);

  threads = allocate (nr_threads, sizeof *threads);
  for (unsigned i = 0; i < nr_threads; ++i)
    prepare (&threads[i], i);
  if (failed)
    exit (2);
  if (check) {
    load_blocks ();
    check_all_blocks ();
    return wrong > 0 ? 1 : failed ? 2 : 0;
  }

  began = now ();
  for (unsigned i = 0; i < nr_threads; ++i)
    if (pthread_create (&threads[i].id, NULL, own_order ? work_in_order : work,
                        &threads[i]) != 0) {
      perror ("consistency: pthread_create");
      exit (2);
    }
  for (unsigned i = 0; i < nr_threads; ++i) {
    pthread_join (threads[i].id, NULL);
    operations += threads[i].operations;
  }
  took = now () - began;
  if (victim) {
    kill_server ();
    save_blocks ();
  }
  else
    check_all_blocks ();

  printf ("operations: %" PRIu64 "\n", operations);
  printf ("operations_per_second: %.0f\n", operations / took);
  printf ("flushes: %lu\nreads: %lu\n", flushes, reads);
  printf ("reconnections: %lu\n", reconnections);
  printf ("wrong: %lu\nerrors: %lu\n", wrong, errors);
  return wrong > 0 ? 1 : failed ? 2 : 0;
}
