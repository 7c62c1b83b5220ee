/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A disk whose plugin executes the server again, as nbdkit's vddk plugin
 * does: with another LD_LIBRARY_PATH, and "again=1" as one more argument.
 * "when" says from which callback: config_complete, get_ready or dump_plugin.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "again.h"
#include "memory.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS

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

static void
execute_if (const char *now)
{
  if (!again && strcmp (when, now) == 0)
    execute_again ("/tmp", "again=1");
}

static int
config_complete (void)
{
  execute_if ("config_complete");
  return 0;
}

static int
get_ready (void)
{
  execute_if ("get_ready");
  return 0;
}

static void
dump_plugin (void)
{
  execute_if ("dump_plugin");
  printf ("reexec_again=%d\n", again);
}

static void *
open_disk (int readonly)
{
  (void) readonly;
  return malloc (1);
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
  .get_size = memory_get_size,
  .pread = memory_pread,
  .pwrite = memory_pwrite,
  .flush = flush,
};

NBDKIT_REGISTER_PLUGIN (plugin)
