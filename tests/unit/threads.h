/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Threads that a test has under control.
 *
 * The library's calls of libpthread come here (--wrap in the Makefile).
 * Condition variables are implemented here, so it is always known which
 * threads run and which wait.  settle () returns when all others wait or
 * have ended: a test goes from one such moment to the next, and never
 * sleeps.  If all wait, including the test's own thread, that is a deadlock
 * and fails at once.
 *
 * Each wait has one spurious wakeup.  Locks know their owner, and whatever
 * is made must be destroyed.  The clock stands still unless a test turns
 * it.
 *
 * free_running turns most of this off, for tests that rely on chance and
 * the thread sanitizer.
 */

#ifndef MCSHIM_UNIT_THREADS_H
#define MCSHIM_UNIT_THREADS_H

#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

#include "unit.h"

#define WRAP(name) extern __typeof__ (name) __real_##name, __wrap_##name

WRAP (pthread_mutex_lock);
WRAP (pthread_mutex_unlock);
WRAP (pthread_cond_init);
WRAP (pthread_cond_destroy);
WRAP (pthread_cond_wait);
WRAP (pthread_cond_timedwait);
WRAP (pthread_cond_signal);
WRAP (pthread_cond_broadcast);
WRAP (pthread_create);
WRAP (pthread_join);
WRAP (clock_gettime);
WRAP (malloc);
WRAP (calloc);
WRAP (strdup);
WRAP (free);
WRAP (mmap);
WRAP (munmap);

static bool free_running;

/* Allocations are counted here, and looking for leaks takes long. */
const char *__asan_default_options (void);
const char *
__asan_default_options (void)
{
  return "detect_leaks=0";
}

/* This file itself checks who holds which lock. */
const char *__tsan_default_options (void);
const char *
__tsan_default_options (void)
{
  return "detect_deadlocks=0";
}

/* A thread that waits for what is at the address AT. */
struct parked {
  struct parked *next;
  const void *at;
  pthread_cond_t wake;
  bool woken, timed, timed_out;
};

/* "world" guards what follows, and is the last lock that anyone takes. */
static pthread_mutex_t world = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t quiet = PTHREAD_COND_INITIALIZER;
static struct parked *parked;   /* the first one came first */
static unsigned busy = 1;       /* threads that run; one is the test's own */
static bool settling;
static uint64_t clock_ns = 1000000000;

static atomic_int conds;        /* made, and not destroyed */
static atomic_int threads;      /* the same, and not joined */
static atomic_int allocated, mapped;
static atomic_int threads_made; /* by the library */
static atomic_int fail_threads; /* so many from now on */
static atomic_int fail_allocation; /* the next one if 1, and so on */
static atomic_int fail_mapping; /* so many from now on */

/* Of this thread. */
static _Thread_local const pthread_mutex_t *held[4];
static _Thread_local unsigned nr_held;
static _Thread_local unsigned locks_taken;
static _Thread_local bool woke_for_nothing;

static inline void
world_lock (void)
{
  __real_pthread_mutex_lock (&world);
}

static inline void
world_unlock (void)
{
  __real_pthread_mutex_unlock (&world);
}

/* One thread fewer runs.  Needs "world". */
static void
rest (void)
{
  if (--busy > 0)
    return;
  if (!settling)
    unit_fail (__FILE__, __LINE__, "a deadlock", " all threads wait");
  __real_pthread_cond_signal (&quiet);
}

/* Wait AT an address until someone wakes us.  Needs "world".  Returns false
 * if the time is over.
 */
static bool
park (const void *at, bool timed)
{
  struct parked me = { .at = at, .timed = timed,
                       .wake = PTHREAD_COND_INITIALIZER };
  struct parked **end = &parked;

  while (*end != NULL)
    end = &(*end)->next;
  *end = &me;
  rest ();
  while (!me.woken)
    __real_pthread_cond_wait (&me.wake, &world);
  __real_pthread_cond_destroy (&me.wake);
  return !me.timed_out;
}

/* Wake up to N of those that wait AT an address, or if TIMED all that wait
 * with a time limit.  Needs "world".  Returns how many.
 */
static unsigned
wake (const void *at, unsigned n, bool timed)
{
  struct parked **p = &parked, *one;
  unsigned woken = 0;

  while ((one = *p) != NULL && woken < n) {
    if (timed ? !one->timed : one->at != at) {
      p = &one->next;
      continue;
    }
    *p = one->next;
    one->woken = true;
    one->timed_out = timed;
    busy++;
    woken++;
    __real_pthread_cond_signal (&one->wake);
  }
  return woken;
}

static inline unsigned
waiting_at (const void *at)
{
  unsigned n = 0;
  struct parked *p;

  world_lock ();
  for (p = parked; p != NULL; p = p->next)
    n += p->at == at;
  world_unlock ();
  return n;
}

/* Wait until all other threads wait or have ended. */
static void
settle (void)
{
  CHECK (nr_held == 0);
  world_lock ();
  settling = true;
  busy--;
  while (busy > 0)
    __real_pthread_cond_wait (&quiet, &world);
  busy++;
  settling = false;
  world_unlock ();
}

/* Turn the clock. */
static inline void
elapse (uint64_t ns)
{
  world_lock ();
  clock_ns += ns;
  world_unlock ();
}

/* End the waits that have a time limit. */
static inline void
expire (void)
{
  elapse (UINT64_C (3600) * 1000000000);
  world_lock ();
  wake (NULL, -1, true);
  world_unlock ();
  settle ();
}

/* Where threads stop, if it is shut. */
struct gate {
  bool shut;
};

static inline void
gate_shut (struct gate *g)
{
  world_lock ();
  g->shut = true;
  world_unlock ();
}

static inline void
gate_pass (struct gate *g)
{
  CHECK (nr_held == 0);
  world_lock ();
  if (g->shut)
    park (g, false);
  world_unlock ();
}

static inline void
gate_open (struct gate *g)
{
  world_lock ();
  g->shut = false;
  wake (g, -1, false);
  world_unlock ();
  settle ();
}

/* Let the first thread go on, and leave the gate shut. */
static inline void
gate_let_one (struct gate *g)
{
  world_lock ();
  CHECK (g->shut && wake (g, 1, false) == 1);
  world_unlock ();
  settle ();
}

/* What the library calls.  Any of it may change errno. */

static inline void
no_errno (void)
{
  errno = EDOM;
}

int
__wrap_pthread_mutex_lock (pthread_mutex_t *m)
{
  unsigned i;

  for (i = 0; i < nr_held; i++)
    CHECK (held[i] != m, "a lock is taken twice");
  CHECK (nr_held < sizeof held / sizeof held[0]);
  __real_pthread_mutex_lock (m);
  held[nr_held++] = m;
  locks_taken++;
  no_errno ();
  return 0;
}

static void
owned (pthread_mutex_t *m)
{
  CHECK (nr_held > 0 && held[nr_held - 1] == m, "a lock is not the thread's");
}

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *m)
{
  owned (m);
  nr_held--;
  no_errno ();
  return __real_pthread_mutex_unlock (m);
}

int
__wrap_pthread_cond_init (pthread_cond_t *c, const pthread_condattr_t *attr)
{
  conds++;
  return __real_pthread_cond_init (c, attr);
}

int
__wrap_pthread_cond_destroy (pthread_cond_t *c)
{
  CHECK (waiting_at (c) == 0, "a condition variable has waiters");
  conds--;
  return __real_pthread_cond_destroy (c);
}

static int
cond_wait (pthread_cond_t *c, pthread_mutex_t *m, bool timed)
{
  bool r;

  owned (m);
  no_errno ();
  woke_for_nothing = !woke_for_nothing;
  if (woke_for_nothing)
    return 0;

  nr_held--;
  CHECK (nr_held == 0, "a thread waits with another lock");
  world_lock ();
  __real_pthread_mutex_unlock (m);
  r = park (c, timed);
  world_unlock ();
  __real_pthread_mutex_lock (m);
  held[nr_held++] = m;
  return r ? 0 : ETIMEDOUT;
}

int
__wrap_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m)
{
  if (free_running)
    return __real_pthread_cond_wait (c, m);
  return cond_wait (c, m, false);
}

int
__wrap_pthread_cond_timedwait (pthread_cond_t *c, pthread_mutex_t *m,
                               const struct timespec *until)
{
  if (free_running)
    return __real_pthread_cond_timedwait (c, m, until);
  world_lock ();
  CHECK (until->tv_sec > (time_t) (clock_ns / 1000000000), "no time to wait");
  world_unlock ();
  return cond_wait (c, m, true);
}

static int
cond_wake (pthread_cond_t *c, unsigned n)
{
  world_lock ();
  wake (c, n, false);
  world_unlock ();
  no_errno ();
  return 0;
}

int
__wrap_pthread_cond_signal (pthread_cond_t *c)
{
  return free_running ? __real_pthread_cond_signal (c) : cond_wake (c, 1);
}

int
__wrap_pthread_cond_broadcast (pthread_cond_t *c)
{
  return free_running ? __real_pthread_cond_broadcast (c) : cond_wake (c, -1);
}

struct started {
  void *(*run) (void *);
  void *arg;
};

static void *
started (void *arg)
{
  struct started s = *(struct started *) arg;
  void *r;

  __real_free (arg);
  r = s.run (s.arg);
  CHECK (nr_held == 0, "a thread ends with a lock");
  world_lock ();
  if (!free_running)
    rest ();
  world_unlock ();
  return r;
}

/* Also for a thread of the test. */
static void
start_thread (pthread_t *t, void *(*run) (void *), void *arg)
{
  struct started *s = __real_malloc (sizeof *s);

  CHECK (s != NULL);
  *s = (struct started) { run, arg };
  world_lock ();
  busy += !free_running;
  world_unlock ();
  threads++;
  CHECK (__real_pthread_create (t, NULL, started, s) == 0);
}

int
__wrap_pthread_create (pthread_t *t, const pthread_attr_t *attr,
                       void *(*run) (void *), void *arg)
{
  CHECK (attr == NULL);
  if (fail_threads > 0) {
    fail_threads--;
    return EAGAIN;
  }
  start_thread (t, run, arg);
  threads_made++;
  return 0;
}

int
__wrap_pthread_join (pthread_t t, void **r)
{
  threads--;
  return __real_pthread_join (t, r);
}

int
__wrap_clock_gettime (clockid_t id, struct timespec *t)
{
  if (free_running)
    return __real_clock_gettime (id, t);
  world_lock ();
  t->tv_sec = clock_ns / 1000000000;
  t->tv_nsec = clock_ns % 1000000000;
  world_unlock ();
  return 0;
}

static bool
no_memory (void)
{
  if (fail_allocation == 0 || --fail_allocation > 0) {
    allocated++;
    return false;
  }
  errno = ENOMEM;
  return true;
}

void *
__wrap_malloc (size_t size)
{
  return no_memory () ? NULL : __real_malloc (size);
}

void *
__wrap_calloc (size_t n, size_t size)
{
  return no_memory () ? NULL : __real_calloc (n, size);
}

char *
__wrap_strdup (const char *s)
{
  return no_memory () ? NULL : __real_strdup (s);
}

void
__wrap_free (void *p)
{
  allocated -= p != NULL;
  __real_free (p);
}

void *
__wrap_mmap (void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
  if (fail_mapping > 0) {
    fail_mapping--;
    errno = ENOMEM;
    return MAP_FAILED;
  }
  mapped++;
  return __real_mmap (at, size, prot, flags, fd, offset);
}

int
__wrap_munmap (void *p, size_t size)
{
  mapped--;
  return __real_munmap (p, size);
}

#endif /* MCSHIM_UNIT_THREADS_H */
