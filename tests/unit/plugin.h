/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin with a cache for each handle, and connections to it, as requests.c
 * would call them: see tests/plugins/wbcache.c for the real one.
 *
 * The disk has some cells.  Each connection writes its own, and reads all.
 * A handle fetches all of them at its first request, also for a write, and
 * keeps its own cell's new value until it is flushed.  It is as bad as it
 * may be: what it has fetched goes into the cache at the end of the
 * request, and a flush drops the cache, or refreshes it, as it begins, and
 * writes as it ends.
 */

#ifndef MCSHIM_UNIT_PLUGIN_H
#define MCSHIM_UNIT_PLUGIN_H

#include "replicate.h"
#include "threads.h"

#define CONNECTIONS 80

struct conn {
  struct handle h;

  /* What a test does to it. */
  struct gate requests, flushes, opens; /* each passes it inside the plugin */
  int flush_err;
  uint64_t flush_ns;

  /* What a test looks at. */
  unsigned nr_requests, nr_flushes; /* that have entered */
  unsigned flush_began, flush_ended; /* the last one: see "tick" */

  /* The rest is the plugin's, guarded by "world". */
  unsigned cell;
  bool open;
  unsigned inside;
  bool cached, dirty;
  int cache[CONNECTIONS];
  int newest;                   /* of its own cell */
};

static enum thread_model model;
static bool refreshes;          /* a flush, and an open takes a copy */
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

/* A read returns the value of CELL. */
static int
plugin_read (struct conn *c, unsigned cell)
{
  int fetched[CONNECTIONS], value;
  bool fetch;

  enter (c);
  c->nr_requests++;
  fetch = !c->cached;
  memcpy (fetched, fetch ? disk : c->cache, sizeof fetched);
  world_unlock ();

  gate_pass (&c->requests);

  world_lock ();
  if (fetch) {
    memcpy (c->cache, fetched, sizeof fetched);
    c->cached = true;
  }
  value = cell == c->cell && c->dirty ? c->newest : fetched[cell];
  leave (c);
  return value;
}

static void
plugin_write (struct conn *c, int value)
{
  plugin_read (c, c->cell);
  world_lock ();
  c->newest = value;
  c->dirty = true;
  world_unlock ();
}

static int
plugin_flush (struct handle *h)
{
  struct conn *c = (struct conn *) h;
  bool dirty, cached;
  int newest, err;

  enter (c);
  c->nr_flushes++;
  c->flush_began = ++tick;
  dirty = c->dirty;
  newest = c->newest;
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
  else if (dirty) {
    if (disk[c->cell] < newest)
      disk[c->cell] = newest;
    if (refreshes)
      c->cache[c->cell] = newest;
    c->dirty = c->newest != newest;
  }
  c->flush_ended = ++tick;
  leave (c);
  errno = EDOM;
  return err;
}

static void
plugin_open (struct conn *c)
{
  int copy[CONNECTIONS];

  world_lock ();
  CHECK (!c->open);
  memcpy (copy, disk, sizeof copy);
  world_unlock ();

  gate_pass (&c->opens);

  world_lock ();
  if (refreshes) {
    memcpy (c->cache, copy, sizeof copy);
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

/* Returns the value of CELL, or an errno, negative. */
static inline int
do_read (struct conn *c, unsigned cell)
{
  int r = request_begin (&c->h, false, c->cell * 4096, 512);

  CHECK (nr_held == 0);
  if (r != 0)
    return -r;
  r = plugin_read (c, cell);
  c->h.reads++;
  errno = E2BIG;
  request_end (&c->h, false);
  CHECK (errno == E2BIG, "request_end changes errno");
  CHECK (nr_held == 0);
  return r;
}

static inline int
do_write (struct conn *c, int value)
{
  int r = request_begin (&c->h, true, c->cell * 4096, 512);

  CHECK (nr_held == 0);
  if (r != 0)
    return -r;
  plugin_write (c, value);
  c->h.writes++;
  errno = E2BIG;
  request_end (&c->h, true);
  CHECK (errno == E2BIG, "request_end changes errno");
  CHECK (nr_held == 0);
  return 0;
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

  CHECK (nr_held == 0);
  plugin_close (c);
  return r;
}

/* The same on threads of their own. */

enum what { READ, WRITE, CONTROL, FLUSH, BETWEEN, OPEN, CLOSE };

/* ARG is the cell, or the value. */
static int
call (enum what what, struct conn *c, int arg)
{
  switch (what) {
  case READ: return do_read (c, arg);
  case WRITE: return do_write (c, arg);
  case CONTROL: do_control (c); return 0;
  case FLUSH: return do_flush (c).err;
  case BETWEEN: return replicate_for_connection (&c->h);
  case OPEN: do_open (c, NULL); return 0;
  case CLOSE: return do_close (c);
  }
  abort ();
}

struct actor {
  pthread_t thread;
  enum what what;
  struct conn *c;
  int arg, result;
  bool over, joined;            /* guarded by "world" */
};

static struct actor actors[4 * CONNECTIONS];
static unsigned nr_actors;

static void *
act (void *arg)
{
  struct actor *a = arg;
  const int result = call (a->what, a->c, a->arg);

  world_lock ();
  a->result = result;
  a->over = true;
  world_unlock ();
  return NULL;
}

/* Let it go as far as it can. */
static inline struct actor *
start (enum what what, struct conn *c, int arg)
{
  struct actor *a = &actors[nr_actors++];

  CHECK (nr_actors <= sizeof actors / sizeof actors[0]);
  *a = (struct actor) { .what = what, .c = c, .arg = arg };
  start_thread (&a->thread, act, a);
  settle ();
  return a;
}

static inline bool
over (struct actor *a)
{
  bool r;

  world_lock ();
  r = a->over;
  world_unlock ();
  return r;
}

/* The call must be over.  Returns its result. */
static inline int
result (struct actor *a)
{
  CHECK (over (a));
  if (!a->joined)
    __wrap_pthread_join (a->thread, NULL);
  a->joined = true;
  return a->result;
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

/* Returns one that is open. */
static inline struct conn *
opened (void)
{
  struct conn *c = another ();

  do_open (c, NULL);
  return c;
}

static inline struct conn *
opened_as (const char *name)
{
  struct conn *c = another ();

  do_open (c, name);
  return c;
}

/* One whose flushes are passed on, if its group's are. */
static inline struct conn *
opened_plain (const char *name, bool multi_conn)
{
  struct conn *c = another ();

  c->h.resolution = (struct resolution) { .verdict = PLUGIN_HAS_FLAG };
  c->h.multi_conn = multi_conn;
  do_open (c, name);
  return c;
}

/* A further handle. */
static inline struct conn *
opened_beside (struct conn *first)
{
  struct conn *c = another ();

  /* Until it is told. */
  c->h.flushable = !first->h.flushable;
  c->h.multi_conn = !first->h.multi_conn;
  c->h.resolution = (struct resolution) { .verdict = NR_VERDICTS };
  handle_opens_beside (&c->h, &first->h);
  CHECK (nr_held == 0);
  CHECK (c->h.flushable == first->h.flushable);
  CHECK (c->h.multi_conn == first->h.multi_conn);
  CHECK (c->h.resolution.verdict == first->h.resolution.verdict);
  CHECK (c->h.resolution.replicate == first->h.resolution.replicate);
  plugin_open (c);
  handle_joins (&c->h);
  return c;
}

static inline int
flush (struct conn *c)
{
  int r = do_flush (c).err;

  settle ();
  return r;
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

  for (i = 0; i < nr_actors; i++)
    result (&actors[i]);
  for (i = 0; i < nr_conns; i++)
    if (conns[i].open) {
      conns[i].flush_err = 0;
      CHECK (do_close (&conns[i]) == 0);
    }
  replicate_free (free_handle);
  CHECK (threads == 0, "%d threads are left", threads);
  CHECK (conds == 0, "%d condition variables are left", conds);
  CHECK (allocated == 0, "%d allocations are left", allocated);
}

#endif /* MCSHIM_UNIT_PLUGIN_H */
