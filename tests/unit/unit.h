/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What every unit test has: a table of tests, and CHECK.
 *
 * A test is a function.  It runs in its own process, so that the library's
 * variables have their initial values, and so that a deadlock, a crash or a
 * sanitizer's report is one failed test, and the others go on.  The first
 * CHECK that fails ends it.
 *
 * A program prints one line for each test and returns 1 if one failed.
 * In the environment:
 *
 * UNIT_TEST       only the tests with this in their names
 * UNIT_TIMEOUT    seconds after which a test fails (20)
 * UNIT_FAIL_FAST  if set, the first test that fails is the last
 */

#ifndef MCSHIM_UNIT_H
#define MCSHIM_UNIT_H

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct unit_test {
  const char *name;
  void (*run) (void);
};

/* A test that has printed its own line ends with this status, which no
 * sanitizer uses.
 */
#define UNIT_FAILED 99

static const char *unit_program, *unit_name;
static int unit_status;         /* what the program returns */

/* CHECK (condition) or CHECK (condition, "format", ...) to print more.  Any
 * thread may use it.
 */
#define CHECK(condition, ...)                                           \
  do {                                                                  \
    if (!(condition))                                                   \
      unit_fail (__FILE__, __LINE__, #condition, " " __VA_ARGS__);      \
  } while (0)

static _Noreturn void __attribute__ ((format (printf, 4, 5), unused))
unit_fail (const char *file, int line, const char *condition,
           const char *format, ...)
{
  static atomic_flag failed = ATOMIC_FLAG_INIT;
  char text[1024];
  __builtin_va_list args;
  size_t i;

  if (atomic_flag_test_and_set (&failed))
    for (;;)                    /* another thread has */
      pause ();

  __builtin_va_start (args, format);
  vsnprintf (text, sizeof text, format, args);
  __builtin_va_end (args);
  for (i = 0; text[i] != '\0'; i++)
    if (text[i] == '\n')
      text[i] = ' ';
  printf ("not ok %s: %s: %s:%d: %s%s%s\n", unit_program, unit_name, file,
          line, condition, text[1] ? ":" : "", text[1] ? text : "");
  fflush (stdout);
  _exit (UNIT_FAILED);
}

/* Run one test, unless $UNIT_TEST leaves it out. */
static void
unit_run (const char *name, void (*run) (const void *), const void *arg)
{
  const char *only = getenv ("UNIT_TEST"), *seconds = getenv ("UNIT_TIMEOUT");
  const int timeout = seconds ? atoi (seconds) : 20;
  int status;
  pid_t pid;

  if (timeout <= 0) {
    fprintf (stderr, "%s: UNIT_TIMEOUT must be a number of seconds\n",
             unit_program);
    exit (2);
  }
  if (only != NULL && strstr (name, only) == NULL)
    return;
  unit_name = name;
  fflush (stdout);
  pid = fork ();
  CHECK (pid != -1, "fork: %s", strerror (errno));
  if (pid == 0) {
    /* No test waits for time: what is late hangs. */
    alarm (timeout);
    run (arg);
    exit (EXIT_SUCCESS);        /* a sanitizer looks for leaks here */
  }

  while (waitpid (pid, &status, 0) == -1)
    if (errno != EINTR)
      abort ();
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0) {
    printf ("ok %s: %s\n", unit_program, name);
    return;
  }
  if (WIFSIGNALED (status) && WTERMSIG (status) == SIGALRM)
    printf ("not ok %s: %s: not over after %d s\n", unit_program, name,
            timeout);
  else if (WIFSIGNALED (status))
    printf ("not ok %s: %s: %s\n", unit_program, name,
            strsignal (WTERMSIG (status)));
  else if (WEXITSTATUS (status) != UNIT_FAILED)
    printf ("not ok %s: %s: exit status %d\n", unit_program, name,
            WEXITSTATUS (status));
  unit_status = EXIT_FAILURE;
  if (getenv ("UNIT_FAIL_FAST"))
    exit (EXIT_FAILURE);
}

static void
unit_call (const void *test)
{
  ((const struct unit_test *) test)->run ();
}

/* Run TESTS.  The last one has no name. */
static inline int
unit_main (const char *program, const struct unit_test *tests)
{
  unit_program = program;
  for (; tests->name != NULL; tests++)
    unit_run (tests->name, unit_call, tests);
  return unit_status;
}

#endif /* MCSHIM_UNIT_H */
