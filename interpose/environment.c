/* The environment that the server hands on to the programs it starts. */

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "interpose.h"
#include "oldglibc.h"

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
