/* Looks for writes that a server with several connections lost, or showed
 * too late.
 *
 * Each thread has a block which no other thread writes, and stamps it with
 * versions that only grow.  In a loop it writes the next version on one
 * connection, flushes on another (or writes with FUA), then reads its own
 * block and another thread's on others.  A version is published when the
 * reply to that flush has come; whatever read begins afterwards, wherever,
 * has to find it or a newer one.  Otherwise it was stale; or the version is
 * lost, if every connection is flushed and a new one does not see it, or it
 * is not there at the end, with everything closed.
 *
 * Only what the NBD protocol promises is asked for:
 *
 * - A write without a good reply may reach the disk at any later time, for
 *   the server may still have it when the client has cut the connection.
 *   The thread leaves that block alone and goes on with a fresh one.
 * - A flush without a good reply publishes nothing.  Without a flush in
 *   between, two writes on different connections have no order, so the
 *   thread flushes again before it writes again.
 * - With --allow-errors, a write is not published by a flush if its
 *   connection was closed before the reply.  The flush before that close
 *   may be the one that failed, and another client had the error.
 * - Zeroes carry no version.  They are right as long as no write is
 *   published that is newer than the newest zero or trim.
 *
 * Commands go through libnbd's asynchronous calls, so that several are
 * under way on one connection.  There is no thread per connection: whoever
 * waits for a reply polls the socket, and handles whatever arrives.
 */

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#define REPLY_TIMEOUT 30        /* Seconds. */
#define REPORTED 5              /* Violations that get a line. */
#define PROBED 20               /* Those tried again by is_lost. */
#define CHURN_EVERY 32          /* Loops, on average. */

enum op { READ, WRITE, ZERO, TRIM, FLUSH };

/* How a connection ends: when its commands are done, by an NBD_CMD_DISC
 * beside them, or without one.  Errors are normal in the last two.
 */
enum end { ORDERLY, EARLY, CUT };

struct connection {
  struct nbd_handle *nbd;
  pthread_mutex_t turn;         /* --one-at-a-time: held by a command. */
  pthread_mutex_t reply_lock;   /* One thread at a time looks for replies. */
  unsigned number;              /* In order of opening. */
  unsigned users;               /* Commands, and the slot; slots_lock. */
  atomic_int end;               /* An enum end. */
};

/* Versions start at 1; 0 is none yet.  Only the owner changes them. */
struct block {
  atomic_uint begun;            /* The newest that was sent, */
  atomic_uint zeroed;           /* the newest sent as a zero or trim, */
  atomic_uint published;        /* and the newest that must be seen. */
  atomic_uint written_on, flushed_on; /* For the report. */
};

struct command {
  struct connection *conn;      /* NULL if there is nothing to wait for. */
  struct block *block;
  unsigned floor;               /* A read must not find less than this. */
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
  struct block *own;
  _Atomic (struct block *) shown; /* Own, once it has a published version. */
  bool unflushed;               /* Written, but not published yet. */
  unsigned written_slot, written_on, flushed_on;
  uint64_t operations, flushes, reads;
};

/* Options. */
static uint64_t nr_threads = 8, nr_connections = 4, seconds, max_operations;
static uint64_t seed, nr_ahead, block_size = 512, stride;
static uint64_t one_at_a_time, churn, hard_cuts, reads_first, allow_errors;
static const char *uri;

static struct thread *threads;
static struct block *blocks;
static uint64_t nr_blocks;
static atomic_uint next_block, next_number;
static bool can_zero, can_trim, can_fua;

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection **slots;

static struct timespec start_time;
static atomic_bool stop, failed;
static atomic_ulong stale, lost, errors, reconnections, reported, probed;

/* Print what made the test impossible, unless something did before. */
static void
fail (const char *what, const char *why)
{
  if (!atomic_exchange (&failed, true))
    fprintf (stderr, "consistency: %s: %s\n", what, why);
  stop = true;
}

static uint64_t
mix (uint64_t *state)           /* splitmix64 */
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static unsigned
pick (struct thread *t, unsigned n)
{
  return mix (&t->random_state) % n;
}

static double
elapsed (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec - start_time.tv_sec +
    (now.tv_nsec - start_time.tv_nsec) / 1e9;
}

static const char usage[] =
  "usage: consistency [OPTIONS] URI\n"
  "  --threads=8 --connections=4\n"
  "  --seconds=N or --operations=N  how long (10 seconds)\n"
  "  --seed=N                       for the random choices of each thread\n"
  "  --churn                        close connections, and cut them\n"
  "  --hard-cuts                    cut also those with several commands in\n"
  "                                 flight: kills nbdkit 1.32 if parallel\n"
  "  --reads-first                  read before each write\n"
  "  --one-at-a-time                a connection has one command in flight,\n"
  "                                 as with libnbd's synchronous calls\n"
  "  --commands-in-flight[=4]       reads that each thread has under way\n"
  "                                 while it writes and flushes\n"
  "  --block=512 --stride=BLOCK     bytes in a block, and from one block to\n"
  "                                 the next\n"
  "  --allow-errors                 error replies are part of the test\n";

static void
parse_or_exit (int argc, char *argv[])
{
  static const struct {
    const char *name;
    uint64_t *value, without;   /* The value of the name alone. */
  } options[] = {
    { "--threads", &nr_threads, 0 }, { "--connections", &nr_connections, 0 },
    { "--seconds", &seconds, 0 }, { "--operations", &max_operations, 0 },
    { "--seed", &seed, 0 }, { "--one-at-a-time", &one_at_a_time, 1 }, { "--churn", &churn, 1 },
    { "--hard-cuts", &hard_cuts, 1 }, { "--reads-first", &reads_first, 1 },
    { "--commands-in-flight", &nr_ahead, 4 }, { "--block", &block_size, 0 },
    { "--stride", &stride, 0 }, { "--allow-errors", &allow_errors, 1 },
    { NULL, NULL, 0 }
  };
  char *end;
  int i, j;

  for (i = 1; i < argc && argv[i][0] == '-'; ++i) {
    const size_t len = strcspn (argv[i], "=");

    for (j = 0; options[j].name; ++j)
      if (strlen (options[j].name) == len &&
          strncmp (argv[i], options[j].name, len) == 0)
        break;
    if (!options[j].name)
      goto bad;
    *options[j].value = options[j].without;
    end = argv[i] + len;
    if (*end == '=')
      *options[j].value = strtoull (end + 1, &end, 10);
    if (*end || (argv[i][len] && !isdigit (argv[i][len + 1])))
      goto bad;
  }
  stride = stride ? stride : block_size;
  if (seconds == 0 && max_operations == 0)
    seconds = 10;
  if (i + 1 == argc && nr_threads > 0 && nr_connections > 0 &&
      block_size > 0 && block_size % 8 == 0 && stride >= block_size) {
    uri = argv[i];
    return;
  }
 bad:
  fputs (usage, stderr);
  exit (2);
}

/* Connections ***********************************************************/

/* A connection with one user, the caller.  Returns NULL on error. */
static struct connection *
open_connection (void)
{
  struct connection *conn = calloc (1, sizeof *conn);

  if (conn)
    conn->nbd = nbd_create ();
  if (!conn || !conn->nbd) {
    perror ("consistency: nbd_create");
    exit (2);
  }
  if (nbd_connect_uri (conn->nbd, uri) == -1) {
    errors++;
    if (!allow_errors)
      fail ("connect", nbd_get_error ());
    nbd_close (conn->nbd);
    free (conn);
    return NULL;
  }
  pthread_mutex_init (&conn->turn, NULL);
  pthread_mutex_init (&conn->reply_lock, NULL);
  conn->users = 1;
  conn->number = next_number++;
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
  unsigned users;

  pthread_mutex_lock (&slots_lock);
  users = --conn->users;
  pthread_mutex_unlock (&slots_lock);
  if (users > 0)
    return;
  if (conn->end == ORDERLY)
    nbd_shutdown (conn->nbd, 0);
  nbd_close (conn->nbd);
  free (conn);
}

/* Put a connection in a slot, and end the old one in any of the ways. */
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
  /* Commands that fail take fresh blocks.  When these run out, do without.
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

static void
submit (struct thread *t, struct command *cmd, enum op op, uint32_t flags)
{
  struct nbd_handle *nbd = cmd->conn->nbd;
  const nbd_completion_callback cb = { completed, cmd, NULL };
  const uint64_t offset = (cmd->block - blocks) * stride;
  int64_t r = -1;

  if (one_at_a_time)
    pthread_mutex_lock (&cmd->conn->turn);
  cmd->wake = t->wake;
  cmd->done = false;
  switch (op) {
  case READ:
    r = nbd_aio_pread (nbd, cmd->data, block_size, offset, cb, 0);
    break;
  case WRITE:
    r = nbd_aio_pwrite (nbd, cmd->data, block_size, offset, cb, flags);
    break;
  case ZERO: r = nbd_aio_zero (nbd, block_size, offset, cb, flags); break;
  case TRIM: r = nbd_aio_trim (nbd, block_size, offset, cb, flags); break;
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

    /* Another thread may have been faster.  To be told of a reply that is
     * not there makes libnbd wait for one, and send nothing before it.
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
  if (cmd->error && conn->end < EARLY) {
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
  t->command.conn = get_connection (slot);
  t->command.block = t->own;
  t->flushed_on = t->command.conn->number;
  t->flushes++;
  submit (t, &t->command, FLUSH, 0);
  return finish (t, &t->command);
}

/* Reads *****************************************************************/

/* Returns the first word that the block must not hold, or NULL.  Each word
 * is checked for itself, for a read beside a write may find some of both.
 */
static const uint64_t *
find_bad_word (const struct command *cmd)
{
  const struct block *b = cmd->block;
  const unsigned begun = b->begun, zeroed = b->zeroed;

  for (const uint64_t *w = cmd->data; w < cmd->data + block_size / 8; ++w) {
    if (*w == 0 ? zeroed < cmd->floor :
        *w >> 32 != (uint64_t) (b - blocks) + 1 ||
        (uint32_t) *w < cmd->floor || (uint32_t) *w > begun)
      return w;
  }
  return NULL;
}

/* Takes over the caller's reference to the connection. */
static void
start_read (struct thread *t, struct command *cmd, struct connection *conn,
            struct block *block)
{
  cmd->conn = conn;
  cmd->block = block;
  cmd->floor = block->published;
  submit (t, cmd, READ, 0);
  t->reads++;
}

/* Is the thread's own block still old when every connection has been
 * flushed, and it is read on a new one?
 */
static bool
is_lost (struct thread *t)
{
  struct connection *conn;

  for (unsigned slot = 0; slot < nr_connections; ++slot)
    flush_slot (t, slot);
  conn = open_connection ();
  if (!conn)
    return false;
  start_read (t, &t->command, conn, t->own);
  return finish (t, &t->command) && find_bad_word (&t->command);
}

static void
finish_read (struct thread *t, struct command *cmd, bool at_end)
{
  struct block *b = cmd->block;
  const uint64_t number = b - blocks;
  const unsigned floor = cmd->floor, read_on = cmd->conn->number;
  const uint64_t *bad;
  uint64_t word;
  char got[32];
  bool is_stale;

  if (!finish (t, cmd) || !(bad = find_bad_word (cmd)))
    return;
  word = *bad;                  /* is_lost uses the buffer. */
  is_stale = !at_end &&
    (word == 0 || (word >> 32 == number + 1 && (uint32_t) word < floor)) &&
    !(b == t->own && !t->unflushed && probed++ < PROBED && is_lost (t));
  if (is_stale)
    stale++;
  else
    lost++;

  if (reported++ >= REPORTED)
    return;
  if (word >> 32 == number + 1)
    snprintf (got, sizeof got, "%u", (unsigned) word);
  else
    snprintf (got, sizeof got, word ? "0x%016" PRIx64 : "zeroes", word);
  printf ("violation: %s: thread %u read block %" PRIu64 " on connection %u, "
          "expected version %u or newer, got %s; version %u was written on "
          "connection %u and flushed on %u\n",
          is_stale ? "stale" : "lost", t->index, number, read_on, floor, got,
          b->published, b->written_on, b->flushed_on);
}

/* Start to read a block on some connection, unless it has no published
 * version.  The choice is made in any case, so that a seed can be replayed.
 */
static void
start_read_somewhere (struct thread *t, struct command *cmd, struct block *b)
{
  const unsigned slot = pick (t, nr_connections);

  if (b->published > 0)
    start_read (t, cmd, get_connection (slot), b);
}

static void
read_block (struct thread *t, struct block *b)
{
  start_read_somewhere (t, &t->command, b);
  if (t->command.conn)
    finish_read (t, &t->command, false);
}

static struct block *
block_of_another (struct thread *t)
{
  unsigned i = t->index;

  if (nr_threads > 1)
    i = (i + 1 + pick (t, nr_threads - 1)) % nr_threads;
  return threads[i].shown;
}

/* Writes ****************************************************************/

static void
take_fresh_block (struct thread *t)
{
  const unsigned i = next_block++;

  t->unflushed = false;
  if (i < nr_blocks)
    t->own = &blocks[i];
  else
    fail ("the export is too small", "no fresh block is left");
}

static void
publish (struct thread *t, unsigned flushed_on)
{
  t->unflushed = false;
  t->own->flushed_on = flushed_on;
  t->own->published = t->own->begun;
  t->shown = t->own;
}

/* Write, zero or trim.  Returns true if that succeeded. */
static bool
send_version (struct thread *t, unsigned slot, enum op op, uint32_t flags)
{
  struct command *cmd = &t->command;
  struct block *b = cmd->block = t->own;
  const unsigned version = b->begun + 1;

  for (uint64_t i = 0; i < block_size / 8; ++i)
    cmd->data[i] = (uint64_t) (b - blocks + 1) << 32 | version;
  cmd->conn = get_connection (slot);
  b->written_on = t->written_on = cmd->conn->number;
  if (op != WRITE)
    b->zeroed = version;
  b->begun = version;
  submit (t, cmd, op, flags);
  return finish (t, cmd);
}

/* Afterwards the block is either published, or unflushed, or fresh. */
static void
write_own (struct thread *t)
{
  const unsigned slot = t->written_slot = pick (t, nr_connections);
  const unsigned kind = pick (t, 8), fua = pick (t, 4);
  const uint32_t flags = can_fua && fua == 0 ? LIBNBD_CMD_FLAG_FUA : 0;
  unsigned zeroed_on;
  bool ok;

  if (kind == 0 && can_zero)
    ok = send_version (t, slot, ZERO, flags);
  else if ((kind == 1 && can_zero) || (kind == 2 && can_trim)) {
    /* What a trim leaves is only known after the write.  They have an
     * order only if they are on the same connection.
     */
    ok = send_version (t, slot, kind == 1 ? ZERO : TRIM, 0);
    zeroed_on = t->written_on;
    ok = ok && send_version (t, slot, WRITE, flags) &&
      zeroed_on == t->written_on;
  }
  else
    ok = send_version (t, slot, WRITE, flags);

  if (!ok)
    take_fresh_block (t);
  else if (flags)
    publish (t, t->written_on);
  else
    t->unflushed = true;
}

static void
flush_own (struct thread *t)
{
  struct connection *conn;

  if (!flush_slot (t, pick (t, nr_connections)))
    return;
  conn = get_connection (t->written_slot);
  if (allow_errors && conn->number != t->written_on)
    take_fresh_block (t);
  else
    publish (t, t->flushed_on);
  put_connection (conn);
}

static void *
work (void *arg)
{
  struct thread *t = arg;
  const uint64_t share = max_operations / nr_threads +
    (t->index < max_operations % nr_threads);

  while (!stop && (seconds == 0 || elapsed () < seconds) &&
         (max_operations == 0 || t->operations < share)) {
    struct connection *spare;

    if (reads_first) {
      read_block (t, t->own);
      read_block (t, block_of_another (t));
    }
    for (unsigned i = 0; i < nr_ahead; ++i)
      start_read_somewhere (t, &t->ahead[i], block_of_another (t));
    /* Opened now, so that there is no time for another thread's flush
     * between the write and the end of its connection.
     */
    spare = churn && pick (t, CHURN_EVERY) == 0 ? open_connection () : NULL;
    if (!t->unflushed)
      write_own (t);
    if (spare)
      replace_connection (t, pick (t, 2) ? t->written_slot :
                          pick (t, nr_connections), spare);
    if (t->unflushed)
      flush_own (t);
    for (unsigned i = 0; i < nr_ahead; ++i)
      if (t->ahead[i].conn)
        finish_read (t, &t->ahead[i], false);
    read_block (t, t->own);
    read_block (t, block_of_another (t));
    t->operations++;
  }
  return NULL;
}

/* Everything is closed: what cannot be read now is lost. */
static void
check_all_blocks (void)
{
  struct connection *conn;
  const uint64_t end = next_block < nr_blocks ? next_block : nr_blocks;

  for (unsigned i = 0; i < nr_connections; ++i)
    put_connection (slots[i]);
  if (failed || !(conn = open_connection ()))
    return;
  slots[0] = conn;
  for (uint64_t i = 0; i < end; ++i) {
    if (blocks[i].published > 0) {
      start_read (&threads[0], &threads[0].command, get_connection (0),
                  &blocks[i]);
      finish_read (&threads[0], &threads[0].command, true);
    }
  }
  put_connection (conn);
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

int
main (int argc, char *argv[])
{
  uint64_t operations = 0, flushes = 0, reads = 0;
  struct nbd_handle *nbd;
  double took;
  int multi_conn;

  clock_gettime (CLOCK_REALTIME, &start_time);
  seed = start_time.tv_sec * UINT64_C (1000000) + start_time.tv_nsec / 1000;
  parse_or_exit (argc, argv);
  if (seconds > 0)              /* Whatever it is that hangs. */
    alarm (seconds + 3 * REPLY_TIMEOUT);
  setvbuf (stdout, NULL, _IOLBF, 0);
  printf ("seed: %" PRIu64 "\n", seed);

  slots = allocate (nr_connections, sizeof *slots);
  for (unsigned i = 0; i < nr_connections; ++i) {
    slots[i] = open_connection ();
    if (!slots[i]) {
      fail (uri, nbd_get_error ());
      exit (2);
    }
  }
  nbd = slots[0]->nbd;
  if (nbd_can_flush (nbd) != 1 || nbd_is_read_only (nbd) != 0) {
    fail (uri, "cannot be written and flushed");
    exit (2);
  }
  can_zero = nbd_can_zero (nbd) == 1;
  can_trim = nbd_can_trim (nbd) == 1;
  can_fua = nbd_can_fua (nbd) == 1;
  multi_conn = nbd_can_multi_conn (nbd);
  nr_blocks = nbd_get_size (nbd) / stride;
  blocks = allocate (nr_blocks, sizeof *blocks);

  threads = allocate (nr_threads, sizeof *threads);
  for (unsigned i = 0; i < nr_threads; ++i) {
    struct thread *t = &threads[i];

    t->index = i;
    t->random_state = seed + i;
    t->random_state = mix (&t->random_state);
    t->wake = eventfd (0, EFD_CLOEXEC|EFD_NONBLOCK);
    t->command.data = allocate (1, block_size);
    t->ahead = allocate (nr_ahead, sizeof *t->ahead);
    for (unsigned j = 0; j < nr_ahead; ++j)
      t->ahead[j].data = allocate (1, block_size);
    take_fresh_block (t);
    t->shown = t->own;
  }
  if (failed)
    exit (2);

  clock_gettime (CLOCK_MONOTONIC, &start_time);
  for (unsigned i = 0; i < nr_threads; ++i) {
    if (pthread_create (&threads[i].id, NULL, work, &threads[i]) != 0) {
      perror ("consistency: pthread_create");
      exit (2);
    }
  }
  for (unsigned i = 0; i < nr_threads; ++i) {
    pthread_join (threads[i].id, NULL);
    operations += threads[i].operations;
    flushes += threads[i].flushes;
    reads += threads[i].reads;
  }
  took = elapsed ();
  check_all_blocks ();

  printf ("multi_conn: %d\n", multi_conn);
  printf ("operations: %" PRIu64 "\n", operations);
  printf ("operations_per_second: %.0f\n", operations / took);
  printf ("flushes: %" PRIu64 "\nreads: %" PRIu64 "\n", flushes, reads);
  printf ("reconnections: %lu\nstale: %lu\nlost: %lu\nerrors: %lu\n",
          reconnections, stale, lost, errors);
  return stale + lost > 0 ? 1 : failed ? 2 : 0;
}
