/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What dlsym.c hands over to. */

#ifndef MCSHIM_SHIM_H
#define MCSHIM_SHIM_H

struct link_map;
struct nbdkit_plugin;
typedef struct nbdkit_plugin *(*plugin_init_fn) (void);

/* Given the registration function of the plugin MAP, returns the one that the
 * server must call instead.
 */
extern plugin_init_fn shim_plugin_init (plugin_init_fn original,
                                        const struct link_map *map);

#endif /* MCSHIM_SHIM_H */
