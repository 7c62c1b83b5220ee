/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The knobs, and every decision that follows from them: see policy.h. */

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "policy.h"

#define PREFIX "MCSHIM_"

struct name {
  const char *name;
  int value;
};

static const struct name modes[] = {
  { "auto", MODE_AUTO },
  { "emulate", MODE_EMULATE },
  { "plugin", MODE_PLUGIN },
  { "disable", MODE_DISABLE },
  { "unsafe", MODE_UNSAFE },
  { NULL, 0 }
};

static const struct name levels[] = {
  { "connection", LEVEL_CONNECTION },
  { "conn", LEVEL_CONNECTION },
  { "fast", LEVEL_FAST },
  { "off", LEVEL_OFF },
  { NULL, 0 }
};

/* The words of nbdkit's own booleans. */
static const struct name booleans[] = {
  { "1", true }, { "true", true }, { "t", true },
  { "yes", true }, { "y", true }, { "on", true },
  { "0", false }, { "false", false }, { "f", false },
  { "no", false }, { "n", false }, { "off", false },
  { NULL, 0 }
};

/* Returns the value of WORD in NAMES, or -1. */
static int
lookup (const struct name *names, const char *word,
        int (*compare) (const char *, const char *))
{
  for (; names->name != NULL; names++)
    if (compare (names->name, word) == 0)
      return names->value;
  return -1;
}

static const char *
name_of (const struct name *names, int value)
{
  while (names->value != value)
    names++;
  return names->name;
}

const char *
mode_name (enum mode mode)
{
  return name_of (modes, mode);
}

const char *
level_name (enum level level)
{
  return name_of (levels, level);
}

const char *
verdict_words (enum verdict verdict)
{
  static const char *const words[NR_VERDICTS] = {
    [EMULATE] = "emulate",
    [EMULATE_AS_OTHERS] = "emulate: it has multi-conn, the first one has not",
    [PLUGIN_HAS_FLAG] = "plugin: it has multi-conn",
    [PLUGIN_HAS_NO_FLAG] = "plugin: it has no multi-conn",
    [PLUGIN_READ_ONLY] = "plugin: read-only, nothing to flush",
    [DISABLE_APART] = "disable: its connections do not share their data",
    [DISABLE_AS_OTHERS] = "disable: it has no multi-conn, the first one has",
    [DISABLE_OPENS_ONCE] = ("disable: VMware lets a disk be opened for "
                            "writing once, start with -r"),
    [DISABLE_REWRITTEN] = ("disable: a filter rewrites whole blocks, start "
                           "with -r"),
    [DISABLE_NO_FLUSH] = "disable: no flush, start with -r",
    [DISABLE_SERIALIZED] = "disable: it serializes connections",
    [DISABLE_SET] = "disable: as set",
    [UNSAFE_SET] = "unsafe: as set",
  };

  return words[verdict];
}

/* One function for each kind of knob: parse VALUE into P.  Each returns
 * true, or false if the table of knobs does not allow the value.
 */
static bool
set_mode (struct policy *p, const char *value)
{
  int i = lookup (modes, value, strcmp);

  p->mode = i;
  return i != -1;
}

static bool
set_level (struct policy *p, const char *value)
{
  int i = lookup (levels, value, strcmp);

  p->level = i;
  return i != -1;
}

static bool
set_boolean (bool *b, const char *value)
{
  int i = lookup (booleans, value, strcasecmp);

  *b = i == true;
  return i != -1;
}

static bool
set_exportname (struct policy *p, const char *value)
{
  return set_boolean (&p->exportname, value);
}

static bool
set_flush_on_close (struct policy *p, const char *value)
{
  return set_boolean (&p->flush_on_close, value);
}

/* The digits that *VALUE begins with, as a number that stops growing beyond
 * MAX.  strtoul would accept a sign or leading space, and if built with glibc
 * 2.38 or later it is a symbol that older ones lack.
 */
static uint64_t
take_digits (const char **value, uint64_t max)
{
  uint64_t n = 0;

  for (; **value >= '0' && **value <= '9' && n <= max; ++*value)
    n = n * 10 + (**value - '0');
  return n;
}

/* From 1 to MAX. */
static bool
set_number (unsigned *number, const char *value, unsigned max)
{
  *number = take_digits (&value, max);
  return *value == '\0' && *number >= 1 && *number <= max;
}

static bool
set_flush_threads (struct policy *p, const char *value)
{
  if (strcmp (value, "auto") == 0) {
    p->flush_threads = 0;
    return true;
  }
  return set_number (&p->flush_threads, value, FLUSH_THREADS_MAX);
}

static bool
set_handles (struct policy *p, const char *value)
{
  return set_number (&p->handles, value, HANDLES_MAX);
}

#define LARGEST ((uint64_t) 1 << 30)

/* A power of two from MIN to 1G.  The suffixes are nbdkit's. */
static bool
set_size (uint32_t *size, const char *value, uint32_t min)
{
  static const struct name suffixes[] = {
    { "", 0 }, { "b", 0 }, { "s", 9 }, { "k", 10 }, { "m", 20 }, { "g", 30 },
    { NULL, 0 }
  };
  uint64_t n = take_digits (&value, LARGEST);
  int shift = lookup (suffixes, value, strcasecmp);

  if (shift == -1 || n > LARGEST >> shift)
    return false;
  *size = n << shift;
  return *size >= min && (*size & (*size - 1)) == 0;
}

static bool
set_stripe (struct policy *p, const char *value)
{
  return set_size (&p->stripe, value, 4096);
}

static bool
set_block (struct policy *p, const char *value)
{
  return set_size (&p->block, value, 512);
}

/* nbdkit changes directory when it goes into the background, so a
 * relative path is made absolute here.
 */
static bool
set_stats_file (struct policy *p, const char *value)
{
  char cwd[PATH_MAX];

  free (p->stats_file);         /* from an earlier variable of that name */
  p->stats_dir = 0;
  if (value[0] == '/')
    p->stats_file = strdup (value);
  else if (getcwd (cwd, sizeof cwd) == NULL ||
           asprintf (&p->stats_file, "%s/%s", cwd, value) == -1)
    p->stats_file = NULL;
  else
    p->stats_dir = strlen (cwd);
  return p->stats_file != NULL;
}

static const struct knob {
  const char *name;             /* after MCSHIM_ */
  bool (*set) (struct policy *p, const char *value);
  const char *allowed;
} knobs[] = {
  { "MODE", set_mode,
    "auto, emulate, plugin, disable or unsafe" },
  { "TRACK_DIRTY", set_level,
    "connection (or conn), fast or off" },
  { "EXPORTNAME", set_exportname,
    "true or false" },
  { "FLUSH_ON_CLOSE", set_flush_on_close,
    "true or false" },
  { "FLUSH_THREADS", set_flush_threads,
    "auto, or a number from 1 to 64" },
  { "HANDLES", set_handles,
    "a number from 1 to 64" },
  { "STRIPE", set_stripe,
    "a power of two from 4K to 1G" },
  { "BLOCK", set_block,
    "a power of two from 512 to 1G" },
  { "STATS_FILE", set_stats_file,
    "a path, in a directory that exists" },
};

#define NR_KNOBS (sizeof knobs / sizeof knobs[0])

/* How many letters must be inserted, deleted or replaced to turn A into
 * B (Levenshtein).  Only the first 31 letters count: no knob's name is
 * longer, but what the user typed may be.
 */
static unsigned
distance (const char *a, const char *b)
{
  unsigned row[32], up, corner;
  size_t la = strnlen (a, 31), lb = strnlen (b, 31), i, j;

  for (j = 0; j <= lb; j++)
    row[j] = j;
  for (i = 1; i <= la; i++) {
    corner = row[0];
    row[0] = i;
    for (j = 1; j <= lb; j++) {
      up = row[j];
      if (a[i-1] != b[j-1])
        corner++;
      if (up + 1 < corner)
        corner = up + 1;
      if (row[j-1] + 1 < corner)
        corner = row[j-1] + 1;
      row[j] = corner;
      corner = up;
    }
  }
  return row[lb];
}

static const struct knob *
closest (const char *name)
{
  const struct knob *best = &knobs[0];
  size_t i;

  /* The beginning of a name is closer than any spelling. */
  for (i = 0; i < NR_KNOBS && name[0] != '\0'; i++)
    if (strncmp (name, knobs[i].name, strlen (name)) == 0)
      return &knobs[i];

  for (i = 1; i < NR_KNOBS; i++)
    if (distance (name, knobs[i].name) < distance (name, best->name))
      best = &knobs[i];
  return best;
}

/* Take one "NAME=value" that begins with MCSHIM_.  Returns 0, or -1
 * after complaining.
 */
static int
load_one (struct policy *p, const char *entry,
          void (*complain) (const char *line))
{
  const char *value = strchr (entry, '=') + 1;
  const char *name = entry + strlen (PREFIX);
  size_t len = value - 1 - name, i;
  char line[1024], typed[64];

  for (i = 0; i < NR_KNOBS; i++) {
    if (strlen (knobs[i].name) != len ||
        strncmp (knobs[i].name, name, len) != 0)
      continue;
    if (value[0] == '\0' || knobs[i].set (p, value))
      return 0;                 /* empty means unset */
    snprintf (line, sizeof line,
              PREFIX "%s: invalid value '%.256s': must be %s",
              knobs[i].name, value, knobs[i].allowed);
    complain (line);
    return -1;
  }

  snprintf (typed, sizeof typed, "%.*s", (int) len, name);
  snprintf (line, sizeof line,
            PREFIX "%s: no such variable (value '%.256s'): "
            "did you mean " PREFIX "%s?",
            typed, value, closest (typed)->name);
  complain (line);
  return -1;
}

int
policy_load (struct policy *p, char *const env[],
             void (*complain) (const char *line))
{
  int r = 0;

  *p = (struct policy) {
    .mode = MODE_AUTO,
    .level = LEVEL_CONNECTION,
    .flush_on_close = true,
    .handles = 1,
  };

  for (; *env != NULL; env++)
    if (strncmp (*env, PREFIX, strlen (PREFIX)) == 0 &&
        strchr (*env, '=') != NULL &&
        load_one (p, *env, complain) == -1)
      r = -1;

  return r;
}

void
policy_free (struct policy *p)
{
  free (p->stats_file);
  p->stats_file = NULL;
}

void
policy_print_knobs (void)
{
  size_t i;

  for (i = 0; i < NR_KNOBS; i++)
    printf (PREFIX "%s: %s\n", knobs[i].name, knobs[i].allowed);
}

bool
policy_wants_multi_conn (const struct policy *p)
{
  /* Outside emulate it also tells whether a flush on one connection counts
   * for the rest of the group.
   */
  return p->mode != MODE_EMULATE;
}

bool
policy_wants_can_flush (const struct policy *p, unsigned handles)
{
  return p->mode == MODE_AUTO || p->mode == MODE_EMULATE || handles > 1;
}

/* nbdkit's own plugins whose connections each have a disk, a lock or
 * contents of their own.  They do not advertise multi-conn, or not then, on
 * purpose, while others could but do not.
 */
static bool
connections_apart (const char *plugin)
{
  static const char *const names[] =
    { "example3", "info", "ondemand", "tmpdisk" };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; i++)
    if (plugin != NULL && strcmp (plugin, names[i]) == 0)
      return true;
  return false;
}

unsigned
policy_handles (const struct policy *p, const char *plugin, bool parallel)
{
  return parallel && !connections_apart (plugin) ? p->handles : 1;
}

/* plugin, disable or unsafe, which only a user sets. */
static bool
is_set (const struct policy *p)
{
  return p->mode != MODE_AUTO && p->mode != MODE_EMULATE;
}

bool
policy_groups_by_name (const struct policy *p)
{
  return p->exportname || is_set (p);
}

bool
policy_skips_flushes (const struct policy *p)
{
  return is_set (p) && p->level != LEVEL_OFF;
}

bool
policy_helps (const struct policy *p)
{
  return p->flush_threads != 1;
}

uint32_t
policy_block (const struct policy *p, uint32_t preferred)
{
  uint32_t block = p->block ? p->block : 512;

  while (p->block == 0 && block < (preferred ? preferred : BLOCK_DEFAULT) &&
         block < LARGEST)
    block *= 2;
  return block;
}

/* Clients such as qemu-img ask for so much at a time. */
#define LONGEST (2 << 20)
#define STRIPE_LEAST (128 << 10)

uint64_t
policy_stripe (const struct policy *p, uint32_t block)
{
  uint64_t stripe = p->stripe ? p->stripe : STRIPE_LEAST;

  while (p->stripe == 0 && stripe * p->handles < LONGEST)
    stripe *= 2;
  return stripe > block ? stripe : block;
}

static enum verdict
judge (enum mode mode, const struct traits *t)
{
  switch (mode) {
  case MODE_EMULATE:
    return EMULATE;
  case MODE_PLUGIN:
    return t->multi_conn ? PLUGIN_HAS_FLAG : PLUGIN_HAS_NO_FLAG;
  case MODE_DISABLE:
    return DISABLE_SET;
  case MODE_UNSAFE:
    return UNSAFE_SET;
  case MODE_AUTO:
    break;
  }
  if (t->connections_serialized)
    return DISABLE_SERIALIZED;
  if (t->multi_conn)
    return t->group == REPLICATES && t->can_flush ? EMULATE_AS_OTHERS :
      PLUGIN_HAS_FLAG;
  if (connections_apart (t->plugin))
    return DISABLE_APART;
  /* With the flag a client would open a second connection, and fail. */
  if (t->plugin != NULL && strcmp (t->plugin, "vddk") == 0 && !t->readonly)
    return DISABLE_OPENS_ONCE;
  /* It may read an older copy of what another connection has written. */
  if (t->rewritten && !t->readonly)
    return DISABLE_REWRITTEN;
  if (t->can_flush)
    return t->group == PASSES_ON ? DISABLE_AS_OTHERS : EMULATE;
  /* If nobody can write, there is nothing to flush or to go stale.
   * Otherwise the flag stays as it is without us.
   */
  if (!t->readonly)
    return DISABLE_NO_FLUSH;
  return t->group == PASSES_ON ? DISABLE_AS_OTHERS : PLUGIN_READ_ONLY;
}

struct resolution
policy_resolve (const struct policy *p, const struct traits *t)
{
  struct resolution r = {
    .verdict = judge (p->mode, t),
    .replicate = t->handles > 1 && !t->multi_conn,
    .handles = t->handles,
  };

  switch (r.verdict) {
  case EMULATE:
  case EMULATE_AS_OTHERS:
    r.fua_is_flush = true;
    if (!t->can_flush)
      r.refusal =
        "emulating multi-conn needs a plugin with a working flush, and this "
        "one has none: set MCSHIM_MODE=auto, which serves it without the flag "
        "(read-only, with it)";
    /* Fall through. */
  case PLUGIN_READ_ONLY:
    r.replicate = true;
    /* Fall through. */
  case PLUGIN_HAS_FLAG:
  case UNSAFE_SET:
    r.advertise = true;
    break;
  case DISABLE_NO_FLUSH:
    r.replicate = true;
    break;
  default:
    break;
  }
  if (t->connections_serialized)
    r.advertise = false;
  if (t->group != UNSETTLED)
    r.replicate = t->group == REPLICATES;

  if (!r.replicate && !t->multi_conn && t->can_flush) {
    r.handles = 1;              /* for whose flush it counts */
    if (policy_skips_flushes (p) && p->level == LEVEL_FAST &&
        !t->connections_serialized)
      r.notice =
        "warning: MCSHIM_TRACK_DIRTY=fast: flushes are not replicated here, "
        "and the plugin has no multi-conn: after one connection's flush, "
        "those that others need are skipped: "
        "set MCSHIM_TRACK_DIRTY=connection";
  }
  return r;
}
