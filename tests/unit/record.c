/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* interpose/record.c, on simulated servers: like nbdkit of each age, as far as
 * it can see, and some that are not.
 */

#include <pthread.h>
#include <stdarg.h>

#include "interpose/loader.h"
#include "interpose/server.h"
#include "unit.h"

/* The server has these, or lacks them. */
static const char *(*export_name) (void);
static void *(*next_context_open) (void *, int, const char *, int);
#define nbdkit_export_name export_name
#define nbdkit_next_context_open next_context_open

#include "interpose/record.c"

#undef nbdkit_export_name
#undef nbdkit_next_context_open

/* The server.  The record is an array of words. */

struct server_connection {
  const char *name;
  int peer;
};

struct server_context {
  void *handle;
  struct server_connection *connection;
  const char *name;
};

#define W sizeof (void *)

static const struct server {
  const char *name;
  bool export_name, contexts;   /* it has the functions */
  bool name_in_context;
  bool known;                   /* record.c can find its way */
  /* Offsets in the record; 0 for what it lacks.  The error is always
   * there, or nothing is.
   */
  size_t size, error, last_error, connection, context;
  size_t other;                 /* another word that is set */
} servers[] = {
  { "1.10", false, false, false, false, 4 * W, 3 * W + 4, 0, 0, 0, 0 },
  { "1.14", false, false, false, false, 7 * W, 3 * W + 4, 0, 6 * W, 0, 0 },
  { "1.16", true, false, false, true, 6 * W, 2 * W, 0, 5 * W, 0, 0 },
  { "1.26", true, true, false, true, 7 * W, 2 * W, 0, 5 * W, 6 * W, 0 },
  { "1.34", true, true, false, true, 8 * W, 2 * W, 3 * W, 6 * W, 7 * W, 0 },
  { "1.48", true, true, true, true, 9 * W, 2 * W, 3 * W, 7 * W, 8 * W, 0 },
  { "like 1.16, a word after the connection",
    true, false, false, false, 8 * W, 2 * W, 0, 5 * W, 0, 6 * W },
  { "like 1.26, a word after the context",
    true, true, false, false, 8 * W, 2 * W, 0, 5 * W, 6 * W, 7 * W },
  { "like 1.26, a word between the two",
    true, true, false, false, 8 * W, 2 * W, 0, 5 * W, 7 * W, 6 * W },
  { "like 1.26, the context first",
    true, true, false, false, 8 * W, 2 * W, 0, 6 * W, 5 * W, 0 },
  { "like 1.10, unsized", false, false, false, false, 4 * W, 3 * W + 4, 0, 0,
    0, 0 },
  { "like 1.48, unsized",
    true, true, true, false, 9 * W, 2 * W, 3 * W, 7 * W, 8 * W, 0 },
  { "without records", true, false, false, false, 0, 0, 0, 0, 0, 0 },
  { NULL, false, false, false, false, 0, 0, 0, 0, 0, 0 }
};

static const struct server *server;
static pthread_key_t key, other_key;
static const char *may_call[8]; /* the plugin may */

static char *
current (void)
{
  return server->size ? pthread_getspecific (key) : NULL;
}

/* The newer ones keep the text. */
void
nbdkit_error (const char *fmt, ...)
{
  char *record = current ();

  (void) fmt;
  if (record != NULL && server->last_error) {
    free (get_word (record, server->last_error));
    put_word (record, server->last_error, strdup ("an error"));
  }
}

void
nbdkit_set_error (int err)
{
  char *record = current ();

  if (record != NULL)
    memcpy (record + server->error, &err, sizeof err);
  else
    errno = err;
}

static struct server_connection *
server_connection (void)
{
  char *record = current ();

  return record && server->connection ?
    get_word (record, server->connection) : NULL;
}

static const char *
server_export_name (void)
{
  struct server_connection *connection = server_connection ();
  struct server_context *context;

  if (server->contexts) {
    context = current () ? get_word (current (), server->context) : NULL;
    if (context && server->name_in_context)
      return context->name;
    connection = context ? context->connection : NULL;
  }
  if (connection == NULL) {
    nbdkit_error ("no connection in this thread");
    return NULL;
  }
  return connection->name;
}

static void *
server_next_context_open (void *backend, int readonly, const char *export,
                          int shared)
{
  (void) backend;
  (void) readonly;
  (void) export;
  (void) shared;
  return NULL;
}

const char *
imports (const struct link_map *map, const char *prefix)
{
  const char **import;

  (void) map;
  for (import = may_call; *import != NULL; import++)
    if (strncmp (*import, prefix, strlen (prefix)) == 0)
      return *import;
  return NULL;
}

bool
allocator_knows_sizes (void)
{
  return strstr (server->name, "unsized") == NULL;
}

/* A client, and the thread that the server has for it. */

struct client {
  const char *name;
  int peer;
  struct server_connection *connection;
  struct server_context *context;
  char *record;
  struct context captured;
};

static void
free_record (void *record)
{
  if (server->last_error)
    free (get_word (record, server->last_error));
  free (record);
}

static void
connect_client (struct client *c)
{
  c->connection = calloc (1, sizeof *c->connection);
  c->context = calloc (1, sizeof *c->context);
  c->connection->name = c->name;
  c->connection->peer = c->peer;
  c->context->connection = c->connection;
  c->context->name = c->name;
  CHECK (c->record == NULL);
  if (server->size == 0)
    return;
  c->record = calloc (1, server->size);
  if (server->connection)
    put_word (c->record, server->connection, c->connection);
  if (server->context)
    put_word (c->record, server->context, c->context);
  if (server->other)
    put_word (c->record, server->other, &server);
}

/* The server goes on in that client's thread. */
static void
switch_to (const struct client *c)
{
  CHECK (pthread_setspecific (key, c->record) == 0);
}

static void
open_handle (struct client *c)
{
  switch_to (c);
  server_error_init ();
  context_capture (&c->captured);
}

static void
disconnect_client (struct client *c)
{
  CHECK (pthread_setspecific (key, NULL) == 0);
  if (c->record != NULL)
    free_record (c->record);
  free (c->context);
  free (c->connection);
}

struct heard {
  const char *name;             /* "-" if that fails */
  int peer;                     /* so is 0 */
};

static struct heard
hear (void)
{
  const char *name = server_export_name ();
  struct server_connection *connection = server_connection ();

  return (struct heard) { name ? name : "-",
                          connection ? connection->peer : 0 };
}

static bool use_peer, use_sleep;
static struct client a = { .name = "a", .peer = 1 },
                     b = { .name = "b", .peer = 2 };

/* What the flush of C's handle must be told on D's thread, or on one of our
 * own.
 */
static struct heard
wanted (const struct client *c, const struct client *d, bool others)
{
  const struct heard nothing = { "-", 0 }, all = { c->name, c->peer },
    name = { c->name, 0 };
  const bool own = c == d && !c->captured.closing;

  if (!server->connection)
    return nothing;
  if (own && !others)
    return all;
  if (!server->known)
    return nothing;
  if (server->contexts)
    return own && !use_sleep ? all : name;
  return (own && !use_sleep) || !(use_peer || use_sleep) ? all : nothing;
}

static bool
equal (struct heard x, struct heard y)
{
  return strcmp (x.name, y.name) == 0 && x.peer == y.peer;
}

static void
check_flush (const struct client *c, const struct client *d, bool others)
{
  const struct heard before = hear ();
  struct heard heard;
  struct visit v;
  bool locked;

  nbdkit_set_error (EPERM);
  context_enter (&c->captured, others, &v);
  heard = hear ();
  CHECK (equal (heard, wanted (c, d, others)));
  if (use_peer && server->export_name)
    CHECK (v.bare == (heard.peer == 0));

  /* The strings have a list, or the list is locked. */
  locked = pthread_mutex_trylock (&intern_lock) != 0;
  if (!locked)
    pthread_mutex_unlock (&intern_lock);
  if (server->export_name)
    CHECK (locked == (strcmp (heard.name, "-") == 0));

  /* Errors are found, whatever has been done. */
  nbdkit_set_error (0);
  errno = 0;
  CHECK (server_error (false) == EIO);
  nbdkit_set_error (ENOSPC);
  CHECK (server_error (false) == ENOSPC);

  context_leave (&v);
  CHECK (equal (hear (), before));
  if (current () != NULL)
    CHECK (server_error (false) == EPERM);
}

static void *
helper (void *arg)
{
  (void) arg;
  server_error_thread ();
  check_flush (&a, NULL, true);
  check_flush (&b, NULL, true);
  return NULL;
}

/* Two clients, and flushes of their handles everywhere. */
static void
two_clients (void)
{
  const char *lacks = NULL;
  pthread_t thread;

  if (server->export_name && use_peer)
    lacks = "nbdkit_peer_name";
  else if (server->export_name &&
           (!server->known || (use_sleep && !server->contexts)))
    lacks = "nbdkit_export_name";
  connect_client (&a);
  connect_client (&b);
  open_handle (&a);
  open_handle (&b);
  CHECK ((a.captured.whose != NULL) == server->known);
  CHECK (context_lacks (&a.captured) == lacks);
  CHECK (context_lacks (&b.captured) == lacks);

  switch_to (&a);
  check_flush (&b, &a, true);
  check_flush (&a, &a, true);
  check_flush (&a, &a, false);
  switch_to (&b);
  check_flush (&a, &b, true);
  pthread_create (&thread, NULL, helper, NULL);
  pthread_join (thread, NULL);

  switch_to (&a);
  a.captured.closing = true;
  check_flush (&a, &a, true);
  switch_to (&b);
  check_flush (&a, &b, true);
  check_flush (&b, &b, true);

  disconnect_client (&a);
  disconnect_client (&b);
}

/* A filter opens the first handle on a client's thread but for no connection,
 * and before it another on a thread without a record.
 */
static void
shared_first (void)
{
  struct client shared = { .name = "-" };

  if (!server->contexts || !server->known)
    return;
  server_error_init ();
  context_capture (&shared.captured);
  CHECK (shared.captured.whose == NULL);

  connect_client (&a);
  connect_client (&b);
  a.context->connection = NULL;
  open_handle (&a);
  CHECK (a.captured.whose == NULL);
  put_word (a.record, server->connection, NULL);
  open_handle (&a);
  CHECK (a.captured.whose == NULL);
  open_handle (&b);
  CHECK (b.captured.whose != NULL);
  /* Another one, now that the place is known. */
  open_handle (&a);
  CHECK (a.captured.whose != NULL && !a.captured.interns);

  if (!server->name_in_context) {
    a.name = "-";
    switch_to (&b);
    check_flush (&a, &b, true);
  }
  switch_to (&a);
  check_flush (&b, &a, true);
  disconnect_client (&a);
  disconnect_client (&b);
}

/* A connection whose name the server does not know. */
static void
nameless_first (void)
{
  if (!server->known)
    return;
  a.name = NULL;
  connect_client (&a);
  connect_client (&b);
  open_handle (&a);
  CHECK (a.captured.whose == NULL);
  open_handle (&b);
  CHECK (b.captured.whose != NULL);
  disconnect_client (&a);
  disconnect_client (&b);
}

/* An unknown server is then left alone. */
static void
asks_nothing (void)
{
  struct visit v;

  may_call[1] = NULL;
  context_init (NULL);
  connect_client (&a);
  open_handle (&a);
  context_enter (&a.captured, true, &v);
  CHECK (!v.hidden && !v.locked);
  context_leave (&v);
  disconnect_client (&a);
}

/* A thread that has no record: a filter's own flushes. */
static void
no_record (void)
{
  connect_client (&a);
  open_handle (&a);
  pthread_setspecific (key, NULL);
  if (server->size)
    check_flush (&(struct client) { .name = "-", .captured = a.captured },
                 NULL, true);
  disconnect_client (&a);
}

/* What to try on each server, and what the plugin uses. */
static const struct test {
  const char *name;
  void (*run) (void);
  bool peer, sleep;
} tests[] = {
  { "two clients", two_clients, false, false },
  { "two clients, who is asked for", two_clients, true, false },
  { "two clients, a sleep", two_clients, false, true },
  { "two clients, who is asked for, a sleep", two_clients, true, true },
  { "a filter's handle first", shared_first, false, false },
  { "a nameless client first", nameless_first, false, false },
  { "a plugin that asks nothing", asks_nothing, false, false },
  { "a thread without a record", no_record, false, false },
  { NULL, NULL, false, false }
};

static void
run (const void *arg)
{
  const struct test *test = arg;
  const char **import = may_call;

  /* There is also another key, without a record. */
  CHECK (pthread_key_create (&other_key, NULL) == 0);
  CHECK (pthread_setspecific (other_key, &servers) == 0);
  CHECK (pthread_key_create (&key, free_record) == 0);
  export_name = server->export_name ? server_export_name : NULL;
  next_context_open = server->contexts ? server_next_context_open : NULL;
  use_peer = test->peer;
  use_sleep = test->sleep;
  *import++ = "nbdkit_error";
  *import++ = "nbdkit_export_name";
  *import++ = "nbdkit_strdup_intern";
  if (use_peer)
    *import++ = "nbdkit_peer_name";
  if (use_sleep)
    *import++ = "nbdkit_nanosleep";
  context_init (NULL);
  test->run ();

  /* To look for leaks takes a sanitizer longer than all the rest: it does so
   * for the oldest and the newest server.
   */
  if (strcmp (server->name, "1.10") != 0 && strcmp (server->name, "1.48") != 0)
    _exit (EXIT_SUCCESS);
}

int
main (void)
{
  const struct test *test;
  char name[128];

  unit_program = "record";
  for (server = servers; server->name != NULL; server++)
    for (test = tests; test->name != NULL; test++) {
      snprintf (name, sizeof name, "a server %s: %s", server->name,
                test->name);
      unit_run (name, run, test);
    }
  return unit_status;
}
