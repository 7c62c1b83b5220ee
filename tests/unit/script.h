/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Tests that are scripts.  A script is words; the file that includes this says
 * what they mean, and what a call is:
 *
 *   struct call { ... };
 *   static int do_call (struct call);
 *
 * Calls that run on threads of their own, as far as they can, are numbered
 * from 1:
 *
 *   1? 1=0 1 it is not over; it is, with this result; with any
 */

#ifndef MCSHIM_UNIT_SCRIPT_H
#define MCSHIM_UNIT_SCRIPT_H

#include "threads.h"

static const char *at;          /* the rest of the script, for messages */

static _Noreturn void
bad_word (void)
{
  unit_fail (__FILE__, __LINE__, "a word", " not known, at '%s'", at);
}

static void
expect (int got, int wanted)
{
  CHECK (got == wanted, "%d, at '%s'", got, at);
}

struct name {
  const char *name;
  int value;
};

/* The beginning of *P, which is one of NAMES. */
static int
look_up (const struct name *names, const char **p)
{
  const size_t length = strcspn (*p, "=");

  for (; names->name != NULL; names++)
    if (strlen (names->name) == length &&
        strncmp (names->name, *p, length) == 0) {
      *p += length;
      return names->value;
    }
  bad_word ();
}

/* A number, or the name of an errno. */
static int
number (const char **p)
{
  static const struct name errnos[] = {
    { "EIO", EIO }, { "ESHUTDOWN", ESHUTDOWN }, { "ENOSPC", ENOSPC },
    { "ENXIO", ENXIO }, { "EPERM", EPERM }, { "ENOMEM", ENOMEM },
    { "EMFILE", EMFILE }, { NULL, 0 }
  };
  const int sign = **p == '-' ? -1 : 1;
  char *end;
  int n;

  *p += sign < 0;
  n = strtol (*p, &end, 10);
  if (end == *p)
    return sign * look_up (errnos, p);
  *p = end;
  return sign * n;
}

/* After a '='. */
static void
expect_number (const char *p, int got)
{
  if (*p++ != '=')
    bad_word ();
  expect (got, number (&p));
}

static struct actor {
  pthread_t thread;
  struct call call;
  int result;
  bool over, joined;            /* guarded by "world" */
} actors[80];
static unsigned nr_actors;

static void *
act (void *arg)
{
  struct actor *a = arg;
  const int result = do_call (a->call);

  CHECK (nr_held == 0);
  world_lock ();
  a->result = result;
  a->over = true;
  world_unlock ();
  return NULL;
}

static void
start (struct call call)
{
  struct actor *a = &actors[nr_actors++];

  CHECK (nr_actors <= sizeof actors / sizeof actors[0]);
  a->call = call;
  start_thread (&a->thread, act, a);
  settle ();
}

static bool
over (const struct actor *a)
{
  bool r;

  world_lock ();
  r = a->over;
  world_unlock ();
  return r;
}

/* How many are. */
static inline unsigned
actors_over (void)
{
  unsigned i, n = 0;

  for (i = 0; i < nr_actors; i++)
    n += over (&actors[i]);
  return n;
}

static void
play_actor (const char *p)
{
  struct actor *a = &actors[*p - '1'];

  CHECK (a < actors + nr_actors, "at '%s'", at);
  CHECK (over (a) == (p[1] != '?'), "at '%s'", at);
  if (p[1] != '?' && !a->joined) {
    __wrap_pthread_join (a->thread, NULL);
    a->joined = true;
  }
  if (p[1] == '=')
    expect_number (p + 1, a->result);
}

/* At the end all are over. */
static void
join_actors (void)
{
  unsigned i;

  for (i = 0; i < nr_actors; i++) {
    CHECK (over (&actors[i]));
    if (!actors[i].joined)
      __wrap_pthread_join (actors[i].thread, NULL);
  }
}

static void
play_gate (char sign, struct gate *gate)
{
  switch (sign) {
  case '[': gate_shut (gate); break;
  case ']': gate_open (gate); break;
  case '|': gate_let_one (gate); break;
  default: bad_word ();
  }
}

static void
play_words (const char *script, void (*play_word) (const char *))
{
  char buffer[32];

  for (at = script; *(at += strspn (at, " ")) != '\0';
       at += strcspn (at, " ")) {
    snprintf (buffer, sizeof buffer, "%.*s", (int) strcspn (at, " "), at);
    play_word (buffer);
  }
}

struct script {
  const char *name, *script;
};

/* Tests NR scripts by PLAY, and FUNCTIONS, of which the last has no name. */
static inline int
scripts_main (const char *program, const struct script *scripts, unsigned nr,
              void (*play) (const void *), const struct unit_test *functions)
{
  unsigned i;

  unit_program = program;
  for (i = 0; i < nr; i++)
    unit_run (scripts[i].name, play, scripts[i].script);
  return unit_main (program, functions);
}

#endif /* MCSHIM_UNIT_SCRIPT_H */
