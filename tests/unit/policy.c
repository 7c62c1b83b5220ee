/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* policy.c without a server: environments in, decisions out. */

#include <limits.h>

#include "policy.h"
#include "unit.h"

static char complaints[4096];
static unsigned nr_complaints;

static void
complain (const char *line)
{
  if (strlen (complaints) + strlen (line) + 2 <= sizeof complaints)
    strcat (strcat (complaints, line), "\n");
  nr_complaints++;
}

/* Load an environment of one or two variables, NULL for none. */
static int
load (struct policy *p, const char *one, const char *two)
{
  char *env[] = { "PATH=/bin", (char *) one, (char *) two, NULL };

  complaints[0] = '\0';
  nr_complaints = 0;
  return policy_load (p, env, complain);
}

/* The knobs that are numbers, in a row. */
enum { MODE, LEVEL, EXPORTNAME, CLOSE, THREADS, HANDLES, STRIPE, BLOCK, NR };

/* Each entry leaves all knobs but one as they are by default, and that one
 * too where it counts for nothing.
 */
static void
test_good_values (void)
{
  static const uint64_t defaults[NR] = {
    [MODE] = MODE_AUTO, [LEVEL] = LEVEL_CONNECTION, [CLOSE] = true,
    [HANDLES] = 1, [STRIPE] = 0,
  };
#define WORD(word, b) { "MCSHIM_EXPORTNAME=" word, EXPORTNAME, b }
  static const struct {
    const char *env;
    int knob;
    uint64_t value;
  } table[] = {
    { NULL, HANDLES, 1 }, { "MCSHIM=x", HANDLES, 1 },
    { "XMCSHIM_MODE=x", MODE, MODE_AUTO },
    { "mcshim_mode=x", MODE, MODE_AUTO }, { "MCSHIM_MODE=", MODE, MODE_AUTO },
    { "MCSHIM_MODE=auto", MODE, MODE_AUTO },
    { "MCSHIM_MODE=emulate", MODE, MODE_EMULATE },
    { "MCSHIM_MODE=plugin", MODE, MODE_PLUGIN },
    { "MCSHIM_MODE=disable", MODE, MODE_DISABLE },
    { "MCSHIM_MODE=unsafe", MODE, MODE_UNSAFE },
    { "MCSHIM_TRACK_DIRTY=", LEVEL, LEVEL_CONNECTION },
    { "MCSHIM_TRACK_DIRTY=connection", LEVEL, LEVEL_CONNECTION },
    { "MCSHIM_TRACK_DIRTY=conn", LEVEL, LEVEL_CONNECTION },
    { "MCSHIM_TRACK_DIRTY=fast", LEVEL, LEVEL_FAST },
    { "MCSHIM_TRACK_DIRTY=off", LEVEL, LEVEL_OFF },
    { "MCSHIM_EXPORTNAME=", EXPORTNAME, false },
    { "MCSHIM_FLUSH_ON_CLOSE=", CLOSE, true },
    { "MCSHIM_FLUSH_ON_CLOSE=1", CLOSE, true },
    { "MCSHIM_FLUSH_ON_CLOSE=0", CLOSE, false },
    WORD ("1", true), WORD ("true", true), WORD ("t", true),
    WORD ("yes", true), WORD ("y", true), WORD ("on", true),
    WORD ("TRUE", true), WORD ("Yes", true), WORD ("oN", true),
    WORD ("0", false), WORD ("false", false), WORD ("f", false),
    WORD ("no", false), WORD ("n", false), WORD ("off", false),
    WORD ("FALSE", false), WORD ("No", false), WORD ("oFF", false),
    { "MCSHIM_FLUSH_THREADS=", THREADS, 0 },
    { "MCSHIM_FLUSH_THREADS=auto", THREADS, 0 },
    { "MCSHIM_FLUSH_THREADS=1", THREADS, 1 },
    { "MCSHIM_FLUSH_THREADS=64", THREADS, 64 },
    { "MCSHIM_HANDLES=", HANDLES, 1 }, { "MCSHIM_HANDLES=1", HANDLES, 1 },
    { "MCSHIM_HANDLES=64", HANDLES, 64 },
    { "MCSHIM_STRIPE=", STRIPE, 0 },
    { "MCSHIM_STRIPE=8s", STRIPE, 4096 },
    { "MCSHIM_STRIPE=4096", STRIPE, 4096 },
    { "MCSHIM_STRIPE=4096b", STRIPE, 4096 },
    { "MCSHIM_STRIPE=4k", STRIPE, 4096 }, { "MCSHIM_STRIPE=4K", STRIPE, 4096 },
    { "MCSHIM_STRIPE=1024K", STRIPE, 1 << 20 },
    { "MCSHIM_STRIPE=1M", STRIPE, 1 << 20 },
    { "MCSHIM_STRIPE=1G", STRIPE, 1 << 30 },
    { "MCSHIM_STRIPE=1024m", STRIPE, 1 << 30 },
    { "MCSHIM_STRIPE=1073741824", STRIPE, 1 << 30 },
    { "MCSHIM_BLOCK=", BLOCK, 0 }, { "MCSHIM_BLOCK=512", BLOCK, 512 },
    { "MCSHIM_BLOCK=64K", BLOCK, 65536 }, { "MCSHIM_STATS_FILE=", HANDLES, 1 },
  };

  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
    const char *env = table[i].env ? table[i].env : "nothing";
    struct policy p;

    CHECK (load (&p, table[i].env, NULL) == 0, "%s: %s", env, complaints);
    const uint64_t got[NR] = {
      p.mode, p.level, p.exportname, p.flush_on_close, p.flush_threads,
      p.handles, p.stripe, p.block,
    };

    for (int knob = 0; knob < NR; knob++)
      CHECK (got[knob] == (knob == table[i].knob ? table[i].value :
                           defaults[knob]), "%s: %d", env, knob);
    CHECK (p.stats_file == NULL && nr_complaints == 0, "%s", env);
    policy_free (&p);
  }
}

static void
test_stats_file (void)
{
  char cwd[PATH_MAX], expected[PATH_MAX + 16];
  struct policy p;

  CHECK (load (&p, "MCSHIM_STATS_FILE=/some/where", NULL) == 0, "absolute");
  CHECK (p.stats_file && strcmp (p.stats_file, "/some/where") == 0,
         "%s", p.stats_file);
  policy_free (&p);

  CHECK (getcwd (cwd, sizeof cwd) != NULL, "%s", strerror (errno));
  snprintf (expected, sizeof expected, "%s/some/where", cwd);
  CHECK (load (&p, "MCSHIM_STATS_FILE=some/where", NULL) == 0, "relative");
  CHECK (p.stats_file && strcmp (p.stats_file, expected) == 0,
         "%s", p.stats_file);
  CHECK (strcmp (p.stats_file + p.stats_dir, "/some/where") == 0,
         "%zu", p.stats_dir);
  policy_free (&p);
  CHECK (p.stats_file == NULL, "it can be freed twice");
  policy_free (&p);
}

/* A removed current directory has no path. */
static void
test_stats_file_nowhere (void)
{
  char dir[] = "/tmp/mcshim-unit-XXXXXX";
  struct policy p;

  CHECK (mkdtemp (dir) != NULL, "%s", strerror (errno));
  CHECK (chdir (dir) == 0, "%s", strerror (errno));
  CHECK (rmdir (dir) == 0, "%s", strerror (errno));
  CHECK (load (&p, "MCSHIM_STATS_FILE=/some/where",
               "MCSHIM_STATS_FILE=some/where") == -1);
  CHECK (strstr (complaints, "'some/where'"), "%s", complaints);
  CHECK (p.stats_file == NULL);
  policy_free (&p);
}

/* An environment may have a name twice. */
static void
test_last_one_counts (void)
{
  struct policy p;

  CHECK (load (&p, "MCSHIM_FLUSH_THREADS=4",
               "MCSHIM_FLUSH_THREADS=auto") == 0);
  CHECK (p.flush_threads == 0);
  policy_free (&p);
  CHECK (load (&p, "MCSHIM_EXPORTNAME=1", "MCSHIM_EXPORTNAME=0") == 0);
  CHECK (!p.exportname);
  policy_free (&p);
  CHECK (load (&p, "MCSHIM_STATS_FILE=one", "MCSHIM_STATS_FILE=/two") == 0);
  CHECK (strcmp (p.stats_file + p.stats_dir, "/two") == 0, "%s", p.stats_file);
  policy_free (&p);
}

/* It is refused with one line that has the name, the value, and what is
 * allowed or the closest real name.
 */
static void
check_line (const char *env, const char *says)
{
  const char *value = strchr (env, '=') + 1;
  char name[64], quoted[64];
  struct policy p;

  snprintf (name, sizeof name, "%.*s: ", (int) (value - 1 - env), env);
  snprintf (quoted, sizeof quoted, "value '%s'", value);
  CHECK (load (&p, env, NULL) == -1, "%s", env);
  CHECK (nr_complaints == 1, "%s: %u lines", env, nr_complaints);
  CHECK (strstr (complaints, name), "%s: %s", env, complaints);
  CHECK (strstr (complaints, quoted), "%s: %s", env, complaints);
  CHECK (strstr (complaints, says), "%s, not %s", complaints, says);
  policy_free (&p);
}

static void
test_bad_values (void)
{
  static const struct { const char *env, *says; } table[] = {
    { "MCSHIM_MODE=bogus", "auto, emulate, plugin, disable" },
    { "MCSHIM_MODE=AUTO", "auto" },
    { "MCSHIM_MODE= auto", "auto" },
    { "MCSHIM_TRACK_DIRTY=none", "connection" },
    { "MCSHIM_TRACK_DIRTY=connections", "fast" },
    { "MCSHIM_EXPORTNAME=2", "true" },
    { "MCSHIM_EXPORTNAME=tru", "false" },
    { "MCSHIM_FLUSH_ON_CLOSE=-1", "true" },
    { "MCSHIM_FLUSH_THREADS=0", "64" },
    { "MCSHIM_FLUSH_THREADS=65", "auto" },
    { "MCSHIM_FLUSH_THREADS=-1", "64" },
    { "MCSHIM_FLUSH_THREADS=+1", "64" },
    { "MCSHIM_FLUSH_THREADS= 1", "64" },
    { "MCSHIM_FLUSH_THREADS=1x", "64" },
    { "MCSHIM_FLUSH_THREADS=18446744073709551617", "64" },
    { "MCSHIM_HANDLES=0", "1 to 64" },
    { "MCSHIM_HANDLES=65", "1 to 64" },
    { "MCSHIM_HANDLES=4294967297", "64" },
    { "MCSHIM_HANDLES=auto", "1 to 64" },
    { "MCSHIM_HANDLES=2K", "1 to 64" },
    { "MCSHIM_STRIPE=0", "a power of two" },
    { "MCSHIM_BLOCK=256", "from 512 to 1G" },
    { "MCSHIM_STRIPE=2K", "4K to 1G" },
    { "MCSHIM_STRIPE=2G", "4K to 1G" },
    { "MCSHIM_STRIPE=1T", "4K to 1G" },
    { "MCSHIM_STRIPE=12K", "a power of two" },
    { "MCSHIM_STRIPE=4097", "a power of two" },
    { "MCSHIM_STRIPE=K", "4K to 1G" },
    { "MCSHIM_STRIPE=4KB", "4K to 1G" },
    { "MCSHIM_STRIPE=4 K", "4K to 1G" },
    { "MCSHIM_STRIPE=-4K", "4K to 1G" },
    { "MCSHIM_STRIPE=18014398509481985K", "4K to 1G" },
    { "MCSHIM_MODES=", "MCSHIM_MODE?" },
    { "MCSHIM_mode=x", "MCSHIM_" },
  };

  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
    check_line (table[i].env, table[i].says);
}

static void
check_refused (const char *one, const char *two, unsigned lines)
{
  struct policy p;

  CHECK (load (&p, one, two) == -1, "%.80s", one);
  CHECK (nr_complaints == lines, "%.80s: %u", one, nr_complaints);
  policy_free (&p);
}

static void
test_two_bad_values (void)
{
  char huge[8192] = "MCSHIM_MODE=";

  check_refused ("MCSHIM_MODE=x", "MCSHIM_TRACK_DIRTY=y", 2);
  check_refused ("MCSHIM_NO=x", "MCSHIM_FLUSH_THREADS=y", 2);
  check_refused ("MCSHIM_MODE=unsafe", "MCSHIM_TRACK_DIRTY=y", 1);
  /* However long the user's input is: a value, and a name. */
  memset (huge + strlen (huge), 'x', sizeof huge - strlen (huge) - 1);
  check_refused (huge, NULL, 1);
  memset (huge + strlen ("MCSHIM_"), 'X', 4096);
  huge[4096] = '=';
  check_refused (huge, NULL, 1);
}

/* Each has a line, and an empty value means that it is not set. */
static void
test_print_knobs (void)
{
  FILE *all = tmpfile ();
  const int out = dup (STDOUT_FILENO);
  char line[256], name[32], env[64];
  struct policy p;
  unsigned nr = 0;

  CHECK (all != NULL && dup2 (fileno (all), STDOUT_FILENO) != -1);
  policy_print_knobs ();
  fflush (stdout);
  CHECK (dup2 (out, STDOUT_FILENO) != -1);

  rewind (all);
  for (; fgets (line, sizeof line, all) != NULL; nr++) {
    CHECK (sscanf (line, "MCSHIM_%31[A-Z_]: ", name) == 1, "%s", line);
    CHECK (strlen (line) > strlen ("MCSHIM_: \n") + strlen (name), "%s", line);
    snprintf (env, sizeof env, "MCSHIM_%s=", name);
    CHECK (load (&p, env, NULL) == 0, "%s", env);
  }
  CHECK (nr == 9, "%u", nr);
}

/* A name that begins so, otherwise the closest, and the first of several. */
static void
test_suggestions (void)
{
  static const struct { const char *typed, *meant; } table[] = {
    { "", "MODE" }, { "T", "TRACK_DIRTY" }, { "FLUSH", "FLUSH_ON_CLOSE" },
    { "FLUSH_T", "FLUSH_THREADS" }, { "S", "STRIPE" }, { "STA", "STATS_FILE" },
    { "X", "MODE" }, { "XXXXX", "MODE" }, { "MOD3", "MODE" },
    { "ODE", "MODE" }, { "XMODE", "MODE" }, { "LOCK", "BLOCK" },
    { "BLOCKS", "BLOCK" }, { "BLOKC", "BLOCK" }, { "RACK", "BLOCK" },
    { "HANDEL", "HANDLES" }, { "TRACK_STATS", "TRACK_DIRTY" },
    { "STRIP_FILE", "STATS_FILE" }, { "TRIPE", "STRIPE" },
    { "FLUSH_ON_THREADS", "FLUSH_THREADS" }, { "CLOSE", "MODE" },
    { "FLUSHONCLOSE", "FLUSH_ON_CLOSE" }, { "EXPORTSTRIPE", "EXPORTNAME" },
    { "MODES", "MODE" }, { "TRACKDIRTY", "TRACK_DIRTY" },
    { "EXPORT_NAME", "EXPORTNAME" }, { "FLUSH_CLOSE", "FLUSH_ON_CLOSE" },
    { "FLUSH_THREAD", "FLUSH_THREADS" }, { "STATSFILE", "STATS_FILE" },
    { "A_NAME_THAT_IS_LONGER_THAN_ANY_OF_THESE", "TRACK_DIRTY" },
  };

  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
    char env[64], says[96];

    snprintf (env, sizeof env, "MCSHIM_%s=x", table[i].typed);
    snprintf (says, sizeof says, "did you mean MCSHIM_%s?", table[i].meant);
    check_line (env, says);
  }
}

/* What each combination of answers is like, by number. */
static struct traits
plugin_like (unsigned i)
{
  return (struct traits) {
    .plugin = "file", .connections_serialized = i & 1, .multi_conn = i & 2,
    .can_flush = i & 4, .readonly = i & 8, .rewritten = i & 16, .handles = 1,
  };
}

/* What each mode makes of each plugin, as the manual has it: the first row
 * that fits.  "like" has letters for what the plugin is, capital ones for what
 * it is not: connections are serialized, multi-conn, a flush, read-only,
 * written in whole blocks by a filter; it keeps its connections apart; VMware.
 * "then": advertised, replicated, FUA is a flush, or refused (x).
 */
static const struct row {
  enum mode mode;
  const char *like;
  enum verdict verdict;
  const char *then;
} rows[] = {
  { MODE_AUTO, "s", DISABLE_SERIALIZED, "" },
  { MODE_AUTO, "m", PLUGIN_HAS_FLAG, "a" },
  { MODE_AUTO, "k", DISABLE_APART, "" },
  { MODE_AUTO, "vR", DISABLE_OPENS_ONCE, "" },
  { MODE_AUTO, "wR", DISABLE_REWRITTEN, "" },
  { MODE_AUTO, "f", EMULATE, "arf" },
  { MODE_AUTO, "r", PLUGIN_READ_ONLY, "ar" },
  /* The group is left to those that have a flush. */
  { MODE_AUTO, "", DISABLE_NO_FLUSH, "r" },
  { MODE_EMULATE, "F", EMULATE, "x" },
  { MODE_EMULATE, "s", EMULATE, "rf" },
  { MODE_EMULATE, "", EMULATE, "arf" },
  { MODE_PLUGIN, "sm", PLUGIN_HAS_FLAG, "" },
  { MODE_PLUGIN, "m", PLUGIN_HAS_FLAG, "a" },
  { MODE_PLUGIN, "", PLUGIN_HAS_NO_FLAG, "" },
  { MODE_DISABLE, "", DISABLE_SET, "" },
  { MODE_UNSAFE, "s", UNSAFE_SET, "" },
  { MODE_UNSAFE, "", UNSAFE_SET, "a" },
};

static const struct row *
row_for (enum mode mode, const struct traits *t, char kind)
{
  const char is[] = {
    t->connections_serialized ? 's' : 'S', t->multi_conn ? 'm' : 'M',
    t->can_flush ? 'f' : 'F', t->readonly ? 'r' : 'R',
    t->rewritten ? 'w' : 'W', kind, '\0'
  };
  const struct row *row = rows;

  while (row->mode != mode || strspn (row->like, is) != strlen (row->like))
    row++;
  return row;
}

/* The same at each level, with one handle and with two, and in a group that
 * somebody else has settled.
 */
static void
check_resolution (const struct policy *p, struct traits t, char kind)
{
  const struct row *row = row_for (p->mode, &t, kind);
  enum verdict verdict = row->verdict;
  /* The plugin's own multi-conn covers several handles. */
  bool replicate = strchr (row->then, 'r') || (t.handles > 1 && !t.multi_conn);
  const bool other_kind =
    t.group != UNSETTLED && (t.group == REPLICATES) != replicate;
  const struct resolution r = policy_resolve (p, &t);
  const char *words = verdict_words (r.verdict);
  char what[160];

  snprintf (what, sizeof what, "%s, level %d, %s, serialized %d, multi-conn "
            "%d, flush %d, read-only %d, rewritten %d, handles %u, group %d",
            mode_name (p->mode), p->level, t.plugin ? t.plugin : "NULL",
            t.connections_serialized, t.multi_conn, t.can_flush, t.readonly,
            t.rewritten, t.handles, t.group);
  CHECK ((r.refusal != NULL) == (*row->then == 'x'), "%s", what);
  if (r.refusal) {
    CHECK (strstr (r.refusal, "flush"), "%s: %s", what, r.refusal);
    CHECK (strstr (r.refusal, "MCSHIM_MODE=auto"), "%s: %s", what, r.refusal);
    return;
  }
  if (other_kind) {
    replicate = !replicate;
    if (verdict == EMULATE || verdict == PLUGIN_READ_ONLY)
      verdict = DISABLE_AS_OTHERS;
    else if (verdict == PLUGIN_HAS_FLAG && p->mode == MODE_AUTO && t.can_flush)
      verdict = EMULATE_AS_OTHERS;
  }
  CHECK (r.verdict == verdict, "%s: %s", what, words);
  CHECK (r.replicate == replicate, "%s", what);
  CHECK (r.advertise == (strchr (row->then, 'a') &&
                         verdict != DISABLE_AS_OTHERS), "%s", what);
  CHECK (r.fua_is_flush == (verdict == EMULATE ||
                            verdict == EMULATE_AS_OTHERS), "%s", what);
  /* What is passed on covers one handle. */
  CHECK (r.handles == (replicate || t.multi_conn || !t.can_flush ?
                       t.handles : 1), "%s", what);
  /* A flush may be skipped although another connection needs it. */
  CHECK ((r.notice && strstr (r.notice, "=fast: ")) ==
         (p->level == LEVEL_FAST && p->mode != MODE_AUTO &&
          p->mode != MODE_EMULATE && !t.connections_serialized &&
          !t.multi_conn && t.can_flush && !replicate), "%s", what);
  /* The words begin with the mode, which is not auto. */
  CHECK (strncmp (words, mode_name (p->mode), strlen (mode_name (p->mode))) ==
         0 || p->mode == MODE_AUTO, "%s: %s", what, words);
  CHECK (strncmp (words, "auto", 4) != 0, "%s", what);
}

static void
test_resolve (void)
{
  static const struct { const char *name; char kind; } plugins[] = {
    { "file", '.' }, { "example3", 'k' }, { "info", 'k' }, { "ondemand", 'k' },
    { "tmpdisk", 'k' }, { "vddk", 'v' }, { "example2", '.' },
    { "tmpdisk2", '.' }, { "tmp", '.' }, { "Info", '.' }, { "", '.' },
    { NULL, '.' },
  };
  struct policy p = { .mode = MODE_AUTO };
  unsigned plugin, i, group;

  for (plugin = 0; plugin < sizeof plugins / sizeof plugins[0]; plugin++)
    for (i = 0; i < 5 * 3 * 2 * 32; i++)
      for (group = UNSETTLED; group <= PASSES_ON; group++) {
        struct traits t = plugin_like (i % 32);

        p.mode = (enum mode) (i / 192);
        p.level = (enum level) (i / 64 % 3);
        t.plugin = plugins[plugin].name;
        t.handles = 1 + i / 32 % 2;
        /* In emulate all are of one kind. */
        t.group = p.mode == MODE_EMULATE ? UNSETTLED : group;
        check_resolution (&p, t, plugins[plugin].kind);
      }
}

static void
test_wants (void)
{
  for (int i = 0; i < 5; i++) {
    const struct policy p = { .mode = (enum mode) i };

    CHECK (policy_wants_multi_conn (&p) == (p.mode != MODE_EMULATE), "%s",
           mode_name (p.mode));
    CHECK (policy_wants_can_flush (&p, 1) ==
           (p.mode == MODE_AUTO || p.mode == MODE_EMULATE), "%s",
           mode_name (p.mode));
    CHECK (policy_wants_can_flush (&p, 2), "%s", mode_name (p.mode));
  }

  /* A trait that is not asked for must not matter. */
  for (int i = 0; i < 5 * 16; i++) {
    const struct policy p = { .mode = (enum mode) (i / 16) };
    struct traits t = plugin_like (i % 16);
    const struct resolution a = policy_resolve (&p, &t);

    if (!policy_wants_multi_conn (&p))
      t.multi_conn = !t.multi_conn;
    if (!policy_wants_can_flush (&p, 1))
      t.can_flush = !t.can_flush;
    const struct resolution b = policy_resolve (&p, &t);

    CHECK (a.verdict == b.verdict && a.advertise == b.advertise &&
           a.replicate == b.replicate && a.refusal == b.refusal &&
           a.notice == b.notice, "%s, %d", mode_name (p.mode), i % 16);
  }
}

static void
test_how_many (void)
{
  struct policy p = { .mode = MODE_AUTO, .handles = 16, .stripe = 4096 };

  CHECK (policy_handles (&p, "file", true) == 16);
  CHECK (policy_handles (&p, "file", false) == 1);
  CHECK (policy_handles (&p, "tmpdisk", true) == 1);
  CHECK (policy_handles (&p, NULL, true) == 16);

  for (p.flush_threads = 0; p.flush_threads <= 2; p.flush_threads++)
    CHECK (policy_helps (&p) == (p.flush_threads != 1));

  CHECK (policy_stripe (&p, 0) == 4096);
  CHECK (policy_stripe (&p, 4096) == 4096);
  CHECK (policy_stripe (&p, 8192) == 8192);
  CHECK (policy_stripe (&p, 1 << 30) == 1 << 30);
  p.stripe = 0;
  for (p.handles = 1; p.handles <= 64; p.handles *= 2)
    CHECK (policy_stripe (&p, 512) ==
           (p.handles <= 16 ? (2u << 20) / p.handles : 128u << 10),
           "%u handles", p.handles);
  p.handles = 3;
  CHECK (policy_stripe (&p, 512) == 1 << 20);
  CHECK (policy_stripe (&p, 2 << 20) == 2 << 20);

  CHECK (policy_block (&p, 0) == 4096);
  CHECK (policy_block (&p, 512) == 512);
  CHECK (policy_block (&p, 65536) == 65536);
  CHECK (policy_block (&p, 65537) == 131072);
  CHECK (policy_block (&p, UINT32_MAX) == 1 << 30);
  p.block = 1024;
  CHECK (policy_block (&p, 65536) == 1024, "the user knows better");
}

/* Flushes that are passed on are skipped only where the user has set a mode,
 * and count there for their own export name.
 */
static void
test_passed_on (void)
{
  for (int i = 0; i < 5 * 3 * 2; i++) {
    const struct policy p = {
      .mode = (enum mode) (i / 6), .level = (enum level) (i / 2 % 3),
      .exportname = i & 1,
    };
    const bool set = p.mode != MODE_AUTO && p.mode != MODE_EMULATE;

    CHECK (policy_groups_by_name (&p) == (set || p.exportname), "%d", i);
    CHECK (policy_skips_flushes (&p) == (set && p.level != LEVEL_OFF), "%d",
           i);
  }
}

static void
test_names (void)
{
  CHECK (strcmp (mode_name (MODE_AUTO), "auto") == 0, "auto");
  CHECK (strcmp (mode_name (MODE_UNSAFE), "unsafe") == 0, "unsafe");
  CHECK (strcmp (level_name (LEVEL_CONNECTION), "connection") == 0,
         "connection");
  CHECK (strcmp (level_name (LEVEL_OFF), "off") == 0, "off");
}

int
main (void)
{
  static const struct unit_test tests[] = {
    { "values that are taken, and what does not count", test_good_values },
    { "the path of the statistics", test_stats_file },
    { "no path of the statistics where there is none",
      test_stats_file_nowhere },
    { "of two of one name the last one counts", test_last_one_counts },
    { "values that are refused, in one line each", test_bad_values },
    { "each wrong variable has a line", test_two_bad_values },
    { "the list of the knobs", test_print_knobs },
    { "what was meant by a name that is wrong", test_suggestions },
    { "what each mode makes of each plugin", test_resolve },
    { "a plugin is asked what matters", test_wants },
    { "flushes that are passed on", test_passed_on },
    { "how many a plugin can have, and of which stripe", test_how_many },
    { "names of modes and levels", test_names },
    { NULL, NULL }
  };

  return unit_main ("policy", tests);
}
