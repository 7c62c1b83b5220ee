/* MCSHIM_STATS_FILE: counters for people and scripts, "key: value". */

#ifndef MCSHIM_STATSFILE_H
#define MCSHIM_STATSFILE_H

#include "policy.h"
#include "replicate.h"

/* See whether the file can be written.  Returns 0, or -1 with errno set. */
extern int statsfile_check (const char *path);

/* Replace the file, in one step.  Returns 0, or -1 with errno set; the
 * old file is then as it was.
 */
extern int statsfile_write (const char *path, const struct policy *policy,
                            const char *thread_model,
                            const struct statistics *statistics);

#endif /* MCSHIM_STATSFILE_H */
