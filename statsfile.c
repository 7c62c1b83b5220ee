/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* MCSHIM_STATS_FILE: see statsfile.h.
 *
 * The file is written beside its place and then moved there, so that a
 * reader sees the old one or the new one, whole.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "interpose/interpose.h"
#include "interpose/oldglibc.h"
#include "statsfile.h"

#define INTERVAL 1000           /* milliseconds */

/* Constant while the thread runs. */
static const struct policy *kept_policy;
static const char *kept_thread_model;
static int stop_fd = -1;        /* readable: end; -1: there is no thread */
static pthread_t thread;
static uint64_t start;          /* when the plugin was registered */

/* Returns the name of a new, empty file beside PATH, open as *FD, or NULL
 * with errno set.  The caller frees it.
 */
static char *
open_beside (const char *path, int *fd)
{
  struct stat st;
  char *name;

  /* A device or a directory must not be moved away. */
  if (stat (path, &st) == 0 && !S_ISREG (st.st_mode)) {
    errno = S_ISDIR (st.st_mode) ? EISDIR : EINVAL;
    return NULL;
  }
  if (asprintf (&name, "%s.%ld", path, (long) getpid ()) == -1)
    return NULL;
  /* What is there is of a process that had our number and was killed.  Or
   * of somebody else, and then not to be written to.
   */
  unlink (name);
  *fd = open (name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (*fd == -1) {
    free (name);
    return NULL;
  }
  return name;
}

int
statsfile_check (const char *path)
{
  char *name;
  int fd;

  start = now_ns ();
  name = open_beside (path, &fd);
  if (name == NULL)
    return -1;
  close (fd);
  unlink (name);
  free (name);
  return 0;
}

static void
print_latency (FILE *f, const char *name, const struct latency *l)
{
  fprintf (f,
           "%s_us_mean: %.1f\n"
           "%s_us_p50: %.1f\n"
           "%s_us_p99: %.1f\n"
           "%s_us_max: %.1f\n",
           name, l->count ? l->sum / 1e3 / l->count : 0.0,
           name, latency_quantile (l, 50) / 1e3,
           name, latency_quantile (l, 99) / 1e3,
           name, l->max / 1e3);
}

static void
print_statistics (FILE *f, const struct policy *policy,
                  const char *thread_model, const struct statistics *s)
{
  fprintf (f,
           "mode: %s\n"
           "level: %s\n"
           "thread_model: %s\n"
           "server: %ld\n"
           "running: %s\n"
           "uptime_ms: %" PRIu64 "\n"
           "connections_open: %" PRIu64 "\n"
           "connections_opened: %" PRIu64 "\n"
           "connections_most_at_once: %" PRIu64 "\n"
           "handles_open: %" PRIu64 "\n"
           "handles_most_at_once: %" PRIu64 "\n"
           "handle_opens_failed: %" PRIu64 "\n"
           "reads: %" PRIu64 "\n"
           "writes: %" PRIu64 "\n"
           "client_flushes: %" PRIu64 "\n"
           "plugin_flushes: %" PRIu64 "\n"
           "flushes_skipped_clean: %" PRIu64 "\n"
           "flushes_at_close: %" PRIu64 "\n"
           "flushes_owed: %" PRIu64 "\n"
           "owed_flushes: %" PRIu64 "\n"
           "failed_flushes: %" PRIu64 "\n"
           "rounds: %" PRIu64 "\n"
           "replicas: %" PRIu64 "\n"
           "replicas_per_round: %.2f\n",
           mode_name (policy->mode), level_name (policy->level), thread_model,
           (long) getpid (), stop_fd == -1 ? "false" : "true",
           (now_ns () - start) / 1000000,
           s->connections_open, s->connections_opened,
           s->connections_most_at_once,
           s->handles_open, s->handles_most_at_once, s->handle_opens_failed,
           s->reads, s->writes,
           s->client_flushes.count, s->plugin_flushes.count,
           s->flushes_skipped_clean, s->flushes_at_close, s->flushes_owed,
           s->owed_flushes, s->failed_flushes,
           s->rounds, s->replicas,
           s->rounds ? (double) s->replicas / s->rounds : 0.0);
  print_latency (f, "client_flush", &s->client_flushes);
  print_latency (f, "plugin_flush", &s->plugin_flushes);
}

/* Replace the file, in one step.  Returns 0, or -1 with errno set; the old
 * file is then as it was.
 */
static int
replace (const struct policy *policy, const char *thread_model,
         const struct statistics *s)
{
  char *name;
  int fd, saved;
  FILE *f;

  name = open_beside (policy->stats_file, &fd);
  if (name == NULL)
    return -1;
  f = fdopen (fd, "w");
  if (f == NULL) {
    saved = errno;
    close (fd);
    goto fail;
  }
  print_statistics (f, policy, thread_model, s);
  if (ferror (f)) {
    saved = errno;
    fclose (f);
    goto fail;
  }
  if (fclose (f) != 0 || rename (name, policy->stats_file) == -1) {
    saved = errno;
    goto fail;
  }
  free (name);
  return 0;

 fail:
  unlink (name);
  free (name);
  errno = saved;
  return -1;
}

/* Replace the file, and complain if that fails and did not fail the last
 * time.
 */
static void
update (const struct policy *policy, const char *thread_model,
        const struct statistics *s)
{
  static bool failed;
  bool ok = replace (policy, thread_model, s) == 0;

  if (!ok && !failed)
    nbdkit_error ("mcshim: MCSHIM_STATS_FILE: %s: %m", policy->stats_file);
  failed = !ok;
}

static void *
keep (void *arg)
{
  struct pollfd stop = { .fd = stop_fd, .events = POLLIN };
  struct statistics last = { 0 }, now;

  (void) arg;
  do {
    now = replicate_statistics ();
    if (memcmp (&now, &last, sizeof now) != 0)
      update (kept_policy, kept_thread_model, &now);
    last = now;
  } while (poll (&stop, 1, INTERVAL) <= 0);
  return NULL;
}

void
statsfile_start (const struct policy *policy, const char *thread_model)
{
  static atomic_flag started = ATOMIC_FLAG_INIT;
  int err;

  if (policy->stats_file == NULL || atomic_flag_test_and_set (&started))
    return;
  kept_policy = policy;
  kept_thread_model = thread_model;
  stop_fd = eventfd (0, EFD_CLOEXEC);
  err = stop_fd == -1 ? errno : pthread_create (&thread, NULL, keep, NULL);
  if (err == 0)
    return;
  if (stop_fd != -1)
    close (stop_fd);
  stop_fd = -1;
  errno = err;
  nbdkit_error ("mcshim: MCSHIM_STATS_FILE: %s will be written at the end "
                "only: %m", policy->stats_file);
}

void
statsfile_finish (const struct policy *policy, const char *thread_model)
{
  struct statistics s;

  if (policy->stats_file == NULL)
    return;
  if (stop_fd != -1) {
    if (eventfd_write (stop_fd, 1) == -1 || pthread_join (thread, NULL) != 0)
      abort ();                 /* it would go on after we are unloaded */
    close (stop_fd);
    stop_fd = -1;
  }
  s = replicate_statistics ();
  update (policy, thread_model, &s);
}
