/* Getting in, and telling where we are.
 *
 * The library is preloaded into every program that the user's command
 * starts.  These files decide whether this one is an nbdkit server,
 * catch the one moment in which it registers its plugin, and otherwise
 * stay out of the way.
 */

#ifndef MCSHIM_INTERPOSE_H
#define MCSHIM_INTERPOSE_H

#include <link.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(default)

/* Functions that the server exports.  All are weak: an older server
 * lacks some, and a program that is not nbdkit all of them.  Test the
 * address before the call.  The first four are in every nbdkit.
 */
#define WEAK __attribute__ ((weak))
extern void nbdkit_error (const char *fmt, ...) WEAK;
extern void nbdkit_debug (const char *fmt, ...) WEAK;
extern void nbdkit_set_error (int err) WEAK;
extern int64_t nbdkit_parse_size (const char *str) WEAK;
struct nbdkit_extents;
extern int nbdkit_add_extent (struct nbdkit_extents *, uint64_t offset,
                              uint64_t length, uint32_t type)
  WEAK;                                            /* since 1.12 */
extern const char *nbdkit_export_name (void) WEAK; /* since 1.16 */

#pragma GCC visibility pop

struct nbdkit_plugin;
typedef struct nbdkit_plugin *(*plugin_init_fn) (void);

/* shim.c: given the plugin's own registration function, returns the one
 * that the server shall call in its place.
 */
extern plugin_init_fn shim_plugin_init (plugin_init_fn plugin_init);

/* True if this process is an nbdkit server. */
static inline bool
in_nbdkit (void)
{
  return nbdkit_error && nbdkit_debug && nbdkit_set_error && nbdkit_parse_size;
}

/* This library as the dynamic loader knows it, or NULL if it can't be
 * found.
 */
extern const struct link_map *own_link_map (void);

/* What the server was started for, by its options.  Unless it is SERVE it
 * prints something about the plugin, and opens no connection.
 */
enum purpose { SERVE, DUMP_PLUGIN, HELP, VERSION };
extern enum purpose server_purpose (void);

/* True if the server has loaded the filter NAME. */
extern bool filter_loaded (const char *name);

/* Take this library, and nothing else, out of LD_PRELOAD, so that the
 * programs that the server starts do not get it.
 */
extern void leave_environment (void);

/* Learn how the server keeps the error of a request, for server_error.
 * Call it on a thread of the server's; more than once is harmless.
 */
extern void server_error_init (void);

/* Give this thread, which is not the server's, a place for the error. */
extern void server_error_thread (void);

/* The errno which the server would report for a plugin's callback that
 * has just failed on this thread, if nbdkit_set_error (0) and errno = 0
 * went before it.
 */
extern int server_error (bool errno_is_preserved);

#endif /* MCSHIM_INTERPOSE_H */
