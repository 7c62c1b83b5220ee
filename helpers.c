/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Threads that help: see helpers.h. */

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "helpers.h"
#include "interpose/oldglibc.h"
#include "must.h"

#define IDLE_SECONDS 5

struct helper {
  struct helper *next;
  pthread_t thread;
};

static pthread_mutex_t *lock;
static void (*starts) (void);

/* Guarded by the lock. */
static TAILQ_HEAD (, job) jobs = { NULL, &jobs.first };
static struct helper *ended;    /* and not joined yet */
static unsigned running, idle;
static unsigned called;         /* idle ones that have yet to wake up */
static unsigned starting;       /* new ones that have yet to look for work */
static bool ending;
static pthread_cond_t call = PTHREAD_COND_INITIALIZER;
static pthread_cond_t gone = PTHREAD_COND_INITIALIZER;

/* Returns false if nobody has called within the time. */
static bool
wait_for_call (void)
{
  struct timespec until;
  int err = 0;

  must (clock_gettime (CLOCK_REALTIME, &until));
  until.tv_sec += IDLE_SECONDS;
  idle++;
  while (called == 0 && !ending && err == 0)
    err = pthread_cond_timedwait (&call, lock, &until);
  idle--;
  if (called > 0) {
    called--;
    return true;
  }
  must (err == ETIMEDOUT ? 0 : err);
  return false;
}

/* Needs the lock, and lets go of it meanwhile if there was something to do. */
static bool
run (struct job *j)
{
  bool r;

  j->running++;
  r = j->work (j);
  j->running--;
  if (r)
    must (pthread_cond_broadcast (&j->changed));
  return r;
}

/* The same for the first job that has something to do. */
static bool
work (void)
{
  struct job *j;

  TAILQ_FOREACH (j, &jobs, entry) {
    j->wanted -= j->wanted > 0;
    if (run (j))
      return true;
    j->wanted = 0;
  }
  return false;
}

static void *
help (void *arg)
{
  struct helper *me = arg;

  starts ();
  must (pthread_mutex_lock (lock));
  starting--;
  do
    while (!ending && work ())
      ;
  while (!ending && wait_for_call ());
  running--;
  me->next = ended;
  ended = me;
  must (pthread_cond_signal (&gone));
  must (pthread_mutex_unlock (lock));
  return NULL;
}

/* A helper that has ended takes no more locks, so this does not wait. */
static void
join_ended (void)
{
  struct helper *h;

  while ((h = ended) != NULL) {
    ended = h->next;
    must (pthread_join (h->thread, NULL));
    free (h);
  }
}

/* Returns false if there is no memory, or no thread, for another one. */
static bool
start_one (void)
{
  struct helper *h = malloc (sizeof *h);

  if (h == NULL)
    return false;
  if (pthread_create (&h->thread, NULL, help, h) != 0) {
    free (h);
    return false;
  }
  running++;
  starting++;
  return true;
}

void
helpers_list (struct job *j)
{
  j->listed = true;
  TAILQ_INSERT_TAIL (&jobs, j, entry);
}

void
helpers_unlist (struct job *j)
{
  if (j->listed)
    TAILQ_REMOVE (&jobs, j, entry);
  j->listed = false;
}

bool
helpers_call (struct job *j, unsigned n)
{
  j->wanted = n;
  n = 0;
  TAILQ_FOREACH (j, &jobs, entry)
    n += j->wanted;
  while (called + starting < n && called < idle) {
    called++;
    must (pthread_cond_signal (&call));
  }
  join_ended ();
  while (called + starting < n && start_one ())
    ;
  return called + starting > 0;
}

void
helpers_share (struct job *j)
{
  helpers_lock ();
  helpers_list (j);
  for (;;)
    if (!run (j)) {
      if (j->running == 0)
        break;
      must (pthread_cond_wait (&j->changed, lock));
    }
  helpers_unlist (j);
  helpers_unlock ();
}

void
helpers_leave (struct job *j)
{
  helpers_lock ();
  for (;;) {
    helpers_unlist (j);         /* its work may have listed it again */
    if (j->running == 0)
      break;
    must (pthread_cond_wait (&j->changed, lock));
  }
  helpers_unlock ();
}

void
helpers_end (void)
{
  must (pthread_mutex_lock (lock));
  ending = true;
  must (pthread_cond_broadcast (&call));
  while (running > 0)
    must (pthread_cond_wait (&gone, lock));
  join_ended ();
  must (pthread_mutex_unlock (lock));
}

void
helpers_lock (void)
{
  must (pthread_mutex_lock (lock));
}

void
helpers_unlock (void)
{
  must (pthread_mutex_unlock (lock));
}

void
helpers_init (pthread_mutex_t *l, void (*s) (void))
{
  lock = l;
  starts = s;
}
