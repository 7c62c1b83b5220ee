/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The server's record of a thread: the error of a request, and whose
 * request it is.
 *
 * On the server's own threads nbdkit_set_error stores into the thread's
 * record, which the server reads after the callback; no function reads it
 * for us.  But a flush that stands for several must report the error of
 * the first that failed, and pass it to other threads.
 *
 * The record also says for which connection nbdkit_export_name and others
 * answer.  A flush of one connection's handle that runs on another's
 * thread must not get the other's answers.
 *
 * The record belongs to a pthread key.  To find the key, take its value
 * away for a moment: nbdkit_set_error then falls back to errno.  To find
 * the error in the record, store two values in turn.
 *
 * The connection comes after the error, and last.  From nbdkit 1.26 on
 * there are two words: the connection, and then the context of the handle,
 * which also points to the connection.
 *
 *              nbdkit_      export_name,   peer_*,       nanosleep
 *                           is_tls,        disconnect
 *                           *_intern
 *   1.14                                                 connection
 *   1.16 to 1.24            connection     connection    connection
 *   since 1.26              context        connection    connection
 *
 * Only the context can safely be lent to another thread.  The server
 * closes a connection's socket before it tells us that the connection
 * closes, and the next client may get the same file descriptor: what goes
 * by the socket might be about another client.  And nbdkit_nanosleep
 * fails when the connection's client leaves, which must not affect others
 * who wait for the flush.
 */

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "loader.h"
#include "must.h"
#include "oldglibc.h"
#include "record.h"
#include "server.h"

#define WORD sizeof (void *)

/* Where malloc_usable_size can't be asked: no record since nbdkit 1.10 is
 * smaller than the one there, which ends with the error, and none has more
 * than nine words.
 */
#define SMALLEST (3 * WORD + 8)
#define LARGEST (64 * WORD)

static pthread_mutex_t probe_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool have_record; /* the next three are known */
static pthread_key_t record_key;
static size_t record_size, error_offset;

/* The word that nbdkit_export_name uses, or 0 while it is not known. */
static _Atomic size_t whose_offset;
static _Atomic bool whose_is_settled;
static size_t inner_offset;     /* of the connection in a context */

/* What the plugin may call.  The first two are the name of the function,
 * or NULL.
 */
static const char *may_ask_name, *may_ask_peer;
static bool may_sleep, may_intern, may_disconnect, may_ask;

/* Held around a flush that may intern strings and has no connection: the
 * server then keeps them in one list, which has no lock.
 */
static pthread_mutex_t intern_lock = PTHREAD_MUTEX_INITIALIZER;

static bool
has_contexts (void)
{
  return nbdkit_next_context_open != NULL;
}

static void *
get_word (const char *record, size_t offset)
{
  void *word;

  memcpy (&word, record + offset, WORD);
  return word;
}

static void
put_word (char *record, size_t offset, void *word)
{
  memcpy (record + offset, &word, WORD);
}

/* This thread's, or NULL. */
static char *
get_record (void)
{
  return atomic_load (&have_record) ? pthread_getspecific (record_key) : NULL;
}

/* The thread has had a value for KEY, so this can't fail. */
static void
put_record (pthread_key_t key, const void *record)
{
  must (pthread_setspecific (key, record));
}

static bool
error_goes_to_errno (void)
{
  errno = 0;
  nbdkit_set_error (ESHUTDOWN);
  return errno == ESHUTDOWN;
}

/* Call it on a thread that has a record. */
static bool
is_record_key (pthread_key_t key, void *value)
{
  bool found;

  if (pthread_setspecific (key, NULL) != 0)
    return false;
  found = error_goes_to_errno ();
  put_record (key, value);
  return found;
}

static bool
find_error_offset (const char *record)
{
  const bool sized = allocator_knows_sizes ();
  size_t i, size = sized ? malloc_usable_size ((void *) record) : SMALLEST;
  int a, b;

  record_size = sized ? size : LARGEST;
  atomic_store (&whose_is_settled, !sized); /* what follows is not read */
  for (i = 0; i + sizeof (int) <= size; i += sizeof (int)) {
    nbdkit_set_error (ESHUTDOWN);
    memcpy (&a, record + i, sizeof a);
    nbdkit_set_error (ENOSPC);
    memcpy (&b, record + i, sizeof b);
    if (a == ESHUTDOWN && b == ENOSPC) {
      error_offset = i;
      return true;
    }
  }
  return false;
}

/* A filter may open the first handle on a thread that has no record. */
void
server_error_init (void)
{
  pthread_key_t key;
  void *value;

  if (atomic_load (&have_record) || error_goes_to_errno ())
    return;
  must (pthread_mutex_lock (&probe_lock));
  for (key = 0; !atomic_load (&have_record) && key < PTHREAD_KEYS_MAX; key++) {
    value = pthread_getspecific (key);
    if (value != NULL && is_record_key (key, value)) {
      record_key = key;
      atomic_store (&have_record, find_error_offset (value));
      nbdkit_set_error (0);
    }
  }
  must (pthread_mutex_unlock (&probe_lock));
}

/* A record that is all zero is what a new thread of the server starts with,
 * and no connection uses it.  The server's destructor frees it.  Without a
 * record nbdkit_set_error goes to errno, where other things go too.
 */
void
server_error_thread (void)
{
  void *record;

  if (!atomic_load (&have_record) || pthread_getspecific (record_key) != NULL)
    return;
  record = calloc (1, record_size);
  if (record != NULL && pthread_setspecific (record_key, record) != 0)
    free (record);
}

int
server_error (bool errno_is_preserved)
{
  int saved = errno, err = 0;
  const char *record = get_record ();

  if (record != NULL)
    memcpy (&err, record + error_offset, sizeof err);
  /* Without a record nbdkit_set_error has stored into errno. */
  if (err == 0 && (record == NULL || errno_is_preserved))
    err = saved;
  return err ? err : EIO;
}

void
context_init (const struct link_map *plugin)
{
  may_ask_peer = imports (plugin, "nbdkit_peer_");
  may_ask_name = imports (plugin, "nbdkit_export_name");
  if (may_ask_name == NULL)
    may_ask_name = imports (plugin, "nbdkit_is_tls");
  may_sleep = imports (plugin, "nbdkit_nanosleep");
  may_intern = imports (plugin, "nbdkit_strdup_intern") ||
    imports (plugin, "nbdkit_strndup_intern") ||
    imports (plugin, "nbdkit_printf_intern") ||
    imports (plugin, "nbdkit_vprintf_intern");
  may_disconnect = imports (plugin, "nbdkit_disconnect");
  may_ask = may_ask_peer || may_ask_name || may_sleep || may_intern ||
    may_disconnect;
}

/* Before 1.26 this is the connection with its socket, or nothing. */
static bool
may_be_lent (void)
{
  return !may_sleep && !may_ask_peer;
}

const char *
context_lacks (const struct context *c)
{
  if (!nbdkit_export_name)
    return NULL;                /* the others came with it, or later */
  if (may_ask_peer)
    return may_ask_peer;
  if (c->whose == NULL)
    return may_ask_name;
  return has_contexts () || may_be_lent () ? NULL : may_ask_name;
}

bool
context_travels (const struct context *c)
{
  return context_lacks (c) == NULL && !may_disconnect;
}

/* Call nbdkit_export_name with a record that has nothing but WHOSE. */
static const char *
name_by (char *record, size_t offset, void *whose)
{
  char *blank = calloc (1, record_size);
  const char *name;

  if (blank == NULL)
    return NULL;
  put_word (blank, offset, whose);
  put_record (record_key, blank);
  name = nbdkit_export_name ();
  put_record (record_key, record);
  free (blank);
  return name;
}

/* Find what nbdkit_export_name uses in RECORD, which is this thread's: the
 * last word that is set, if that alone gives the same answer.  If it is a
 * context, it must point to the connection, which is the word before.
 * Needs probe_lock.
 */
static void
find_whose (char *record)
{
  const char *name = nbdkit_export_name ();
  size_t offset = record_size / WORD * WORD, i, size;
  char *whose = NULL, *connection;

  if (name == NULL)
    return;                     /* opened for no connection: try the next */
  while (whose == NULL && offset >= error_offset + 3 * WORD) {
    offset -= WORD;
    whose = get_word (record, offset);
  }
  if (whose == NULL || name_by (record, offset, whose) != name) {
    atomic_store (&whose_is_settled, true);
    return;
  }

  if (has_contexts ()) {
    connection = get_word (record, offset - WORD);
    size = malloc_usable_size (whose);
    for (i = 0; i + WORD <= size; i += WORD)
      if (connection != NULL && get_word (whose, i) == connection)
        break;
    if (i + WORD > size)
      return;                   /* as above */
    inner_offset = i;
  }
  atomic_store (&whose_offset, offset);
  atomic_store (&whose_is_settled, true);
}

void
context_capture (struct context *c)
{
  char *record = get_record ();
  size_t offset;

  *c = (struct context) { .whose = NULL };
  if (record == NULL || !nbdkit_export_name)
    return;

  if (!atomic_load (&whose_is_settled)) {
    must (pthread_mutex_lock (&probe_lock));
    if (!atomic_load (&whose_is_settled))
      find_whose (record);
    must (pthread_mutex_unlock (&probe_lock));
  }

  offset = atomic_load (&whose_offset);
  if (offset == 0)
    return;
  c->whose = get_word (record, offset);
  c->interns = c->whose != NULL &&
    (!has_contexts () || get_word (c->whose, inner_offset) != NULL);
}

void
context_enter (const struct context *c, bool others, struct visit *v)
{
  const size_t offset = atomic_load (&whose_offset);
  const bool contexts = has_contexts (), lent = contexts || may_be_lent ();
  char *record = get_record ();
  bool own, interns = true;     /* into a list of the connection's */

  *v = (struct visit) { .record = record, .bare = record == NULL };
  if (record != NULL)
    memcpy (&v->error, record + error_offset, sizeof v->error);
  if (record == NULL)
    interns = false;
  else if (offset != 0) {
    v->offset = offset;
    v->whose = get_word (record, offset);
    v->connection = get_word (record, offset - WORD);
    own = c->whose != NULL && v->whose == c->whose;
    interns = c->interns;
    if (!own || c->closing || (others && may_sleep)) {
      put_word (record, offset, lent ? c->whose : NULL);
      interns = interns && lent;
      v->bare = true;
      if (contexts)
        put_word (record, offset - WORD, NULL);
    }
  }
  else if (others && may_ask) {
    /* Without a record, the server takes the thread as not its own. */
    v->hidden = v->bare = true;
    put_record (record_key, NULL);
    interns = false;
  }

  v->locked = may_intern && !interns;
  if (v->locked)
    must (pthread_mutex_lock (&intern_lock));
}

void
context_leave (const struct visit *v)
{
  if (v->locked)
    must (pthread_mutex_unlock (&intern_lock));
  if (v->hidden)
    put_record (record_key, v->record);
  if (v->record != NULL)
    memcpy (v->record + error_offset, &v->error, sizeof v->error);
  if (v->offset != 0) {
    put_word (v->record, v->offset, v->whose);
    if (has_contexts ())
      put_word (v->record, v->offset - WORD, v->connection);
  }
}

/* nbdkit_nanosleep fails if the server ends, or the client of the connection
 * has gone: without one only the former.
 */
bool
server_ends (void)
{
  const size_t offset = atomic_load (&whose_offset);
  const size_t first = has_contexts () ? offset - WORD : offset;
  char *record = get_record (), words[2 * WORD];
  bool ends;

  if (record == NULL || offset == 0)
    return false;
  memcpy (words, record + first, offset + WORD - first);
  memset (record + first, 0, offset + WORD - first);
  ends = nbdkit_nanosleep (0, 1) == -1;
  memcpy (record + first, words, offset + WORD - first);
  return ends;
}
