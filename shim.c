/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Registration, start and end, and the table of what is wrapped.
 *
 * The server asks for plugin_init and gets register_plugin, which calls
 * the plugin's own and returns an altered copy of its struct.  The callbacks
 * are here if there is no connection, and otherwise in connection.c and
 * requests.c.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "interpose/environment.h"
#include "interpose/server.h"
#include "requests.h"
#include "shim.h"
#include "statsfile.h"

static plugin_init_fn plugin_init;
static struct nbdkit_plugin wrapped; /* as the server gets it */

static const struct replicate_ops ops = {
  .flush = flush_one,
  .helper_starts = server_error_thread,
  .server_ends = server_ends,
};

static void
shim_unload (void)
{
  /* If there was neither after_fork nor client. */
  statsfile_keep (plugin.name, thread_model_name ());
  statsfile_end ();
  replicate_free (free_handle);
  policy_free (&policy);
  if (plugin.unload)
    plugin.unload ();
}

/* A plugin may execute the server again, as vddk does with another
 * LD_LIBRARY_PATH: from one of these, in which the environment has the
 * library.  Nothing is said before they have returned.
 */
static void
shim_dump_plugin (void)
{
  return_to_environment ();
  plugin.dump_plugin ();
  leave_environment ();
}

static int
shim_config_complete (void)
{
  int r;

  return_to_environment ();
  r = plugin.config_complete ();
  leave_environment ();
  return r;
}

/* The server (since 1.18) calls this once the thread model is settled and
 * the filters are loaded.
 */
static int
shim_get_ready (void)
{
  if (plugin.get_ready) {
    return_to_environment ();
    if (plugin.get_ready () == -1)
      return -1;
    leave_environment ();
  }
  log_settings ();
  log_foreseen ();
  /* There is no after_fork before nbdkit 1.26, nor in a build for that. */
  if ((NBDKIT_VERSION_MINOR < 26 || !nbdkit_next_context_open) &&
      stays_in_process ())
    statsfile_write (plugin.name, thread_model_name ());
  return 0;
}

#if NBDKIT_VERSION_MINOR >= 26
static int
shim_after_fork (void)
{
  const int r = plugin.after_fork ? plugin.after_fork () : 0;

  if (r != -1)
    statsfile_keep (plugin.name, thread_model_name ());
  return r;
}
#endif

/* With several handles a plugin that takes one request at a time is called
 * in parallel, each time with another handle.
 */
static int
model_for_server (void)
{
  return nr_handles > 1 && server_purpose () == SERVE ?
    NBDKIT_THREAD_MODEL_PARALLEL : thread_model;
}

/* nbdkit 1.14 to 1.18 ask again for each connection, and the plugin may run
 * a script: remember the answer.  The first time there is no other thread.
 */
static int
shim_thread_model (void)
{
  static int model = -1;

  if (model == -1) {
    model = plugin.thread_model ();
    if (model != -1 && model < thread_model)
      set_thread_model (model);
    if (model != -1)
      model = model_for_server ();
  }
  return model;
}

/* Errors here end the server before it serves anyone.  All of them are
 * reported, not only the first.
 */
static void
load_policy (void)
{
  bool ok = policy_load (&policy, environ, complain) == 0;

  if (policy.exportname && !nbdkit_export_name) {
    complain ("MCSHIM_EXPORTNAME: 'true' needs nbdkit 1.16 or later, which "
              "this is not: must be false");
    ok = false;
  }
  if (policy.stats_file && server_purpose () == SERVE &&
      statsfile_claim (&policy) == -1) {
    char line[1024];

    snprintf (line, sizeof line, errno == EWOULDBLOCK ?
              "MCSHIM_STATS_FILE: '%.512s' belongs to a running server: "
              "must be another path for each (%%p is the process ID)" :
              "MCSHIM_STATS_FILE: '%.512s' can't be written: %m: must be the "
              "path of a file, in a directory that exists",
              policy.stats_file);
    complain (line);
    ok = false;
  }
  if (!ok)
    exit (EXIT_FAILURE);
}

/* Our own lines come after those about the plugin. */
static void
print_last (void)
{
  if (server_purpose () == DUMP_PLUGIN) {
    printf ("mcshim_version=%s\nmcshim_mode=%s\n",
            MCSHIM_VERSION, mode_name (policy.mode));
    if (policy.handles > 1)
      printf ("mcshim_handles=%u\n", nr_handles);
  }
  else if (server_purpose () == HELP) {
    printf ("\nmcshim %s is preloaded (see libmcshim(7)), "
            "and its variables are:\n", MCSHIM_VERSION);
    policy_print_knobs ();
  }
}

static void
wrap (void)
{
  wrapped = plugin;
  wrapped._struct_size = sizeof wrapped;
  wrapped._thread_model = model_for_server ();
#define WRAP(callback)                                  \
  if (wrapped.callback)                                 \
    wrapped.callback = shim_##callback;
  WRAP (dump_plugin)
  WRAP (config_complete)
  WRAP (thread_model)
  WRAP (open)
  WRAP (export_description)
  QUESTIONS (WRAP)
#if NBDKIT_VERSION_MINOR >= 30
  WRAP (block_size)
#endif
  REQUESTS (WRAP)
#undef WRAP
  if (wrapped._zero_v1)
    wrapped.zero = NULL;
  /* Also where the plugin has none. */
  wrapped.can_multi_conn = shim_can_multi_conn;
  wrapped.close = shim_close;
}

static struct nbdkit_plugin *
register_plugin (void)
{
  struct nbdkit_plugin *original = plugin_init ();
  size_t size = sizeof plugin;

  /* Let the server judge it. */
  if (original == NULL ||
      original->_api_version < 1 || original->_api_version > 2)
    return original;

  if (original->_struct_size < size)
    size = original->_struct_size;
  memcpy (&plugin, original, size);

  load_policy ();
  leave_environment ();
  replicate_init (&policy, &ops);
  set_thread_model (plugin._thread_model);
  if (server_purpose () == SERVE)
    adapt_version_1 ();
  wrap ();

  if (server_purpose () != SERVE) {
    if (atexit (print_last) != 0) {
      complain ("no memory");
      exit (EXIT_FAILURE);
    }
    policy_free (&policy);      /* there is nothing to count */
  }
  /* The callbacks that the plugin lacks stay absent. */
  if (server_purpose () == DUMP_PLUGIN)
    return &wrapped;

  wrapped.get_ready = shim_get_ready;
#if NBDKIT_VERSION_MINOR >= 26
  wrapped.after_fork = shim_after_fork;
#endif
  wrapped.unload = shim_unload;
  return &wrapped;
}

plugin_init_fn
shim_plugin_init (plugin_init_fn original, const struct link_map *map)
{
  plugin_init = original;
  context_init (map);
  return register_plugin;
}
