/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* wbcache.c as a plugin of API version 1, as nbdkit 1.24's ssh, curl and split
 * are: no flags, no can_multi_conn, and the data callbacks in the five early
 * slots of the struct.
 */

#define NBDKIT_API_VERSION 1
#ifndef THREAD_MODEL
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
#endif
#pragma GCC diagnostic ignored "-Wunused-function" /* version 2's */
#include "wbcache.c"

static int
api1_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  return wbcache_pread (handle, buf, count, offset, 0);
}

static int
api1_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset)
{
  return wbcache_pwrite (handle, buf, count, offset, 0);
}

static int
api1_flush (void *handle)
{
  return wbcache_flush (handle, 0);
}

static int
api1_trim (void *handle, uint32_t count, uint64_t offset)
{
  return wbcache_trim (handle, count, offset, 0);
}

static int
api1_zero (void *handle, uint32_t count, uint64_t offset, int may_trim)
{
  (void) may_trim;
  return wbcache_zero (handle, count, offset, 0);
}

static struct nbdkit_plugin plugin = {
  .name               = "api1",
  .version            = "1.0",
  .unload             = wbcache_unload,
  .config             = wbcache_config,
  .config_complete    = wbcache_config_complete,
  .open               = wbcache_open,
  .close              = wbcache_close,
  .get_size           = wbcache_get_size,
  .pread              = api1_pread,
  .pwrite             = api1_pwrite,
  .flush              = api1_flush,
  .trim               = api1_trim,
  .zero               = api1_zero,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
