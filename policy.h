/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The knobs, and every decision that follows from them.
 *
 * Environment variables become a struct policy.  A struct policy and
 * what the plugin says about one connection become a struct resolution.
 * Nothing here depends on threads, handles or nbdkit, so all of it can
 * be tested without a server.
 */

#ifndef MCSHIM_POLICY_H
#define MCSHIM_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* MCSHIM_MODE */
enum mode {
  MODE_AUTO,
  MODE_EMULATE,
  MODE_PLUGIN,
  MODE_DISABLE,
  MODE_UNSAFE,
};

/* MCSHIM_TRACK_DIRTY: which plugin flushes may be skipped. */
enum level {
  LEVEL_CONNECTION,
  LEVEL_FAST,
  LEVEL_OFF,
};

/* Most plugin flushes of one replicated flush that may run at once. */
#define FLUSH_THREADS_MAX 64

/* Most handles of the plugin that one connection may use. */
#define HANDLES_MAX 64

/* Bytes, where neither the user nor the plugin tells. */
#define BLOCK_DEFAULT 4096

struct policy {
  enum mode mode;               /* MCSHIM_MODE */
  enum level level;             /* MCSHIM_TRACK_DIRTY */
  bool exportname;              /* MCSHIM_EXPORTNAME */
  bool flush_on_close;          /* MCSHIM_FLUSH_ON_CLOSE */
  unsigned flush_threads;       /* MCSHIM_FLUSH_THREADS, 0 is auto */
  unsigned handles;             /* MCSHIM_HANDLES */
  uint32_t stripe;              /* MCSHIM_STRIPE, a power of two, or 0 */
  uint32_t block;               /* MCSHIM_BLOCK, a power of two; 0 if unset */
  char *stats_file;             /* MCSHIM_STATS_FILE, absolute, or NULL */
  size_t stats_dir;             /* where in it the user's own path begins */
};

/* Fill in *P from the environment ENV ("NAME=value" strings, NULL at
 * the end).  COMPLAIN is called with a line of text, without a newline, for
 * each variable that is wrong.  The user's words in it may have any character.
 *
 * Returns 0, or -1 if anything was wrong.  P->stats_file is malloced;
 * policy_free frees it, in either case.
 */
int policy_load (struct policy *p, char *const env[],
                 void (*complain) (const char *line));
void policy_free (struct policy *p);

/* Print each knob, with the values it takes, to stdout. */
void policy_print_knobs (void);

const char *mode_name (enum mode mode);
const char *level_name (enum level level);

/* A group's first connection settles its kind, until the group is empty. */
enum group_kind {
  UNSETTLED,
  REPLICATES,
  PASSES_ON,                    /* flushes go to their own handle */
};

/* What the plugin says about a connection as it opens. */
struct traits {
  const char *plugin;           /* its name */
  bool connections_serialized;  /* thread model SERIALIZE_CONNECTIONS */
  bool multi_conn;              /* plugin advertises multi-conn */
  bool can_flush;               /* plugin has a flush, and says it works */
  bool readonly;                /* opened read-only, or can_write false */
  bool rewritten;               /* a filter rewrites whole blocks */
  unsigned handles;             /* how many it may use */
  enum group_kind group;        /* if it is not as this connection would have
                                 * it */
};

/* The mode that a connection ends up in, and why. */
enum verdict {
  EMULATE,
  EMULATE_AS_OTHERS,
  PLUGIN_HAS_FLAG,
  PLUGIN_HAS_NO_FLAG,
  PLUGIN_READ_ONLY,
  DISABLE_APART,
  DISABLE_OPENS_ONCE,
  DISABLE_REWRITTEN,
  DISABLE_AS_OTHERS,
  DISABLE_NO_FLUSH,
  DISABLE_SERIALIZED,
  DISABLE_SET,
  UNSAFE_SET,
  NR_VERDICTS
};

/* The log, the statistics and --probe use the same words. */
const char *verdict_words (enum verdict verdict);

/* What follows for the connection. */
struct resolution {
  enum verdict verdict;
  bool advertise;               /* answer to can_multi_conn */
  bool replicate;               /* a flush goes to the whole group */
  bool fua_is_flush;            /* also where the plugin has its own */
  unsigned handles;             /* how many it uses */
  const char *refusal;          /* why to refuse the connection, or NULL */
  const char *notice;           /* what to say once about the plugin */
};

/* How many handles of PLUGIN, its name, a connection may use.  PARALLEL:
 * its handles may be called at the same time.
 */
unsigned policy_handles (const struct policy *p, const char *plugin,
                         bool parallel);

/* True if connections to different exports are different groups. */
bool policy_groups_by_name (const struct policy *p);

/* True if a flush that is passed on may be skipped: the user has said so. */
bool policy_skips_flushes (const struct policy *p);

/* May threads that help call the plugin? */
bool policy_helps (const struct policy *p);

/* A power of two: what a write may change besides its own bytes, if the
 * plugin prefers blocks of PREFERRED bytes, or 0.
 */
uint32_t policy_block (const struct policy *p, uint32_t preferred);

/* The stripe, which is not less than BLOCK.  If it is not set, no handle has
 * two pieces of a request that is not very long.
 */
uint64_t policy_stripe (const struct policy *p, uint32_t block);

/* Which of the traits policy_resolve will look at: a plugin is not asked
 * what does not matter, as each question may start a script.
 */
bool policy_wants_multi_conn (const struct policy *p);
bool policy_wants_can_flush (const struct policy *p, unsigned handles);

struct resolution policy_resolve (const struct policy *p,
                                  const struct traits *t);

#endif /* MCSHIM_POLICY_H */
