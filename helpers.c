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
static bool (*work) (void);
static void (*starts) (void);

/* Guarded by the lock. */
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
helpers_call (unsigned n)
{
  while (called + starting < n && called < idle) {
    called++;
    must (pthread_cond_signal (&call));
  }
  join_ended ();
  while (called + starting < n && start_one ())
    ;
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
helpers_init (pthread_mutex_t *l, bool (*w) (void), void (*s) (void))
{
  lock = l;
  work = w;
  starts = s;
}
