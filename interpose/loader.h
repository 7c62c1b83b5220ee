/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What the dynamic loader knows.  Nothing here calls a C library function:
 * other preloaded libraries, such as a sanitizer's runtime, interpose these,
 * and call dlsym before they are ready themselves.
 */

#ifndef MCSHIM_LOADER_H
#define MCSHIM_LOADER_H

#include <link.h>
#include <stdbool.h>

static inline bool
same (const char *a, const char *b)
{
  while (*a != '\0' && *a == *b)
    a++, b++;
  return *a == *b;
}

/* This library as the dynamic loader knows it, or NULL if it can't be
 * found.
 */
extern const struct link_map *own_link_map (void);

/* The library that dlopen has returned as HANDLE, or NULL. */
extern const struct link_map *link_map_of (const void *handle);

/* The function NAME that MAP defines, or NULL.  If it has several versions,
 * the default one.
 */
extern void *function_of (const struct link_map *map, const char *name);

/* The first function that MAP imports whose name begins with PREFIX, or
 * NULL.
 */
extern const char *imports (const struct link_map *map, const char *prefix);

/* True if malloc_usable_size comes from the library that calloc comes from.
 * Beside libmemusage or DUMA it does not, and reads anything as a size.
 */
extern bool allocator_knows_sizes (void);

#endif /* MCSHIM_LOADER_H */
