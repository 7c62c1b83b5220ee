/* A disk in memory behind one write-back cache per connection: the kind
 * of plugin that must not promise multi-conn by itself, and the worst
 * one that a flush replicated from outside has to be right for.
 *
 * Reads fill the handle's cache, in whole blocks.  Writes, zeroes and
 * trims stay there, dirty, until a flush of that handle.  A flush covers
 * what was dirty when it began, writes that back, then drops the handle's
 * cache, clean blocks too.  A close drops what is still dirty; it never
 * writes back.  A read that misses fetches under the handle's lock, and
 * fills the cache after it has let go of it, so that it can put back a
 * copy which has become old meanwhile.
 *
 * The plugin holds the server to the thread model that it declares: it
 * counts the callbacks which enter a busy handle (at model=all and below,
 * a busy plugin) or a closed one.  summary=FILE gets the counts at unload.
 *
 * control=FILE is read at every callback.  Its lines, where H is a handle
 * number (handles count from 0 in order of open) or *:
 *
 *   fail-CALLBACK H ERRNO        the callback fails
 *   fail-CALLBACK-once H ERRNO   so too, and the line is taken out
 *   block-CALLBACK H             it waits while the line is there
 *
 * CALLBACK is open, read, write, zero, trim, cache, extents, flush, close,
 * or fill: between fetch and fill of a read that missed.
 *
 * log=FILE gets a line "H CALLBACK" as each of these is entered.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/inotify.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define BLOCK 512
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* State of a block in a handle's cache. */
#define CACHED   1
#define DIRTY    2              /* Written since a flush last began. */
#define FLUSHING 4              /* Was dirty when a running flush began. */

struct handle {
  struct handle *next;          /* In all_handles, never taken out. */
  unsigned number;
  char name[12];                /* The same as text, for the log. */
  atomic_uint busy;             /* Callbacks that are inside. */
  atomic_bool closed;
  pthread_mutex_t lock;         /* Guards what follows. */
  uint8_t *data;                /* Same layout as the disk. */
  uint8_t *state;               /* One byte per block. */
  uint64_t cached;              /* How many blocks are CACHED. */
};

/* Parameters. */
static int64_t size = 1024 * 1024;
static const char *initial = "";
static int model = NBDKIT_THREAD_MODEL_PARALLEL;
static int multiconn;
static int fua = NBDKIT_FUA_NONE;
static int fuaflush, earlydrop;
static unsigned flushdelay, readdelay, filldelay, writedelay, closedelay;
static char *summary_file, *control_file;
static int log_fd = -1;

/* Lock order: handle, disk. */
static pthread_mutex_t disk_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *disk;
static uint64_t nr_blocks;

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static struct handle *all_handles;
static unsigned nr_handles;

static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER;

static atomic_uint plugin_busy;
static atomic_ulong overlaps, after_close, foreign_thread, dirty_dropped,
  opens, closes, reads, writes, flushes, failed_flushes;

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

/* Callbacks that enter and leave ****************************************/

static int
parse_errno (const char *name)
{
  static const struct { const char *name; int err; } table[] = {
    { "EPERM", EPERM }, { "EIO", EIO }, { "ENOMEM", ENOMEM },
    { "EINVAL", EINVAL }, { "ENOSPC", ENOSPC }, { "EROFS", EROFS },
  };

  for (size_t i = 0; i < sizeof table / sizeof table[0]; ++i)
    if (strcmp (name, table[i].name) == 0)
      return table[i].err;
  return EIO;
}

/* Look up ACTION for this handle in the control file.  Returns 0 if it is
 * not there, otherwise the errno on its line, or EIO if it has none.
 */
static int
control (const char *action, const struct handle *h, bool take_out)
{
  char text[4096], rest[4096] = "", verb[64], which[16], err[16];
  char tmp[4096], *line, *save;
  ssize_t n;
  int fd, r = 0;

  if (!control_file)
    return 0;
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
        sscanf (line, "%63s %15s %15s", verb, which, err) >= 2 &&
        strcmp (verb, action) == 0 &&
        (strcmp (which, "*") == 0 || strcmp (which, h->name) == 0))
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

/* Asleep until the control file is changed or replaced: so a test can see
 * when nothing in the server runs.
 */
static void
wait_while_blocked (const struct handle *h, const char *name)
{
  char action[64], event[4096];
  int fd;

  snprintf (action, sizeof action, "block-%s", name);
  if (!control (action, h, false))
    return;
  fd = inotify_init1 (IN_CLOEXEC);
  do {
    inotify_add_watch (fd, control_file, IN_MODIFY | IN_ATTRIB);
    if (!control (action, h, false))
      break;
  } while (read (fd, event, sizeof event) > 0);
  if (fd >= 0)
    close (fd);
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
  /* The server's threads have a connection; no other thread may come. */
  if (model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS &&
      nbdkit_is_tls () == -1)
    atomic_fetch_add (&foreign_thread, 1);
}

static int
leave (struct handle *h, int r)
{
  atomic_fetch_sub (&h->busy, 1);
  atomic_fetch_sub (&plugin_busy, 1);
  return r;
}

/* Enter for a callback that does something.  Returns -1, with the errno
 * for the client set, if the control file wants it to fail.
 */
static int
enter_logged (struct handle *h, const char *name)
{
  char buf[64];
  int err;

  enter (h);
  log_callback (h->name, name);
  wait_while_blocked (h, name);
  snprintf (buf, sizeof buf, "fail-%s", name);
  err = control (buf, h, false);
  if (err == 0) {
    snprintf (buf, sizeof buf, "fail-%s-once", name);
    err = control (buf, h, true);
  }
  if (err == 0)
    return 0;
  nbdkit_error ("%s of handle %u: told to fail", name, h->number);
  nbdkit_set_error (err);
  return -1;
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
  const struct { const char *key; unsigned *us; } delays[] = {
    { "flushdelay", &flushdelay }, { "readdelay", &readdelay },
    { "filldelay", &filldelay }, { "writedelay", &writedelay },
    { "closedelay", &closedelay },
  };

  for (size_t i = 0; i < sizeof delays / sizeof delays[0]; ++i)
    if (strcmp (key, delays[i].key) == 0)
      return nbdkit_parse_unsigned (key, value, delays[i].us);

  if (strcmp (key, "size") == 0)
    return (size = nbdkit_parse_size (value)) == -1 ? -1 : 0;
  if (strcmp (key, "initial") == 0)
    return (initial = nbdkit_strdup_intern (value)) == NULL ? -1 : 0;
  if (strcmp (key, "model") == 0)
    return (model = parse_word (key, value, models)) == -1 ? -1 : 0;
  if (strcmp (key, "multiconn") == 0)
    return (multiconn = nbdkit_parse_bool (value)) == -1 ? -1 : 0;
  if (strcmp (key, "fua") == 0)
    return (fua = parse_word (key, value, fuas)) == -1 ? -1 : 0;
  if (strcmp (key, "fuaflush") == 0)
    return (fuaflush = nbdkit_parse_bool (value)) == -1 ? -1 : 0;
  if (strcmp (key, "earlydrop") == 0)
    return (earlydrop = nbdkit_parse_bool (value)) == -1 ? -1 : 0;
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

#define wbcache_config_help                                             \
  "size=SIZE initial=TEXT model=parallel|requests|all|connections\n"    \
  "multiconn=BOOL fua=none|emulate|native fuaflush=BOOL\n"              \
  "earlydrop=BOOL (flush drops clean blocks when it begins)\n"          \
  "flushdelay=US readdelay=US filldelay=US writedelay=US closedelay=US\n" \
  "log=FILE summary=FILE control=FILE"

static int
wbcache_config_complete (void)
{
  if (size < (int64_t) strlen (initial)) {
    nbdkit_error ("size is less than the initial text");
    return -1;
  }
  nr_blocks = (size + BLOCK - 1) / BLOCK;
  disk = calloc (nr_blocks + 1, BLOCK);
  if (!disk) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  memcpy (disk, initial, strlen (initial));
  return 0;
}

static int
wbcache_thread_model (void)
{
  log_callback ("-", "thread_model");
  return model;
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
                 "foreign_thread: %lu\ndirty_dropped_at_close: %lu\n"
                 "opens: %lu\ncloses: %lu\nreads: %lu\nwrites: %lu\n"
                 "flushes: %lu\nfailed_flushes: %lu\n",
                 overlaps, after_close, foreign_thread, dirty_dropped,
                 opens, closes, reads, writes, flushes,
                 failed_flushes) < 0 ||
        fclose (fp) == EOF)
      nbdkit_error ("%s: %m", summary_file);
  }
  while ((h = all_handles) != NULL) {
    all_handles = h->next;
    pthread_mutex_destroy (&h->lock);
    free (h->data);
    free (h->state);
    free (h);
  }
  free (disk);
  free (summary_file);
  free (control_file);
  if (log_fd != -1)
    close (log_fd);
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
  enter_logged (h, "close");
  delay (closedelay);
  atomic_fetch_add (&closes, 1);
  lock (&h->lock);
  for (uint64_t b = 0; h->state && h->cached && b < nr_blocks; ++b)
    dropped += (h->state[b] & DIRTY) != 0;
  atomic_fetch_add (&dirty_dropped, dropped);
  free (h->data);
  free (h->state);
  h->data = h->state = NULL;
  h->cached = 0;
  unlock (&h->lock);
  atomic_store (&h->closed, true);
  leave (h, 0);
}

static void *
wbcache_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  if (!h) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  h->data = calloc (nr_blocks + 1, BLOCK);
  h->state = calloc (nr_blocks + 1, 1);
  if (!h->data || !h->state || pthread_mutex_init (&h->lock, NULL) != 0) {
    nbdkit_error ("cannot allocate the handle: %m");
    free (h->data);
    free (h->state);
    free (h);
    return NULL;
  }
  lock (&handles_lock);
  h->number = nr_handles++;
  snprintf (h->name, sizeof h->name, "%u", h->number);
  h->next = all_handles;
  all_handles = h;
  unlock (&handles_lock);

  if (enter_logged (h, "open") == -1) {
    atomic_store (&h->closed, true);
    leave (h, 0);
    return NULL;
  }
  atomic_fetch_add (&opens, 1);
  leave (h, 0);
  return h;
}

static int64_t
wbcache_get_size (void *handle)
{
  enter (handle);
  leave (handle, 0);
  return size;
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
  enter (handle);
  return leave (handle, multiconn);
}

static int
wbcache_can_cache (void *handle)
{
  enter (handle);
  return leave (handle, NBDKIT_CACHE_NATIVE);
}

/* Requests **************************************************************/

/* The cache is gone after close: tell the caller, don't crash.  Wants
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

/* Both want h->lock. */
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

static void
fetch_block (uint64_t b, uint8_t *to)
{
  lock (&disk_lock);
  memcpy (to, disk + b * BLOCK, BLOCK);
  unlock (&disk_lock);
}

/* Bring the blocks of a range into the cache, and copy the range to buf
 * unless it is NULL.
 */
static int
read_range (struct handle *h, uint8_t *buf, uint32_t count, uint64_t offset)
{
  const uint64_t first = offset / BLOCK;
  const uint64_t end = (offset + count + BLOCK - 1) / BLOCK;
  uint8_t *fetched = malloc ((end - first + 1) * BLOCK);
  bool *missed = calloc (end - first + 1, sizeof *missed);
  bool any = false;
  uint64_t b;
  int r = -1;

  if (!fetched || !missed) {
    nbdkit_error ("malloc: %m");
    goto out;
  }
  lock (&h->lock);
  if (check_open (h) == -1)
    goto out_unlock;
  for (b = first; b < end; ++b) {
    if (h->state[b] == 0) {
      fetch_block (b, fetched + (b - first) * BLOCK);
      any = missed[b - first] = true;
    }
  }
  if (any) {
    unlock (&h->lock);
    delay (filldelay);
    log_callback (h->name, "fill");
    wait_while_blocked (h, "fill");
    lock (&h->lock);
    if (check_open (h) == -1)
      goto out_unlock;
  }
  for (b = first; b < end; ++b) {
    const uint8_t *from = h->data + b * BLOCK;

    if (missed[b - first]) {
      from = fetched + (b - first) * BLOCK;
      if (!(h->state[b] & (DIRTY|FLUSHING)))
        fill_block (h, b, from);
      else
        from = h->data + b * BLOCK;
    }
    if (buf) {
      uint64_t lo = b * BLOCK < offset ? offset - b * BLOCK : 0;
      uint64_t hi = MIN (BLOCK, offset + count - b * BLOCK);

      memcpy (buf + b * BLOCK + lo - offset, from + lo, hi - lo);
    }
  }
  r = 0;
 out_unlock:
  unlock (&h->lock);
 out:
  free (fetched);
  free (missed);
  return r;
}

static int
flush_handle (struct handle *h)
{
  uint64_t b;

  lock (&h->lock);
  for (b = 0; h->cached && b < nr_blocks; ++b) {
    if (h->state[b] & DIRTY)
      h->state[b] = CACHED|FLUSHING;
    else if (earlydrop && h->state[b] == CACHED)
      drop_block (h, b);
  }
  unlock (&h->lock);

  delay (flushdelay);

  lock (&h->lock);
  if (check_open (h) == -1) {
    unlock (&h->lock);
    return -1;
  }
  for (b = 0; h->cached && b < nr_blocks; ++b) {
    if (h->state[b] & FLUSHING) {
      lock (&disk_lock);
      memcpy (disk + b * BLOCK, h->data + b * BLOCK, BLOCK);
      unlock (&disk_lock);
      h->state[b] &= ~FLUSHING;
      if (!(h->state[b] & DIRTY))
        drop_block (h, b);
    }
    else if (!earlydrop && h->state[b] == CACHED)
      drop_block (h, b);
  }
  unlock (&h->lock);
  return 0;
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
    uint8_t block[BLOCK];

    if (through) {
      lock (&disk_lock);
      if (buf)
        memcpy (disk + offset, buf, n);
      else
        memset (disk + offset, 0, n);
      unlock (&disk_lock);
    }
    else {
      if (h->state[b] == 0) {
        fetch_block (b, block);
        fill_block (h, b, block);
      }
      h->state[b] |= DIRTY;
    }
    if (h->state[b] != 0) {
      if (buf)
        memcpy (h->data + offset, buf, n);
      else
        memset (h->data + offset, 0, n);
    }
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
  if (enter_logged (handle, "read") == -1)
    return leave (handle, -1);
  atomic_fetch_add (&reads, 1);
  delay (readdelay);
  return leave (handle, read_range (handle, buf, count, offset));
}

static int
wbcache_pwrite (void *handle, const void *buf, uint32_t count,
                uint64_t offset, uint32_t flags)
{
  if (enter_logged (handle, "write") == -1)
    return leave (handle, -1);
  atomic_fetch_add (&writes, 1);
  return leave (handle, write_range (handle, buf, count, offset, flags));
}

static int
wbcache_flush (void *handle, uint32_t flags)
{
  int r;

  (void) flags;
  r = enter_logged (handle, "flush");
  atomic_fetch_add (&flushes, 1);
  if (r == 0)
    r = flush_handle (handle);
  if (r == -1)
    atomic_fetch_add (&failed_flushes, 1);
  return leave (handle, r);
}

static int
wbcache_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (enter_logged (handle, "trim") == -1)
    return leave (handle, -1);
  atomic_fetch_add (&writes, 1);
  return leave (handle, write_range (handle, NULL, count, offset, flags));
}

static int
wbcache_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (enter_logged (handle, "zero") == -1)
    return leave (handle, -1);
  atomic_fetch_add (&writes, 1);
  return leave (handle, write_range (handle, NULL, count, offset, flags));
}

/* The map is of what this handle sees, so it is as old as its cache. */
static int
wbcache_extents (void *handle, uint32_t count, uint64_t offset,
                 uint32_t flags, struct nbdkit_extents *extents)
{
  static const uint8_t zeroes[BLOCK];
  uint8_t *view = NULL;
  int r = -1;

  (void) flags;
  if (enter_logged (handle, "extents") == -1)
    goto out;
  count = MIN (count, 1024 * BLOCK);
  view = malloc (count + 1);
  if (!view) {
    nbdkit_error ("malloc: %m");
    goto out;
  }
  if (read_range (handle, view, count, offset) == -1)
    goto out;
  r = 0;
  for (uint32_t i = 0, n; r == 0 && i < count; i += n) {
    n = MIN (count - i, BLOCK - (offset + i) % BLOCK);
    r = nbdkit_add_extent (extents, offset + i, n,
                           memcmp (view + i, zeroes, n) != 0 ? 0 :
                           NBDKIT_EXTENT_HOLE|NBDKIT_EXTENT_ZERO);
  }
 out:
  free (view);
  return leave (handle, r);
}

static int
wbcache_cache (void *handle, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  (void) flags;
  if (enter_logged (handle, "cache") == -1)
    return leave (handle, -1);
  delay (readdelay);
  return leave (handle, read_range (handle, NULL, count, offset));
}

static struct nbdkit_plugin plugin = {
  .name              = "wbcache",
  .version           = "1.0",
  .longname          = "write-back cache per connection",
  .unload            = wbcache_unload,
  .config            = wbcache_config,
  .config_complete   = wbcache_config_complete,
  .config_help       = wbcache_config_help,
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
  .pread             = wbcache_pread,
  .pwrite            = wbcache_pwrite,
  .flush             = wbcache_flush,
  .trim              = wbcache_trim,
  .zero              = wbcache_zero,
  .extents           = wbcache_extents,
  .cache             = wbcache_cache,
};

NBDKIT_REGISTER_PLUGIN (plugin)
