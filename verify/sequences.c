/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Sequences of requests, one after the other, on up to four connections.
 * A few that are known to be useful come first, shortest first; then random
 * ones.  If a read finds what it must not, the sequence is made shorter for
 * as long as that still happens, and then printed, short enough for a
 * person to follow, with a word for what is wrong.
 *
 * A sequence has four cells of the disk.  Each is a block, or many: then
 * requests have up to a megabyte, and a cell may be written in hundreds of
 * requests.  For each cell the model knows what a read may find:
 *
 * - What all see: what the last flush, or write with FUA, has left.
 * - Any value that was written since then, also one that its own writer has
 *   overwritten: a server may write back and fetch when it likes.
 * - But a connection that has written since then finds its own last value,
 *   or a later one.
 * - Of two writes the second wins, on whichever connections: a flush, or a
 *   write with FUA, leaves the last.
 * - After a trim, or a request that has failed, there may be anything, until
 *   a write that comes after it.
 *
 * Nothing is known about a cell that has not been written, so nothing needs
 * to be prepared.
 */

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checker.h"

#define CONNECTIONS 4
#define CELLS 4
#define RANDOM_STEPS 12
#define STEPS 64                /* With the checks at the end. */
#define MAX_CELL 262144
#define MAX_PIECES 1024         /* Writes to one cell. */
#define TRIES 3                 /* A failure may not happen every time. */
#define SURE 5                  /* So many failures give its rate, */
#define TRIES_AT_LAST 5000      /* if they come in so many tries. */
#define MAX_REDUCING 5          /* Seconds. */
#define MAX_TRYING 10           /* The same for each word, */
#define MAX_NAMING 40           /* and for all. */
#define ARRIVAL 1024            /* Milliseconds, for what is late. */
#define FUA 1                   /* NBD_CMD_FLAG_FUA */

enum kind { READ, MAP, CACHE, WRITE, WRITE_FUA, PIECES, ZERO, ZERO_FUA, TRIM,
  FLUSH, REOPEN };

static const struct {
  const char *name, *told;      /* In an error, in the story. */
  enum kind plainer;            /* What may go wrong as well. */
} about[] = {
  [READ] = { "read", "read", READ },
  [MAP] = { "block status", "asked for extents", READ },
  [CACHE] = { "cache", "had the server cache", READ },
  [WRITE] = { "write", "wrote", WRITE },
  [WRITE_FUA] = { "FUA write", "wrote", WRITE },
  [PIECES] = { "write", "wrote", WRITE },
  [ZERO] = { "zero", "zeroed", WRITE },
  [ZERO_FUA] = { "FUA zero", "zeroed", WRITE_FUA },
  [TRIM] = { "trim", "trimmed", WRITE },
  [FLUSH] = { "flush", "flushed", FLUSH },
  [REOPEN] = { "reopen", "closed and opened again", REOPEN },
};

struct step {
  enum kind kind;
  unsigned connection, cell, count;
  unsigned value;               /* Of a write. */
};

struct sequence {
  struct step steps[STEPS];
  unsigned nr_steps;
  uint64_t cell_size;
};

/* A set of values, one bit for each; zeroes are value 0. */
#define ZEROES UINT32_C (1)
#define ANYTHING (UINT32_C (1) << 31)
#define BEFORE 30              /* What is written before a sequence. */

/* After the connections, a new one. */
enum { FRESH = CONNECTIONS, ALL };

struct cell {
  uint32_t all_see;
  uint32_t written, latest;     /* Since the last flush: each, and the last; */
  uint32_t own[ALL];            /* its last one and those after it. */
};

/* What a step has found but must not find, and where it was then. */
struct finding {
  unsigned step, cell;
  uint64_t attempt, start, offset, got, failed; /* A bit for each step. */
  int writer;                   /* Of what it should have found, or -1, */
  uint32_t written;             /* and that. */
  bool own;                     /* It should have found its own write. */
  enum seen { EXTENTS, SEEN, LATER, BY_WRITER, NOWHERE } seen;
};

enum outcome { FAILED, WRONG, RIGHT };

static const struct server *server;
static struct nbd_handle *connections[ALL];
static uint64_t random_state, size, start, room, salt, attempt, nr_requests;
static unsigned long nr_errors;
static double began, deadline, named;
static bool patient, broken, zero[CELLS];
static uint64_t zero_at[CELLS];
static char first_error[256];

static void
note_error (const char *what, unsigned connection)
{
  if (nr_errors++ == 0)
    snprintf (first_error, sizeof first_error, "%s on connection %u: %s", what,
              connection + 1, server->error ());
}

static unsigned
pick (unsigned n)
{
  return mix (&random_state) % n;
}

/* Values ****************************************************************/

/* Each word of a cell that has this value.  It contains the attempt, and the
 * time of the first, so what earlier attempts left is different.
 */
static uint64_t
word_of (uint64_t of_attempt, unsigned cell, unsigned value)
{
  return value == 0 ? 0 : (salt + of_attempt) << 16 | cell << 8 | value;
}

static uint32_t
bit_of (uint64_t of_attempt, unsigned cell, uint64_t word)
{
  if (word == 0)
    return ZEROES;
  if (word >> 8 == word_of (of_attempt, cell, 1) >> 8 && (word & 255) < 31)
    return UINT32_C (1) << (word & 255);
  return ANYTHING;
}

static void
note_write (struct cell *c, unsigned by, uint32_t value)
{
  c->latest = value;
  c->written |= value;
  for (unsigned i = 0; i < ALL; ++i)
    if (c->own[i])
      c->own[i] |= value;
  c->own[by] = value;
}

static void
note_flush (struct cell *c)
{
  *c = (struct cell) { c->latest ? c->latest : c->all_see, 0, 0, { 0 } };
}

/* A flush, or a write that may have been one, has failed: nobody knows what
 * has become of the writes before it.
 */
static void
note_failure (struct cell *c)
{
  if (c->latest)
    c->latest = c->written = ANYTHING;
  for (unsigned i = 0; i < ALL; ++i)
    if (c->own[i])
      c->own[i] = ANYTHING;
}

static bool
is_write (const struct step *s)
{
  return s->kind >= WRITE && s->kind <= TRIM;
}

static bool
writes_data (const struct step *s)
{
  return s->kind >= WRITE && s->kind <= PIECES;
}

static bool
has_fua (const struct step *s)
{
  return s->kind == WRITE_FUA || s->kind == ZERO_FUA;
}

static bool
is_elsewhere (const struct step *s, unsigned cell)
{
  return cell < s->cell || cell >= s->cell + s->count;
}

/* Update the model after a step, which has failed unless OK. */
static void
note (struct cell *cells, const struct step *s, bool ok)
{
  const uint32_t value = !ok || s->kind == TRIM ? ANYTHING :
    s->kind == ZERO || s->kind == ZERO_FUA ? ZEROES : UINT32_C (1) << s->value;

  for (unsigned i = 0; i < CELLS; ++i) {
    if (!ok && s->kind >= WRITE)
      note_failure (&cells[i]);
    if (s->kind == REOPEN)
      cells[i].own[s->connection] = 0;
    if (is_write (s) && !is_elsewhere (s, i))
      note_write (&cells[i], s->connection, value);
    if (ok && (s->kind == FLUSH || (has_fua (s) && !is_elsewhere (s, i))))
      note_flush (&cells[i]);
  }
}

/* Playing a sequence ****************************************************/

static bool
open_connection (unsigned i)
{
  connections[i] = server->open ();
  if (!connections[i])
    note_error ("connect", i);
  return connections[i] != NULL;
}

static void
close_connection (unsigned i)
{
  if (connections[i])
    server->close (connections[i]);
  connections[i] = NULL;
}

static void
close_all (void)
{
  for (unsigned i = 0; i < ALL; ++i)
    close_connection (i);
}

/* Where the sequence has its cells. */
static uint64_t
offset_of (const struct sequence *q, unsigned cell)
{
  return start + cell * q->cell_size;
}

/* May this word be found in the cell?  Otherwise fills in *F. */
static bool
may_find (const struct cell *cells, unsigned connection, unsigned cell,
          uint64_t word, uint64_t offset, struct finding *f)
{
  const struct cell *c = &cells[cell];
  const uint32_t allowed = c->own[connection] ? c->own[connection] :
    c->all_see | c->written;

  if (allowed & (bit_of (attempt, cell, word) | ANYTHING))
    return true;
  *f = (struct finding) {
    .cell = cell, .attempt = attempt, .start = start, .offset = offset,
    .got = word, .own = c->own[connection] != 0
  };
  return false;
}

static bool
check_cell (const struct sequence *q, const struct cell *cells,
            unsigned connection, unsigned cell, const uint64_t *words,
            struct finding *f)
{
  for (uint64_t i = 0; i < q->cell_size / sizeof *words; ++i)
    if ((i == 0 || words[i] != words[i - 1]) &&
        !may_find (cells, connection, cell, words[i],
                   offset_of (q, cell) + i * sizeof *words, f))
      return false;
  return true;
}

static const struct sequence *mapping;

/* What is reported as zero counts as read as zeroes. */
static void
note_zero (uint64_t count, uint64_t offset)
{
  for (unsigned i = 0; i < CELLS; ++i) {
    const uint64_t from = offset_of (mapping, i);

    if (!zero[i] && offset < from + mapping->cell_size &&
        offset + count > from) {
      zero[i] = true;
      zero_at[i] = offset > from ? offset : from;
    }
  }
}

/* So many writes to a cell that they take no more than a tenth of the time. */
static uint64_t
piece_size (const struct sequence *q)
{
  const double each = (now () - began) / (nr_requests + 1);
  uint64_t piece = block_size;

  while (piece < q->cell_size &&
         (piece * MAX_PIECES < q->cell_size ||
          q->cell_size / piece * each > (seconds + 1) / 10.0))
    piece *= 2;
  return piece < q->cell_size ? piece : q->cell_size;
}

static int
send (const struct sequence *q, const struct step *s, uint64_t *buf)
{
  struct nbd_handle *nbd = connections[s->connection];
  const uint64_t offset = offset_of (q, s->cell);
  const uint64_t count = s->count * q->cell_size;
  const uint32_t fua = has_fua (s) ? FUA : 0;
  const uint64_t piece = s->kind == PIECES ? piece_size (q) : count;
  int r = 0;

  switch (s->kind) {
  case READ:
    return server->pread (nbd, buf, count, offset, 0);
  case MAP:
    mapping = q;
    memset (zero, 0, sizeof zero);
    return server->extents (nbd, count, offset, note_zero);
  case CACHE:
    return server->cache (nbd, count, offset, 0);
  case WRITE: case WRITE_FUA: case PIECES:
    for (uint64_t i = 0; i < count / sizeof *buf; ++i)
      buf[i] = word_of (attempt, s->cell + i * sizeof *buf / q->cell_size,
                        s->value);
    for (uint64_t i = 0; i < count && r == 0; i += piece, nr_requests++)
      r = server->pwrite (nbd, buf + i / sizeof *buf,
                          count - i < piece ? count - i : piece, offset + i,
                          fua);
    return r;
  case ZERO: case ZERO_FUA:
    return server->zero (nbd, count, offset, fua);
  case TRIM:
    return server->trim (nbd, count, offset, 0);
  case FLUSH:
    return server->flush (nbd, 0);
  case REOPEN:
    close_connection (s->connection);
    if (!open_connection (s->connection))
      broken = true;
  }
  return 0;
}

static enum outcome
take_step (const struct sequence *q, const struct step *s, struct cell *cells,
           struct finding *f)
{
  static uint64_t buf[CELLS * MAX_CELL / sizeof (uint64_t)];
  bool ok;

  nr_requests++;
  ok = send (q, s, buf) == 0;
  if (!ok)
    note_error (about[s->kind].name, s->connection);
  note (cells, s, ok);
  for (unsigned i = 0; ok && i < s->count; ++i) {
    const unsigned cell = s->cell + i;

    if ((s->kind == MAP && zero[cell] &&
         !may_find (cells, s->connection, cell, 0, zero_at[cell], f)) ||
        (s->kind == READ &&
         !check_cell (q, cells, s->connection, cell,
                      buf + i * q->cell_size / sizeof *buf, f)))
      return WRONG;
  }
  return ok ? RIGHT : FAILED;
}

/* What a connection now finds in the cell where a finding was. */
static enum outcome
look (const struct sequence *q, struct cell *cells, const struct finding *f,
      enum kind kind, unsigned connection)
{
  const struct step s = { kind, connection, f->cell, 1, 0 };
  struct finding ignore;

  return take_step (q, &s, cells, &ignore);
}

/* Does a new connection find what it should, at once or after a while? */
static bool
is_seen (const struct sequence *q, struct cell *cells, struct finding *f)
{
  for (unsigned ms = 0; ms <= (patient ? ARRIVAL : 0); ms = ms ? 2 * ms : 1) {
    enum outcome outcome = FAILED;

    server->sleep (ms * 1000);
    if (open_connection (FRESH))
      outcome = look (q, cells, f, READ, FRESH);
    close_connection (FRESH);
    f->seen = ms ? LATER : SEEN;
    if (outcome == RIGHT)
      return true;
  }
  return false;
}

/* Who wrote what should have been found? */
static void
find_writer (const struct sequence *q, struct finding *f)
{
  const struct step *pending = NULL, *settled = NULL;

  for (const struct step *s = q->steps; s < q->steps + f->step; ++s)
    if (is_write (s) && !is_elsewhere (s, f->cell)) {
      if (!f->own || s->connection == q->steps[f->step].connection)
        pending = s;
      if (has_fua (s) || f->own)
        settled = pending;
    }
    else if (s->kind == FLUSH)
      settled = pending;
  f->writer = -1;
  if (!settled)
    return;
  f->written = UINT32_C (1) << settled->value;
  f->writer = settled->connection;
  for (const struct step *s = settled; s < q->steps + f->step; ++s)
    if (s->kind == REOPEN && s->connection == settled->connection)
      f->writer = -1;
}

/* After a finding: who finds what should have been found? */
static void
examine (const struct sequence *q, struct cell *cells, struct finding *f)
{
  const unsigned reader = q->steps[f->step].connection;
  struct step flush = { FLUSH, reader, 0, 1, 0 };
  enum seen seen;

  find_writer (q, f);
  if (q->steps[f->step].kind == MAP &&
      look (q, cells, f, READ, reader) == RIGHT) {
    f->seen = EXTENTS;
    return;
  }
  if (!is_seen (q, cells, f)) {
    if (f->writer >= 0)
      flush.connection = f->writer;
    take_step (q, &flush, cells, f);
    if (!is_seen (q, cells, f)) {
      f->seen = f->writer >= 0 &&
        look (q, cells, f, READ, f->writer) == RIGHT ? BY_WRITER : NOWHERE;
      return;
    }
  }
  /* The reader's flush must not undo it. */
  seen = f->seen;
  flush.connection = reader;
  take_step (q, &flush, cells, f);
  f->seen = is_seen (q, cells, f) ? seen : NOWHERE;
}

/* Go on to the next place, where a longer block that holds cells begins, and
 * leave a gap, so that it holds no other sequence's.  At the end of the disk
 * it starts again, once nothing of earlier sequences can come later.  Returns
 * false if that fails.
 */
static bool
find_room (const struct sequence *q)
{
  const uint64_t need = 2 * CELLS * q->cell_size;

  room += (need - room % need) % need;
  for (unsigned i = 0; room + need > size && i < CONNECTIONS; ++i)
    if (connections[i] && server->flush (connections[i], 0) == -1) {
      note_error ("flush", i);
      return false;
    }
  if (room + need > size)
    room = 0;
  start = range_offset + room;
  room += need;
  return true;
}

/* Use the connections that are open, or new ones.  Returns true if a step has
 * found what it must not, with *F filled in.
 */
static bool
play (const struct sequence *q, struct finding *f)
{
  const unsigned long errors = nr_errors;
  struct cell cells[CELLS];
  enum outcome outcome = RIGHT;
  uint64_t failed = 0;

  for (unsigned i = 0; i < CELLS; ++i)
    cells[i] = (struct cell) { ANYTHING, 0, 0, { 0 } };
  attempt++;
  /* A fault may depend on which was opened first. */
  for (unsigned i = 0; i < q->nr_steps && !broken; ++i) {
    const unsigned n = attempt % 2 ? i : q->nr_steps - 1 - i;

    if (!connections[q->steps[n].connection] &&
        !open_connection (q->steps[n].connection))
      broken = true;
  }
  if (!broken && find_room (q))
    for (unsigned i = 0; i < q->nr_steps && outcome != WRONG && !broken; ++i) {
      outcome = take_step (q, &q->steps[i], cells, f);
      failed |= (uint64_t) (outcome == FAILED) << i;
      if (outcome == WRONG) {
        f->step = i;
        f->failed = failed;
        examine (q, cells, f);
      }
    }
  if (nr_errors > errors)
    close_all ();
  return outcome == WRONG;
}

/* Sequences *************************************************************/

/* What a server without this can do instead. */
static enum kind
possible (enum kind kind)
{
  switch (kind) {
  case WRITE_FUA: return server->can_fua ? kind : WRITE;
  case ZERO: return server->can_zero ? kind : WRITE;
  case ZERO_FUA: return server->can_zero && server->can_fua ? kind : WRITE;
  case TRIM: return server->can_trim ? kind : WRITE;
  case MAP: return server->can_map ? kind : READ;
  case CACHE: return server->can_cache ? kind : READ;
  default: return kind;
  }
}

static void
add (struct sequence *q, enum kind kind, unsigned connection, unsigned cell,
     unsigned count)
{
  q->steps[q->nr_steps] = (struct step)
    { possible (kind), connection, cell, count, q->nr_steps + 1 };
  q->nr_steps++;
}

/* The sequences that come first: a letter for each request, and the number
 * of its connection.  Capitals are for the next cell; l, p and a are long
 * writes, many of them, and reads, of all cells.
 */
static const char *const known[] = {
  "w0r0", "u0r1", "w0f0r0", "w0f0m0", "w0f0r1", "w0f1r1", "r1u0r1",
  "w0w1f0r0", "w1w0f0r0", "w0w1f2r2",
  "r1w0f0r1", "r1w0f1r1", "r1w0f2r1", "w0W1f0a0", "m1w0f0m1",
  "w0f0x0x1r1", "r1w0x0f1r1", "w0f0z0f0m1", "w0f0r1z0f0r1",
  "w0f0r1t0w0f0r1", "l0f0a1", "p0f0a1"
};
#define NR_KNOWN (sizeof known / sizeof known[0])
#define ROUNDS 3                /* Of these, with cells of other sizes, */
#define MORE_FOR_ROUNDS 10      /* and seconds more for them if it is slow. */

static void
take_known_sequence (struct sequence *q, const char *text)
{
  static const struct { char letter; enum kind kind; } letters[] = {
    { 'r', READ }, { 'm', MAP }, { 'w', WRITE }, { 'u', WRITE_FUA },
    { 'z', ZERO }, { 't', TRIM }, { 'f', FLUSH }, { 'x', REOPEN },
    { 'l', WRITE }, { 'p', PIECES }, { 'a', READ },
  };

  for (const char *p = text; *p; p += 2)
    for (unsigned i = 0; i < sizeof letters / sizeof letters[0]; ++i)
      if (letters[i].letter == tolower (*p))
        add (q, letters[i].kind, (p[1] - '0') % nr_connections, *p < 'a',
             strchr ("lpa", *p) ? CELLS : 1);
}

static enum kind
pick_kind (bool large)
{
  static const enum kind kinds[] = { READ, READ, READ, READ, READ, WRITE,
    WRITE, WRITE, WRITE, WRITE, FLUSH, FLUSH, FLUSH, WRITE_FUA, WRITE_FUA,
    ZERO, ZERO, ZERO_FUA, TRIM, MAP, CACHE, REOPEN };
  const enum kind kind = kinds[pick (sizeof kinds / sizeof kinds[0])];

  return kind == WRITE && large && pick (2) ? PIECES : kind;
}

static void
make_sequence (struct sequence *q)
{
  const bool large = q->cell_size > block_size;
  const unsigned n = 2 + pick (RANDOM_STEPS - 1);
  const unsigned conns = 1 + pick (nr_connections < CONNECTIONS ?
                                   nr_connections : CONNECTIONS);
  const unsigned cells = 1 + pick (CELLS);

  for (unsigned i = 0; i < n; ++i) {
    const unsigned cell = pick (cells), wide = pick (4);

    add (q, pick_kind (large), pick (conns), cell,
         wide == 0 ? 1 + pick (cells - cell) : 1);
  }
  /* Now all must see all of it, even after all have been closed. */
  add (q, FLUSH, pick (conns), 0, 1);
  for (unsigned i = 0; i < conns; ++i) {
    if (pick (2))
      add (q, MAP, i, 0, cells);
    add (q, READ, i, 0, cells);
  }
  if (pick (4) == 0) {
    for (unsigned i = 0; i < conns; ++i)
      add (q, REOPEN, i, 0, 1);
    add (q, READ, pick (conns), 0, cells);
  }
}

/* The sequence of this number: those that are known, with cells of a block, of
 * eight and of many; then random ones, most of them with cells of a block.
 * Longer cells share the blocks of a plugin whose blocks are longer.
 */
static void
next_sequence (struct sequence *q, unsigned number)
{
  const uint64_t most = size / (16 * CELLS) < MAX_CELL ?
    size / (16 * CELLS) : MAX_CELL;
  const unsigned round = number / NR_KNOWN, n = pick (16);
  unsigned doubled = round == 1 ? 3 : round == 2 ? 16 : 0;

  if (round >= ROUNDS && n < 4)
    doubled = n == 0 ? 16 : 1 + pick (8);
  q->nr_steps = 0;
  q->cell_size = block_size;
  while (doubled-- > 0 && q->cell_size * 2 <= most)
    q->cell_size *= 2;
  if (round >= ROUNDS)
    make_sequence (q);
  else
    take_known_sequence (q, known[number % NR_KNOWN]);
}

/* Making it shorter *****************************************************/

/* Try a changed *Q, on new connections.  If it also fails, keep it, and cut
 * off what follows.
 */
static bool
still_fails (struct sequence *q, const struct sequence *changed,
             struct finding *f)
{
  struct finding g;

  for (unsigned i = 0; i < TRIES && now () < deadline; ++i) {
    close_all ();
    if (play (changed, &g)) {
      *q = *changed;
      q->nr_steps = g.step + 1;
      *f = g;
      return true;
    }
  }
  return false;
}

static void
take_out (struct sequence *q, unsigned i)
{
  memmove (&q->steps[i], &q->steps[i + 1],
           (--q->nr_steps - i) * sizeof q->steps[0]);
}

/* One round of making it shorter and simpler: steps are left out, go to one
 * cell, are plainer, or come from a connection with a lower number.  Returns
 * true if that succeeded.
 */
static bool
reduce (struct sequence *q, struct finding *f)
{
  enum { TAKE_OUT, NARROW, PLAINER, CONNECTION };
  struct sequence simpler = *q;
  bool changed = false;

  simpler.cell_size = block_size;
  if (q->cell_size > block_size)
    changed |= still_fails (q, &simpler, f);
  for (unsigned way = 0; way < CONNECTION + CONNECTIONS; ++way)
    for (unsigned i = q->nr_steps; i-- > 0;) {
      struct step *s = &simpler.steps[i];

      if (i >= q->nr_steps)     /* It was cut off. */
        continue;
      simpler = *q;
      if (way == TAKE_OUT)
        take_out (&simpler, i);
      else if (way == NARROW && s->count > 1) {
        /* The cell that it is about, or the first. */
        if (i + 1 == q->nr_steps)
          s->cell = f->cell;
        s->count = 1;
      }
      else if (way == PLAINER)
        s->kind = about[s->kind].plainer;
      else if (way >= CONNECTION && way - CONNECTION < s->connection)
        s->connection = way - CONNECTION;
      if (way == TAKE_OUT || memcmp (s, &q->steps[i], sizeof *s) != 0)
        changed |= still_fails (q, &simpler, f);
    }
  return changed;
}

/* The word for what is wrong ********************************************/

/* Does *Q fail so often in so many tries?  Returns in how many it did, or 0.
 * The last time is left in *F.
 */
static unsigned
count_tries (const struct sequence *q, unsigned failures, unsigned tries,
             struct finding *f)
{
  struct finding g;

  deadline = now () + MAX_TRYING < named ? now () + MAX_TRYING : named;
  for (unsigned i = 1; i <= tries && now () < deadline && !broken; ++i) {
    /* Many small ones need not wait for connections. */
    if (tries <= TRIES_AT_LAST)
      close_all ();
    if (!play (q, &g))
      continue;
    *f = g;
    if (--failures == 0)
      return i;
  }
  return 0;
}

/* What failed SURE times in so many tries: does it go away with this?  By
 * chance it would once in ten thousand times.
 */
static bool
goes_away (const struct sequence *changed, unsigned tries)
{
  struct finding ignore;

  return tries > 0 && count_tries (changed, 1, 2 * tries, &ignore) == 0 &&
    now () < deadline && !broken;
}

/* These change *Q, and return true if there was something to change. */

static void
insert (struct sequence *q, unsigned i, struct step s)
{
  memmove (&q->steps[i + 1], &q->steps[i], (q->nr_steps++ - i) * sizeof s);
  q->steps[i] = s;
}

/* Write this cell, and flush, in place of a write with FUA. */
static bool
replace_fua (struct sequence *q, unsigned cell)
{
  bool changed = false;

  for (unsigned i = 0; i < q->nr_steps && q->nr_steps < STEPS; ++i) {
    struct step *s = &q->steps[i];

    if (!has_fua (s) || is_elsewhere (s, cell))
      continue;
    s->kind = s->kind == WRITE_FUA ? WRITE : ZERO;
    insert (q, i + 1, (struct step) { FLUSH, s->connection, 0, 1, 0 });
    changed = true;
  }
  return changed;
}

/* Flush between two connections' writes of this cell. */
static bool
separate_writers (struct sequence *q, unsigned cell)
{
  int before = -1;              /* -2: one that is closed. */
  bool changed = false;

  for (unsigned i = 0; i < q->nr_steps && q->nr_steps < STEPS; ++i) {
    const struct step s = q->steps[i];

    if (s.kind == FLUSH)
      before = -1;
    if (s.kind == REOPEN && before == (int) s.connection)
      before = -2;
    if (!is_write (&s) || is_elsewhere (&s, cell))
      continue;
    if (before != -1 && before != (int) s.connection) {
      insert (q, i++, (struct step) { FLUSH, s.connection, 0, 1, 0 });
      changed = true;
    }
    before = s.connection;
  }
  return changed;
}

/* Begin with a write of this cell, so that it is known what was there. */
static bool
insert_write (struct sequence *q, unsigned cell)
{
  const unsigned by = q->steps[0].connection;

  if (q->nr_steps + 2 > STEPS)
    return false;
  insert (q, 0, (struct step) { FLUSH, by, 0, 1, 0 });
  insert (q, 0, (struct step) { WRITE, by, cell, 1, BEFORE });
  return true;
}

static bool
has (const struct sequence *q, enum kind kind)
{
  for (unsigned i = 0; i < q->nr_steps; ++i)
    if (q->steps[i].kind == kind)
      return true;
  return false;
}

/* Was only one block written, and with nothing else? */
static bool
is_plain (const struct sequence *q)
{
  for (unsigned i = 0; i < q->nr_steps; ++i)
    if (q->steps[i].count > 1 ||
        (is_write (&q->steps[i]) && !writes_data (&q->steps[i])))
      return false;
  return q->cell_size == block_size;
}

static bool
writes_elsewhere (const struct step *s, unsigned cell)
{
  return is_write (s) && is_elsewhere (s, cell);
}

static bool
is_close (const struct step *s, unsigned cell)
{
  (void) cell;
  return s->kind == REOPEN;
}

static bool
take_out_each (struct sequence *q,
               bool (*test) (const struct step *, unsigned), unsigned cell)
{
  const unsigned before = q->nr_steps;

  for (unsigned i = q->nr_steps; i-- > 0;)
    if (test (&q->steps[i], cell))
      take_out (q, i);
  return q->nr_steps < before;
}

/* Each word is said only after it was tried, or seen. */
static const char *
classify (struct sequence *q, struct finding *f)
{
  static const char *const seen_at[] = { "extents", "flush", "late", "apart",
    "gone" };
  const unsigned blocks = q->cell_size / block_size;
  struct sequence changed = *q;
  enum seen seen;
  unsigned tries = count_tries (q, SURE, TRIES_AT_LAST, f), before;

  /* Zeroes that are missed may be there from before. */
  if ((has (q, ZERO) || has (q, ZERO_FUA)) && f->got != 0 &&
      insert_write (&changed, f->cell) &&
      (before = count_tries (&changed, SURE, TRIES_AT_LAST, f)) > 0) {
    *q = changed;
    tries = before;
  }

  if (f->seen == EXTENTS)
    return "extents";
  changed = *q;
  if (f->seen != SEEN && separate_writers (&changed, f->cell) &&
      goes_away (&changed, tries))
    return "order";
  changed = *q;
  if (replace_fua (&changed, f->cell) && goes_away (&changed, tries))
    return "fua";
  changed = *q;
  if ((f->own || f->seen == NOWHERE) &&
      take_out_each (&changed, writes_elsewhere, f->cell) &&
      goes_away (&changed, tries))
    return "neighbour";
  /* What happens to one block in some is more likely in many. */
  changed = *q;
  changed.cell_size = block_size;
  if (blocks > 1 && goes_away (&changed, tries * blocks / 3)) {
    changed = *q;
    for (struct step *s = changed.steps; s <= &changed.steps[f->step]; ++s)
      s->kind = s->kind == PIECES ? WRITE : s->kind;
    return has (q, PIECES) && goes_away (&changed, tries * blocks / 3) ?
      "many" : "long";
  }
  changed = *q;
  if (f->seen == NOWHERE && take_out_each (&changed, is_close, 0) &&
      goes_away (&changed, tries))
    return "lost";
  if (!f->own && f->seen != SEEN && tries > 0) {
    /* Twice more, with time for what is late. */
    patient = true;
    count_tries (q, 1, TRIES_AT_LAST, f);
    seen = f->seen;
    count_tries (q, 1, TRIES_AT_LAST, f);
    patient = false;
    if (seen != f->seen)
      f->seen = SEEN;
  }
  /* That others never see it must be so each time, and for any write. */
  if (f->seen == BY_WRITER && (tries != SURE || !is_plain (q)))
    f->seen = SEEN;
  if (f->own || ((f->seen == SEEN || f->seen == BY_WRITER) &&
                 f->writer == (int) q->steps[f->step].connection &&
                 bit_of (f->attempt, f->cell, f->got) != f->written))
    return "own";
  return seen_at[f->seen];
}

/* The story *************************************************************/

static const char *
value_name (char *name, const struct sequence *q, const struct finding *f,
            unsigned cell, uint64_t word)
{
  const uint32_t bit = bit_of (f->attempt, cell, word);

  if (bit == ZEROES)
    return "zeroes";
  if (bit == ANYTHING)
    return "what was there before";
  /* Letters go in the order of the writes. */
  strcpy (name, "A");
  for (unsigned i = 0; i < q->nr_steps; ++i) {
    if (writes_data (&q->steps[i]) && bit == UINT32_C (1) << q->steps[i].value)
      break;
    name[0] += writes_data (&q->steps[i]);
  }
  return name;
}

static void
tell (const struct sequence *q, const struct finding *f)
{
  int numbers[CONNECTIONS] = { 0 }, next = 0;
  char name[2];

  start = f->start;
  for (unsigned i = 0; i <= f->step; ++i) {
    const struct step *s = &q->steps[i];
    const uint64_t count = s->count * q->cell_size;
    const bool last = i == f->step;

    if (numbers[s->connection] == 0)
      numbers[s->connection] = ++next;
    printf ("step: connection %d %s", numbers[s->connection],
            s->kind == MAP && last ? "was told of zeroes" :
            about[s->kind].told);
    if (s->kind == READ && last)
      printf (" %s", value_name (name, q, f, f->cell, f->got));
    if (writes_data (s))
      printf (" %s", value_name (name, q, f, s->cell,
                                 word_of (f->attempt, s->cell, s->value)));
    if (s->kind < FLUSH)
      printf (" at %llu", (unsigned long long)
              (last ? f->offset : offset_of (q, s->cell)));
    if (s->kind < FLUSH && !last && count > block_size)
      printf (" to %llu", (unsigned long long) offset_of (q, s->cell) + count);
    if (s->kind == PIECES)
      printf (", %llu bytes at a time", (unsigned long long) piece_size (q));
    if (has_fua (s))
      printf (" with FUA");
    printf ("%s\n", f->failed >> i & 1 ? ", which failed" : "");
  }
}

int
check_sequences (const struct server *with)
{
  struct sequence q, found;
  const char *word;
  struct timespec ts;
  struct finding f;
  unsigned n = 0, nr_failed = 0;
  bool is_found;

  server = with;
  size = server->size;
  if (size < 2 * CELLS * block_size || block_size > MAX_CELL) {
    fprintf (stderr, "consistency: the range has %llu bytes: must be %llu or "
             "more, and a block at most %u\n", (unsigned long long) size,
             (unsigned long long) (2 * CELLS * block_size), MAX_CELL);
    return 2;
  }
  began = now ();
  random_state = seed;
  timespec_get (&ts, TIME_UTC);
  /* Room for all attempts of a millisecond. */
  salt = (ts.tv_sec * UINT64_C (1000) + ts.tv_nsec / 1000000) << 20;

  do {
    const unsigned long errors = nr_errors;

    next_sequence (&q, n++);
    is_found = play (&q, &f);
    nr_failed += nr_errors > errors;
    /* What mostly fails cannot be checked. */
    broken |= n >= NR_KNOWN && nr_failed > n / 2;
  } while (!is_found && !broken &&
           (n < NR_KNOWN ||
            ((!seconds || now () < began + seconds +
              (n < ROUNDS * NR_KNOWN ? MORE_FOR_ROUNDS : 0)) &&
             (!max_operations || nr_requests < max_operations))));

  if (is_found) {
    broken = false;
    q.nr_steps = f.step + 1;
    found = q;
    deadline = now () + MAX_REDUCING;
    if (still_fails (&q, &found, &f))
      while (reduce (&q, &f))
        ;
    named = now () + MAX_NAMING;
    word = classify (&q, &f);
    tell (&q, &f);
    printf ("found: %s\n", word);
  }
  close_all ();
  printf ("sequences: %u\nrequests: %llu\nerrors: %lu\n", n,
          (unsigned long long) nr_requests, nr_errors);
  if (broken && !is_found)
    fprintf (stderr, "consistency: %s\n", first_error);
  return is_found ? 1 : broken ? 2 : 0;
}
