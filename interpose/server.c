/* The server that we are in: its command line, the environment that it
 * hands on, and the error of a request.
 */

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "interpose.h"
#include "oldglibc.h"

static enum purpose purpose;

/* True if ARG is the long option OPTION, or a beginning of it that
 * getopt_long takes since it has no less than UNAMBIGUOUS.
 */
static bool
is_option (const char *arg, const char *option, const char *unambiguous)
{
  return strncmp (arg, unambiguous, strlen (unambiguous)) == 0 &&
    strncmp (arg, option, strlen (arg)) == 0;
}

/* glibc hands a library's constructors what main gets. */
__attribute__ ((constructor)) static void
look_at_arguments (int argc, char **argv)
{
  int i;

  for (i = 1; i < argc && strcmp (argv[i], "--") != 0; i++)
    if (is_option (argv[i], "--dump-plugin", "--dump-p"))
      purpose = DUMP_PLUGIN;
    else if (is_option (argv[i], "--help", "--h"))
      purpose = HELP;
    else if (is_option (argv[i], "--version", "--vers") ||
             strcmp (argv[i], "-V") == 0)
      purpose = VERSION;
}

enum purpose
server_purpose (void)
{
  return purpose;
}

bool
filter_loaded (const char *name)
{
  const struct link_map *map;
  char file[64];
  const char *last;

  snprintf (file, sizeof file, "/nbdkit-%s-filter.so", name);
  for (map = own_link_map (); map != NULL; map = map->l_next) {
    last = strrchr (map->l_name, '/');
    if (last != NULL && strcmp (last, file) == 0)
      return true;
  }
  return false;
}

/* True if the LD_PRELOAD entry of LEN bytes at ENTRY is this library,
 * which the loader knows as OWN.  An entry without a slash was searched
 * for, and one with a '$' was expanded: there the last part of the name
 * has to do.
 */
static bool
is_own_entry (const char *entry, size_t len, const char *own)
{
  char path[PATH_MAX];
  const char *last, *own_last = strrchr (own, '/');
  struct stat st, own_st;

  if (len >= sizeof path)
    return false;
  memcpy (path, entry, len);
  path[len] = '\0';
  if (strcmp (path, own) == 0)
    return true;

  last = strrchr (path, '/');
  if (last != NULL && strchr (path, '$') == NULL)
    return stat (path, &st) == 0 && stat (own, &own_st) == 0 &&
      st.st_dev == own_st.st_dev && st.st_ino == own_st.st_ino;
  return strcmp (last ? last + 1 : path, own_last ? own_last + 1 : own) == 0;
}

int
leave_environment (void)
{
  static const char separators[] = " :";
  const struct link_map *own = own_link_map ();
  const char *value = getenv ("LD_PRELOAD"), *p;
  char *rest;
  size_t len, out = 0;
  int r;

  if (value == NULL || own == NULL)
    return 0;
  rest = malloc (strlen (value) + 1);
  if (rest == NULL)
    return -1;

  /* Copy all entries but ours, each with the separators before it. */
  for (p = value; *p != '\0'; p += len) {
    size_t sep = strspn (p, separators);

    len = sep + strcspn (p + sep, separators);
    if (!is_own_entry (p + sep, len - sep, own->l_name)) {
      memcpy (rest + out, p, len);
      out += len;
    }
  }
  rest[out] = '\0';

  p = rest + strspn (rest, separators);
  r = *p != '\0' ? setenv ("LD_PRELOAD", p, 1) : unsetenv ("LD_PRELOAD");
  free (rest);
  return r;
}

/* On the server's own threads nbdkit_set_error stores into a record of
 * the thread's, which the server reads after the callback; no function
 * tells what is there.  But a flush that stands for several must report
 * the error of the first that failed, and tell it to other threads.
 *
 * The record hangs on a pthread key.  Which one shows when it is taken
 * away for a moment: nbdkit_set_error then falls back to errno.  Where in
 * the record the error stands shows when two values are stored in turn.
 */
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
