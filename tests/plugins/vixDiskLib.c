/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Stands in for VMware's libvixDiskLib.so, for nbdkit's vddk plugin: a plain
 * file is the disk.  It ends the server if one disk is used by two threads at
 * once, if two threads open or close at once, or if it is initialized twice,
 * as VMware's documents forbid.
 *
 * $VIXDISKLIB has words:
 *
 *   latency=US    each call takes so long; four asynchronous ones of a disk are
 *                 on their way at once
 *   open=US       that of an open
 *   cache=1       each disk has a write-back cache: a flush writes back what
 *                 is dirty and drops the rest; a close drops both
 *   lock=1        a disk can be opened for writing once, and not read beside
 *   log=FILE      gets a line for each call: the disk's number, in order of
 *                 open, and what it does
 */

#define _GNU_SOURCE             /* SEEK_DATA */

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "oldglibc.h"
#include "vixDiskLib.h"

OLD (pthread_create);
OLD (pthread_join);

#define DEPTH 4                 /* Asynchronous calls that run at once. */

enum { NOT_CACHED, CLEAN, DIRTY }; /* A sector in the cache. */

typedef void callback (void *data, uint64_t result);

/* An asynchronous call. */
struct job {
  struct job *next;
  bool is_write;
  uint64_t start, n;
  void *buf;
  callback *done;
  void *data;
};

struct disk {
  unsigned number;
  int fd;
  uint64_t sectors;
  atomic_bool busy;
  pthread_t threads[DEPTH];     /* Do the asynchronous calls. */
  pthread_mutex_t lock;         /* Guards what follows. */
  pthread_cond_t changed;
  struct job *first, **last;
  unsigned waiting;             /* How many jobs are not done. */
  bool closing;
  uint8_t *data, *state;        /* The cache. */
};

static unsigned latency, open_latency, cache, lock;
static int log_fd = -1;
static atomic_bool initialized, opening;
static atomic_uint disks;

static void
say (const struct disk *d, const char *what)
{
  char line[80];
  const int n = d ? snprintf (line, sizeof line, "%u %s\n", d->number, what)
    : snprintf (line, sizeof line, "%s\n", what);

  if (log_fd != -1 && write (log_fd, line, n) != n)
    abort ();
}

static void
forbid (bool wrong, const char *what)
{
  if (!wrong)
    return;
  say (NULL, what);
  fprintf (stderr, "vixDiskLib: %s\n", what);
  abort ();
}

static void
take (unsigned us)
{
  const struct timespec ts = { us / 1000000, us % 1000000 * 1000 };

  if (us > 0)
    nanosleep (&ts, NULL);
}

static void
enter (struct disk *d, const char *what)
{
  forbid (atomic_exchange (&d->busy, true), "a disk is used by two threads");
  say (d, what);
}

static uint64_t
leave (struct disk *d, uint64_t r)
{
  atomic_store (&d->busy, false);
  return r;
}

/* Open, close, connect, disconnect. */
static void
enter_alone (void)
{
  forbid (atomic_exchange (&opening, true), "two threads open or close");
}

static uint64_t
leave_alone (uint64_t r)
{
  atomic_store (&opening, false);
  return r;
}

/* The disk **************************************************************/

/* Needs d->lock, as the others here. */
static uint64_t
transfer (struct disk *d, bool is_write, uint64_t start, uint64_t n,
          uint8_t *buf)
{
  if (start + n > d->sectors)
    return FAIL;
  if (!cache)
    return (is_write ? pwrite (d->fd, buf, n * SECTOR, start * SECTOR)
            : pread (d->fd, buf, n * SECTOR, start * SECTOR))
      == (ssize_t) n * SECTOR ? OK : FAIL;

  for (uint64_t i = start; i < start + n; ++i, buf += SECTOR) {
    uint8_t *copy = d->data + i * SECTOR;

    if (is_write) {
      memcpy (copy, buf, SECTOR);
      d->state[i] = DIRTY;
      continue;
    }
    if (d->state[i] == NOT_CACHED) {
      if (pread (d->fd, copy, SECTOR, i * SECTOR) != SECTOR)
        return FAIL;
      d->state[i] = CLEAN;
    }
    memcpy (buf, copy, SECTOR);
  }
  return OK;
}

static uint64_t
flush (struct disk *d)
{
  for (uint64_t i = 0; cache && i < d->sectors; ++i) {
    if (d->state[i] == DIRTY &&
        pwrite (d->fd, d->data + i * SECTOR, SECTOR, i * SECTOR) != SECTOR)
      return FAIL;
    d->state[i] = NOT_CACHED;
  }
  return OK;
}

static bool
allocated (struct disk *d, uint64_t start, uint64_t n)
{
  const off_t data = lseek (d->fd, start * SECTOR, SEEK_DATA);

  if (data != -1 && data < (off_t) ((start + n) * SECTOR))
    return true;
  for (uint64_t i = start; cache && i < start + n && i < d->sectors; ++i)
    if (d->state[i] == DIRTY)
      return true;
  return false;
}

static void *
do_jobs (void *disk)
{
  struct disk *d = disk;
  struct job *job;
  uint64_t r;

  pthread_mutex_lock (&d->lock);
  for (;;) {
    while (!d->first && !d->closing)
      pthread_cond_wait (&d->changed, &d->lock);
    job = d->first;
    if (!job)
      break;
    if ((d->first = job->next) == NULL)
      d->last = &d->first;
    pthread_mutex_unlock (&d->lock);
    take (latency);
    pthread_mutex_lock (&d->lock);
    r = transfer (d, job->is_write, job->start, job->n, job->buf);
    pthread_mutex_unlock (&d->lock);
    job->done (job->data, r);
    free (job);
    pthread_mutex_lock (&d->lock);
    d->waiting--;
    pthread_cond_broadcast (&d->changed);
  }
  pthread_mutex_unlock (&d->lock);
  return NULL;
}

static uint64_t
submit (struct disk *d, bool is_write, uint64_t start, uint64_t n, void *buf,
        callback *done, void *data)
{
  struct job *job = malloc (sizeof *job);

  if (!job)
    return FAIL;
  *job = (struct job) { .is_write = is_write, .start = start, .n = n,
                        .buf = buf, .done = done, .data = data };
  enter (d, is_write ? "write" : "read");
  pthread_mutex_lock (&d->lock);
  *d->last = job;
  d->last = &job->next;
  d->waiting++;
  pthread_cond_broadcast (&d->changed);
  pthread_mutex_unlock (&d->lock);
  return leave (d, ASYNC);
}

static uint64_t
transfer_now (struct disk *d, bool is_write, uint64_t start, uint64_t n,
              void *buf)
{
  uint64_t r;

  enter (d, is_write ? "write" : "read");
  take (latency);
  pthread_mutex_lock (&d->lock);
  r = transfer (d, is_write, start, n, buf);
  pthread_mutex_unlock (&d->lock);
  return leave (d, r);
}

/* What it exports *******************************************************/

#pragma GCC diagnostic ignored "-Wunused-parameter"

uint64_t
VixDiskLib_InitEx (uint32_t major, uint32_t minor, void *log, void *warn,
                   void *panic, const char *dir, const char *config)
{
  const struct { const char *name; unsigned *number; } words[] = {
    { "latency", &latency }, { "open", &open_latency }, { "cache", &cache },
    { "lock", &lock },
  };
  const char *env = getenv ("VIXDISKLIB");
  char *text = strdup (env ? env : ""), *word, *value, *save;

  for (word = strtok_r (text, " ", &save); word;
       word = strtok_r (NULL, " ", &save)) {
    bool known = strncmp (word, "log=", 4) == 0;

    value = strchr (word, '=');
    forbid (!value, "VIXDISKLIB: its words are NAME=VALUE");
    *value++ = '\0';
    if (known)
      log_fd = open (value, O_WRONLY|O_APPEND|O_CREAT|O_CLOEXEC, 0666);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; ++i)
      if (strcmp (word, words[i].name) == 0) {
        *words[i].number = atoi (value);
        known = true;
      }
    forbid (!known, "VIXDISKLIB: unknown word");
  }
  free (text);
  say (NULL, "init");
  forbid (atomic_exchange (&initialized, true), "initialized twice");
  return OK;
}

void
VixDiskLib_Exit (void)
{
  say (NULL, "exit");
}

char *
VixDiskLib_GetErrorText (uint64_t error, const char *locale)
{
  return strdup (error == NO_ACCESS ? "You do not have access rights to "
                 "this file" : "Unknown error");
}

void
VixDiskLib_FreeErrorText (char *text)
{
  free (text);
}

void *
VixDiskLib_AllocateConnectParams (void)
{
  return calloc (1, 1024);      /* More than they have. */
}

void
VixDiskLib_FreeConnectParams (void *params)
{
  free (params);
}

uint64_t
VixDiskLib_ConnectEx (void *params, char read_only, const char *snapshot,
                      const char *transports, void **connection)
{
  enter_alone ();
  say (NULL, "connect");
  *connection = &opening;       /* anything */
  return leave_alone (OK);
}

uint64_t
VixDiskLib_Disconnect (void *connection)
{
  enter_alone ();
  say (NULL, "disconnect");
  return leave_alone (OK);
}

uint64_t
VixDiskLib_Create (void *connection, const char *path, const void *params,
                   void *progress, void *data)
{
  return FAIL;
}

uint64_t
VixDiskLib_Open (void *connection, const char *path, uint32_t flags,
                 struct disk **disk)
{
  const bool read_only = flags & OPEN_READ_ONLY;
  const int fd = open (path, (read_only ? O_RDONLY : O_RDWR)|O_CLOEXEC);
  struct disk *d;

  enter_alone ();
  take (open_latency);
  if (fd == -1)
    return leave_alone (FAIL);
  if (lock && flock (fd, (read_only ? LOCK_SH : LOCK_EX)|LOCK_NB) == -1) {
    close (fd);
    say (NULL, "locked");
    return leave_alone (NO_ACCESS);
  }
  *disk = d = calloc (1, sizeof *d);
  forbid (!d, "calloc");
  d->number = atomic_fetch_add (&disks, 1);
  d->fd = fd;
  d->sectors = lseek (fd, 0, SEEK_END) / SECTOR;
  d->last = &d->first;
  if (cache) {
    d->data = calloc (d->sectors, SECTOR);
    d->state = calloc (d->sectors, 1);
    forbid (!d->data || !d->state, "calloc");
  }
  pthread_mutex_init (&d->lock, NULL);
  pthread_cond_init (&d->changed, NULL);
  for (int i = 0; i < DEPTH; ++i)
    forbid (pthread_create (&d->threads[i], NULL, do_jobs, d) != 0,
            "pthread_create");
  say (d, read_only ? "open to read" : "open to write");
  return leave_alone (OK);
}

uint64_t
VixDiskLib_Close (struct disk *d)
{
  enter_alone ();
  enter (d, "close");
  pthread_mutex_lock (&d->lock);
  d->closing = true;
  pthread_cond_broadcast (&d->changed);
  pthread_mutex_unlock (&d->lock);
  for (int i = 0; i < DEPTH; ++i)
    pthread_join (d->threads[i], NULL);
  close (d->fd);
  pthread_cond_destroy (&d->changed);
  pthread_mutex_destroy (&d->lock);
  free (d->data);
  free (d->state);
  free (d);
  return leave_alone (OK);
}

const char *
VixDiskLib_ListTransportModes (void)
{
  return "file";
}

const char *
VixDiskLib_GetTransportMode (struct disk *d)
{
  return "file";
}

uint64_t
VixDiskLib_GetInfo (struct disk *d, struct info **info)
{
  enter (d, "info");
  take (latency);
  *info = calloc (1, sizeof **info);
  forbid (!*info, "calloc");
  (*info)->capacity = d->sectors;
  (*info)->logical = (*info)->physical = SECTOR;
  return leave (d, OK);
}

void
VixDiskLib_FreeInfo (struct info *info)
{
  free (info);
}

uint64_t
VixDiskLib_Read (struct disk *d, uint64_t start, uint64_t n, uint8_t *buf)
{
  return transfer_now (d, false, start, n, buf);
}

uint64_t
VixDiskLib_Write (struct disk *d, uint64_t start, uint64_t n,
                  const uint8_t *buf)
{
  return transfer_now (d, true, start, n, (void *) buf);
}

uint64_t
VixDiskLib_ReadAsync (struct disk *d, uint64_t start, uint64_t n,
                      uint8_t *buf, callback *done, void *data)
{
  return submit (d, false, start, n, buf, done, data);
}

uint64_t
VixDiskLib_WriteAsync (struct disk *d, uint64_t start, uint64_t n,
                       const uint8_t *buf, callback *done, void *data)
{
  return submit (d, true, start, n, (void *) buf, done, data);
}

uint64_t
VixDiskLib_Wait (struct disk *d)
{
  enter (d, "wait");
  pthread_mutex_lock (&d->lock);
  while (d->waiting > 0)
    pthread_cond_wait (&d->changed, &d->lock);
  pthread_mutex_unlock (&d->lock);
  return leave (d, OK);
}

uint64_t
VixDiskLib_Flush (struct disk *d)
{
  uint64_t r;

  enter (d, "flush");
  take (latency);
  pthread_mutex_lock (&d->lock);
  r = flush (d);
  pthread_mutex_unlock (&d->lock);
  return leave (d, r);
}

uint64_t
VixDiskLib_QueryAllocatedBlocks (struct disk *d, uint64_t start, uint64_t n,
                                 uint64_t chunk, struct blocks **list)
{
  struct blocks *found =
    calloc (1, sizeof *found + n / chunk * sizeof found->block[0]);

  enter (d, "query");
  take (latency);
  forbid (!found, "calloc");
  pthread_mutex_lock (&d->lock);
  for (uint64_t i = start; i < start + n; i += chunk)
    if (allocated (d, i, chunk)) {
      found->block[found->n].offset = i;
      found->block[found->n++].length = chunk;
    }
  pthread_mutex_unlock (&d->lock);
  *list = found;
  return leave (d, OK);
}

uint64_t
VixDiskLib_FreeBlockList (struct blocks *list)
{
  free (list);
  return OK;
}
