/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin of the shape of nbdkit's vddk plugin from 1.22 to 1.28, over
 * vixDiskLib.c: one request at a time for each handle, by synchronous calls,
 * and one lock around open and close.  When it has loaded the library, in
 * get_ready or dump_plugin, it executes the server again, with the library's
 * directory in LD_LIBRARY_PATH, which is as before in what the server starts.
 */

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "again.h"
#include "oldglibc.h"
#include "vixDiskLib.h"

OLD (dlerror);
OLD (dlopen);
OLD (dlsym);

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
#define CHUNK 128               /* Sectors: the library has no smaller ones. */

#pragma weak nbdkit_add_extent

struct handle {
  void *connection;
  struct disk *disk;
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *file, *libdir;
static const char *before;      /* LD_LIBRARY_PATH of the first process. */

#define FUNCTIONS(F)                                                    \
  F (InitEx) F (Exit) F (ConnectEx) F (Disconnect) F (Open) F (Close)   \
  F (GetInfo) F (FreeInfo) F (Read) F (Write) F (Flush)                 \
  F (QueryAllocatedBlocks) F (FreeBlockList)

#define DECLARE(name) static __typeof__ (VixDiskLib_##name) *name;
FUNCTIONS (DECLARE)

static int
check (uint64_t error, const char *call)
{
  if (error != 0)
    nbdkit_error ("%s: VDDK error %d", call, (int) error);
  return error == 0 ? 0 : -1;
}

static int
load (void)
{
  static char path[4096], argument[4096];
  const char *env = getenv ("LD_LIBRARY_PATH");
  void *dl;

  snprintf (path, sizeof path, "%s/libvixDiskLib.so.7", libdir);
  dl = dlopen (path, RTLD_NOW);
  if (!dl) {
    nbdkit_error ("%s", dlerror ());
    return -1;
  }
  if (!before && (!env || !strstr (env, libdir))) {
    snprintf (argument, sizeof argument, "before=%s", env ? env : "");
    snprintf (path, sizeof path, "%s%s%s", libdir, env ? ":" : "",
              env ? env : "");
    execute_again (path, argument);
  }
#define LOOK_UP(name) name = dlsym (dl, "VixDiskLib_" #name);
  FUNCTIONS (LOOK_UP)
  return 0;
}

static void
vddk_unload (void)
{
  if (Exit)
    Exit ();
}

static int
vddk_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0)
    file = value;
  else if (strcmp (key, "libdir") == 0)
    libdir = value;
  else if (strcmp (key, "before") == 0)
    before = value;
  else {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  return 0;
}

static int
vddk_config_complete (void)
{
  if (!file || !libdir) {
    nbdkit_error ("file=FILE and libdir=DIR are needed");
    return -1;
  }
  if (before && *before)
    setenv ("LD_LIBRARY_PATH", before, 1);
  else if (before)
    unsetenv ("LD_LIBRARY_PATH");
  return 0;
}

static void
vddk_dump_plugin (void)
{
  if (libdir)
    load ();
}

static int
vddk_after_fork (void)
{
  return check (InitEx (6, 5, NULL, NULL, NULL, libdir, NULL), "InitEx");
}

static void *
vddk_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);
  int r = -1;

  if (!h) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  pthread_mutex_lock (&open_lock);
  if (check (ConnectEx (NULL, readonly, NULL, NULL, &h->connection),
             "ConnectEx") == 0) {
    r = check (Open (h->connection, file, readonly ? OPEN_READ_ONLY : 0,
                     &h->disk), "Open");
    if (r == -1)
      Disconnect (h->connection);
  }
  pthread_mutex_unlock (&open_lock);
  if (r == 0)
    return h;
  free (h);
  return NULL;
}

static void
vddk_close (void *handle)
{
  struct handle *h = handle;

  pthread_mutex_lock (&open_lock);
  Close (h->disk);
  Disconnect (h->connection);
  pthread_mutex_unlock (&open_lock);
  free (h);
}

static int64_t
vddk_get_size (void *handle)
{
  struct handle *h = handle;
  struct info *info;
  int64_t size;

  if (check (GetInfo (h->disk, &info), "GetInfo") == -1)
    return -1;
  size = info->capacity * SECTOR;
  FreeInfo (info);
  return size;
}

static int
aligned (uint32_t count, uint64_t offset)
{
  if ((count | offset) % SECTOR == 0)
    return 0;
  nbdkit_error ("not aligned to sectors");
  return -1;
}

static int
vddk_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  struct handle *h = handle;

  (void) flags;
  if (aligned (count, offset) == -1)
    return -1;
  return check (Read (h->disk, offset / SECTOR, count / SECTOR, buf), "Read");
}

static int
vddk_flush (void *handle, uint32_t flags)
{
  struct handle *h = handle;

  (void) flags;
  return check (Flush (h->disk), "Flush");
}

static int
vddk_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  struct handle *h = handle;

  if (aligned (count, offset) == -1 ||
      check (Write (h->disk, offset / SECTOR, count / SECTOR, buf),
             "Write") == -1)
    return -1;
  return flags & NBDKIT_FLAG_FUA ? vddk_flush (h, 0) : 0;
}

static int
vddk_can_extents (void *handle)
{
  struct handle *h = handle;
  struct blocks *list;

  return QueryAllocatedBlocks (h->disk, 0, CHUNK, CHUNK, &list) == 0 &&
    FreeBlockList (list) == 0;
}

static int
vddk_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  struct handle *h = handle;
  const uint64_t chunk = (uint64_t) CHUNK * SECTOR;
  const uint64_t first = offset / chunk;
  const uint64_t end = (offset + count - 1) / chunk + 1;
  struct blocks *list;
  uint32_t n = 0;
  int r = 0;

  (void) flags;
  if (check (QueryAllocatedBlocks (h->disk, first * CHUNK,
                                   (end - first) * CHUNK, CHUNK, &list),
             "QueryAllocatedBlocks") == -1)
    return -1;
  for (uint64_t i = first; r == 0 && i < end; ++i) {
    /* What is not in the list is a hole. */
    const bool data = n < list->n && list->block[n].offset == i * CHUNK;

    n += data;
    r = nbdkit_add_extent (extents, i * chunk, chunk,
                           data ? 0 : NBDKIT_EXTENT_HOLE|NBDKIT_EXTENT_ZERO);
  }
  FreeBlockList (list);
  return r;
}

static int
vddk_yes (void *handle)
{
  (void) handle;
  return 1;
}

static int
vddk_can_fua (void *handle)
{
  (void) handle;
  return NBDKIT_FUA_NATIVE;
}

static struct nbdkit_plugin plugin = {
  .name              = "vddk",
  .version           = "1.24",
  .unload            = vddk_unload,
  .config            = vddk_config,
  .config_complete   = vddk_config_complete,
  .magic_config_key  = "file",
  .dump_plugin       = vddk_dump_plugin,
  .get_ready         = load,
  .after_fork        = vddk_after_fork,
  .open              = vddk_open,
  .close             = vddk_close,
  .get_size          = vddk_get_size,
  .can_flush         = vddk_yes,
  .can_fua           = vddk_can_fua,
  .can_extents       = vddk_can_extents,
  .pread             = vddk_pread,
  .pwrite            = vddk_pwrite,
  .flush             = vddk_flush,
  .extents           = vddk_extents,
};

NBDKIT_REGISTER_PLUGIN (plugin)
