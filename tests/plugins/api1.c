/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin of API version 1, as nbdkit 1.24's ssh, curl and split are: no
 * flags, no can_multi_conn, and the data callbacks in the five early slots
 * of the struct.  Each connection has a write-back cache.
 *
 * log=FILE gets one line for each callback: the handle's number and the
 * callback's name.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>

#define NBDKIT_API_VERSION 1
#include <nbdkit-plugin.h>

#ifndef THREAD_MODEL
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
#endif

#define SIZE 32768
#define BLOCK 512

enum state { ABSENT, CLEAN, DIRTY };

struct handle {
  unsigned number;
  uint8_t data[SIZE];
  enum state state[SIZE / BLOCK];
};

/* Guards these two. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t disk[SIZE];
static unsigned nr_handles;
static FILE *log_file;

static void
log_callback (struct handle *h, const char *name)
{
  if (log_file &&
      (fprintf (log_file, "%u %s\n", h->number, name) < 0 ||
       fflush (log_file) == EOF))
    nbdkit_error ("log: %m");
}

static void
api1_unload (void)
{
  if (log_file)
    fclose (log_file);
}

static int
api1_config (const char *key, const char *value)
{
  if (strcmp (key, "log") != 0) {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  log_file = fopen (value, "ae");
  if (!log_file) {
    nbdkit_error ("%s: %m", value);
    return -1;
  }
  return 0;
}

static void *
api1_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  if (!h) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  pthread_mutex_lock (&lock);
  h->number = nr_handles++;
  pthread_mutex_unlock (&lock);
  log_callback (h, "open");
  return h;
}

static void
api1_close (void *handle)
{
  log_callback (handle, "close");
  free (handle);
}

static int64_t
api1_get_size (void *handle)
{
  (void) handle;
  return SIZE;
}

/* Bring the block at OFFSET into the cache.  Returns how many bytes of a
 * request of COUNT bytes are in that block.
 */
static uint32_t
load_block (struct handle *h, uint32_t count, uint64_t offset)
{
  uint64_t b = offset / BLOCK;
  uint32_t n = BLOCK - offset % BLOCK;

  if (h->state[b] == ABSENT) {
    pthread_mutex_lock (&lock);
    memcpy (h->data + b * BLOCK, disk + b * BLOCK, BLOCK);
    pthread_mutex_unlock (&lock);
    h->state[b] = CLEAN;
  }
  return count < n ? count : n;
}

static int
api1_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  struct handle *h = handle;
  uint8_t *p = buf;
  uint32_t n;

  log_callback (h, "read");
  for (; count > 0; count -= n, offset += n, p += n) {
    n = load_block (h, count, offset);
    memcpy (p, h->data + offset, n);
  }
  return 0;
}

static int
api1_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset)
{
  struct handle *h = handle;
  const uint8_t *p = buf;
  uint32_t n;

  log_callback (h, "write");
  for (; count > 0; count -= n, offset += n, p += n) {
    n = load_block (h, count, offset);
    memcpy (h->data + offset, p, n);
    h->state[offset / BLOCK] = DIRTY;
  }
  return 0;
}

static int
clear (struct handle *h, uint32_t count, uint64_t offset)
{
  uint32_t n;

  for (; count > 0; count -= n, offset += n) {
    n = load_block (h, count, offset);
    memset (h->data + offset, 0, n);
    h->state[offset / BLOCK] = DIRTY;
  }
  return 0;
}

static int
api1_zero (void *handle, uint32_t count, uint64_t offset, int may_trim)
{
  (void) may_trim;
  log_callback (handle, "zero");
  return clear (handle, count, offset);
}

static int
api1_trim (void *handle, uint32_t count, uint64_t offset)
{
  log_callback (handle, "trim");
  return clear (handle, count, offset);
}

static int
api1_flush (void *handle)
{
  struct handle *h = handle;

  log_callback (h, "flush");
  pthread_mutex_lock (&lock);
  for (uint64_t b = 0; b < SIZE / BLOCK; ++b) {
    if (h->state[b] == DIRTY)
      memcpy (disk + b * BLOCK, h->data + b * BLOCK, BLOCK);
    h->state[b] = ABSENT;
  }
  pthread_mutex_unlock (&lock);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name     = "api1",
  .version  = "1.0",
  .unload   = api1_unload,
  .config   = api1_config,
  .open     = api1_open,
  .close    = api1_close,
  .get_size = api1_get_size,
  .pread    = api1_pread,
  .pwrite   = api1_pwrite,
  .flush    = api1_flush,
  .zero     = api1_zero,
  .trim     = api1_trim,
};

NBDKIT_REGISTER_PLUGIN (plugin)
