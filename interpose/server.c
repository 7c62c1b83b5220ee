/* The server that we are in: where the loader has put us, what the server
 * was started for, and which filters it has.
 */

#include <stdio.h>
#include <string.h>

#include "interpose.h"

/* The dynamic section of this library, which tells us apart in the
 * loader's list.
 */
extern ElfW(Dyn) _DYNAMIC[] __attribute__ ((visibility ("hidden")));

/* The loader's list, which it shows to debuggers.  dlinfo and
 * dl_iterate_phdr would do too, but other libraries interpose these.
 * Weak, as the library shall need libc alone.
 */
#pragma weak _r_debug

const struct link_map *
own_link_map (void)
{
  const struct link_map *map = &_r_debug ? _r_debug.r_map : NULL;

  while (map != NULL && map->l_ld != _DYNAMIC)
    map = map->l_next;
  return map;
}

static enum purpose purpose;
static bool readonly, filtered;

/* True if ARG is the long option OPTION, or a beginning of it that
 * getopt_long takes since it has no less than UNAMBIGUOUS.
 */
static bool
is_option (const char *arg, const char *option, const char *unambiguous)
{
  return strncmp (arg, unambiguous, strlen (unambiguous)) == 0 &&
    strncmp (arg, option, strlen (arg)) == 0;
}

/* True if ARG is one-letter options with 'r' among them.  What follows one
 * that has a value is its value.
 */
static bool
has_letter_r (const char *arg)
{
  return arg[0] == '-' && arg[1] != '-' &&
    arg[strcspn (arg, "rDegiPptuU")] == 'r';
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
    else if (is_option (argv[i], "--read-only", "--re") ||
             is_option (argv[i], "--readonly", "--re") ||
             has_letter_r (argv[i]))
      readonly = true;
    else if (strncmp (argv[i], "--fi", 4) == 0)
      filtered = true;
}

enum purpose
server_purpose (void)
{
  return purpose;
}

bool
opens_for_writing (void)
{
  return !readonly && !filtered;
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
