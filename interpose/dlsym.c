/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* dlsym, the one symbol that this library exports.
 *
 * nbdkit finds a plugin's registration function by the name
 * "plugin_init".  That look-up, the first one in the process that finds
 * something, gets our own function; every other look-up goes to the real
 * dlsym.  Only the first: the cc plugin also looks up "plugin_init", in
 * what it has compiled, and that must not be wrapped.
 *
 * dlsym begins in entry.S, which asks dlsym_target where to go.
 */

#include <dlfcn.h>
#include <stddef.h>

#include "loader.h"
#include "server.h"
#include "shim.h"

typedef void *(*dlsym_fn) (void *, const char *);

static dlsym_fn real_dlsym;

/* Find what dlsym (RTLD_NEXT, "dlsym") would be: the one after ours,
 * which may be another preloaded library's, and is finally glibc's.
 * Before glibc 2.34 that is in libdl, which the program may lack, or may
 * load only later.
 */
static void
find_real_dlsym (void)
{
  const struct link_map *map = own_link_map ();
  dlsym_fn fn = NULL;

  while (map != NULL && fn == NULL)
    if ((map = map->l_next) != NULL)
      fn = (dlsym_fn) function_of (map, "dlsym");
  real_dlsym = fn;
}

/* Returns what the server's look-up of "plugin_init" must find. */
static void *
lookup_plugin_init (void *handle, const char *name)
{
  static bool found;
  void *plugin_init = real_dlsym (handle, name);

  if (plugin_init == NULL || found)
    return plugin_init;
  found = true;
  return (void *) shim_plugin_init ((plugin_init_fn) plugin_init,
                                    link_map_of (handle));
}

static void *
lookup_nothing (void *handle, const char *name)
{
  (void) handle;
  (void) name;
  return NULL;
}

/* Returns the function to which a call of dlsym with these arguments goes. */
extern dlsym_fn dlsym_target (void *handle, const char *name);

dlsym_fn
dlsym_target (void *handle, const char *name)
{
  if (__builtin_expect (real_dlsym == NULL, 0)) {
    find_real_dlsym ();
    if (real_dlsym == NULL)
      return lookup_nothing;
  }

  if (__builtin_expect (same (name, "plugin_init"), 0) &&
      in_nbdkit () && handle != RTLD_DEFAULT && handle != RTLD_NEXT)
    return lookup_plugin_init;

  return real_dlsym;
}
