/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* helpers.c: threads that help, given a lock and a piece of work. */

#include "helpers.h"
#include "threads.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Guarded by "lock". */
static unsigned pieces;         /* of work to do */
static unsigned done, starting;

static struct gate working;     /* each piece of work passes it */

static bool
work (struct job *j)
{
  CHECK (nr_held == 1 && held[0] == &lock, "work is called with the lock");
  CHECK (j->running > 0);
  if (pieces == 0)
    return false;
  pieces--;
  pthread_mutex_unlock (&lock);
  gate_pass (&working);
  pthread_mutex_lock (&lock);
  done++;
  return true;
}

static struct job job = JOB_INITIALIZER (work);

static void
starts (void)
{
  CHECK (nr_held == 0, "starts is called without the lock");
  pthread_mutex_lock (&lock);
  starting++;
  pthread_mutex_unlock (&lock);
}

/* Add N pieces of work, and call for CALLED helpers. */
static void
call (unsigned n, unsigned called)
{
  pthread_mutex_lock (&lock);
  pieces += n;
  helpers_call (&job, called);
  pthread_mutex_unlock (&lock);
  settle ();
}

static void
begin (void)
{
  helpers_init (&lock, starts);
  helpers_list (&job);
}

/* No helper is left, nor anything they had. */
static void
end (void)
{
  gate_open (&working);
  helpers_end ();
  CHECK (threads == 0, "%d threads", threads);
  CHECK (allocated == 0, "%d allocations", allocated);
}

static void
test_none (void)
{
  begin ();
  end ();
  CHECK (threads_made == 0);
}

static void
test_call (void)
{
  begin ();
  call (5, 1);
  CHECK (done == 5);
  CHECK (threads_made == 1);
  CHECK (starting == 1);
  end ();
}

static void
test_many (void)
{
  begin ();
  gate_shut (&working);
  call (100, 64);
  CHECK (threads_made == 64, "%d", threads_made);
  CHECK (starting == 64);
  CHECK (waiting_at (&working) == 64);
  CHECK (pieces == 36);
  gate_open (&working);
  CHECK (done == 100);
  CHECK (threads_made == 64, "%d", threads_made);
  end ();
}

/* Idle ones are woken before new ones are made. */
static void
test_idle (void)
{
  begin ();
  gate_shut (&working);
  call (3, 3);
  CHECK (threads_made == 3);
  gate_open (&working);
  CHECK (done == 3);

  gate_shut (&working);
  call (2, 2);
  CHECK (waiting_at (&working) == 2, "%u", waiting_at (&working));
  CHECK (threads_made == 3, "%d", threads_made);
  call (4, 2);
  CHECK (waiting_at (&working) == 4, "%u", waiting_at (&working));
  CHECK (threads_made == 4, "%d", threads_made);
  gate_open (&working);
  CHECK (done == 9);
  CHECK (starting == 4);
  end ();
}

/* Helpers that are called but not awake yet count for the next call. */
static void
test_called_twice (void)
{
  begin ();
  pthread_mutex_lock (&lock);
  pieces = 2;
  helpers_call (&job, 2);
  helpers_call (&job, 1);
  helpers_call (&job, 2);
  pthread_mutex_unlock (&lock);
  settle ();
  CHECK (threads_made == 2, "%d", threads_made);
  CHECK (done == 2);

  gate_shut (&working);
  pthread_mutex_lock (&lock);
  pieces = 2;
  helpers_call (&job, 1);
  helpers_call (&job, 1);
  pthread_mutex_unlock (&lock);
  settle ();
  CHECK (threads_made == 2, "%d", threads_made);
  CHECK (waiting_at (&working) == 1, "%u", waiting_at (&working));
  pthread_mutex_lock (&lock);
  helpers_call (&job, 1);
  pthread_mutex_unlock (&lock);
  settle ();
  CHECK (waiting_at (&working) == 2, "%u", waiting_at (&working));
  end ();
}

/* A helper that works looks for more when it is done. */
static void
test_next_piece (void)
{
  begin ();
  gate_shut (&working);
  call (1, 1);
  call (1, 0);
  CHECK (waiting_at (&working) == 1);
  gate_let_one (&working);
  CHECK (done == 1);
  CHECK (waiting_at (&working) == 1);
  end ();
  CHECK (done == 2);
}

/* After some seconds without work they end, and come again when called. */
static void
test_expire (void)
{
  begin ();
  gate_shut (&working);
  call (3, 3);
  gate_let_one (&working);
  expire ();
  /* Two still work. */
  CHECK (waiting_at (&working) == 2);
  gate_open (&working);
  CHECK (done == 3);

  /* The one that has ended is joined when others are called. */
  gate_shut (&working);
  call (3, 3);
  CHECK (threads_made == 4, "%d", threads_made);
  CHECK (threads == 3, "%d", threads);
  CHECK (waiting_at (&working) == 3);
  gate_open (&working);
  expire ();
  call (1, 1);
  CHECK (done == 7);
  CHECK (threads_made == 5, "%d", threads_made);
  CHECK (threads == 1, "%d", threads);
  end ();
}

/* A helper is called just as its time is over. */
static void
test_expires_as_called (void)
{
  begin ();
  call (1, 1);
  pthread_mutex_lock (&lock);
  world_lock ();
  wake (NULL, -1, true);
  world_unlock ();
  pieces = 1;
  helpers_call (&job, 1);
  pthread_mutex_unlock (&lock);
  settle ();
  CHECK (done == 2);
  call (1, 1);
  CHECK (done == 3);
  end ();
}

/* If helpers can't be started, there are fewer. */
static void
test_no_threads (void)
{
  begin ();
  gate_shut (&working);
  fail_threads = 1;
  call (2, 2);
  CHECK (threads_made == 0);
  CHECK (pieces == 2);
  CHECK (allocated == 0);
  fail_allocation = 1;
  call (0, 2);
  CHECK (threads_made == 0);
  call (0, 1);
  CHECK (threads_made == 1);
  fail_threads = 1;
  call (2, 3);
  CHECK (threads_made == 1);
  gate_open (&working);
  CHECK (done == 4);
  end ();
}

static void *
end_helpers (void *arg)
{
  helpers_end ();
  *(bool *) arg = true;
  return NULL;
}

/* The end waits for work that has begun, and no more begins. */
static void
test_end (void)
{
  bool over = false;
  pthread_t ender;

  begin ();
  call (1, 1);
  gate_shut (&working);
  call (5, 2);
  start_thread (&ender, end_helpers, &over);
  settle ();
  CHECK (!over);
  gate_let_one (&working);
  CHECK (!over);
  gate_open (&working);
  CHECK (over);
  CHECK (done == 3, "%u", done);
  pthread_join (ender, NULL);
  CHECK (threads == 0);
  CHECK (allocated == 0);
}

/* The end waits for all, even those that have not started working. */
static void
test_end_at_once (void)
{
  begin ();
  pthread_mutex_lock (&lock);
  helpers_call (&job, 8);
  pthread_mutex_unlock (&lock);
  helpers_end ();
  CHECK (threads == 0);
  CHECK (allocated == 0);
}

/* A job of its own: the thread that has it does what nobody else takes, and
 * ends when all is done.
 */
static unsigned parts, sharing;

static bool
share (struct job *j)
{
  if (parts == 0 || j->running > 3)
    return false;
  parts--;
  helpers_call (j, 3 - j->running);
  helpers_unlock ();
  gate_pass (&working);
  helpers_lock ();
  sharing++;
  return true;
}

static void *
run_shared (void *arg)
{
  struct job j = JOB_INITIALIZER (share);

  helpers_share (&j);
  *(bool *) arg = true;
  return NULL;
}

static void
test_share (void)
{
  bool over = false;
  pthread_t sharer;

  begin ();
  gate_shut (&working);
  parts = 5;
  start_thread (&sharer, run_shared, &over);
  settle ();
  CHECK (waiting_at (&working) == 3 && parts == 2);
  gate_let_one (&working);
  gate_let_one (&working);
  gate_let_one (&working);
  CHECK (parts == 0 && !over, "it waits for what others do");
  gate_open (&working);
  CHECK (over && sharing == 5);
  pthread_join (sharer, NULL);

  /* Alone. */
  parts = 5;
  fail_threads = 100;
  expire ();
  over = false;
  start_thread (&sharer, run_shared, &over);
  settle ();
  CHECK (over && sharing == 10);
  pthread_join (sharer, NULL);
  fail_threads = 0;
  end ();
}

/* A job is left while a helper works at it, and lists it again. */
static bool
again (struct job *j)
{
  helpers_unlist (j);
  helpers_unlock ();
  gate_pass (&working);
  helpers_lock ();
  if (parts > 0) {
    parts--;
    helpers_list (j);
  }
  return true;
}

static struct job lists = JOB_INITIALIZER (again);

static void *
leave_it (void *arg)
{
  helpers_leave (&lists);
  *(bool *) arg = true;
  return NULL;
}

static void
test_leave (void)
{
  bool over = false;
  pthread_t leaver;

  begin ();
  gate_shut (&working);
  parts = 1;
  helpers_lock ();
  helpers_list (&lists);
  CHECK (helpers_call (&lists, 1));
  helpers_unlock ();
  settle ();
  CHECK (waiting_at (&working) == 1);
  start_thread (&leaver, leave_it, &over);
  settle ();
  CHECK (!over);
  gate_let_one (&working);
  gate_open (&working);         /* the helper may be in it once more */
  CHECK (over);
  CHECK (!lists.listed && lists.running == 0);
  pthread_join (leaver, NULL);
  end ();
}

static void
test_race (void)
{
  unsigned i;

  free_running = true;
  begin ();
  for (i = 0; i < 1000; i++) {
    pthread_mutex_lock (&lock);
    pieces++;
    helpers_call (&job, i % 5);
    pthread_mutex_unlock (&lock);
  }
  helpers_end ();
  CHECK (done + pieces == 1000);
  CHECK (allocated == 0);
}

int
main (void)
{
  static const struct unit_test tests[] = {
    { "none until one is called", test_none },
    { "one does all the work", test_call },
    { "as many as are called", test_many },
    { "idle ones come before new ones", test_idle },
    { "those that are on their way count", test_called_twice },
    { "the next piece of work without a call", test_next_piece },
    { "idle ones end after a while", test_expire },
    { "one is called as its time is over", test_expires_as_called },
    { "threads and memory that can't be had", test_no_threads },
    { "the end waits for what is at work", test_end },
    { "the end of those that have just started", test_end_at_once },
    { "a job that is shared", test_share },
    { "a job that is left", test_leave },
    { "calls and an end at any time", test_race },
    { NULL, NULL }
  };

  return unit_main ("helpers", tests);
}
