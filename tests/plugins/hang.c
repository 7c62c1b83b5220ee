/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A library to preload that simulates a file system which does not answer:
 * rename waits while the file $HANG exists.
 */

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int
rename (const char *from, const char *to)
{
  const char *hang = getenv ("HANG");

  while (hang != NULL && access (hang, F_OK) == 0)
    poll (NULL, 0, 20);
  return renameat (AT_FDCWD, from, AT_FDCWD, to);
}
