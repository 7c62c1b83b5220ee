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

#include "interpose.h"

/* Nothing on the way to the real dlsym calls a C library function: other
 * preloaded libraries, such as a sanitizer's runtime, interpose these, and
 * call dlsym before they are ready themselves.
 */
static bool
same (const char *a, const char *b)
{
  while (*a != '\0' && *a == *b)
    a++, b++;
  return *a == *b;
}

typedef void *(*dlsym_fn) (void *, const char *);

static dlsym_fn real_dlsym;

/* glibc adds the load address to the pointers in a dynamic section,
 * except where that section is read-only (the vDSO, some machines).  A
 * prelinked library can have a negative one.
 */
static const void *
dynamic_pointer (const struct link_map *map, ElfW(Sxword) tag)
{
  const ElfW(Dyn) *dyn;

  for (dyn = map->l_ld; dyn->d_tag != DT_NULL; dyn++)
    if (dyn->d_tag == tag)
      return (const void *) ((ElfW(Sxword)) map->l_addr > 0 &&
                             dyn->d_un.d_ptr < map->l_addr ?
                             map->l_addr + dyn->d_un.d_ptr :
                             dyn->d_un.d_ptr);
  return NULL;
}

/* How many symbols MAP has.  DT_HASH tells; DT_GNU_HASH, which has
 * replaced it, does not, but the last chain ends at the last symbol.
 */
static size_t
count_symbols (const struct link_map *map)
{
  const Elf_Symndx *hash = dynamic_pointer (map, DT_HASH);
  const uint32_t *gnu = dynamic_pointer (map, DT_GNU_HASH);
  const uint32_t *buckets, *chain;
  uint32_t i, last = 0;

  if (gnu != NULL) {
    buckets = gnu + 4 + gnu[2] * (sizeof (ElfW(Addr)) / 4);
    chain = buckets + gnu[0];
    for (i = 0; i < gnu[0]; i++)
      if (buckets[i] > last)
        last = buckets[i];
    if (last == 0)
      return 0;
    while ((chain[last - gnu[1]] & 1) == 0)
      last++;
    return last + 1;
  }
  return hash ? hash[1] : 0;
}

/* The function NAME that MAP defines, or NULL.  If it has several versions,
 * the default one.
 */
static void *
function_of (const struct link_map *map, const char *name)
{
  const ElfW(Sym) *sym = dynamic_pointer (map, DT_SYMTAB);
  const char *str = dynamic_pointer (map, DT_STRTAB);
  const ElfW(Half) *ver = dynamic_pointer (map, DT_VERSYM);
  size_t i, n = count_symbols (map);
  const ElfW(Half) hidden = 0x8000;

  for (i = 0; i < n; i++)
    if (sym[i].st_shndx != SHN_UNDEF &&
        (ver == NULL || (ver[i] & hidden) == 0) &&
        same (str + sym[i].st_name, name))
      return (void *) (map->l_addr + sym[i].st_value);
  return NULL;
}

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

/* The plugin, once it is found. */
static const struct link_map *plugin;

/* glibc's handle of a library is its place in the loader's list. */
static const struct link_map *
link_map_of (const void *handle)
{
  const struct link_map *map = own_link_map ();

  while (map != NULL && map != handle)
    map = map->l_next;
  return map;
}

static bool
begins_with (const char *name, const char *prefix)
{
  while (*prefix != '\0' && *name == *prefix)
    name++, prefix++;
  return *prefix == '\0';
}

const char *
plugin_imports (const char *prefix)
{
  const ElfW(Sym) *sym;
  const char *str;
  size_t i, n;

  if (plugin == NULL)
    return NULL;
  sym = dynamic_pointer (plugin, DT_SYMTAB);
  str = dynamic_pointer (plugin, DT_STRTAB);
  n = count_symbols (plugin);
  for (i = 0; i < n; i++)
    if (sym[i].st_shndx == SHN_UNDEF &&
        begins_with (str + sym[i].st_name, prefix))
      return str + sym[i].st_name;
  return NULL;
}

bool
allocator_knows_sizes (void)
{
  const struct link_map *map = own_link_map ();

  while (map != NULL && map->l_prev != NULL)
    map = map->l_prev;
  while (map != NULL && function_of (map, "calloc") == NULL)
    map = map->l_next;
  return map != NULL && function_of (map, "malloc_usable_size") != NULL;
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
  plugin = link_map_of (handle);
  return (void *) shim_plugin_init ((plugin_init_fn) plugin_init);
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
