/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The server that we are in: see server.h. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "loader.h"
#include "server.h"

/* The server's options, as far as they matter here. */
static struct {
  bool known;
  enum purpose purpose;
  bool readonly, filtered, foreground, runs;
  bool minblock;                /* of the blocksize filter */
  char log[8];                  /* as --log says: stderr, syslog, null */
  pid_t pid;                    /* when they were read */
} options;

/* True if ARG is the long option OPTION, or an abbreviation that
 * getopt_long accepts, as it is at least UNAMBIGUOUS.
 */
static bool
is_option (const char *arg, const char *option, const char *unambiguous)
{
  return strncmp (arg, unambiguous, strlen (unambiguous)) == 0 &&
    strncmp (arg, option, strlen (arg)) == 0;
}

/* Letters that take a value: what follows one is its value. */
#define WITH_VALUE "DegiPptuU"

#define HAS_LETTER(arg, letter)                                 \
  ((arg)[0] == '-' && (arg)[1] != '-' &&                        \
   (arg)[strcspn (arg, letter WITH_VALUE)] == *(letter))

/* True if the value of the option ARG is the next argument, whatever that
 * looks like: nbdkit -e --help.
 */
static bool
takes_next (const char *arg)
{
  static const char *const words[] = {
    "--debug", "--export", "--export-name", "--exportname", "--filter",
    "--group", "--ip-addr", "--ipaddr", "--log", "--mask-handshake",
    "--name", "--pid-file", "--pidfile", "--port", "--run",
    "--selinux-label", "--threads", "--timeout", "--time-out", "--tls",
    "--tls-certificates", "--tls-priority", "--tls-psk", "--unix", "--user",
  };
  size_t i;

  if (arg[0] != '-')
    return false;
  if (arg[1] != '-') {
    /* "-fe" does, and in "-ef" the value is "f". */
    i = strcspn (arg, WITH_VALUE);
    return arg[i] != '\0' && arg[i+1] == '\0';
  }
  for (i = 0; i < sizeof words / sizeof words[0]; i++)
    if (strncmp (words[i], arg, strlen (arg)) == 0)
      return true;
  return false;
}

/* The kernel puts the arguments before the environment.  There may be no
 * /proc, and only glibc passes them to a constructor.  Returns none if others
 * have moved the environment off the stack, which is above us.
 */
static char **
arguments (void)
{
  static char *none;
  char **arg = environ;

  while ((uintptr_t) arg > (uintptr_t) &arg && *arg != program_invocation_name)
    arg--;
  return (uintptr_t) arg > (uintptr_t) &arg ? arg : &none;
}

static void
read_options (void)
{
  char **next;
  const char *arg, *pid;
  char own_pid[24];
  bool is_log;

  if (options.known)
    return;
  options.known = true;
  options.pid = getpid ();
  /* Socket activation. */
  pid = getenv ("LISTEN_PID");
  snprintf (own_pid, sizeof own_pid, "%ld", (long) options.pid);
  options.foreground = pid != NULL && strcmp (pid, own_pid) == 0;
  next = arguments ();
  while ((arg = *next++) != NULL && strcmp (arg, "--") != 0) {
    if (is_option (arg, "--dump-plugin", "--dump-p"))
      options.purpose = DUMP_PLUGIN;
    else if (is_option (arg, "--help", "--h"))
      options.purpose = HELP;
    else if (is_option (arg, "--version", "--vers") || HAS_LETTER (arg, "V"))
      options.purpose = VERSION;
    else if (is_option (arg, "--read-only", "--re") ||
             is_option (arg, "--readonly", "--re") || HAS_LETTER (arg, "r"))
      options.readonly = true;
    else if (strncmp (arg, "--fi", 4) == 0)
      options.filtered = true;
    else if (strncmp (arg, "--ru", 4) == 0)
      options.runs = true;
    else if (strncmp (arg, "minblock=", 9) == 0)
      options.minblock = strcmp (arg, "minblock=1") != 0;
    else if (strncmp (arg, "--log=", 6) == 0)
      snprintf (options.log, sizeof options.log, "%s", arg + 6);
    if (is_option (arg, "--foreground", "--fo") ||
        is_option (arg, "--no-fork", "--no-f") ||
        is_option (arg, "--single", "--si") ||
        is_option (arg, "--stdin", "--st") ||
        HAS_LETTER (arg, "f") || HAS_LETTER (arg, "s"))
      options.foreground = true;
    is_log = strcmp (arg, "--log") == 0;
    if (takes_next (arg) && (arg = *next++) == NULL)
      break;
    if (is_log)
      snprintf (options.log, sizeof options.log, "%s", arg);
  }
}

enum purpose
server_purpose (void)
{
  read_options ();
  return options.purpose;
}

int
opens_read_only (void)
{
  read_options ();
  return options.readonly ? 1 : options.filtered ? -1 : 0;
}

bool
stays_in_process (void)
{
  read_options ();
  return options.foreground && !options.runs;
}

char *
one_line (char *line)
{
  char *p;

  for (p = line; *p != '\0'; p++)
    if ((unsigned char) *p < ' ' || *p == '\177')
      *p = '?';
  return line;
}

void
server_log (const char *line)
{
  bool background;

  read_options ();
  /* With --run it forks too, but not into the background. */
  background = !options.runs && getpid () != options.pid;
  if (strcmp (options.log, "syslog") == 0 ||
      (options.log[0] == '\0' && background))
    syslog (LOG_NOTICE, "%s", line);
  else if (strcmp (options.log, "null") != 0)
    fprintf (stderr, "%s\n", line);
}

bool
filter_loaded (const char *name)
{
  const struct link_map *map;
  char file[64];
  const char *last;

  snprintf (file, sizeof file, "/nbdkit-%s-filter.so", name);
  for (map = own_link_map (); map != NULL; map = map->l_next) {
    last = strrchr (map->l_name, '/');
    if (last != NULL && strcmp (last, file) == 0)
      return true;
  }
  return false;
}

bool
filter_rewrites (void)
{
  read_options ();
  return filter_loaded ("luks") ||
    (options.minblock && filter_loaded ("blocksize"));
}
