/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A second library to preload: one that wraps close by asking dlsym for
 * the RTLD_NEXT one.  What that finds depends on the caller, so a dlsym
 * that answers for itself would hand back the wrong function, or this one.
 *
 * At exit of a process in which close was called, $NEXT_LOG gets a line:
 * the program and the file in which the next close was found.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "oldglibc.h"

OLD (dlsym);
OLD (dladdr);

int close (int fd);

static int (*next_close) (int);

int
close (int fd)
{
  /* If two such libraries were each told that the other is next, they would
   * call each other forever.
   */
  static __thread int depth;
  int r;

  if (!next_close)
    next_close = (int (*) (int)) dlsym (RTLD_NEXT, "close");
  if (!next_close || next_close == close || depth > 0) {
    fprintf (stderr, "next: dlsym (RTLD_NEXT) is wrong\n");
    abort ();
  }
  depth++;
  r = next_close (fd);
  depth--;
  return r;
}

static void __attribute__ ((destructor))
report (void)
{
  const char *file = getenv ("NEXT_LOG");
  Dl_info info;
  FILE *fp;

  if (!file || !next_close)
    return;
  fp = fopen (file, "a");
  if (!fp || !dladdr ((void *) next_close, &info) ||
      fprintf (fp, "%s %s\n", program_invocation_short_name,
               info.dli_fname) < 0 ||
      fclose (fp) == EOF)
    perror (file);
}
