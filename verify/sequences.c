/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Sequences of requests, one after the other, on up to four connections.
 * A few that are known to be useful come first, shortest first; then random
 * ones.  If a read finds what it must not, the sequence is made shorter for
 * as long as that still happens, and then printed, short enough for a
 * person to follow.
 *
 * A sequence has four cells of the disk.  For each, the model knows what a
 * read may find: "all_see" is what every connection may see, "pending" what
 * was written since by "pending_by" and waits for a flush.
 *
 * - The writer of what is pending sees that, and nothing older.
 * - The others may see it or not, until a flush has had its reply.
 * - Two connections that write one cell without a flush between them have
 *   no order: until the next flush, and after it, either may be found.
 * - A trim leaves what was there, or zeroes.
 *
 * Nothing is known about a cell that has not been written, so nothing needs
 * to be prepared.  Sequences follow each other on the same connections; a
 * shortened one is tried on new connections.
 */

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#include "checker.h"

#define CONNECTIONS 4
#define CELLS 4
#define RANDOM_STEPS 12
#define STEPS 64                /* With the checks at the end. */
#define TRIES 3                 /* A failure may not happen every time. */
#define MAX_CELL 65536
#define MAX_REDUCING 5          /* Seconds. */
#define ARRIVAL 2               /* Seconds to wait for what is late. */

enum kind { READ, MAP, CACHE, WRITE, WRITE_FUA, ZERO, ZERO_FUA, TRIM, FLUSH,
  REOPEN };

struct step {
  enum kind kind;
  unsigned connection, cell, count;
  unsigned value;               /* Of a write: 1 is A. */
};

struct sequence {
  struct step steps[STEPS];
  unsigned nr_steps;
};

/* A set of values, one bit for each; zeroes are value 0. */
#define ZEROES UINT32_C (1)
#define ANYTHING (UINT32_C (1) << 31)

struct cell {
  uint32_t all_see, pending;
  int pending_by;               /* -1 if there is none or no order. */
};

/* What a step has found but must not find. */
struct finding {
  int step;                     /* -1 if there is nothing. */
  unsigned cell;
  uint64_t got;
  uint32_t allowed;
};

static struct nbd_handle *connections[CONNECTIONS];
static bool can_zero, can_trim, can_fua, can_cache, can_map;
static uint64_t random_state, nr_areas, area, salt, attempt, nr_requests;
static double began, deadline;

static void
fatal (const char *what, unsigned connection, const char *why)
{
  fprintf (stderr, "consistency: %s on connection %u: %s\n", what,
           connection + 1, why);
  exit (2);
}

static unsigned
pick (unsigned n)
{
  return mix (&random_state) % n;
}

static uint64_t
offset_of (unsigned cell)
{
  return range_offset + (area * CELLS + cell) * block_size;
}

/* Values ****************************************************************/

/* Each word of a cell that has this value.  It contains the attempt, and the
 * time of the first, so what earlier attempts left is different.
 */
static uint64_t
word_of (unsigned cell, unsigned value)
{
  return value == 0 ? 0 : (salt + attempt) << 16 | cell << 8 | value;
}

static uint32_t
bit_of (unsigned cell, uint64_t word)
{
  if (word == 0)
    return ZEROES;
  if (word >> 8 == word_of (cell, 1) >> 8 && (word & 255) < 31)
    return UINT32_C (1) << (word & 255);
  return ANYTHING;
}

/* May this word be found in the cell?  Fills in *F. */
static bool
may_find (const struct cell *cells, unsigned connection, unsigned cell,
          uint64_t word, struct finding *f)
{
  const struct cell *c = &cells[cell];

  f->allowed = c->pending && c->pending_by == (int) connection ?
    c->pending : c->all_see | c->pending;
  f->cell = cell;
  f->got = word;
  return (f->allowed & (bit_of (cell, word) | ANYTHING)) != 0;
}

/* Update the model after a step that has succeeded. */
static void
note (struct cell *cells, const struct step *s)
{
  const bool fua = s->kind == WRITE_FUA || s->kind == ZERO_FUA;

  for (struct cell *c = cells; c < cells + CELLS; ++c) {
    const unsigned i = c - cells;

    if (s->kind == FLUSH && c->pending) {
      c->all_see = c->pending;
      c->pending = 0;
      c->pending_by = -1;
    }
    if (s->kind == REOPEN && c->pending_by == (int) s->connection)
      c->pending_by = -1;
    if (s->kind < WRITE || s->kind > TRIM || i < s->cell ||
        i >= s->cell + s->count)
      continue;

    {
      const bool ordered = !c->pending ||
        c->pending_by == (int) s->connection;
      uint32_t now = s->kind == WRITE || s->kind == WRITE_FUA ?
        UINT32_C (1) << s->value : ZEROES;

      if (s->kind == TRIM || !ordered)
        now |= c->pending ? c->pending : c->all_see;
      if (fua && ordered) {
        c->all_see = now;
        c->pending = 0;
        c->pending_by = -1;
      }
      else {
        if (fua)
          c->all_see |= now;
        c->pending = now;
        c->pending_by = ordered ? (int) s->connection : -1;
      }
    }
  }
}

/* Playing a sequence ****************************************************/

static void
open_connection (unsigned i)
{
  struct nbd_handle *nbd = nbd_create ();

  if (!nbd ||
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1 ||
      nbd_connect_uri (nbd, uri) == -1)
    fatal ("connect", i, nbd_get_error ());
  connections[i] = nbd;
}

static void
close_connection (unsigned i)
{
  if (!connections[i])
    return;
  nbd_shutdown (connections[i], 0);
  nbd_close (connections[i]);
  connections[i] = NULL;
}

static void
close_all (void)
{
  for (unsigned i = 0; i < CONNECTIONS; ++i)
    close_connection (i);
}

/* What is reported as zero counts as read as zeroes. */
static int
mapped (void *opaque, const char *context, uint64_t offset, uint32_t *entries,
        size_t nr_entries, int *error)
{
  uint8_t *zero = opaque;

  (void) context;
  (void) error;
  for (size_t i = 0; i + 1 < nr_entries; i += 2) {
    for (unsigned cell = 0; cell < CELLS; ++cell)
      if (entries[i + 1] & LIBNBD_STATE_ZERO &&
          offset < offset_of (cell) + block_size &&
          offset + entries[i] > offset_of (cell))
        zero[cell] = 1;
    offset += entries[i];
  }
  return 0;
}

/* Returns false if the step has found what it must not. */
static bool
take_step (const struct step *s, struct cell *cells, struct finding *f)
{
  static const char *const names[] = { "read", "block status", "cache",
    "write", "FUA write", "zero", "FUA zero", "trim", "flush", "reopen" };
  static uint64_t buf[CELLS * MAX_CELL / sizeof (uint64_t)];
  const uint64_t offset = offset_of (s->cell), size = s->count * block_size;
  const uint64_t words = block_size / sizeof buf[0];
  struct nbd_handle *nbd = connections[s->connection];
  uint8_t zero[CELLS] = { 0 };
  uint32_t flags = 0;
  int r = 0;

  nr_requests++;
  switch (s->kind) {
  case READ:
    r = nbd_pread (nbd, buf, size, offset, 0);
    break;
  case MAP:
    r = nbd_block_status (nbd, size, offset, (nbd_extent_callback)
                          { mapped, zero, NULL }, 0);
    break;
  case CACHE:
    r = nbd_cache (nbd, size, offset, 0);
    break;
  case WRITE_FUA:
    flags = LIBNBD_CMD_FLAG_FUA;
    /* FALLTHROUGH */
  case WRITE:
    for (uint64_t i = 0; i < s->count * words; ++i)
      buf[i] = word_of (s->cell + i / words, s->value);
    r = nbd_pwrite (nbd, buf, size, offset, flags);
    break;
  case ZERO_FUA:
    flags = LIBNBD_CMD_FLAG_FUA;
    /* FALLTHROUGH */
  case ZERO:
    r = nbd_zero (nbd, size, offset, flags);
    break;
  case TRIM:
    r = nbd_trim (nbd, size, offset, 0);
    break;
  case FLUSH:
    r = nbd_flush (nbd, 0);
    break;
  case REOPEN:
    close_connection (s->connection);
    open_connection (s->connection);
    break;
  }
  if (r == -1)
    fatal (names[s->kind], s->connection, nbd_get_error ());
  note (cells, s);

  for (unsigned i = 0; s->kind == MAP && i < s->count; ++i)
    if (zero[s->cell + i] &&
        !may_find (cells, s->connection, s->cell + i, 0, f))
      return false;
  for (uint64_t i = 0; s->kind == READ && i < s->count * words; ++i)
    if (!may_find (cells, s->connection, s->cell + i / words, buf[i], f))
      return false;
  return true;
}

/* Use the connections that are open, or new ones.  Returns true if a step has
 * found what it must not, with *F filled in.
 */
static bool
play (const struct sequence *q, struct finding *f)
{
  struct cell cells[CELLS];

  for (unsigned i = 0; i < CELLS; ++i)
    cells[i] = (struct cell) { ANYTHING, 0, -1 };
  for (unsigned i = 0; i < q->nr_steps; ++i)
    if (!connections[q->steps[i].connection])
      open_connection (q->steps[i].connection);
  attempt++;
  area = attempt % nr_areas;
  f->step = -1;
  for (unsigned i = 0; i < q->nr_steps && f->step == -1; ++i)
    if (!take_step (&q->steps[i], cells, f))
      f->step = i;
  return f->step != -1;
}

/* Sequences *************************************************************/

/* What a server without this can do instead. */
static enum kind
possible (enum kind kind)
{
  switch (kind) {
  case WRITE_FUA: return can_fua ? kind : WRITE;
  case ZERO: return can_zero ? kind : WRITE;
  case ZERO_FUA: return can_zero && can_fua ? kind : WRITE;
  case TRIM: return can_trim ? kind : WRITE;
  case MAP: return can_map ? kind : READ;
  case CACHE: return can_cache ? kind : READ;
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
 * of its connection.  Capitals are for the next cell.  Returns false if there
 * are no more.
 */
static bool
take_known_sequence (struct sequence *q, unsigned number)
{
  static const char *const known[] = {
    "w0r0", "u0r1", "w0f0r0", "w0f0m0", "w0f0r1", "w0f1r1", "r1u0r1",
    "r1w0f0r1", "r1w0f1r1", "r1w0f2r1", "w0W1f0r0", "w0W1f0R0", "m1w0f0m1",
    "w0f0x0x1r1", "r1w0x0f1r1", "w0f0z0f0m1", "w0f0r1z0f0r1", "w0f0r1t0w0f0r1"
  };
  static const struct { char letter; enum kind kind; } letters[] = {
    { 'r', READ }, { 'm', MAP }, { 'w', WRITE }, { 'u', WRITE_FUA },
    { 'z', ZERO }, { 't', TRIM }, { 'f', FLUSH }, { 'x', REOPEN },
  };

  if (number >= sizeof known / sizeof known[0])
    return false;
  q->nr_steps = 0;
  for (const char *p = known[number]; *p; p += 2)
    for (unsigned i = 0; i < sizeof letters / sizeof letters[0]; ++i)
      if (letters[i].letter == tolower (*p))
        add (q, letters[i].kind, p[1] - '0', *p < 'a', 1);
  return true;
}

static enum kind
pick_kind (void)
{
  static const enum kind kinds[] = { READ, READ, READ, READ, READ, WRITE,
    WRITE, WRITE, WRITE, WRITE, FLUSH, FLUSH, FLUSH, WRITE_FUA, WRITE_FUA,
    ZERO, ZERO, ZERO_FUA, TRIM, MAP, CACHE, REOPEN };

  return kinds[pick (sizeof kinds / sizeof kinds[0])];
}

static void
make_sequence (struct sequence *q)
{
  const unsigned n = 2 + pick (RANDOM_STEPS - 1);
  const unsigned conns = 1 + pick (nr_connections < CONNECTIONS ?
                                   nr_connections : CONNECTIONS);
  const unsigned cells = 1 + pick (CELLS);

  q->nr_steps = 0;
  for (unsigned i = 0; i < n; ++i) {
    const unsigned cell = pick (cells), wide = pick (4);

    add (q, pick_kind (), pick (conns), cell,
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

static enum kind
plainer (enum kind kind)
{
  switch (kind) {
  case MAP: case CACHE: return READ;
  case ZERO_FUA: return WRITE_FUA;
  case WRITE_FUA: case ZERO: case TRIM: return WRITE;
  default: return kind;
  }
}

/* One round of making it shorter and simpler.  Returns true if that
 * succeeded.
 */
static bool
reduce (struct sequence *q, struct finding *f)
{
  bool changed = false;

  for (unsigned i = q->nr_steps; i-- > 0;) {
    struct sequence shorter = *q;

    if (i >= q->nr_steps)
      continue;
    memmove (&shorter.steps[i], &shorter.steps[i + 1],
             (--shorter.nr_steps - i) * sizeof q->steps[0]);
    changed |= still_fails (q, &shorter, f);
  }
  for (unsigned i = 0; i < q->nr_steps; ++i) {
    struct sequence simpler = *q;
    struct step *s = &simpler.steps[i];

    if (s->count > 1) {
      /* The cell that it is about, or the first. */
      if (i + 1 == q->nr_steps)
        s->cell = f->cell;
      s->count = 1;
      changed |= still_fails (q, &simpler, f);
    }
    simpler = *q;
    s->kind = plainer (s->kind);
    if (i < q->nr_steps && s->kind != q->steps[i].kind)
      changed |= still_fails (q, &simpler, f);
    for (unsigned c = 0; i < q->nr_steps && c < q->steps[i].connection; ++c) {
      simpler = *q;
      s->connection = c;
      if (still_fails (q, &simpler, f)) {
        changed = true;
        break;
      }
    }
  }
  return changed;
}

/* The story *************************************************************/

static const char *
value_name (char *name, const struct sequence *q, unsigned cell,
            uint64_t word)
{
  const uint32_t bit = bit_of (cell, word);

  if (bit == ZEROES)
    return "zeroes";
  if (bit == ANYTHING)
    return "what was there before";
  /* Letters go in the order of the writes. */
  name[0] = 'A';
  name[1] = '\0';
  for (unsigned i = 0; i < q->nr_steps; ++i) {
    if (q->steps[i].kind != WRITE && q->steps[i].kind != WRITE_FUA)
      continue;
    if (bit == UINT32_C (1) << q->steps[i].value)
      break;
    name[0]++;
  }
  return name;
}

static void
tell (const struct sequence *q, const struct finding *f)
{
  int numbers[CONNECTIONS] = { 0 }, next = 0;

  for (unsigned i = 0; i < q->nr_steps; ++i) {
    const struct step *s = &q->steps[i];
    const bool last = i + 1 == q->nr_steps;
    const uint64_t at = offset_of (last ? f->cell : s->cell);
    char name[2];

    if (numbers[s->connection] == 0)
      numbers[s->connection] = ++next;
    printf ("step: connection %d ", numbers[s->connection]);
    switch (s->kind) {
    case READ:
      if (last)
        printf ("read %s", value_name (name, q, f->cell, f->got));
      else
        printf ("read");
      break;
    case MAP: printf (last ? "was told of zeroes" : "asked for extents"); break;
    case CACHE: printf ("had the server cache"); break;
    case WRITE:
    case WRITE_FUA:
      printf ("wrote %s", value_name (name, q, s->cell,
                                      word_of (s->cell, s->value)));
      break;
    case ZERO: case ZERO_FUA: printf ("zeroed"); break;
    case TRIM: printf ("trimmed"); break;
    case FLUSH: printf ("flushed\n"); continue;
    case REOPEN: printf ("closed and opened again\n"); continue;
    }
    printf (" at %llu", (unsigned long long) at);
    if (!last && s->count > 1)
      printf (" to %llu", (unsigned long long) (at + s->count * block_size));
    printf ("%s\n", s->kind == WRITE_FUA || s->kind == ZERO_FUA ?
            " with FUA" : "");
  }
}

/* When does a new connection see what another has written and flushed: at
 * once, after a while, or never?  And did that other one see it?
 */
static const char *
when_seen (void)
{
  struct timespec pause = { 0, 1000000 };
  struct cell cells[CELLS] = { { ANYTHING, 0, -1 } };
  const struct step reading[] = { { READ, 0, 0, 1, 0 },
                                  { READ, 1, 0, 1, 0 } };
  const struct step writing[] = { { WRITE, 0, 0, 1, 1 },
                                  { FLUSH, 0, 0, 1, 0 } };
  struct finding f;
  bool own, seen;
  double since;
  unsigned i;

  close_all ();
  attempt++;
  area = attempt % nr_areas;
  open_connection (0);
  for (i = 0; i < 2; ++i)
    take_step (&writing[i], cells, &f);
  own = take_step (&reading[0], cells, &f);
  close_connection (0);
  since = now ();
  for (i = 0, seen = false; !seen && now () < since + ARRIVAL; ++i) {
    if (i > 0)
      nanosleep (&pause, NULL);
    open_connection (1);
    seen = take_step (&reading[1], cells, &f);
    close_connection (1);
  }
  return seen ? i > 1 ? "late" : "flush" : own ? "apart" : "gone";
}

/* One word for what is wrong. */
static const char *
classify (const struct sequence *q, const struct finding *f)
{
  const char *seen;
  bool reopened = false, one = true, flushed = false, elsewhere = false;

  for (unsigned i = 0; i < q->nr_steps; ++i) {
    const struct step *s = &q->steps[i];

    one &= s->connection == q->steps[0].connection;
    flushed |= s->kind == FLUSH;
    reopened |= s->kind == REOPEN;
    elsewhere |= s->kind >= WRITE && s->kind <= TRIM &&
      (f->cell < s->cell || f->cell >= s->cell + s->count);
  }
  if (q->steps[q->nr_steps - 1].kind == MAP)
    return "extents";
  if (one && !reopened && !flushed)
    return "own";
  if (elsewhere)
    return "neighbour";
  seen = when_seen ();
  return !flushed && strcmp (seen, "flush") == 0 ? "fua" : seen;
}

int
check_sequences (void)
{
  struct sequence q, found;
  struct finding f;
  uint64_t size;
  unsigned n = 0;
  bool known;

  open_connection (0);
  can_zero = nbd_can_zero (connections[0]) == 1;
  can_trim = nbd_can_trim (connections[0]) == 1;
  can_fua = nbd_can_fua (connections[0]) == 1;
  can_cache = nbd_can_cache (connections[0]) == 1;
  can_map = nbd_can_meta_context (connections[0],
                                  LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  size = nbd_get_size (connections[0]);
  size = size > range_offset ? size - range_offset : 0;
  if (range_size && size > range_size)
    size = range_size;
  nr_areas = size / (CELLS * block_size);
  if (nr_areas == 0 || block_size > MAX_CELL) {
    fprintf (stderr, "consistency: the range has %llu bytes: must be %llu or "
             "more, and a block at most %u\n", (unsigned long long) size,
             (unsigned long long) (CELLS * block_size), MAX_CELL);
    return 2;
  }
  began = now ();
  random_state = seed;
  salt = time (NULL) << 24;     /* Room for all attempts of a second. */

  do {
    known = take_known_sequence (&q, n++);
    if (!known)
      make_sequence (&q);
  } while (!play (&q, &f) && (known || now () < began + seconds));

  if (f.step != -1) {
    q.nr_steps = f.step + 1;
    found = q;
    deadline = now () + MAX_REDUCING;
    if (still_fails (&q, &found, &f))
      while (reduce (&q, &f))
        ;
    tell (&q, &f);
    printf ("found: %s\n", classify (&q, &f));
  }
  close_all ();
  printf ("sequences: %u\nrequests: %llu\n", n,
          (unsigned long long) nr_requests);
  return f.step != -1;
}
