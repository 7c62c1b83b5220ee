/* interpose/record.c, on servers that are like nbdkit's of each age as far
 * as it can see, and on some that are not.
 *
 * Each server is tried in a process of its own, as its record is found
 * once.
 */

#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interpose/interpose.h"

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

static const struct server {
  const char *name;
  int error;                    /* offsets in the record */
  int text;                     /* of the last error, or 0 */
  int connection, context;      /* or 0 */
  int beyond;                   /* a word that is set and no one knows */
  bool export_name, contexts;   /* it has the functions */
  bool name_in_context;
  bool known;                   /* record.c can find its way */
  int size;
} servers[] = {
  { "1.10", 28, .size = 32 },
  { "1.14", 28, .connection = 48, .size = 56 },
  { "1.16", 16, .connection = 40, .export_name = true,
    .known = true, .size = 48 },
  { "1.26", 16, .connection = 40, .context = 48, .export_name = true,
    .contexts = true, .known = true, .size = 56 },
  { "1.34", 16, .text = 24, .connection = 48, .context = 56,
    .export_name = true, .contexts = true, .known = true, .size = 64 },
  { "1.48", 16, .text = 24, .connection = 56, .context = 64,
    .export_name = true, .contexts = true, .name_in_context = true,
    .known = true, .size = 72 },
  { "a word after the context", 16, .connection = 40, .context = 48,
    .beyond = 56, .export_name = true, .contexts = true, .size = 64 },
  { "a word after the connection", 16, .connection = 40, .beyond = 48,
    .export_name = true, .size = 64 },
  { "a word between them", 16, .connection = 40, .context = 56,
    .beyond = 48, .export_name = true, .contexts = true, .size = 64 },
  { "the context before the connection", 16, .connection = 48,
    .context = 40, .export_name = true, .contexts = true, .size = 64 },
  { "no record", .error = -1, .export_name = true },
};

static const struct server *server;
static pthread_key_t key, other_key;
static int errors;              /* that were logged */
static const char *imports[8];
static int failures;

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      printf ("%s: line %d: %s\n", server->name, __LINE__, #condition); \
      failures++;                                                       \
    }                                                                   \
  } while (0)

static char *
current (void)
{
  return server->error == -1 ? NULL : pthread_getspecific (key);
}

void
nbdkit_error (const char *fmt, ...)
{
  char *record = current (), *text;

  (void) fmt;
  errors++;
  if (record != NULL && server->text != 0) {
    free (get_word (record, server->text));
    text = strdup ("the last error");
    put_word (record, server->text, text);
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
  struct server_context *context = NULL;

  if (server->contexts) {
    if (current () != NULL)
      context = get_word (current (), server->context);
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
plugin_imports (const char *prefix)
{
  const char **import;

  for (import = imports; *import != NULL; import++)
    if (strncmp (*import, prefix, strlen (prefix)) == 0)
      return *import;
  return NULL;
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
  if (server->text != 0)
    free (get_word (record, server->text));
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
  if (server->error == -1)
    return;
  c->record = calloc (1, server->size);
  if (server->connection != 0)
    put_word (c->record, server->connection, c->connection);
  if (server->context != 0)
    put_word (c->record, server->context, c->context);
  if (server->beyond != 0)
    put_word (c->record, server->beyond, &failures);
}

/* The server goes on in that client's thread. */
static void
switch_to (const struct client *c)
{
  if (server->error != -1)
    pthread_setspecific (key, c->record);
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
  switch_to (c);
  if (c->record != NULL)
    free_record (c->record);
  if (server->error != -1)
    pthread_setspecific (key, NULL);
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

/* What the flush of C's handle shall hear on the thread that is D's, or
 * on one of our own.
 */
static struct heard
wanted (const struct client *c, const struct client *d, bool others)
{
  const struct heard nothing = { "-", 0 }, all = { c->name, c->peer },
    name = { c->name, 0 };
  const bool own = c == d && !c->captured.closing;

  if (server->error == -1 || server->connection == 0)
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

  context_enter (&c->captured, others, &v);
  heard = hear ();
  CHECK (equal (heard, wanted (c, d, others)));

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
  const char *lacks = use_peer ? "nbdkit_peer_name" : NULL;
  pthread_t thread;

  if (!lacks && server->export_name && !server->contexts && use_sleep)
    lacks = "nbdkit_export_name";
  if (!server->export_name)
    lacks = NULL;
  CHECK (context_lacks (NULL) == lacks);

  connect_client (&a);
  connect_client (&b);
  open_handle (&a);
  open_handle (&b);
  CHECK ((a.captured.whose != NULL) == server->known);
  if (server->export_name && !server->known && !lacks)
    lacks = "nbdkit_export_name";
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

/* The first handle is a filter's, opened on a client's thread but for no
 * connection; and before it one on a thread without a record.
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

/* Then a server that is not known is left alone. */
static void
asks_nothing (void)
{
  struct visit v;

  imports[1] = NULL;
  context_init ();
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
  if (server->error != -1)
    check_flush (&(struct client) { .name = "-", .captured = a.captured }, NULL,
                 true);
  disconnect_client (&a);
}

static void
try (const struct server *s, bool peer, bool sleep, void (*test) (void))
{
  const char **import = imports;
  int status;
  pid_t pid;

  server = s;
  use_peer = peer;
  use_sleep = sleep;
  fflush (stdout);
  pid = fork ();
  if (pid == 0) {
    failures = 0;
    pthread_key_create (&other_key, NULL);
    pthread_setspecific (other_key, &key);
    pthread_key_create (&key, free_record);
    export_name = server->export_name ? server_export_name : NULL;
    next_context_open = server->contexts ? server_next_context_open : NULL;
    *import++ = "nbdkit_error";
    *import++ = "nbdkit_export_name";
    *import++ = "nbdkit_strdup_intern";
    if (peer)
      *import++ = "nbdkit_peer_name";
    if (sleep)
      *import++ = "nbdkit_nanosleep";
    context_init ();
    test ();
    exit (failures != 0);
  }
  if (pid == -1 || waitpid (pid, &status, 0) == -1 || status != 0) {
    printf ("nbdkit %s: failed\n", s->name);
    failures++;
  }
}

int
main (void)
{
  const struct server *s;
  int i;

  for (s = servers; s < servers + sizeof servers / sizeof servers[0]; s++)
    for (i = 0; i < 4; i++) {
      try (s, i & 1, i & 2, two_clients);
      try (s, i & 1, i & 2, shared_first);
      try (s, i & 1, i & 2, nameless_first);
      try (s, i & 1, i & 2, asks_nothing);
      try (s, i & 1, i & 2, no_record);
    }
  return failures != 0;
}
