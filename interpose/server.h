/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The server that we are in, if the program is one: what it exports, what it
 * was started for, and where its messages go.
 */

#ifndef MCSHIM_SERVER_H
#define MCSHIM_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)

/* Functions that the server exports.  All are weak: an older server lacks
 * some, and a program that is not nbdkit lacks all of them.  Test the
 * address before the call.  The first four are in every nbdkit.
 */
#define WEAK __attribute__ ((weak))
extern void nbdkit_error (const char *fmt, ...) WEAK;
extern void nbdkit_debug (const char *fmt, ...) WEAK;
extern void nbdkit_set_error (int err) WEAK;
extern int64_t nbdkit_parse_size (const char *str) WEAK;
/* Not meant for plugins, but servers before 1.10 export all they have. */
extern void handle_single_connection (void) WEAK;
extern const char *nbdkit_export_name (void) WEAK; /* since 1.16 */
extern int nbdkit_nanosleep (unsigned s, unsigned ns) WEAK; /* since 1.14 */
extern void *nbdkit_next_context_open (void *backend, int readonly,
                                       const char *exportname, int shared)
  WEAK;                                            /* since 1.26 */

#pragma GCC visibility pop

/* True if this process is an nbdkit server. */
static inline bool
in_nbdkit (void)
{
  return nbdkit_error && nbdkit_debug && nbdkit_set_error && nbdkit_parse_size;
}

/* What the server was started for, by its options.  Unless this is SERVE, it
 * prints something about the plugin, and opens no connection.
 */
enum purpose { SERVE, DUMP_PLUGIN, HELP, VERSION };
extern enum purpose server_purpose (void);

/* Whether the server will open the plugin read-only, by its options: 1 with
 * -r, 0 without, and -1 if a filter may do so.
 */
extern int opens_read_only (void);

/* True if the server will go on in this process, by its options: it will not
 * fork.
 */
extern bool stays_in_process (void);

/* Make LINE one line of text, whatever it contains.  Returns LINE. */
extern char *one_line (char *line);

/* Print a line that is not an error, where the server prints its errors.  The
 * first call must come before the server forks.
 */
extern void server_log (const char *line);

/* True if the server has loaded the filter NAME. */
extern bool filter_loaded (const char *name);

/* True if it has one that reads, changes and writes whole blocks. */
extern bool filter_rewrites (void);

#endif /* MCSHIM_SERVER_H */
