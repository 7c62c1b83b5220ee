/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The environment of other programs: see environment.h. */

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "environment.h"
#include "loader.h"
#include "oldglibc.h"

/* What follows the last $LIB, ${ORIGIN} and the like in PATH. */
static const char *
after_variables (const char *path)
{
  static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_";
  const char *p = strrchr (path, '$') + 1;

  if (*p == '{')
    return p + strcspn (p, "}") + (strchr (p, '}') != NULL);
  return p + strspn (p, letters);
}

/* True if the LD_PRELOAD entry of LEN bytes at ENTRY is this library,
 * which the loader knows as OWN.  The loader has searched for an entry
 * without a slash: compare only the last part of the name.  It has expanded
 * an entry with a '$': compare what is around that.
 */
static bool
is_own_entry (const char *entry, size_t len, const char *own)
{
  char path[PATH_MAX];
  const char *p, *own_last = strrchr (own, '/');
  struct stat st, own_st;

  if (len >= sizeof path)
    return false;
  memcpy (path, entry, len);
  path[len] = '\0';
  if (strcmp (path, own) == 0)
    return true;

  p = strchr (path, '$');
  if (p != NULL) {
    size_t before = p - path, own_len = strlen (own), after;

    p = after_variables (path);
    after = strlen (p);
    return own_len >= before + after && memcmp (path, own, before) == 0 &&
      strcmp (own + own_len - after, p) == 0;
  }
  if (strchr (path, '/') != NULL)
    return stat (path, &st) == 0 && stat (own, &own_st) == 0 &&
      st.st_dev == own_st.st_dev && st.st_ino == own_st.st_ino;
  return strcmp (path, own_last ? own_last + 1 : own) == 0;
}

/* Take this library out of LIST, in place, with the separators before it.
 * Returns true if nothing is left.
 */
static bool
leave_list (char *list, const char *own)
{
  static const char separators[] = " :";
  const char *p;
  char *out = list;
  size_t len;

  for (p = list; *p != '\0'; p += len) {
    size_t sep = strspn (p, separators);

    len = sep + strcspn (p + sep, separators);
    if (!is_own_entry (p + sep, len - sep, own)) {
      memmove (out, p, len);
      out += len;
    }
  }
  *out = '\0';
  out = list + strspn (list, separators);
  memmove (list, out, strlen (out) + 1);
  return *list == '\0';
}

static const char variable[] = "LD_PRELOAD";
static char *original;          /* its value, as the loader had it */
static char *others;            /* what is left if it is twice there */

/* The value in ENTRY, or NULL if that is another variable. */
static char *
preload_in (char *entry)
{
  const size_t len = sizeof variable - 1;

  return strncmp (entry, variable, len) == 0 && entry[len] == '=' ?
    entry + len + 1 : NULL;
}

/* An environment may hold a variable twice: the loader takes the last
 * one, and getenv the first.
 */
void
leave_environment (void)
{
  const struct link_map *own = own_link_map ();
  char **p, **out = environ, *value;

  if (own == NULL || environ == NULL)
    return;
  if (original == NULL) {
    for (p = environ; *p != NULL; p++)
      if ((value = preload_in (*p)) != NULL) {
        free (original);
        original = strdup (value);
      }
  }
  for (p = environ; *p != NULL; p++) {
    value = preload_in (*p);
    if (value == NULL || !leave_list (value, own->l_name))
      *out++ = *p;
  }
  *out = NULL;
  if (others != NULL && getenv (variable) == NULL)
    setenv (variable, others, 1);
}

/* Without memory a server that is executed again runs without the library. */
void
return_to_environment (void)
{
  const char *left = getenv (variable);

  if (original == NULL)
    return;
  free (others);
  others = left ? strdup (left) : NULL;
  setenv (variable, original, 1);
}

static void __attribute__ ((destructor))
forget (void)
{
  free (original);
  free (others);
}
