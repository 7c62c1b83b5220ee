/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A disk in memory behind one write-back cache per connection: the kind
 * of plugin that must not promise multi-conn by itself, and the worst
 * that a flush replicated from outside must handle correctly.
 *
 * Reads fill the handle's cache, in whole blocks.  Writes, zeroes and
 * trims stay there, dirty, until a flush of that handle.  A flush covers
 * what was dirty when it began, writes that back, then drops the handle's
 * cache, clean blocks too.  A close drops what is still dirty; it never
 * writes back.  A read that misses fetches under the handle's lock, and
 * fills the cache after it has let go of the lock, so it can put back a
 * copy that has become old meanwhile.
 *
 * These make it worse:
 *
 *   earlydrop=1     a flush drops clean blocks when it begins, not at its
 *                   end
 *   mapcache=1      a handle keeps a separate map of extents, until a flush
 *   failflush=N     N flushes of 1000, chosen by seed=NUMBER, fail: before
 *                   they write back, halfway through it, or after it
 *
 * and these can be handled only at the levels fast and off:
 *
 *   refresh=1       a flush renews the handle's copies, and drops none
 *   opencopy=1      an open begins with a copy of the whole disk
 *   readahead=US    a thread of each handle fetches blocks that nobody
 *                   asked for, every so many microseconds
 *
 *   together=N      N blocks are written back together, if one of them is
 *                   dirty, as they were when it was written: this needs a
 *                   MCSHIM_BLOCK of as many bytes, or
 *   prefers=BYTES   the block size that the plugin prefers
 *
 * No shim can repair this:
 *
 *   lateflush=US    what a flush has written back reaches the disk so many
 *                   microseconds later
 *
 * This makes it better:
 *
 *   ownorder=1      no copy is put back that the handle's own write has made
 *                   old: without a shim, a connection that flushes while it
 *                   reads needs this to see its own writes
 *
 * flushdelay, writebackdelay (where there is something to write), readdelay,
 * filldelay, writedelay and opendelay are in microseconds.
 * fuaflush=1: with fua=native, one flushes what was written before.
 *
 * strayerror=1: callbacks that succeed leave an error set, and those that fail
 * only set errno.
 *
 * smaller=H: handle H, if that is not 0, has one block less than the others;
 * differs=H: it has multi-conn if they have not, and the other way round.
 *
 * The plugin still promises: a flush that begins after other handles have
 * written back lets its own handle see that.
 *
 * The plugin holds the server to the thread model that it declares: it
 * counts the callbacks which enter a busy handle (at model=all and below,
 * a busy plugin) or a closed one.  summary=FILE gets the counts at unload.
 *
 * control=FILE is read at every callback.  It has these lines, where H is a
 * handle number (handles count from 0 in order of open), or * for all, or
 * @OFFSET for the requests that begin there:
 *
 *   fail-POINT H ERRNO        the callback fails
 *   fail-POINT-once H ERRNO   the same, and the line is removed
 *   block-POINT H             it waits while the line is there
 *
 * POINT is open (after it has copied), read, write, zero, trim, cache,
 * extents, flush, close; or fill: between fetch and fill of a read, cache
 * or extents that missed.
 *
 * log=FILE gets a line "H POINT" as each of these is reached.
 *
 * It loads on nbdkit from 1.10 on.  Before 1.16 nobody asks for the thread
 * model, and only model=parallel is taken.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#ifndef NBDKIT_API_VERSION      /* See api1.c. */
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#endif
#include <nbdkit-plugin.h>

#include "oldglibc.h"

OLD (pthread_create);
OLD (pthread_join);

/* New in 1.12, with extents. */
#pragma weak nbdkit_add_extent

#define BLOCK 512
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* State of a block in a handle's cache. */
#define CACHED   1
#define DIRTY    2              /* Written since a flush last began. */
#define FLUSHING 4              /* Was dirty when a running flush began. */

/* What a handle's map says about a block. */
enum { UNKNOWN, DATA, HOLE };

#define WINDOW 16               /* Blocks that are read ahead at once. */
#define MAPPED 1024             /* Blocks that extents reports at once. */

struct handle {
  struct handle *next;          /* In all_handles, never taken out. */
  unsigned number;
  char name[12];                /* The same as text, for the log. */
  atomic_uint busy;             /* Callbacks that are inside. */
  atomic_bool closed;
  bool reads_ahead;             /* There is a thread. */
  pthread_t thread;
  pthread_mutex_t flush_lock;   /* Held by a flush. */
  uint64_t fate;                /* Random; flush_lock. */
  pthread_mutex_t lock;         /* Guards what follows. */
  uint8_t *data;                /* Same layout as the disk; NULL if closed. */
  uint8_t *state;               /* One byte per block; behind the data. */
  uint8_t *map;                 /* The same, for extents. */
  uint8_t *writes;              /* How often each block was written. */
  uint64_t cached;              /* How many blocks are CACHED. */
  uint64_t flushed;             /* How many flushes have begun. */
};

/* What is on its way to the disk. */
struct late {
  uint64_t due;                 /* In microseconds; 0 if nothing is. */
  uint8_t data[BLOCK];
};

/* Parameters. */
static const char *initial = "";
static int model = THREAD_MODEL;
static int fua = NBDKIT_FUA_NONE;
static int64_t size = 1024 * 1024, together = 1, multiconn, fuaflush,
  earlydrop, mapcache, refresh, opencopy, ownorder, strayerror, flushdelay,
  writebackdelay, readdelay, filldelay, writedelay, opendelay, readahead,
  failflush, seed, smaller, differs, lateflush, prefers;
static char *summary_file, *control_file;
static int log_fd = -1;
static bool model_asked;

/* Lock order: a handle's flush_lock, its lock, disk. */
static pthread_mutex_t disk_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *disk;
static uint64_t nr_blocks;
static struct late *late;       /* For each block; disk_lock. */
static atomic_ulong top;        /* No block from here on was written. */

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static struct handle *all_handles;
static unsigned nr_handles;

static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER;

static atomic_uint plugin_busy;
static atomic_ulong overlaps, after_close, foreign_thread, dirty_dropped;

/* At model=all and below a connection has one thread of the server, which
 * also opens it.
 */
static _Thread_local bool has_opened;

static void
lock (pthread_mutex_t *m)
{
  if (pthread_mutex_lock (m) != 0)
    abort ();
}

static void
unlock (pthread_mutex_t *m)
{
  if (pthread_mutex_unlock (m) != 0)
    abort ();
}

static void
delay (unsigned us)
{
  if (us > 0)
    usleep (us);
}

static uint64_t
mix (uint64_t *state)           /* splitmix64 */
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* Callbacks that enter and leave ****************************************/

static int
parse_errno (const char *name)
{
  return strcmp (name, "EPERM") == 0 ? EPERM :
    strcmp (name, "ENOSPC") == 0 ? ENOSPC : EIO;
}

/* Look up ACTION for this handle, and a request at OFFSET if that is not
 * -1, in the control file.  Returns 0 if it is not there, otherwise the
 * errno on its line, or EIO if it has none.
 */
static int
control (const char *action, const struct handle *h, int64_t offset,
         bool take_out)
{
  char text[4096], rest[4096] = "", verb[64], which[24], err[16];
  char tmp[4096], *line, *save;
  ssize_t n;
  int fd, r = 0;

  lock (&control_lock);
  fd = open (control_file, O_RDONLY|O_CLOEXEC);
  n = fd >= 0 ? read (fd, text, sizeof text - 1) : 0;
  if (fd >= 0)
    close (fd);
  text[n > 0 ? n : 0] = '\0';

  for (line = strtok_r (text, "\n", &save); line;
       line = strtok_r (NULL, "\n", &save)) {
    strcpy (err, "EIO");
    if (r == 0 &&
        sscanf (line, "%63s %23s %15s", verb, which, err) >= 2 &&
        strcmp (verb, action) == 0 &&
        (strcmp (which, "*") == 0 || strcmp (which, h->name) == 0 ||
         (which[0] == '@' && offset >= 0 &&
          strtoll (which + 1, NULL, 10) == offset)))
      r = parse_errno (err);
    else
      strcat (strcat (rest, line), "\n");
  }

  if (r != 0 && take_out) {
    snprintf (tmp, sizeof tmp, "%s.taken", control_file);
    fd = open (tmp, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666);
    if (fd < 0 ||
        write (fd, rest, strlen (rest)) != (ssize_t) strlen (rest) ||
        close (fd) == -1 ||
        rename (tmp, control_file) == -1)
      nbdkit_error ("%s: %m", tmp);
  }
  unlock (&control_lock);
  return r;
}

static void
log_callback (const char *who, const char *name)
{
  char line[64];
  int n;

  if (log_fd == -1)
    return;
  n = snprintf (line, sizeof line, "%s %s\n", who, name);
  if (write (log_fd, line, n) != n)
    nbdkit_error ("log: %m");
}

static void
enter (struct handle *h)
{
  if (atomic_load (&h->closed))
    atomic_fetch_add (&after_close, 1);
  if (atomic_fetch_add (&h->busy, 1) > 0 &&
      model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    atomic_fetch_add (&overlaps, 1);
  if (atomic_fetch_add (&plugin_busy, 1) > 0 &&
      model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    atomic_fetch_add (&overlaps, 1);
  if (model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS && !has_opened)
    atomic_fetch_add (&foreign_thread, 1);
}

static int
leave (struct handle *h, int r)
{
  atomic_fetch_sub (&h->busy, 1);
  atomic_fetch_sub (&plugin_busy, 1);
  if (strayerror && r == 0)
    nbdkit_set_error (EIO);
  return r;
}

static int
told_to_fail (const struct handle *h, const char *name, int err)
{
  nbdkit_error ("%s of handle %u: told to fail", name, h->number);
  if (!strayerror)
    nbdkit_set_error (err);
  errno = err;
  return -1;
}

/* Sleeps until the control file is changed or replaced, so that a test can
 * see when nothing in the server runs.
 */
static void
wait_while_blocked (const struct handle *h, const char *action,
                    int64_t offset)
{
  char event[4096];
  int fd;

  if (!control (action, h, offset, false))
    return;
  fd = inotify_init1 (IN_CLOEXEC);
  do
    if (fd == -1 ||             /* There are only so many. */
        inotify_add_watch (fd, control_file, IN_MODIFY|IN_ATTRIB) == -1)
      usleep (1000);
    else if (control (action, h, offset, false) &&
             read (fd, event, sizeof event) == -1)
      abort ();
  while (control (action, h, offset, false));
  if (fd != -1)
    close (fd);
}

/* H has come to one of the points that the control file may name.  Returns
 * -1, with the errno for the client set, if it wants that to fail.
 */
static int
reach (const struct handle *h, const char *name, int64_t offset)
{
  char action[64];
  int err;

  log_callback (h->name, name);
  if (!control_file)
    return 0;
  snprintf (action, sizeof action, "block-%s", name);
  wait_while_blocked (h, action, offset);
  snprintf (action, sizeof action, "fail-%s", name);
  err = control (action, h, offset, false);
  if (err == 0) {
    snprintf (action, sizeof action, "fail-%s-once", name);
    err = control (action, h, offset, true);
  }
  return err == 0 ? 0 : told_to_fail (h, name, err);
}

/* For a callback that does something. */
static int
enter_logged (struct handle *h, const char *name, int64_t offset)
{
  enter (h);
  return reach (h, name, offset);
}

/* Parameters ************************************************************/

static int
parse_word (const char *key, const char *value, const char *const *words)
{
  for (int i = 0; words[i]; ++i)
    if (strcmp (value, words[i]) == 0)
      return i;
  nbdkit_error ("bad value for %s: %s", key, value);
  return -1;
}

static int
wbcache_config (const char *key, const char *value)
{
  static const char *const models[] =
    { "connections", "all", "requests", "parallel", NULL };
  static const char *const fuas[] = { "none", "emulate", "native", NULL };
  const struct { const char *key; int64_t *number; } numbers[] = {
    { "size", &size }, { "multiconn", &multiconn },
    { "fuaflush", &fuaflush }, { "earlydrop", &earlydrop },
    { "mapcache", &mapcache }, { "refresh", &refresh },
    { "opencopy", &opencopy }, { "ownorder", &ownorder },
    { "strayerror", &strayerror }, { "flushdelay", &flushdelay },
    { "writebackdelay", &writebackdelay }, { "readdelay", &readdelay },
    { "filldelay", &filldelay }, { "writedelay", &writedelay },
    { "opendelay", &opendelay }, { "readahead", &readahead },
    { "failflush", &failflush }, { "seed", &seed }, { "smaller", &smaller },
    { "differs", &differs }, { "lateflush", &lateflush },
    { "together", &together }, { "prefers", &prefers },
  };

  for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i)
    if (strcmp (key, numbers[i].key) == 0)
      return (*numbers[i].number = nbdkit_parse_size (value)) == -1 ? -1 : 0;

  if (strcmp (key, "initial") == 0) {
    initial = value;
    return 0;
  }
  if (strcmp (key, "model") == 0)
    return (model = parse_word (key, value, models)) == -1 ? -1 : 0;
  if (strcmp (key, "fua") == 0)
    return (fua = parse_word (key, value, fuas)) == -1 ? -1 : 0;
  if (strcmp (key, "summary") == 0)
    return (summary_file = nbdkit_absolute_path (value)) == NULL ? -1 : 0;
  if (strcmp (key, "control") == 0)
    return (control_file = nbdkit_absolute_path (value)) == NULL ? -1 : 0;
  if (strcmp (key, "log") == 0) {
    log_fd = open (value, O_WRONLY|O_APPEND|O_CREAT|O_CLOEXEC, 0666);
    if (log_fd == -1)
      nbdkit_error ("open: %s: %m", value);
    return log_fd == -1 ? -1 : 0;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
wbcache_config_complete (void)
{
  if (size < (int64_t) strlen (initial) || failflush > 1000 || together == 0) {
    nbdkit_error ("size must be that of the initial text or more, failflush "
                  "at most 1000, together at least 1");
    return -1;
  }
  nr_blocks = (size + BLOCK - 1) / BLOCK;
  disk = calloc (nr_blocks + 1, BLOCK);
  late = calloc (lateflush ? nr_blocks : 1, sizeof *late);
  if (!disk || !late) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  memcpy (disk, initial, strlen (initial));
  top = (strlen (initial) + BLOCK - 1) / BLOCK;
  return 0;
}

static int
wbcache_thread_model (void)
{
  log_callback ("-", "thread_model");
  model_asked = true;
  return model;
}

static void
stop_reading_ahead (struct handle *h)
{
  atomic_store (&h->closed, true);
  if (h->reads_ahead && pthread_join (h->thread, NULL) != 0)
    abort ();
  h->reads_ahead = false;
}

static void
wbcache_unload (void)
{
  struct handle *h;
  FILE *fp;

  log_callback ("-", "unload");
  if (summary_file) {
    fp = fopen (summary_file, "w");
    if (!fp ||
        fprintf (fp, "overlaps: %lu\nafter_close: %lu\n"
                 "foreign_thread: %lu\ndirty_dropped_at_close: %lu\n",
                 overlaps, after_close, foreign_thread, dirty_dropped) < 0 ||
        fclose (fp) == EOF)
      nbdkit_error ("%s: %m", summary_file);
  }
  while ((h = all_handles) != NULL) {
    all_handles = h->next;
    stop_reading_ahead (h);     /* The server may have left it open. */
    pthread_mutex_destroy (&h->flush_lock);
    pthread_mutex_destroy (&h->lock);
    free (h->data);
    free (h);
  }
  free (disk);
  free (late);
  free (summary_file);
  free (control_file);
  if (log_fd != -1)
    close (log_fd);
}

/* The cache *************************************************************/

/* The cache is gone after close: tell the caller, don't crash.  Needs
 * h->lock.
 */
static int
check_open (struct handle *h)
{
  if (h->data)
    return 0;
  nbdkit_error ("handle %u is closed", h->number);
  nbdkit_set_error (EIO);
  return -1;
}

/* These need h->lock. */
static void
fill_block (struct handle *h, uint64_t b, const uint8_t *from)
{
  h->cached += h->state[b] == 0;
  h->state[b] |= CACHED;
  memcpy (h->data + b * BLOCK, from, BLOCK);
}

static void
drop_block (struct handle *h, uint64_t b)
{
  h->cached -= h->state[b] != 0;
  h->state[b] = 0;
}

static uint64_t
now_us (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return UINT64_C (1000000) * now.tv_sec + now.tv_nsec / 1000;
}

static void
fetch_block (uint64_t b, uint8_t *to)
{
  lock (&disk_lock);
  if (lateflush && late[b].due != 0 && late[b].due <= now_us ()) {
    memcpy (disk + b * BLOCK, late[b].data, BLOCK);
    late[b].due = 0;
  }
  memcpy (to, disk + b * BLOCK, BLOCK);
  unlock (&disk_lock);
}

/* What the map must say about a block that it does not know. */
static uint8_t
map_block (struct handle *h, uint64_t b)
{
  static const uint8_t zeroes[BLOCK];
  uint8_t block[BLOCK];

  if (h->state[b])
    memcpy (block, h->data + b * BLOCK, BLOCK);
  else
    fetch_block (b, block);
  return memcmp (block, zeroes, BLOCK) == 0 ? HOLE : DATA;
}

/* What a flush does to all clean copies of the handle. */
static void
renew (struct handle *h)
{
  uint64_t b;

  for (b = 0; h->cached && b < nr_blocks; ++b)
    if (h->state[b] == CACHED) {
      if (refresh)
        fetch_block (b, h->data + b * BLOCK);
      else
        drop_block (h, b);
    }
  for (b = 0; mapcache && b < nr_blocks; ++b)
    if (h->map[b] != UNKNOWN)
      h->map[b] = refresh ? map_block (h, b) : UNKNOWN;
}

/* Let go of the lock for the time between fetch and fill.  Returns -1 if
 * the handle is closed by then, or if the request is to fail.
 */
static int
between_fetch_and_fill (struct handle *h, uint64_t offset)
{
  int r;

  unlock (&h->lock);
  delay (filldelay);
  r = reach (h, "fill", offset);
  lock (&h->lock);
  return r == -1 ? -1 : check_open (h);
}

/* A thread for each handle that reads ahead, whatever there is to read. */
static void *
read_ahead (void *arg)
{
  struct handle *h = arg;
  uint64_t random = seed + h->number, b, first, end, flushed;
  static _Thread_local uint8_t fetched[WINDOW][BLOCK];
  bool missed[WINDOW];

  while (!atomic_load (&h->closed)) {
    usleep (readahead);
    end = top;
    first = end > WINDOW ? mix (&random) % (end - WINDOW + 1) : 0;
    end = MIN (end, first + WINDOW);
    lock (&h->lock);
    flushed = h->flushed;
    for (b = first; h->data && b < end; ++b) {
      missed[b - first] = h->state[b] == 0;
      if (missed[b - first])
        fetch_block (b, fetched[b - first]);
    }
    unlock (&h->lock);

    delay (filldelay);

    /* A flush that has begun since then promises more. */
    lock (&h->lock);
    for (b = first; h->data && h->flushed == flushed && b < end; ++b)
      if (missed[b - first] && h->state[b] == 0)
        fill_block (h, b, fetched[b - first]);
    unlock (&h->lock);
  }
  return NULL;
}

/* Connections ***********************************************************/

static void
wbcache_close (void *handle)
{
  struct handle *h = handle;
  uint64_t dropped = 0;

  /* Whatever the model, a close has the handle to itself. */
  if (atomic_load (&h->busy) > 0 &&
      model != NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    atomic_fetch_add (&overlaps, 1);
  enter_logged (h, "close", -1);
  stop_reading_ahead (h);
  lock (&h->lock);
  for (uint64_t b = 0; h->cached && b < nr_blocks; ++b)
    dropped += (h->state[b] & DIRTY) != 0;
  atomic_fetch_add (&dirty_dropped, dropped);
  free (h->data);
  h->data = NULL;
  h->cached = 0;
  unlock (&h->lock);
  leave (h, 0);
}

static void *
wbcache_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  has_opened = true;
  if (!model_asked && model != THREAD_MODEL) {
    nbdkit_error ("this nbdkit asks for no thread model");
    free (h);
    return NULL;
  }
  if (!h || !(h->data = calloc (nr_blocks + 1, BLOCK + 3)) ||
      pthread_mutex_init (&h->flush_lock, NULL) != 0 ||
      pthread_mutex_init (&h->lock, NULL) != 0) {
    nbdkit_error ("cannot allocate the handle: %m");
    if (h)
      free (h->data);
    free (h);
    return NULL;
  }
  h->state = h->data + nr_blocks * BLOCK;
  h->map = h->state + nr_blocks;
  h->writes = h->map + nr_blocks;
  lock (&handles_lock);
  h->number = nr_handles++;
  snprintf (h->name, sizeof h->name, "%u", h->number);
  h->fate = ((uint64_t) seed << 32) + h->number;
  h->next = all_handles;
  all_handles = h;
  unlock (&handles_lock);

  if (opencopy) {
    lock (&disk_lock);
    memcpy (h->data, disk, nr_blocks * BLOCK);
    unlock (&disk_lock);
    memset (h->state, CACHED, nr_blocks);
    h->cached = nr_blocks;
  }
  delay (opendelay);
  if (enter_logged (h, "open", -1) == -1) {
    atomic_store (&h->closed, true);
    leave (h, 0);
    return NULL;
  }
  if (readahead) {
    h->reads_ahead = pthread_create (&h->thread, NULL, read_ahead, h) == 0;
    if (!h->reads_ahead)
      nbdkit_error ("pthread_create: no thread that reads ahead");
  }
  leave (h, 0);
  return h;
}

static int64_t
wbcache_get_size (void *handle)
{
  const struct handle *h = handle;

  enter (handle);
  leave (handle, 0);
  return smaller > 0 && h->number == smaller ? size - BLOCK : size;
}

static int
wbcache_yes (void *handle)
{
  enter (handle);
  return leave (handle, 1);
}

static int
wbcache_can_fua (void *handle)
{
  enter (handle);
  return leave (handle, fua);
}

static int
wbcache_can_multi_conn (void *handle)
{
  const unsigned number = ((struct handle *) handle)->number;

  enter (handle);
  return leave (handle, multiconn ^ (differs > 0 && number == differs));
}

static int
wbcache_can_cache (void *handle)
{
  enter (handle);
  return leave (handle, NBDKIT_CACHE_NATIVE);
}

/* Requests **************************************************************/

/* Bring the blocks of a range into the cache, and copy the range to buf
 * unless it is NULL.
 */
static int
read_range (struct handle *h, uint8_t *buf, uint32_t count, uint64_t offset)
{
  const uint64_t first = offset / BLOCK;
  const uint64_t end = (offset + count + BLOCK - 1) / BLOCK;
  struct { bool missed; uint8_t writes, data[BLOCK]; } *seen =
    calloc (end - first + 1, sizeof *seen);
  bool any = false;
  uint64_t b;
  int r = -1;

  if (!seen) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  lock (&h->lock);
  if (check_open (h) == -1)
    goto out;
  for (b = first; b < end; ++b) {
    if (h->state[b] == 0) {
      fetch_block (b, seen[b - first].data);
      seen[b - first].writes = h->writes[b];
      any = seen[b - first].missed = true;
    }
  }
  if (any && between_fetch_and_fill (h, offset) == -1)
    goto out;
  for (b = first; b < end; ++b) {
    const uint8_t *from = h->data + b * BLOCK;

    if (seen[b - first].missed && !(h->state[b] & (DIRTY|FLUSHING))) {
      from = seen[b - first].data;
      if (!ownorder || h->writes[b] == seen[b - first].writes)
        fill_block (h, b, from);
    }
    if (buf) {
      uint64_t lo = b * BLOCK < offset ? offset - b * BLOCK : 0;
      uint64_t hi = MIN (BLOCK, offset + count - b * BLOCK);

      memcpy (buf + b * BLOCK + lo - offset, from + lo, hi - lo);
    }
  }
  r = 0;
 out:
  unlock (&h->lock);
  free (seen);
  return r;
}

/* Write back up to N blocks.  Needs h->lock. */
static void
write_back (struct handle *h, uint64_t n)
{
  for (uint64_t b = 0; n > 0 && h->cached && b < nr_blocks; ++b) {
    if (!(h->state[b] & FLUSHING))
      continue;
    lock (&disk_lock);
    if (lateflush && late[b].due == 0)
      late[b].due = now_us () + lateflush;
    memcpy (lateflush ? late[b].data : disk + b * BLOCK, h->data + b * BLOCK,
            BLOCK);
    unlock (&disk_lock);
    h->state[b] &= ~FLUSHING;
    if (!refresh && !(h->state[b] & DIRTY))
      drop_block (h, b);
    n--;
  }
}

/* Needs h->flush_lock. */
static int
flush_in_turn (struct handle *h)
{
  /* Before it writes back, halfway, or after it. */
  enum { FIRST, HALF, LAST, NEVER } fails;
  const uint64_t fate = mix (&h->fate);
  uint64_t b, dirty = 0;

  fails = fate % 1000 < (uint64_t) failflush ? fate / 1000 % NEVER : NEVER;
  if (fails == FIRST)
    return told_to_fail (h, "flush", EIO);

  lock (&h->lock);
  h->flushed++;
  for (b = 0; h->cached && b < nr_blocks; ++b)
    if (h->state[b] & DIRTY) {
      h->state[b] = CACHED|FLUSHING;
      dirty++;
    }
  if (earlydrop && h->data)
    renew (h);
  unlock (&h->lock);

  delay (flushdelay);
  if (dirty > 0)
    delay (writebackdelay);

  lock (&h->lock);
  write_back (h, fails == HALF ? dirty / 2 : UINT64_MAX);
  for (b = 0; h->cached && b < nr_blocks; ++b)
    if (h->state[b] & FLUSHING)
      h->state[b] = CACHED|DIRTY;
  if (fails == NEVER && !earlydrop && h->data)
    renew (h);
  unlock (&h->lock);
  return fails == NEVER ? 0 : told_to_fail (h, "flush", EIO);
}

static int
flush_handle (struct handle *h)
{
  int r;

  lock (&h->flush_lock);
  r = flush_in_turn (h);
  unlock (&h->flush_lock);
  return r;
}

/* The other blocks that go to the disk with this one.  Needs h->lock. */
static void
dirty_neighbours (struct handle *h, uint64_t b)
{
  uint8_t block[BLOCK];
  const uint64_t first = b - b % together;

  for (uint64_t i = first; i < MIN (first + together, nr_blocks); ++i) {
    if (h->state[i] == 0) {
      fetch_block (i, block);
      fill_block (h, i, block);
    }
    h->state[i] |= DIRTY;
  }
}

static void
copy_or_zero (uint8_t *to, const uint8_t *from, uint32_t n)
{
  if (from)
    memcpy (to, from, n);
  else
    memset (to, 0, n);
}

/* Write, or zero if buf is NULL.  A native FUA goes to the disk, to these
 * bytes of it only.
 */
static int
write_range (struct handle *h, const uint8_t *buf, uint32_t count,
             uint64_t offset, uint32_t flags)
{
  const bool through =
    (flags & NBDKIT_FLAG_FUA) && fua == NBDKIT_FUA_NATIVE && !fuaflush;

  delay (writedelay);
  lock (&h->lock);
  if (check_open (h) == -1) {
    unlock (&h->lock);
    return -1;
  }
  while (count > 0) {
    const uint64_t b = offset / BLOCK;
    const uint32_t n = MIN (count, BLOCK - offset % BLOCK);

    if (through) {
      lock (&disk_lock);
      copy_or_zero (disk + offset, buf, n);
      unlock (&disk_lock);
    }
    else
      dirty_neighbours (h, b);
    if (h->state[b] != 0)
      copy_or_zero (h->data + offset, buf, n);
    /* As it is, or as if it had data, which is never wrong. */
    h->map[b] = h->state[b] ? map_block (h, b) : DATA;
    h->writes[b]++;
    for (unsigned long t = top; b >= t;)
      if (atomic_compare_exchange_weak (&top, &t, b + 1))
        break;
    buf = buf ? buf + n : NULL;
    count -= n;
    offset += n;
  }
  unlock (&h->lock);
  if ((flags & NBDKIT_FLAG_FUA) && fuaflush)
    return flush_handle (h);
  return 0;
}

static int
wbcache_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  (void) flags;
  if (enter_logged (handle, "read", offset) == -1)
    return leave (handle, -1);
  delay (readdelay);
  return leave (handle, read_range (handle, buf, count, offset));
}

static int
wbcache_pwrite (void *handle, const void *buf, uint32_t count,
                uint64_t offset, uint32_t flags)
{
  if (enter_logged (handle, "write", offset) == -1)
    return leave (handle, -1);
  return leave (handle, write_range (handle, buf, count, offset, flags));
}

static int
wbcache_flush (void *handle, uint32_t flags)
{
  int r;

  (void) flags;
  r = enter_logged (handle, "flush", -1);
  if (r == 0)
    r = flush_handle (handle);
  return leave (handle, r);
}

static int
clear (void *handle, const char *name, uint32_t count, uint64_t offset,
       uint32_t flags)
{
  if (enter_logged (handle, name, offset) == -1)
    return leave (handle, -1);
  return leave (handle, write_range (handle, NULL, count, offset, flags));
}

static int
wbcache_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return clear (handle, "trim", count, offset, flags);
}

static int
wbcache_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return clear (handle, "zero", count, offset, flags);
}

/* Bring N blocks into the handle's map, and set HOLES for each of them. */
static int
map_blocks (struct handle *h, bool *holes, uint64_t first, uint32_t n)
{
  uint8_t fetched[MAPPED], writes_seen[MAPPED];
  bool any = false;
  int r = -1;

  lock (&h->lock);
  if (check_open (h) == -1)
    goto out;
  for (uint32_t i = 0; i < n; ++i) {
    const uint64_t b = first + i;

    fetched[i] = h->map[b] ? h->map[b] : map_block (h, b);
    writes_seen[i] = h->writes[b];
    any |= h->map[b] == UNKNOWN;
  }
  if (any && between_fetch_and_fill (h, first * BLOCK) == -1)
    goto out;
  for (uint32_t i = 0; i < n; ++i) {
    const uint64_t b = first + i;

    if (h->map[b] == UNKNOWN && (!ownorder || h->writes[b] == writes_seen[i]))
      h->map[b] = fetched[i];
    holes[i] = h->map[b] == HOLE;
  }
  r = 0;
 out:
  unlock (&h->lock);
  return r;
}

/* The same without a map: from what this handle sees, so as old as its
 * cache.
 */
static int
map_what_is_seen (struct handle *h, bool *holes, uint64_t first, uint32_t n)
{
  static const uint8_t zeroes[BLOCK];
  uint8_t *view = malloc (n * BLOCK);
  int r = -1;

  if (!view)
    nbdkit_error ("malloc: %m");
  else
    r = read_range (h, view, n * BLOCK, first * BLOCK);
  for (uint32_t i = 0; r == 0 && i < n; ++i)
    holes[i] = memcmp (view + i * BLOCK, zeroes, BLOCK) == 0;
  free (view);
  return r;
}

static int
wbcache_extents (void *handle, uint32_t count, uint64_t offset,
                 uint32_t flags, struct nbdkit_extents *extents)
{
  const uint64_t first = offset / BLOCK;
  const uint32_t n = MIN ((offset + count - 1) / BLOCK + 1 - first, MAPPED);
  bool holes[MAPPED];
  int r;

  (void) flags;
  if (enter_logged (handle, "extents", offset) == -1)
    return leave (handle, -1);
  if (mapcache)
    r = map_blocks (handle, holes, first, n);
  else
    r = map_what_is_seen (handle, holes, first, n);
  /* The server cuts off what is before the range. */
  for (uint32_t i = 0; r == 0 && i < n; ++i) {
    const uint64_t at = (first + i) * BLOCK;

    r = nbdkit_add_extent (extents, at, MIN (BLOCK, offset + count - at),
                           holes[i] ? NBDKIT_EXTENT_HOLE|NBDKIT_EXTENT_ZERO
                           : 0);
  }
  return leave (handle, r);
}

static int
wbcache_cache (void *handle, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  (void) flags;
  if (enter_logged (handle, "cache", offset) == -1)
    return leave (handle, -1);
  delay (readdelay);
  return leave (handle, read_range (handle, NULL, count, offset));
}

#if NBDKIT_VERSION_MINOR >= 30
static int
wbcache_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                    uint32_t *maximum)
{
  (void) handle;
  *minimum = prefers ? 1 : 0;
  *preferred = prefers;
  *maximum = prefers ? UINT32_MAX : 0;
  return 0;
}
#endif

#if NBDKIT_API_VERSION > 1
static struct nbdkit_plugin plugin = {
  .name              = "wbcache",
  .version           = "1.0",
  .longname          = "write-back cache per connection",
  .unload            = wbcache_unload,
  .config            = wbcache_config,
  .config_complete   = wbcache_config_complete,
  .config_help       = "size=SIZE initial=TEXT; wbcache.c has the others",
  .thread_model      = wbcache_thread_model,
  .open              = wbcache_open,
  .close             = wbcache_close,
  .get_size          = wbcache_get_size,
  .can_write         = wbcache_yes,
  .can_flush         = wbcache_yes,
  .can_trim          = wbcache_yes,
  .can_zero          = wbcache_yes,
  .can_extents       = wbcache_yes,
  .can_cache         = wbcache_can_cache,
  .can_fua           = wbcache_can_fua,
  .can_multi_conn    = wbcache_can_multi_conn,
#if NBDKIT_VERSION_MINOR >= 30
  .block_size        = wbcache_block_size,
#endif
  .pread             = wbcache_pread,
  .pwrite            = wbcache_pwrite,
  .flush             = wbcache_flush,
  .trim              = wbcache_trim,
  .zero              = wbcache_zero,
  .extents           = wbcache_extents,
  .cache             = wbcache_cache,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
#endif
