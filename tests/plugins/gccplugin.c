/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin for GCC, not for nbdkit: it also exports plugin_init, with other
 * arguments and another result.  It says hello, and fails if $GCCPLUGIN_FAIL
 * is set, which does not need the types of GCC's headers.
 */

#include <stdio.h>
#include <stdlib.h>

int plugin_is_GPL_compatible;

int plugin_init (void *info, void *version);

int
plugin_init (void *info, void *version)
{
  fprintf (stderr, "gccplugin: %s\n",
           info && version ? "loaded" : "called without arguments");
  return getenv ("GCCPLUGIN_FAIL") ? 1 : 0;
}
