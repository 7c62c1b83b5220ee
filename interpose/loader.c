/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What the dynamic loader knows: see loader.h. */

#include <stddef.h>
#include <stdint.h>

#include "loader.h"

/* The dynamic section of this library, by which we find ourselves in the
 * loader's list.
 */
extern ElfW(Dyn) _DYNAMIC[] __attribute__ ((visibility ("hidden")));

/* The loader's list, which it shows to debuggers.  dlinfo and
 * dl_iterate_phdr would also do, but other libraries interpose these.
 * Weak, as the library must need only libc.
 */
#ifdef __GLIBC__
#pragma weak _r_debug
#define DEBUGGERS_VIEW (&_r_debug)
#else
extern struct r_debug *_dl_debug_addr; /* musl's */
#define DEBUGGERS_VIEW _dl_debug_addr
#endif

const struct link_map *
own_link_map (void)
{
  const struct r_debug *view = DEBUGGERS_VIEW;
  const struct link_map *map = view ? view->r_map : NULL;

  while (map != NULL && map->l_ld != _DYNAMIC)
    map = map->l_next;
  return map;
}

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

void *
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

/* glibc's handle of a library is its place in the loader's list. */
const struct link_map *
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
imports (const struct link_map *map, const char *prefix)
{
  const ElfW(Sym) *sym = map ? dynamic_pointer (map, DT_SYMTAB) : NULL;
  const char *str = map ? dynamic_pointer (map, DT_STRTAB) : NULL;
  size_t i, n = map ? count_symbols (map) : 0;

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
