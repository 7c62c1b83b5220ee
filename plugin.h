/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* The plugin that is wrapped: its struct, its thread model, and what the log
 * says of it.
 */

#ifndef MCSHIM_PLUGIN_H
#define MCSHIM_PLUGIN_H

#include <stdbool.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "interpose/record.h"
#include "policy.h"

/* Declares what the server calls in place of the plugin's CALLBACK. */
#define WRAPPER(callback) \
  extern __typeof__ (*((struct nbdkit_plugin *) 0)->callback) shim_##callback;

#pragma GCC visibility push(hidden) /* no look-up for a request */
extern struct nbdkit_plugin plugin; /* as it is, but with version 2's data */
#pragma GCC visibility pop
extern struct policy policy;
extern int thread_model;
extern unsigned nr_handles;     /* of a connection, at most */

extern void set_thread_model (int model);
extern const char *thread_model_name (void);

/* What the mode depends on, as far as the plugin's struct shows. */
extern struct traits struct_traits (bool readonly);

/* Print an error that ends the server before it serves anyone. */
extern void complain (const char *line);

/* Log, once, what is set and what this server can't do.  The thread model is
 * settled.
 */
extern void log_settings (void);

/* Log the mode, if the options and the plugin's struct decide it: otherwise
 * connections do.
 */
extern void log_foreseen (void);

/* Log each verdict once, and why; and once what policy.c has to say about the
 * plugin.
 */
extern void log_resolution (const struct resolution *r);

/* A flush of the handle of C, for which other connections wait, has failed:
 * log once which function of the server the plugin should not call in it.
 */
extern void log_failed_flush (const struct context *c);

#endif /* MCSHIM_PLUGIN_H */
