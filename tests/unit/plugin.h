/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin with a cache for each handle, and connections to it, as requests.c
 * would call them: see tests/plugins/wbcache.c for the real one.
 *
 * The disk has some cells, one for each connection, in blocks.  A handle
 * fetches all of them at its first request, also for a write, and keeps what
 * is written until it is flushed.  It is as bad as it may be: what it has
 * fetched goes into the cache at the end of the request; a write takes all of
 * its block with it, as the handle has it; and a flush drops the cache, or
 * refreshes it, as it begins, and writes as it ends.
 */

#ifndef MCSHIM_UNIT_PLUGIN_H
#define MCSHIM_UNIT_PLUGIN_H

#include "replicate.h"
#include "threads.h"

#define CONNECTIONS 80
#define LONG (((uint64_t) 1 << 32) - 1) /* the longest request */

struct conn {
  struct handle h;

  /* What a test does to it. */
  struct gate requests, flushes; /* each passes it inside the plugin */
  int flush_err;
  uint64_t flush_ns;
  uint32_t block;               /* which it writes back, unless 0 */

  /* What a test looks at. */
  unsigned nr_requests, nr_flushes; /* that have entered */
  unsigned flush_began, flush_ended; /* the last one: see "tick" */

  /* The rest is the plugin's, guarded by "world". */
  unsigned cell;
  bool open;
  unsigned inside;
  bool cached;
  int cache[CONNECTIONS];
  unsigned writes;
  struct own {
    int value;
    unsigned write, flushed;    /* the number of each; dirty if they differ */
  } own[CONNECTIONS];           /* which it has written */
};

static enum thread_model model;
static bool refreshes;          /* a flush, and an open takes a copy */
static uint64_t spacing = 4096; /* from cell to cell */
static int disk[CONNECTIONS];
static struct conn conns[CONNECTIONS];
static unsigned nr_conns;
static unsigned tick, inside_all;
static pthread_t the_server;

static void
enter (struct conn *c)
{
  CHECK (nr_held == 0, "the plugin is called with a lock");
  world_lock ();
  CHECK (c->open, "a handle is used before its open or after its close");
  if (model == SERIALIZE_HANDLE)
    CHECK (c->inside == 0, "two callbacks on one handle");
  if (model == SERIALIZE_ALL) {
    CHECK (inside_all == 0, "two callbacks");
    CHECK (pthread_equal (pthread_self (), the_server));
  }
  c->inside++;
  inside_all++;
}

static void
leave (struct conn *c)
{
  c->inside--;
  inside_all--;
  world_unlock ();
}

static bool
is_dirty (const struct own *own)
{
  return own->write != own->flushed;
}

/* Returns the value of CELL.  If COUNT is not 0, so many bytes from there on
 * are written: VALUE is the cells' new one.
 */
static int
plugin_request (struct conn *c, unsigned cell, uint64_t count, int value)
{
  const uint64_t block = c->h.block / spacing;
  int fetched[CONNECTIONS];
  uint64_t i, last;
  unsigned before;
  bool fetch;

  enter (c);
  c->nr_requests++;
  before = c->writes;
  fetch = !c->cached;
  memcpy (fetched, fetch ? disk : c->cache, sizeof fetched);
  world_unlock ();

  gate_pass (&c->requests);

  world_lock ();
  if (fetch) {
    memcpy (c->cache, fetched, sizeof fetched);
    c->cached = true;
  }
  if (count > 0) {
    last = (cell * spacing + count - 1) / spacing;
    c->writes++;
    for (i = cell / block * block;
         i < CONNECTIONS && i <= last / block * block + block - 1; i++) {
      if (i >= cell && i <= last)
        c->own[i].value = value;
      else if (!is_dirty (&c->own[i]) && c->own[i].write <= before)
        c->own[i].value = fetched[i];
      c->own[i].write = c->writes;
    }
  }
  value = is_dirty (&c->own[cell]) ? c->own[cell].value : fetched[cell];
  leave (c);
  return value;
}

static int
plugin_flush (struct handle *h)
{
  struct conn *c = (struct conn *) h;
  struct own own[CONNECTIONS];
  unsigned i;
  bool cached;
  int err;

  enter (c);
  c->nr_flushes++;
  c->flush_began = ++tick;
  memcpy (own, c->own, sizeof own);
  cached = c->cached;
  if (refreshes)
    memcpy (c->cache, disk, sizeof disk);
  else
    c->cached = false;
  world_unlock ();

  gate_pass (&c->flushes);
  if (!free_running)
    elapse (c->flush_ns);

  world_lock ();
  err = c->flush_err;
  if (err != 0)
    c->cached |= cached;
  else
    for (i = 0; i < CONNECTIONS; i++)
      /* Unless another flush of this handle has written a newer one. */
      if (is_dirty (&own[i]) && own[i].write >= c->own[i].flushed) {
        disk[i] = own[i].value;
        if (refreshes)
          c->cache[i] = own[i].value;
        c->own[i].flushed = own[i].write;
      }
  c->flush_ended = ++tick;
  leave (c);
  errno = EDOM;
  return err;
}

static void
plugin_open (struct conn *c)
{
  world_lock ();
  CHECK (!c->open);
  if (refreshes) {
    memcpy (c->cache, disk, sizeof disk);
    c->cached = true;
  }
  c->open = true;
  world_unlock ();
}

static void
plugin_close (struct conn *c)
{
  enter (c);
  c->open = false;
  leave (c);
}

static void
helper_starts (void)
{
  CHECK (nr_held == 0);
  CHECK (model != SERIALIZE_ALL);
}

static bool ends;

static bool
server_ends (void)
{
  CHECK (nr_held == 0);
  return ends;
}

/* What requests.c does around them. */

/* As plugin_request.  Returns an errno, negative, where no request got in. */
static inline int
do_request (struct conn *c, unsigned cell, uint64_t count, int value)
{
  const bool writes = count > 0;
  int r = request_begin (&c->h, writes, cell * spacing, writes ? count : 512);

  CHECK (nr_held == 0);
  if (r != 0)
    return -r;
  r = plugin_request (c, cell, count, value);
  c->h.reads += !writes;
  c->h.writes += writes;
  c->h.pieces += 1;
  errno = E2BIG;
  CHECK (request_end (&c->h, writes, 7) == 7);
  CHECK (errno == E2BIG, "request_end changes errno");
  CHECK (nr_held == 0);
  return writes ? 0 : r;
}

/* Of its own cell. */
static inline int
do_write (struct conn *c, int value)
{
  return do_request (c, c->cell, 512, value);
}

/* A callback that is neither data nor flush. */
static inline void
do_control (struct conn *c)
{
  control_begin (&c->h);
  CHECK (nr_held == 0);
  enter (c);
  world_unlock ();
  gate_pass (&c->requests);
  world_lock ();
  leave (c);
  errno = E2BIG;
  control_end (&c->h);
  CHECK (errno == E2BIG, "control_end changes errno");
  CHECK (nr_held == 0);
}

static inline struct flushed
do_flush (struct conn *c)
{
  struct flushed f = replicate_flush (&c->h);

  CHECK (nr_held == 0);
  return f;
}

/* To be opened for the first time, or again.  In mode emulate. */
static inline void
renew (struct conn *c)
{
  memset (c, 0, sizeof *c);
  c->cell = c - conns;
  c->h.plugin = c;
  c->h.connection = (struct connection *) c;
  c->h.flushable = true;
  c->h.resolution = (struct resolution) {
    .verdict = EMULATE, .advertise = true, .replicate = true,
  };
}

static inline struct conn *
another (void)
{
  CHECK (nr_conns < CONNECTIONS);
  renew (&conns[nr_conns]);
  return &conns[nr_conns++];
}

/* In one go, or in three steps: handle_opens, plugin_open, joins. */
static inline void
joins (struct conn *c)
{
  c->h.resolution.replicate =
    handle_settles (&c->h, c->h.resolution.replicate);
  CHECK (nr_held == 0);
  if (c->block > 0)
    c->h.block = c->block;
  handle_joins (&c->h);
  CHECK (nr_held == 0);
}

static inline void
do_open (struct conn *c, const char *name)
{
  CHECK (handle_opens (&c->h, name) == 0);
  CHECK (nr_held == 0);
  plugin_open (c);
  joins (c);
}

static inline int
do_close (struct conn *c)
{
  int r = handle_leaves (&c->h);
  struct order *order = c->h.order;
  uint32_t claim = c->h.claim;

  CHECK (nr_held == 0);
  CHECK (WRITERS (c->h.state) == 0);
  plugin_close (c);
  memset (&c->h, -1, sizeof c->h); /* nobody uses it any more; but see .old */
  c->h.order = order;
  c->h.claim = claim;
  return r;
}

/* The same for a script. */

struct call {
  char letter;                  /* as in the script; o opens */
  struct conn *c;
  unsigned cell;
  uint64_t count;
  int value;
};

static int do_call (struct call call);

#include "script.h"

static int
do_call (struct call call)
{
  struct conn *c = call.c;

  switch (call.letter) {
  case 'r':
  case 'w': return do_request (c, call.cell, call.count, call.value);
  case 'c': do_control (c); return 0;
  case 'f': return do_flush (c).err;
  case 'i': return replicate_for_connection (&c->h);
  case 'u': return handle_catches_up (&c->h);
  case 'o': do_open (c, NULL); return 0;
  case 'x': return do_close (c);
  }
  bad_word ();
}

/* The beginning and the end of each test. */

static struct policy policy = { .flush_on_close = true };

static inline void
begin (enum level level)
{
  static const struct replicate_ops ops = {
    .flush = plugin_flush,
    .helper_starts = helper_starts,
    .server_ends = server_ends,
  };

  the_server = pthread_self ();
  policy.level = level;
  replicate_init (&policy, &ops);
  replicate_set_thread_model (model);
}

static void
free_handle (struct handle *h)
{
  ((struct conn *) h)->open = false;
  conds--;                      /* no need to destroy it */
}

static inline void
end (void)
{
  unsigned i;

  join_actors ();
  for (i = 0; i < nr_conns; i++)
    if (conns[i].open) {
      conns[i].flush_err = 0;
      CHECK (do_close (&conns[i]) == 0);
    }
  replicate_free (free_handle);
  CHECK (threads == 0, "%d threads are left", threads);
  CHECK (conds == 0, "%d condition variables are left", conds);
  CHECK (allocated == 0, "%d allocations are left", allocated);
  CHECK (mapped == 0, "%d tables are left", mapped);
}

#endif /* MCSHIM_UNIT_PLUGIN_H */
