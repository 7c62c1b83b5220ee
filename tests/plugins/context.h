/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin whose flush asks the server about its connection, and logs the
 * answers.  The file that includes this defines what it may ask, since the
 * shim looks at the symbols:
 *
 *   ASK_NAME   nbdkit_export_name, nbdkit_is_tls, nbdkit_strdup_intern
 *   ASK_PEER   nbdkit_peer_name, nbdkit_disconnect
 *   ASK_SLEEP  nbdkit_nanosleep
 *
 * A flush logs "H flush" as it begins, where handles H count from 0 in
 * order of open, and the answers as it ends: "H name=b tls=0 intern=1
 * peer=PATH sleep=1".  If the server lacks a function, its word is left
 * out; an error is "-".  "overlap" means that two flushes were inside.
 *
 * While the file control=FILE is not empty, a flush waits.  If the file
 * begins with "disconnect H", that handle's flush calls nbdkit_disconnect.
 * interns=N: each flush interns N strings.
 * strict=1: a flush fails if it is not told its peer.
 * reads=1: a read logs and asks the same as a flush, with "read".
 */

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "memory.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Older servers lack some, and older headers lack the last. */
extern void nbdkit_disconnect (int force);
#pragma weak nbdkit_export_name
#pragma weak nbdkit_is_tls
#pragma weak nbdkit_strdup_intern
#pragma weak nbdkit_peer_name
#pragma weak nbdkit_disconnect
#pragma weak nbdkit_nanosleep

static int model = NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
static unsigned interns = 1;
static bool strict, reads;
static const char *control_file;
static int log_fd = -1;
static atomic_uint nr_handles, inside;

__attribute__ ((format (printf, 1, 2))) static void
log_line (const char *fmt, ...)
{
  char line[1024];
  va_list ap;
  int n;

  va_start (ap, fmt);
  n = vsnprintf (line, sizeof line, fmt, ap);
  va_end (ap);
  if (log_fd != -1 && write (log_fd, line, n) != n)
    nbdkit_error ("log: %m");
}

static int
context_config (const char *key, const char *value)
{
  if (strcmp (key, "model") == 0) {
    if (strcmp (value, "parallel") == 0)
      model = NBDKIT_THREAD_MODEL_PARALLEL;
    else if (strcmp (value, "all") == 0)
      model = NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS;
  }
  else if (strcmp (key, "interns") == 0)
    interns = atoi (value);
  else if (strcmp (key, "strict") == 0)
    strict = *value == '1';
  else if (strcmp (key, "reads") == 0)
    reads = *value == '1';
  else if (strcmp (key, "control") == 0)
    control_file = value;
  else if (strcmp (key, "log") == 0)
    log_fd = open (value, O_WRONLY|O_APPEND|O_CREAT|O_CLOEXEC, 0666);
  else {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  return 0;
}

static int
context_thread_model (void)
{
  return model;
}

static void *
context_open (int readonly)
{
  unsigned *h = malloc (sizeof *h);

  (void) readonly;
  if (h)
    *h = atomic_fetch_add (&nr_handles, 1);
  return h;
}

static void
context_close (void *handle)
{
  unsigned *h = handle;

  log_line ("%u close\n", *h);
  free (h);
}

/* Returns the handle that is to disconnect, or -1. */
static int
obey (void)
{
  FILE *fp;
  int n, h;

  while (control_file) {
    fp = fopen (control_file, "re");
    n = fp ? fscanf (fp, "disconnect %d", &h) : EOF;
    if (fp)
      fclose (fp);
    if (n == EOF)
      break;
    if (n == 1)
      return h;
    usleep (1000);
  }
  return -1;
}

#ifdef ASK_NAME
/* Returns 1 if all went well. */
static int
intern (unsigned h)
{
  char text[32];
  const char *copy;
  unsigned i;

  for (i = 0; i < interns; i++) {
    snprintf (text, sizeof text, "%u.%u", h, i);
    copy = nbdkit_strdup_intern (text);
    if (!copy || strcmp (copy, text) != 0)
      return 0;
  }
  return 1;
}
#endif

static int
ask (void *handle, const char *what)
{
  const unsigned h = *(unsigned *) handle;
  char name[64] = "", tls[16] = "", interned[16] = "", peer[192] = "",
    sleep[16] = "";
  int disconnect;

  (void) disconnect;
  if (atomic_fetch_add (&inside, 1) > 0 && !reads)
    log_line ("overlap\n");
  log_line ("%u %s\n", h, what);
  disconnect = obey ();

#ifdef ASK_NAME
  if (nbdkit_export_name) {
    const char *s = nbdkit_export_name ();

    snprintf (name, sizeof name, " name=%s", s ? s : "-");
  }
  if (nbdkit_is_tls) {
    int r = nbdkit_is_tls ();

    snprintf (tls, sizeof tls, " tls=%s", r == -1 ? "-" : r ? "1" : "0");
  }
  if (nbdkit_strdup_intern)
    snprintf (interned, sizeof interned, " intern=%d", intern (h));
#endif
#ifdef ASK_PEER
  if (nbdkit_peer_name) {
    struct sockaddr_un sa = { .sun_path = "" };
    socklen_t len = sizeof sa;
    int r = nbdkit_peer_name ((struct sockaddr *) &sa, &len);

    snprintf (peer, sizeof peer, " peer=%s", r == -1 ? "-" : sa.sun_path);
  }
  if (nbdkit_disconnect && disconnect == (int) h)
    nbdkit_disconnect (1);
#endif
#ifdef ASK_SLEEP
  if (nbdkit_nanosleep)
    snprintf (sleep, sizeof sleep, " sleep=%s",
              nbdkit_nanosleep (0, 1000000) == -1 ? "-" : "1");
#endif

  log_line ("%u%s%s%s%s%s\n", h, name, tls, interned, peer, sleep);
  atomic_fetch_sub (&inside, 1);
  if (strcmp (sleep, " sleep=-") == 0 ||
      (strict && strcmp (peer, " peer=-") == 0)) {
    nbdkit_set_error (EIO);
    return -1;
  }
  return 0;
}

static int
context_flush (void *handle, uint32_t flags)
{
  (void) flags;
  return ask (handle, "flush");
}

static int
context_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  memory_pread (handle, buf, count, offset, flags);
  return reads ? ask (handle, "read") : 0;
}

static void
context_unload (void)
{
  if (log_fd != -1)
    close (log_fd);
}

static struct nbdkit_plugin plugin = {
  .name              = "context",
  .version           = "1",
  .unload            = context_unload,
  .config            = context_config,
  .thread_model      = context_thread_model,
  .open              = context_open,
  .close             = context_close,
  .get_size          = memory_get_size,
  .pread             = context_pread,
  .pwrite            = memory_pwrite,
  .flush             = context_flush,
};

NBDKIT_REGISTER_PLUGIN (plugin)
