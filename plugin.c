/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The plugin that is wrapped: see plugin.h. */

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "interpose/server.h"
#include "plugin.h"
#include "replicate.h"

struct nbdkit_plugin plugin;
struct policy policy;
int thread_model;
unsigned nr_handles = 1;

const char *
thread_model_name (void)
{
  static const char *const names[] = {
    [NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS] = "serialize_connections",
    [NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS] = "serialize_all_requests",
    [NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS] = "serialize_requests",
  };

  return (unsigned) thread_model < NBDKIT_THREAD_MODEL_PARALLEL ?
    names[thread_model] : "parallel";
}

void
set_thread_model (int model)
{
  thread_model = model;
  nr_handles =
    policy_handles (&policy, plugin.name,
                    model >= NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS);
  replicate_set_thread_model
    (model >= NBDKIT_THREAD_MODEL_PARALLEL ? PARALLEL :
     model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS ? SERIALIZE_HANDLE :
     SERIALIZE_ALL);
}

struct traits
struct_traits (bool readonly)
{
  return (struct traits) {
    .plugin = plugin.name,
    .connections_serialized =
      thread_model <= NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS,
    .can_flush = plugin.flush,
    .readonly = readonly || !plugin.pwrite,
    .rewritten = filter_rewrites (),
    .handles = nr_handles,
  };
}

void
complain (const char *line)
{
  char text[1100];

  snprintf (text, sizeof text, "mcshim: %s", line);
  fprintf (stderr, "%s\n", one_line (text));
}

/* To the server's log. */
static void __attribute__ ((format (printf, 1, 2)))
say (const char *fmt, ...)
{
  char line[512];
  va_list args;

  va_start (args, fmt);
  vsnprintf (line, sizeof line, fmt, args);
  va_end (args);
  server_log (one_line (line));
}

void
log_settings (void)
{
  static atomic_flag logged = ATOMIC_FLAG_INIT;

  if (atomic_flag_test_and_set (&logged))
    return;
  if (policy.mode != MODE_DISABLE && handle_single_connection)
    say ("mcshim: this nbdkit is older than 1.10 and cannot advertise "
         "multi-conn: clients will not use it");
  if (policy.mode == MODE_UNSAFE)
    say ("mcshim: warning: MCSHIM_MODE=unsafe: clients are told that a flush "
         "counts for all connections, and nothing makes that true");
  nbdkit_debug ("mcshim %s: plugin %s: API version %d, %s, mode %s, "
                "level %s", MCSHIM_VERSION, plugin.name, plugin._api_version,
                thread_model_name (), mode_name (policy.mode),
                level_name (policy.level));
  if (policy.handles > 1)
    nbdkit_debug ("mcshim: handles of a connection: %u%s", nr_handles,
                  nr_handles > 1 ? "" : ": MCSHIM_HANDLES has no effect with "
                  "this plugin, or its thread model");
}

/* The one line at a normal start. */
static void
log_mode (const char *words)
{
  say ("mcshim " MCSHIM_VERSION ": %.64s: %s; dirty level %s, handles %u",
       plugin.name, words, level_name (policy.level), nr_handles);
}

void
log_resolution (const struct resolution *r)
{
  static atomic_uint logged;
  static atomic_flag noticed = ATOMIC_FLAG_INIT;
  const unsigned bit = 1u << r->verdict;

  if (!(atomic_fetch_or (&logged, bit) & bit))
    log_mode (verdict_words (r->verdict));
  if (r->notice && !atomic_flag_test_and_set (&noticed))
    say ("mcshim: %s", r->notice);
}

/* That the plugin imports the function tells little: an interpreter's module
 * imports all that there are.
 */
void
log_failed_flush (const struct context *c)
{
  static atomic_flag said = ATOMIC_FLAG_INIT;
  const char *function = context_lacks (c);

  if (function != NULL && !atomic_flag_test_and_set (&said))
    say ("mcshim: warning: a flush has failed, and the %.64s plugin uses "
         "%.64s, which fails in a flush that other connections wait for",
         plugin.name, function);
}

/* Every connection will settle on the same, if the options and the plugin's
 * struct decide it, whatever the plugin will answer.
 */
void
log_foreseen (void)
{
  const int readonly = opens_read_only ();
  enum verdict first = NR_VERDICTS;
  struct resolution r;
  unsigned answers;
  bool same = true;
  char words[64];
  const char *one_at_a_time = filter_loaded ("retry") ? "retry" :
    filter_loaded ("xz") ? "xz" : NULL;

  if (filter_loaded ("multi-conn"))
    say ("mcshim: warning: the multi-conn filter is loaded too: what it does "
         "is done twice, or wrong where requests overlap; leave it out");
  if (nr_handles > 1 && one_at_a_time != NULL)
    say ("mcshim: the %s filter lets one request at a time through: handles "
         "serve the pieces of requests above %lluK", one_at_a_time,
         (unsigned long long) policy_stripe (&policy, 0) / 1024);
  for (answers = 0; answers < 8; answers++) {
    struct traits t = struct_traits (readonly == 1);

    if (plugin.can_multi_conn && (answers & 1))
      t.multi_conn = true;
    if (plugin.can_flush && !(answers & 2))
      t.can_flush = false;
    if ((readonly == -1 || plugin.can_write) && (answers & 4))
      t.readonly = true;
    r = policy_resolve (&policy, &t);
    if (answers == 0)
      first = r.verdict;
    same = same && r.verdict == first;
  }
  if (same)
    log_resolution (&r);
  else {
    snprintf (words, sizeof words, "%s, settled as clients connect",
              mode_name (policy.mode));
    log_mode (words);
  }
}
