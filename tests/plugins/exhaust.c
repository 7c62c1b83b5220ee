/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A library to preload that makes only the shim run out of something: while
 * the file $EXHAUST has a line posix_memalign or calloc, that function fails
 * when it is called from libmcshim.so.  Real exhaustion would hit the server
 * first.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oldglibc.h"

OLD (dladdr);

static bool
exhausted (const char *function, void *caller)
{
  const char *file = getenv ("EXHAUST");
  char line[64];
  bool found = false;
  Dl_info info;
  FILE *fp;

  if (file == NULL || !dladdr (caller, &info) ||
      strstr (info.dli_fname, "libmcshim") == NULL)
    return false;
  fp = fopen (file, "r");
  if (fp == NULL)
    return false;
  while (!found && fgets (line, sizeof line, fp) != NULL)
    found = strncmp (line, function, strlen (function)) == 0;
  fclose (fp);
  return found;
}

int
posix_memalign (void **p, size_t alignment, size_t size)
{
  if (exhausted ("posix_memalign", __builtin_return_address (0)))
    return ENOMEM;
  *p = aligned_alloc (alignment, size);
  return *p ? 0 : ENOMEM;
}

void *
calloc (size_t n, size_t size)
{
  void *p;

  if (exhausted ("calloc", __builtin_return_address (0))) {
    errno = ENOMEM;
    return NULL;
  }
  if (__builtin_mul_overflow (n, size, &size))
    size = SIZE_MAX;
  p = malloc (size);
  /* So that the compiler does not make one calloc of these. */
  __asm__ volatile ("" : "+r" (p));
  if (p != NULL)
    memset (p, 0, size);
  return p;
}
