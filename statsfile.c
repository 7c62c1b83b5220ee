/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* MCSHIM_STATS_FILE: see statsfile.h.
 *
 * The file is written under another name and then renamed, so that a reader
 * sees either the old one or the new one, whole.  The file in place is kept
 * open and locked, so that another server knows that it is in use.
 *
 * A plugin may have set a locale with a decimal comma: no floating point.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "interpose/oldglibc.h"
#include "interpose/server.h"
#include "must.h"
#include "statsfile.h"

#define INTERVAL 1000           /* milliseconds */
#define PATIENCE 2000           /* how long the ending server waits for it */
#define LONGEST 16384           /* no file has more bytes */

static const struct policy *policy; /* NULL if nothing is to be written */
static uint64_t start;          /* when the file was claimed */
static struct timespec start_time;
static mode_t mode;             /* of the file */
static int claimed = -1;        /* open and locked, before there is "held" */

/* Constant while the thread runs. */
static char *path, *shown;      /* the file; the same for messages */
static char labels[256];
static struct statistics last;  /* what the thread writes at the end */
static int stop_fd = -1, stopped_fd = -1; /* readable: end!; has ended */
static pthread_t thread;

/* Only the thread uses this. */
static FILE *held;              /* in place, and locked */

/* Returns the policy's file with the process ID for each %p, or NULL with
 * errno set.  The caller frees it.
 */
static char *
expand (void)
{
  char *s = strdup (policy->stats_file), *longer;
  const char *p;

  while (s != NULL && (p = strstr (s + policy->stats_dir, "%p")) != NULL) {
    if (asprintf (&longer, "%.*s%ld%s", (int) (p - s), s, (long) getpid (),
                  p + 2) == -1)
      longer = NULL;
    free (s);
    s = longer;
  }
  return s;
}

/* Returns the name of a new, empty file beside FILE, open as *FD, or NULL
 * with errno set.  The caller frees it.
 */
static char *
open_beside (const char *file, int *fd)
{
  struct rlimit limit;
  struct stat st;
  char *name;

  /* To write beyond the limit would end the server: SIGXFSZ. */
  if (getrlimit (RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < LONGEST) {
    errno = EFBIG;
    return NULL;
  }
  /* A device or a directory must not be moved away. */
  if (stat (file, &st) == 0 && !S_ISREG (st.st_mode)) {
    errno = S_ISDIR (st.st_mode) ? EISDIR : EINVAL;
    return NULL;
  }
  if (asprintf (&name, "%s.XXXXXX", file) == -1)
    return NULL;
  *fd = mkostemp (name, O_CLOEXEC);
  if (*fd == -1) {
    free (name);
    return NULL;
  }
  return name;
}

/* Open the file, or make an empty one, and lock it as "claimed".  Returns 0,
 * or -1 with errno set.
 */
static int
lock_in_place (const char *file)
{
  struct stat st, now;
  int fd, saved;

  for (;;) {
    /* A symbolic link is replaced, not followed: there is nothing to lock. */
    fd = open (file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd == -1 && errno == ELOOP)
      return 0;
    if (fd == -1 && errno == ENOENT)
      fd = open (file, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd == -1) {
      if (errno == EEXIST)
        continue;
      return -1;
    }
    /* Some file systems have no locks. */
    if ((flock (fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK) ||
        fstat (fd, &st) == -1) {
      saved = errno;
      close (fd);
      errno = saved;
      return -1;
    }
    /* Another server may have replaced it meanwhile. */
    if (stat (file, &now) == 0 && now.st_dev == st.st_dev &&
        now.st_ino == st.st_ino) {
      mode = st.st_mode & 0777;
      claimed = fd;
      return 0;
    }
    close (fd);
  }
}

int
statsfile_claim (const struct policy *p)
{
  char *file, *name;
  int fd, r = -1, saved;

  policy = p;
  start = now_ns ();
  clock_gettime (CLOCK_REALTIME, &start_time);
  mode = 0644;
  file = expand ();
  if (file == NULL)
    return -1;
  name = open_beside (file, &fd);
  if (name != NULL) {
    close (fd);
    unlink (name);
    free (name);
    /* With the process ID in its name no other server has the file, and
     * this one may not have forked yet.
     */
    r = strcmp (file, policy->stats_file) == 0 ? lock_in_place (file) : 0;
  }
  saved = errno;
  free (file);
  errno = saved;
  return r;
}

static void
print_help (FILE *f, const char *name, const char *type, const char *help)
{
  fprintf (f, "# HELP mcshim_%s %s\n# TYPE mcshim_%s %s\n", name, help, name,
           type);
}

static void
print_number (FILE *f, const char *name, const char *type, const char *help,
              uint64_t value)
{
  print_help (f, name, type, help);
  fprintf (f, "mcshim_%s %" PRIu64 "\n", name, value);
}

/* NAME may have labels. */
static void
print_seconds (FILE *f, const char *name, uint64_t ns)
{
  fprintf (f, "mcshim_%s %" PRIu64 ".%09" PRIu64 "\n", name,
           ns / 1000000000, ns % 1000000000);
}

static void
print_latency (FILE *f, const char *name, const char *help,
               const struct latency *l)
{
  static const unsigned percent[] = { 50, 90, 99 };
  char sample[64];
  size_t i;

  snprintf (sample, sizeof sample, "%s_seconds", name);
  print_help (f, sample, "summary", help);
  for (i = 0; i < sizeof percent / sizeof percent[0]; i++) {
    snprintf (sample, sizeof sample, "%s_seconds{quantile=\"0.%u\"}", name,
              percent[i] % 10 ? percent[i] : percent[i] / 10);
    if (l->count > 0)
      print_seconds (f, sample, latency_quantile (l, percent[i]));
    else
      fprintf (f, "mcshim_%s NaN\n", sample);
  }
  snprintf (sample, sizeof sample, "%s_seconds_sum", name);
  print_seconds (f, sample, l->sum);
  fprintf (f, "mcshim_%s_seconds_count %" PRIu64 "\n", name, l->count);

  snprintf (sample, sizeof sample, "%s_max_seconds", name);
  print_help (f, sample, "gauge", "The longest of these.");
  print_seconds (f, sample, l->max);
}

static const struct {
  const char *name, *type, *help;
  size_t offset;
} numbers[] = {
#define NUMBER(field) offsetof (struct statistics, field)
  { "connections", "gauge", "Connections that are open.",
    NUMBER (connections_open) },
  { "connections_most_at_once", "gauge", "The most that were open at once.",
    NUMBER (connections_most_at_once) },
  { "handles", "gauge", "Handles of the plugin that are open.",
    NUMBER (handles_open) },
  { "handles_most_at_once", "gauge", "The most that were open at once.",
    NUMBER (handles_most_at_once) },
  { "handle_opens_failed_total", "counter",
    "Further handles of a connection that could not be opened.",
    NUMBER (handle_opens_failed) },
  { "reads_total", "counter", "Reads, extents and cache requests.",
    NUMBER (reads) },
  { "writes_total", "counter", "Writes, zero and trim requests.",
    NUMBER (writes) },
  { "pieces_total", "counter",
    "Calls of the plugin for parts of requests that are cut.",
    NUMBER (pieces) },
  { "flushes_skipped_clean_total", "counter",
    "Client flushes for which the plugin was not called.",
    NUMBER (flushes_skipped_clean) },
  { "flushes_owed_total", "counter",
    "Replicas that were left to the next request of a busy handle.",
    NUMBER (flushes_owed) },
  { "owed_flushes_total", "counter",
    "Plugin flushes that such requests made.", NUMBER (owed_flushes) },
  { "conflicts_total", "counter",
    "Writes that had another handle's write of their blocks flushed.",
    NUMBER (conflicts) },
  { "flushes_at_close_total", "counter",
    "Plugin flushes made because a connection closed.",
    NUMBER (flushes_at_close) },
  { "failed_flushes_total", "counter", "Plugin flushes that failed.",
    NUMBER (failed_flushes) },
  { "rounds_total", "counter", "Replicated flushes.", NUMBER (rounds) },
  { "replicas_total", "counter", "Plugin flushes in these.",
    NUMBER (replicas) },
#undef NUMBER
};

static void
print_statistics (FILE *f, const struct statistics *s, bool running)
{
  size_t i;

  print_help (f, "info", "gauge", "The shim, and what is set.");
  fprintf (f, "mcshim_info{%s} 1\n", labels);
  print_number (f, "process_id", "gauge", "The server's.", getpid ());
  print_number (f, "running", "gauge", "Whether the server runs.", running);
  print_help (f, "start_time_seconds", "gauge",
            "When the server was started, since the epoch.");
  print_seconds (f, "start_time_seconds",
                 start_time.tv_sec * UINT64_C (1000000000) +
                 start_time.tv_nsec);
  print_help (f, "uptime_seconds", "gauge", "How long ago that was.");
  print_seconds (f, "uptime_seconds", now_ns () - start);

  print_help (f, "connections_opened_total", "counter",
            "Connections, by the mode they ended up in, and why.");
  for (i = 0; i < NR_VERDICTS; i++)
    if (s->connections_opened[i] > 0)
      fprintf (f, "mcshim_connections_opened_total{mode=\"%s\"} %" PRIu64 "\n",
               verdict_words (i), s->connections_opened[i]);
  for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    print_number (f, numbers[i].name, numbers[i].type, numbers[i].help,
                  *(const uint64_t *) ((const char *) s + numbers[i].offset));
  print_latency (f, "client_flush", "Flushes that clients asked for.",
                 &s->client_flushes);
  print_latency (f, "plugin_flush", "Flushes that the plugin was called for.",
                 &s->plugin_flushes);
}

/* Replace the file, in one step.  Returns 0, or -1 with errno set; the old
 * file is then as it was.
 */
static int
replace (const struct statistics *s, bool running)
{
  char *name;
  int fd, saved;
  FILE *f;

  name = open_beside (path, &fd);
  if (name == NULL)
    return -1;
  f = fdopen (fd, "w");
  if (f == NULL) {
    saved = errno;
    close (fd);
    goto fail;
  }
  /* Without a lock it can still be read. */
  (void) flock (fd, LOCK_EX | LOCK_NB);
  print_statistics (f, s, running);
  if (fflush (f) != 0 || fchmod (fd, mode) == -1 ||
      rename (name, path) == -1) {
    saved = errno;
    fclose (f);
    goto fail;
  }
  free (name);
  if (held != NULL)
    fclose (held);              /* all of it was written */
  held = f;
  if (claimed != -1) {
    close (claimed);
    claimed = -1;
  }
  return 0;

 fail:
  unlink (name);
  free (name);
  errno = saved;
  return -1;
}

/* Replace the file, and complain if that fails and did not fail the last
 * time.  Returns true if it is in place.
 */
static bool
update (const struct statistics *s, bool running)
{
  static bool failed;
  bool ok = replace (s, running) == 0;

  if (!ok && !failed)
    nbdkit_error ("mcshim: MCSHIM_STATS_FILE: %s: %m", shown);
  failed = !ok;
  return ok;
}

static void *
keep (void *arg)
{
  struct pollfd stop = { .fd = stop_fd, .events = POLLIN };
  struct statistics written, now = replicate_statistics ();
  bool ok;

  (void) arg;
  do {
    ok = update (&now, true);
    written = now;
    /* Do not write while nothing changes. */
    while (poll (&stop, 1, INTERVAL) <= 0) {
      now = replicate_statistics ();
      if (!ok || memcmp (&now, &written, sizeof now) != 0)
        break;
    }
  } while (!(stop.revents & POLLIN));

  update (&last, false);
  must (eventfd_write (stopped_fd, 1)); /* it can't overflow */
  return NULL;
}

/* Returns 0, or -1 with errno set. */
static int
start_thread (void)
{
  int err;

  stop_fd = eventfd (0, EFD_CLOEXEC);
  stopped_fd = eventfd (0, EFD_CLOEXEC);
  err = stop_fd == -1 || stopped_fd == -1 ? errno :
    pthread_create (&thread, NULL, keep, NULL);
  if (err == 0)
    return 0;
  if (stop_fd != -1)
    close (stop_fd);
  if (stopped_fd != -1)
    close (stopped_fd);
  stop_fd = -1;
  errno = err;
  return -1;
}

/* Settle what the file is called, and what it says of the server.  Returns
 * false if there is none, or no memory.
 */
static bool
settle_names (const char *plugin, const char *thread_model)
{
  if (policy == NULL || shown != NULL)
    return shown != NULL;
  snprintf (labels, sizeof labels, "version=\"%s\",plugin=\"%.64s\","
            "mode=\"%s\",level=\"%s\",thread_model=\"%s\"", MCSHIM_VERSION,
            plugin, mode_name (policy->mode), level_name (policy->level),
            thread_model);
  path = expand ();
  shown = path ? strdup (path) : NULL;
  if (shown != NULL)
    one_line (shown);
  return shown != NULL;
}

void
statsfile_write (const char *plugin, const char *thread_model)
{
  static const struct statistics none;

  if (settle_names (plugin, thread_model))
    update (&none, true);
}

void
statsfile_keep (const char *plugin, const char *thread_model)
{
  static atomic_flag kept = ATOMIC_FLAG_INIT;

  if (policy == NULL || atomic_flag_test_and_set (&kept))
    return;
  if (!settle_names (plugin, thread_model) || start_thread () == -1)
    nbdkit_error ("mcshim: MCSHIM_STATS_FILE: %s will be written at the end "
                  "only: %m", shown ? shown : "it");
}

void
statsfile_end (void)
{
  struct pollfd stopped = { .fd = stopped_fd, .events = POLLIN };
  int r;

  if (shown == NULL)
    return;
  last = replicate_statistics ();
  if (stop_fd == -1)
    update (&last, false);
  else {
    must (eventfd_write (stop_fd, 1));
    do
      r = poll (&stopped, 1, PATIENCE);
    while (r == -1 && errno == EINTR);
    if (r <= 0) {
      /* The thread goes on, with nothing that others use, and ends with the
       * process.
       */
      nbdkit_error ("mcshim: MCSHIM_STATS_FILE: %s: the file system does not "
                    "answer", shown);
      return;
    }
    must (pthread_join (thread, NULL));
    close (stop_fd);
    close (stopped_fd);
  }
  if (held != NULL) {
    /* A child of the server may have it open. */
    flock (fileno (held), LOCK_UN);
    fclose (held);
  }
  free (path);
  free (shown);
}
