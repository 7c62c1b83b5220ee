/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A disk whose plugin executes the server again, as nbdkit's vddk plugin
 * does: with another LD_LIBRARY_PATH, and "again=1" as one more argument.
 * "when" says from which callback: config_complete, get_ready or dump_plugin.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS

static char disk[1 << 20];
static const char *when = "";
static int again;

static int
config (const char *key, const char *value)
{
  if (strcmp (key, "when") == 0)
    when = value;
  else
    again = 1;
  return 0;
}

/* Returns only if this is the second process, or NOW is not the time. */
static void
execute_again (const char *now)
{
  static char line[65536];
  static char *argv[1024];
  size_t argc = 0, n, i;
  int fd;

  if (again || strcmp (when, now) != 0)
    return;
  fd = open ("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  n = fd != -1 ? read (fd, line, sizeof line - 1) : 0;
  for (i = 0; i < n && argc < 1022; i += strlen (line + i) + 1)
    argv[argc++] = line + i;
  argv[argc] = "again=1";
  setenv ("LD_LIBRARY_PATH", "/tmp", 1);
  fflush (NULL);
  execv ("/proc/self/exe", argv);
  abort ();
}

static int
config_complete (void)
{
  execute_again ("config_complete");
  return 0;
}

static int
get_ready (void)
{
  execute_again ("get_ready");
  return 0;
}

static void
dump_plugin (void)
{
  execute_again ("dump_plugin");
  printf ("reexec_again=%d\n", again);
}

static void *
open_disk (int readonly)
{
  (void) readonly;
  return malloc (1);
}

static int64_t
get_size (void *handle)
{
  (void) handle;
  return sizeof disk;
}

static int
read_disk (void *handle, void *buf, uint32_t count, uint64_t offset,
           uint32_t flags)
{
  (void) handle;
  (void) flags;
  memcpy (buf, disk + offset, count);
  return 0;
}

static int
write_disk (void *handle, const void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  (void) handle;
  (void) flags;
  memcpy (disk + offset, buf, count);
  return 0;
}

static int
flush (void *handle, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "reexec",
  .config = config,
  .config_complete = config_complete,
  .get_ready = get_ready,
  .dump_plugin = dump_plugin,
  .open = open_disk,
  .close = free,
  .get_size = get_size,
  .pread = read_disk,
  .pwrite = write_disk,
  .flush = flush,
};

NBDKIT_REGISTER_PLUGIN (plugin)
