/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A disk in memory that all handles share, for plugins of which something else
 * is tested.  Include it after nbdkit-plugin.h.
 */

#include <string.h>

static char disk[1 << 20];

static int64_t
memory_get_size (void *handle)
{
  (void) handle;
  return sizeof disk;
}

static int
memory_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  (void) handle;
  (void) flags;
  memcpy (buf, disk + offset, count);
  return 0;
}

static int
memory_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  (void) handle;
  (void) flags;
  memcpy (disk + offset, buf, count);
  return 0;
}
