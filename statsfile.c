/* MCSHIM_STATS_FILE: see statsfile.h.
 *
 * The file is written beside its place and then moved there, so that a
 * reader sees the old one or the new one, whole.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "statsfile.h"
#include "interpose/oldglibc.h"

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
  *fd = open (name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
              0644);
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

  name = open_beside (path, &fd);
  if (name == NULL)
    return -1;
  close (fd);
  unlink (name);
  free (name);
  return 0;
}

int
statsfile_write (const char *path, const struct policy *policy,
                 const char *thread_model, const struct statistics *s)
{
  char *name;
  int fd, saved;

  name = open_beside (path, &fd);
  if (name == NULL)
    return -1;

  if (dprintf (fd,
               "mode: %s\n"
               "level: %s\n"
               "thread_model: %s\n"
               "connections_opened: %" PRIu64 "\n"
               "connections_most_at_once: %" PRIu64 "\n"
               "client_flushes: %" PRIu64 "\n"
               "plugin_flushes: %" PRIu64 "\n"
               "flushes_skipped_clean: %" PRIu64 "\n"
               "flushes_at_close: %" PRIu64 "\n"
               "failed_flushes: %" PRIu64 "\n"
               "writes: %" PRIu64 "\n"
               "reads: %" PRIu64 "\n",
               mode_name (policy->mode), level_name (policy->level),
               thread_model,
               s->connections_opened, s->connections_most_at_once,
               s->client_flushes, s->plugin_flushes,
               s->flushes_skipped_clean, s->flushes_at_close,
               s->failed_flushes, s->writes, s->reads) < 0) {
    saved = errno;
    close (fd);
    goto fail;
  }
  if (close (fd) == -1 || rename (name, path) == -1) {
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
