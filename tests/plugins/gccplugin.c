/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin of GCC, not of nbdkit: it too exports plugin_init, with other
 * arguments and another result.  The types of GCC's headers are not
 * needed to say hello, and to fail if $GCCPLUGIN_FAIL is set.
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
