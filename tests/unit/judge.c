/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A judge for the checker: verify/sequences.c with a server in memory.
 *
 * The server keeps its promise, and uses every freedom that it leaves: each
 * connection has a cache, and blocks are fetched, written back and dropped
 * when nobody has asked for it; a write may go through or stay; a flush may
 * drop the copies or renew them; a trim does anything; what a closed
 * connection has left comes later.  The checker must not accuse it.
 *
 * Then it gets one fault at a time.  The checker must find it, and say the
 * right word.
 *
 * JUDGE_REQUESTS sets how many requests the honest server gets (100000), and
 * JUDGE_SEEDS with how many seeds each fault must be found (3).
 */

#include <sys/mman.h>

#include "unit.h"

#include "verify/sequences.c"

uint64_t seed, seconds, max_operations, block_size = 8, nr_connections = 4,
  range_offset, range_size;

#define BLOCKS 16384            /* Of the disk: each is a word. */
#define HANDLES 8                /* With those that are closed. */
#define GROUP 8                 /* Blocks, for a plugin of larger ones. */
#define SOME 24                 /* Blocks, for one that can't take more. */

enum state { NONE, CLEAN, DIRTY };

struct nbd_handle {
  bool is_open;
  unsigned number;
  uint64_t data[BLOCKS];
  uint8_t state[BLOCKS], map[BLOCKS]; /* A map has the same states. */
  bool zero_in_map[BLOCKS];
  uint64_t own_disk[BLOCKS];    /* Of a server that has one for each. */
  unsigned first, end;          /* All others are NONE. */
  unsigned writes;              /* Since a flush. */
};

#define EACH_BLOCK(I, H) unsigned I = (H)->first; I < (H)->end; ++I

/* What the server does wrong, and what the checker must say. */
#define FAULTS(FAULT)                                                   \
  FAULT (FLUSH_OWN_ONLY, "flush")                                       \
  FAULT (FLUSH_KEEPS_OTHERS_COPIES, "flush")                            \
  FAULT (FLUSH_KEEPS_OWN_COPIES, "flush")                               \
  FAULT (FLUSH_SOMETIMES, "flush or gone")                              \
  FAULT (FLUSH_NOT_THE_FIFTH, "flush or gone")                          \
  FAULT (FLUSH_ONE_BLOCK, "flush, long or gone")                        \
  FAULT (FLUSH_TOO_EARLY, "flush")                                      \
  FAULT (FLUSH_NOT_ZEROES, "flush")                                     \
  FAULT (FLUSH_DISCARDS, "gone")                                        \
  FAULT (FLUSH_SOME_BLOCKS, "long or gone")                             \
  FAULT (FLUSH_LATE, "late")                                            \
  FAULT (FLUSH_DROPS_LATE, "flush")                                     \
  FAULT (FLUSH_LOSES_A_BLOCK, "gone or own")                            \
  FAULT (MAP_ALL_ZERO, "extents")                                       \
  FAULT (MAP_OF_DISK, "extents")                                        \
  FAULT (MAP_KEPT, "extents")                                           \
  FAULT (MAP_WIDE, "extents")                                           \
  FAULT (FUA_IGNORED, "fua")                                            \
  FAULT (FUA_KEEPS_COPIES, "fua")                                       \
  FAULT (FUA_NOT_ZEROES, "fua")                                         \
  FAULT (FUA_FIRST_BLOCK, "fua")                                        \
  FAULT (FUA_BESIDE_OWN, "fua")                                         \
  FAULT (APART, "apart")                                                \
  FAULT (NULL_WRITES, "own")                                            \
  FAULT (LOSE_A_WRITE, "own or gone")                                   \
  FAULT (GROUPS_BACK, "neighbour or order")                             \
  FAULT (GROUPS_ZEROED, "neighbour")                                    \
  FAULT (GROUPS_TRIMMED, "neighbour")                                   \
  FAULT (CLOSE_DROPS, "lost")                                           \
  FAULT (CLOSE_TAKES_ALONG, "lost")                                     \
  FAULT (OWN_FROM_DISK, "own")                                          \
  FAULT (OWN_ZEROES, "own")                                             \
  FAULT (OWN_SECOND, "own or gone")                                     \
  FAULT (OWN_CACHED, "own or gone")                                     \
  FAULT (ORDER_OF_FLUSH, "order")                                       \
  FAULT (ORDER_OF_CLOSED, "order")                                      \
  FAULT (LONG_WRITE, "long")                                            \
  FAULT (LONG_READ, "long")                                             \
  FAULT (MANY_WRITES, "many")

#define NAME(FAULT, WORDS) FAULT,
static enum fault { HONEST, FAILING, FAULTS (NAME) } fault;

static struct nbd_handle handles[HANDLES];
static uint64_t disk[BLOCKS], randomness, clock_us, near;
static unsigned nr_opened;
static struct { uint64_t due, value, block; } late[BLOCKS];
static uint64_t late_first, late_end;
static uint64_t drop_due;

static unsigned
chance (unsigned n)
{
  return mix (&randomness) % n;
}

static uint64_t *
backend (struct nbd_handle *h)
{
  return fault == APART ? h->own_disk : disk;
}

/* A block reaches the disk. */
static void
put (struct nbd_handle *h, unsigned i, uint64_t value)
{
  if (fault == FLUSH_LOSES_A_BLOCK && chance (20) == 0)
    return;
  if (fault == FLUSH_LATE) {
    late[late_end % BLOCKS].due = clock_us + 300000;
    late[late_end % BLOCKS].block = i;
    late[late_end++ % BLOCKS].value = value;
    return;
  }
  backend (h)[i] = value;
}

static void
set (struct nbd_handle *h, unsigned i, uint64_t value, enum state state)
{
  h->data[i] = value;
  h->state[i] = state;
  if (fault != MAP_KEPT)
    h->map[i] = NONE;
  if (state != NONE && i < h->first)
    h->first = i;
  if (state != NONE && i >= h->end)
    h->end = i + 1;
}

static bool
is_dirty (const struct nbd_handle *h)
{
  for (EACH_BLOCK (i, h))
    if (h->state[i] == DIRTY)
      return true;
  return false;
}

static void
write_back (struct nbd_handle *h, unsigned i)
{
  const unsigned first = fault == GROUPS_BACK ? i - i % GROUP : i;
  const unsigned n = fault == GROUPS_BACK ? GROUP : 1;

  for (unsigned j = first; j < first + n; ++j)
    if (h->state[j] != NONE) {
      put (h, j, h->data[j]);
      h->state[j] = chance (2) ? CLEAN : NONE;
    }
}

/* Something that nobody has asked for. */
static void
wander (void)
{
  clock_us += 20;
  while (late_first < late_end && late[late_first % BLOCKS].due <= clock_us) {
    disk[late[late_first % BLOCKS].block] = late[late_first % BLOCKS].value;
    late_first++;
  }
  if (drop_due && drop_due <= clock_us) {
    for (struct nbd_handle *h = handles; h < handles + HANDLES; ++h)
      for (EACH_BLOCK (i, h))
        if (h->state[i] == CLEAN)
          h->state[i] = NONE;
    drop_due = 0;
  }
  for (unsigned n = chance (6); n > 0; --n) {
    struct nbd_handle *h = &handles[chance (HANDLES)];
    const unsigned first = (near + chance (64)) % BLOCKS;
    const unsigned end = first + 1 + chance (chance (8) ? 4 : 200);
    const unsigned what = chance (3);

    for (unsigned i = first; i < end && i < BLOCKS; ++i)
      if (what == 0 && h->state[i] == DIRTY && fault != OWN_FROM_DISK &&
          fault != FLUSH_NOT_ZEROES && fault != FLUSH_LATE)
        write_back (h, i);
      else if (what == 1 && h->state[i] == CLEAN)
        h->state[i] = NONE;
      else if (what == 2 && h->state[i] == NONE && h->is_open)
        set (h, i, backend (h)[i], CLEAN);
  }
}

static int
fails (void)
{
  return fault == FAILING && chance (200) == 0;
}

static struct nbd_handle *
judge_open (void)
{
  struct nbd_handle *h = NULL;

  wander ();
  for (unsigned i = 0; i < HANDLES && !h; ++i)
    if (!handles[i].is_open && !is_dirty (&handles[i]))
      h = &handles[i];
  if (!h) {                     /* What is left of a closed one comes now. */
    for (h = handles; h->is_open; ++h)
      ;
    for (EACH_BLOCK (i, h))
      if (h->state[i] == DIRTY)
        write_back (h, i);
  }
  for (EACH_BLOCK (i, h))
    h->state[i] = NONE;
  if (fault == APART)
    memset (h->own_disk, 0, sizeof h->own_disk);
  if (fault == MAP_KEPT)
    memset (h->map, NONE, BLOCKS);
  h->first = BLOCKS;
  h->end = h->writes = 0;
  h->is_open = true;
  h->number = nr_opened++;
  return h;
}

static void
judge_close (struct nbd_handle *h)
{
  const bool at_once = chance (2);

  wander ();
  for (EACH_BLOCK (i, h)) {
    if (h->state[i] == DIRTY && fault == CLOSE_DROPS)
      h->state[i] = NONE;
    if (h->state[i] == CLEAN && fault == CLOSE_TAKES_ALONG &&
        disk[i] == h->data[i])
      disk[i] = 0;
    if (h->state[i] == DIRTY && at_once)
      write_back (h, i);
    if (h->state[i] == CLEAN)
      h->state[i] = NONE;
  }
  h->is_open = false;
}

static const char *
judge_error (void)
{
  return "told to fail";
}

static int
judge_sleep (unsigned us)
{
  clock_us += us;
  return 0;
}

/* What H reads there; it may keep a copy. */
static uint64_t
view (struct nbd_handle *h, unsigned i)
{
  const bool own = h->state[i] != DIRTY ||
    (fault != OWN_FROM_DISK && (fault != OWN_ZEROES || h->data[i] != 0));

  if (h->state[i] != NONE && own)
    return h->data[i];
  if (h->state[i] == NONE && chance (2))
    set (h, i, backend (h)[i], CLEAN);
  return backend (h)[i];
}

static int
judge_pread (struct nbd_handle *h, void *buf, size_t count, uint64_t offset,
             uint32_t flags)
{
  const unsigned first = offset / 8, n = count / 8;

  (void) flags;
  wander ();
  near = first;
  if (fails ())
    return -1;
  for (unsigned i = 0; i < n; ++i)
    ((uint64_t *) buf)[i] = fault == LONG_READ && i >= SOME ? 0 :
      view (h, first + i);
  return 0;
}

static int
judge_cache (struct nbd_handle *h, uint64_t count, uint64_t offset,
             uint32_t flags)
{
  (void) flags;
  wander ();
  if (fails ())
    return -1;
  for (unsigned i = offset / 8; i < (offset + count) / 8; ++i)
    if (h->state[i] == NONE || fault == OWN_CACHED)
      set (h, i, backend (h)[i], CLEAN);
  return 0;
}

/* What a flush writes back of O's. */
static void
flush_blocks (struct nbd_handle *o, unsigned left, bool failing)
{
  for (EACH_BLOCK (i, o))
    if (o->state[i] != DIRTY || (failing && chance (2)) ||
        (fault == FLUSH_NOT_ZEROES && o->data[i] == 0) || left == 0)
      continue;
    else if (fault == FLUSH_DISCARDS || (failing && chance (2)))
      o->state[i] = NONE;
    else {
      write_back (o, i);
      left--;
    }
}

static void
renew_copies (struct nbd_handle *o, bool refresh)
{
  const unsigned first = o->first, end = o->end;

  o->first = BLOCKS;
  o->end = o->writes = 0;
  for (unsigned i = first; i < end; ++i)
    if (o->state[i] == CLEAN && !(refresh && o->is_open && chance (4)))
      o->state[i] = NONE;
    else if (o->state[i] != NONE)
      set (o, i, o->state[i] == CLEAN ? backend (o)[i] : o->data[i],
           o->state[i]);
}

static int
judge_flush (struct nbd_handle *h, uint32_t flags)
{
  const bool failing = fails (), refresh = chance (2);
  const bool sometimes = fault == FLUSH_SOMETIMES && chance (50) == 0;
  const unsigned turn = chance (HANDLES);

  (void) flags;
  wander ();
  for (unsigned n = 0; n < 3 * HANDLES && !sometimes; ++n) {
    struct nbd_handle *o = &handles[(turn + n) % HANDLES];

    if ((fault == FLUSH_OWN_ONLY && o != h) ||
        (fault == FLUSH_NOT_THE_FIFTH && o->number % 5 == 4))
      continue;
    if (n / HANDLES == 1)
      flush_blocks (o, fault == FLUSH_ONE_BLOCK ? 1 :
                    fault == FLUSH_SOME_BLOCKS ? SOME : BLOCKS, failing);
    else if (n / HANDLES == (fault == FLUSH_TOO_EARLY ? 0 : 2) &&
             (fault != FLUSH_KEEPS_OTHERS_COPIES || o == h) &&
             (fault != FLUSH_KEEPS_OWN_COPIES || o != h) &&
             fault != FLUSH_DROPS_LATE)
      renew_copies (o, refresh);
  }
  if (fault == FLUSH_DROPS_LATE)
    drop_due = clock_us + 300000;
  return failing ? -1 : 0;
}

/* A block of a write or zero.  What others have written there is older. */
static void
write_block (struct nbd_handle *h, unsigned i, uint64_t value, bool through)
{
  for (struct nbd_handle *o = handles; o < handles + HANDLES; ++o)
    if (o != h && o->state[i] == DIRTY && fault != ORDER_OF_FLUSH &&
        (fault != ORDER_OF_CLOSED || o->is_open))
      write_back (o, i);
  if (!through) {
    set (h, i, value, DIRTY);
    if (chance (4) == 0 && fault != FLUSH_NOT_ZEROES &&
        fault != OWN_FROM_DISK && fault != FLUSH_LATE)
      write_back (h, i);
    return;
  }
  put (h, i, value);
  if (fault != FUA_BESIDE_OWN || h->state[i] != DIRTY)
    set (h, i, value, chance (2) ? CLEAN : NONE);
  for (struct nbd_handle *o = handles; o < handles + HANDLES; ++o)
    if (o != h && o->state[i] == CLEAN && fault != FUA_KEEPS_COPIES)
      set (o, i, 0, NONE);
}

/* Write, or zero if BUF is NULL. */
static int
change (struct nbd_handle *h, const uint64_t *buf, uint64_t count,
        uint64_t offset, uint32_t flags)
{
  const bool fua = flags & FUA && fault != FUA_IGNORED &&
    (buf || fault != FUA_NOT_ZEROES);
  const bool all = fua && chance (3) == 0 && fault < FUA_IGNORED;
  const bool failing = fails ();
  unsigned first = offset / 8, n = count / 8;

  wander ();
  near = first;
  h->writes++;
  if (fault == NULL_WRITES || (fault == LOSE_A_WRITE && chance (100) == 0) ||
      (fault == MANY_WRITES && h->writes > SOME && n == 1))
    return 0;
  if (fault == GROUPS_ZEROED && !buf) {
    n = (first + n + GROUP - 1) / GROUP * GROUP;
    first -= first % GROUP;
    n -= first;
  }
  for (unsigned i = 0; i < n; ++i) {
    const unsigned group = (first + i) / GROUP * GROUP;

    if ((failing && chance (2)) || (fault == LONG_WRITE && i >= SOME) ||
        (fault == OWN_SECOND && h->state[first + i] == DIRTY))
      continue;
    for (unsigned j = group; fault == GROUPS_BACK && j < group + GROUP; ++j)
      if (h->state[j] == NONE)
        set (h, j, disk[j], CLEAN);
    write_block (h, first + i, buf ? buf[i] : 0,
                 fua && !all && (fault != FUA_FIRST_BLOCK || i == 0));
  }
  return failing ? -1 : all ? judge_flush (h, 0) : 0;
}

static int
judge_pwrite (struct nbd_handle *h, const void *buf, size_t count,
              uint64_t offset, uint32_t flags)
{
  return change (h, buf, count, offset, flags);
}

static int
judge_zero (struct nbd_handle *h, uint64_t count, uint64_t offset,
            uint32_t flags)
{
  return change (h, NULL, count, offset, flags);
}

static int
judge_trim (struct nbd_handle *h, uint64_t count, uint64_t offset,
            uint32_t flags)
{
  unsigned first = offset / 8, end = (offset + count) / 8;

  (void) flags;
  wander ();
  if (fault == GROUPS_TRIMMED) {
    first -= first % GROUP;
    end = (end + GROUP - 1) / GROUP * GROUP;
  }
  for (unsigned i = first; i < end; ++i)
    switch (chance (5)) {
    case 0: h->state[i] = NONE; break;
    case 1: set (h, i, 0, DIRTY); break;
    case 2: set (h, i, mix (&randomness), DIRTY); break;
    case 3:
      h->state[i] = NONE;
      backend (h)[i] = chance (2) ? 0 : mix (&randomness);
    }
  return fails () ? -1 : 0;
}

static int
judge_extents (struct nbd_handle *h, uint64_t count, uint64_t offset,
               void (*zero_at_all) (uint64_t, uint64_t))
{
  wander ();
  if (fails ())
    return -1;
  for (unsigned i = offset / 8; i < (offset + count) / 8; ++i) {
    bool is_zero = (fault == MAP_OF_DISK ? disk[i] : view (h, i)) == 0;

    if (fault == MAP_KEPT) {
      if (h->map[i] == NONE) {
        h->map[i] = CLEAN;
        h->zero_in_map[i] = is_zero;
      }
      is_zero = h->zero_in_map[i];
    }
    else if (is_zero && chance (4) == 0)
      is_zero = false;
    if (fault == MAP_WIDE && i + 1 < BLOCKS && view (h, i + 1) == 0)
      is_zero = true;
    if (is_zero || fault == MAP_ALL_ZERO)
      zero_at_all (8, i * 8);
  }
  return 0;
}

static const struct server judge = {
  judge_open, judge_close, judge_error, judge_sleep, judge_pread,
  judge_pwrite, judge_zero, judge_trim, judge_cache, judge_flush,
  judge_extents, BLOCKS * 8, true, true, true, true, true
};

/* What the checker has printed; shared with the processes that run it. */
static char *text;
#define TEXT 4096

/* Returns the checker's exit status. */
static int
run (enum fault with, uint64_t of_seed, uint64_t requests)
{
  const pid_t pid = fork ();
  int status;

  if (pid == 0) {
    stdout = stderr = fmemopen (text, TEXT, "w");
    fault = with;
    randomness = of_seed;
    seed = of_seed;
    max_operations = requests;
    status = check_sequences (&judge);
    fclose (stdout);
    _exit (status);
  }
  CHECK (pid > 0 && waitpid (pid, &status, 0) == pid && WIFEXITED (status),
         "status %#x", (unsigned) status);
  return WEXITSTATUS (status);
}

#define SEEDS 20

static void
nobody_accused (const void *with)
{
  const char *requests = getenv ("JUDGE_REQUESTS");
  const uint64_t n = requests ? strtoull (requests, NULL, 10) : 100000;

  for (unsigned i = 1; i <= SEEDS; ++i) {
    const int status = run (*(const enum fault *) with, i, n / SEEDS);

    CHECK (status == 0, "seed %u, status %d: %s", i, status, text);
  }
}

static const struct planted {
  const char *name, *words;
  enum fault fault;
} planted[] = {
#define PLANTED(FAULT, WORDS) { #FAULT ": " WORDS, WORDS, FAULT },
  FAULTS (PLANTED)
};

/* The checker must find it, and say one of its words. */
static void
find (const void *arg)
{
  const struct planted *p = arg;
  const char *seeds = getenv ("JUDGE_SEEDS");
  char word[16];

  for (int i = 1; i <= (seeds ? atoi (seeds) : 3); ++i) {
    const int status = run (p->fault, i, 1000000);
    const char *found = strstr (text, "found: ");

    CHECK (status == 1 && found && sscanf (found, "found: %15s", word) == 1 &&
           strstr (p->words, word), "must be %s, seed %d, status %d: %s",
           p->words, i, status, text);
  }
}

int
main (void)
{
  static const enum fault honest = HONEST, failing = FAILING;

  unit_program = "judge";
  text = mmap (NULL, TEXT, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1,
               0);
  CHECK (text != MAP_FAILED);
  unit_run ("a server that keeps its promise is not accused", nobody_accused,
            &honest);
  unit_run ("nor one whose requests fail", nobody_accused, &failing);
  for (size_t i = 0; i < sizeof planted / sizeof planted[0]; ++i)
    unit_run (planted[i].name, find, &planted[i]);
  return unit_status;
}
