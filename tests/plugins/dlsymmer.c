/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A second library to preload that also interposes dlsym, and passes every
 * call on.  $DLSYM_LOG gets a line for each look-up of "plugin_init".
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oldglibc.h"

OLD (dlvsym);

void *dlsym (void *restrict handle, const char *restrict name);

void *
dlsym (void *restrict handle, const char *restrict name)
{
  /* glibc 2.34 gave it a new version; before, it had the first one. */
  static const char *const versions[] =
    { "GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17", NULL };
  void *(*next) (void *, const char *) = NULL;
  const char *file = getenv ("DLSYM_LOG");
  FILE *fp;

  for (int i = 0; versions[i] && !next; ++i)
    next = (void *(*) (void *, const char *))
      dlvsym (RTLD_NEXT, "dlsym", versions[i]);
  if (!next)
    abort ();
  if (file && strcmp (name, "plugin_init") == 0) {
    fp = fopen (file, "a");
    if (!fp || fprintf (fp, "%s\n", name) < 0 || fclose (fp) == EOF)
      perror (file);
  }
  return next (handle, name);
}
