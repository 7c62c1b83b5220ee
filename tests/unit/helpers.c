/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* helpers.c: threads that help, given a lock and a piece of work.
 *
 * Most tests are scripts (script.h), of these words:
 *
 *   5/2 1/1,1  five pieces of work, for which two are called; one, for which
 *              two are called one after the other
 *   [ ] |      a piece of work takes its time; no longer; one is done
 *   x          the end
 *   .late      time passes; .nothread, .nomem: the next thread or memory can't
 *              be had
 *   $name=1    what is counted
 */

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

/* Calls on a thread of their own. */
struct call {
  void (*run) (struct job *);
  struct job *job;
};

static int
do_call (struct call call)
{
  call.run (call.job);
  return 0;
}

static void
end_helpers (struct job *j)
{
  (void) j;
  helpers_end ();
}

#include "script.h"

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
  join_actors ();
  CHECK (threads == 0, "%d threads", threads);
  CHECK (allocated == 0, "%d allocations", allocated);
}

static void
play_word (const char *p)
{
  const struct name counters[] = {
    { "done", done }, { "left", pieces }, { "starting", starting },
    { "made", threads_made }, { "threads", threads },
    { "working", waiting_at (&working) }, { "allocated", allocated },
    { NULL, 0 }
  };
  int n;

  if (strchr (p, '/')) {
    pthread_mutex_lock (&lock);
    pieces += number (&p);
    do {
      p++;
      helpers_call (&job, number (&p));
    } while (*p != '\0');
    pthread_mutex_unlock (&lock);
    settle ();
  }
  else if (*p >= '1' && *p <= '9')
    play_actor (p);
  else if (*p == '$') {
    p++;
    n = look_up (counters, &p);
    expect_number (p, n);
  }
  else if (strcmp (p, "&x") == 0)
    start ((struct call) { end_helpers, NULL });
  else if (strcmp (p, ".late") == 0)
    expire ();
  else if (strcmp (p, ".nothread") == 0)
    fail_threads = 1;
  else if (strcmp (p, ".nomem") == 0)
    fail_allocation = 1;
  else
    play_gate (*p, &working);
}

static const struct script scripts[] = {
  { "none until one is called", "$made=0" },
  { "one does all the work", "5/1 $done=5 $made=1 $starting=1" },
  { "as many as are called",
    "[ 100/64 $made=64 $starting=64 $working=64 $left=36 ] $done=100 "
    "$made=64" },
  { "idle ones come before new ones",
    "[ 3/3 $made=3 ] $done=3 [ 2/2 $working=2 $made=3 4/2 $working=4 "
    "$made=4 ] $done=9 $starting=4" },
  /* Called, and not awake yet. */
  { "those that are on their way count",
    "2/2,1,2 $made=2 $done=2 [ 2/1,1 $made=2 $working=1 0/1 $working=2" },
  { "the next piece of work without a call",
    "[ 1/1 1/0 $working=1 | $done=1 $working=1 ] $done=2" },
  { "idle ones end after a while",
    "[ 3/3 | .late $working=2 ] $done=3 "
    /* It is joined when others are called. */
    "[ 3/3 $made=4 $threads=3 $working=3 ] .late 1/1 $done=7 $made=5 "
    "$threads=1" },
  { "threads and memory that can't be had",
    "[ .nothread 2/2 $made=0 $left=2 $allocated=0 .nomem 0/2 $made=0 "
    "0/1 $made=1 .nothread 2/3 $made=1 ] $done=4" },
  { "the end waits for what is at work, and no more begins",
    "1/1 [ 5/2 &x 1? | 1? ] 1 $done=3 $threads=0 $allocated=0" },
};

/* A helper is called just as its time is over. */
static void
test_expires_as_called (void)
{
  begin ();
  play_words ("1/1", play_word);
  pthread_mutex_lock (&lock);
  world_lock ();
  wake (NULL, -1, true);
  world_unlock ();
  pieces = 1;
  helpers_call (&job, 1);
  pthread_mutex_unlock (&lock);
  settle ();
  play_words ("$done=2 1/1 $done=3", play_word);
  end ();
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

static void
test_share (void)
{
  struct job shared = JOB_INITIALIZER (share);

  begin ();
  gate_shut (&working);
  parts = 5;
  start ((struct call) { helpers_share, &shared });
  CHECK (waiting_at (&working) == 3 && parts == 2);
  /* It waits for what others do. */
  play_words ("| | | 1? ] 1", play_word);
  CHECK (parts == 0 && sharing == 5);

  /* Alone. */
  parts = 5;
  fail_threads = 100;
  expire ();
  start ((struct call) { helpers_share, &shared });
  CHECK (sharing == 10);
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

static void
call_for (struct job *j)
{
  helpers_lock ();
  helpers_list (j);
  CHECK (helpers_call (j, 1));
  helpers_unlock ();
  settle ();
}

static void
test_leave (void)
{
  static struct job lists = JOB_INITIALIZER (again);

  begin ();
  gate_shut (&working);
  parts = 1;
  call_for (&lists);
  CHECK (waiting_at (&working) == 1);
  start ((struct call) { helpers_leave, &lists });
  /* The helper may be in it once more. */
  play_words ("1? | ] 1", play_word);
  CHECK (!lists.listed && lists.running == 0);
  /* Nobody works at it. */
  helpers_list (&lists);
  helpers_leave (&lists);
  CHECK (!lists.listed);
  end ();
}

/* What one job has called for does not count once a helper has begun, nor if
 * there was nothing to do.
 */
static void
test_two_jobs (void)
{
  static struct job second = JOB_INITIALIZER (again);

  begin ();
  play_words ("[ 1/1 $made=1", play_word);
  call_for (&second);
  play_words ("$made=2 ] .nothread 1/5 $made=2", play_word);
  call_for (&second);
  play_words ("$made=2", play_word);
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

static void
play (const void *script)
{
  begin ();
  play_words (script, play_word);
  end ();
}

int
main (void)
{
  static const struct unit_test functions[] = {
    { "one is called as its time is over", test_expires_as_called },
    { "the end of those that have just started", test_end_at_once },
    { "a job that is shared", test_share },
    { "a job that is left", test_leave },
    { "two jobs", test_two_jobs },
    { "calls and an end at any time", test_race },
    { NULL, NULL }
  };

  return scripts_main ("helpers", scripts, sizeof scripts / sizeof scripts[0],
                       play, functions);
}
