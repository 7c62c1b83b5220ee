/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Execute the server again, with another LD_LIBRARY_PATH and one more
 * argument.
 */
static void
execute_again (const char *library_path, char *argument)
{
  static char line[65536];
  static char *argv[1024];
  const int fd = open ("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  const ssize_t n = read (fd, line, sizeof line - 1);
  size_t argc = 0;

  for (ssize_t i = 0; i < n && argc < 1022; i += strlen (line + i) + 1)
    argv[argc++] = line + i;
  argv[argc] = argument;
  setenv ("LD_LIBRARY_PATH", library_path, 1);
  fflush (NULL);
  execv ("/proc/self/exe", argv);
  abort ();
}
