/* The server's record of a thread, which holds the error of a request.
 *
 * On the server's own threads nbdkit_set_error stores into a record of
 * the thread's, which the server reads after the callback; no function
 * tells what is there.  But a flush that stands for several must report
 * the error of the first that failed, and tell it to other threads.
 *
 * The record hangs on a pthread key.  Which one shows when it is taken
 * away for a moment: nbdkit_set_error then falls back to errno.  Where in
 * the record the error stands shows when two values are stored in turn.
 */

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "interpose.h"
#include "oldglibc.h"

static pthread_mutex_t probe_lock = PTHREAD_MUTEX_INITIALIZER;
static bool probed;
static bool have_record;        /* the next two are known */
static pthread_key_t record_key;
static size_t record_size, error_offset;

static bool
is_record_key (pthread_key_t key, void *value)
{
  bool found;

  if (pthread_setspecific (key, NULL) != 0)
    return false;
  errno = 0;
  nbdkit_set_error (ESHUTDOWN);
  found = errno == ESHUTDOWN;
  if (pthread_setspecific (key, value) != 0)
    abort ();                   /* it was there a moment ago */
  return found;
}

static bool
find_error_offset (const char *record)
{
  size_t i;
  int a, b;

  record_size = malloc_usable_size ((void *) record);
  for (i = 0; i + sizeof (int) <= record_size; i += sizeof (int)) {
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

void
server_error_init (void)
{
  pthread_key_t key;
  void *value;

  if (pthread_mutex_lock (&probe_lock) != 0)
    abort ();
  for (key = 0; !probed && key < PTHREAD_KEYS_MAX; key++) {
    value = pthread_getspecific (key);
    if (value != NULL && is_record_key (key, value)) {
      have_record = find_error_offset (value);
      record_key = key;
      probed = true;
      nbdkit_set_error (0);
    }
  }
  probed = true;
  if (pthread_mutex_unlock (&probe_lock) != 0)
    abort ();
}

/* All zero, the record is what a new thread of the server's starts with,
 * and no connection uses it.  The server's destructor frees it.  Without
 * one nbdkit_set_error goes to errno, where other things go too.
 */
void
server_error_thread (void)
{
  void *record;

  if (!have_record || pthread_getspecific (record_key) != NULL)
    return;
  record = calloc (1, record_size);
  if (record != NULL && pthread_setspecific (record_key, record) != 0)
    free (record);
}

int
server_error (bool errno_is_preserved)
{
  int saved = errno, err = 0;
  const char *record = have_record ? pthread_getspecific (record_key) : NULL;

  if (record != NULL)
    memcpy (&err, record + error_offset, sizeof err);
  /* Without a record nbdkit_set_error has stored into errno. */
  if (err == 0 && (record == NULL || errno_is_preserved))
    err = saved;
  return err ? err : EIO;
}
