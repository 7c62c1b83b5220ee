/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A wire with latency: passes TCP connections on to another port of this
 * machine, with a delay in each direction.  All that arrives is read at once, and
 * waits here.  Each direction of a connection has a bandwidth of so many megabytes
 * in a second, or any.
 *
 *   relay PORT MICROSECONDS [MEGABYTES]
 *
 * Prints the port that it listens on, and ends when its standard input does.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../latency.h"

#define CHUNK (96 * 1024)       /* most bytes read at once; malloc maps more */
#define FLOWS 1024

struct chunk {
  struct chunk *next;
  uint64_t due;                 /* nanoseconds */
  size_t length, sent;
  char data[];
};

/* One direction of a connection: the even or the odd one of two neighbours
 * in "flows".  It is over when "from" has ended and all has been sent.
 */
struct flow {
  int from, to;
  bool ended, over, full;       /* "full": "to" takes no more for now */
  struct chunk *first, *last;
  uint64_t idle_at;             /* when all so far is on the wire */
};

static struct flow flows[FLOWS];
static unsigned count;
static uint64_t delay, bandwidth;

static void
check (bool failed, const char *what)
{
  if (failed) {
    fprintf (stderr, "relay: %s: %s\n", what, strerror (errno));
    exit (EXIT_FAILURE);
  }
}

static int
new_socket (void)
{
  int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  check (fd == -1, "socket");
  return fd;
}

static void
add_flow (int from, int to)
{
  const int one = 1;

  check (setsockopt (to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == -1,
         "TCP_NODELAY");
  check (count == FLOWS, "too many connections");
  flows[count++] = (struct flow) { .from = from, .to = to };
}

/* If the target can't be reached, that is read from it: as if it had hung up. */
static void
add_connection (int client, const struct sockaddr_in *target)
{
  const int server = new_socket ();

  check (client == -1, "accept");
  check (connect (server, (const void *) target, sizeof *target) == -1 &&
         errno != EINPROGRESS && errno != ECONNREFUSED, "connect");
  add_flow (client, server);
  add_flow (server, client);
}

static void
receive (struct flow *f)
{
  struct chunk *c = malloc (sizeof *c + CHUNK);
  ssize_t n;

  check (c == NULL, "malloc");
  n = read (f->from, c->data, CHUNK);
  if (n <= 0) {
    f->ended = n == 0 || errno != EAGAIN;
    free (c);
    return;
  }
  c = realloc (c, sizeof *c + n);
  check (c == NULL, "realloc");
  if (f->idle_at < now_ns ())
    f->idle_at = now_ns ();
  f->idle_at += bandwidth ? n * 1000 / bandwidth : 0;
  *c = (struct chunk) { .due = f->idle_at + delay, .length = n };
  if (f->first == NULL)
    f->first = c;
  else
    f->last->next = c;
  f->last = c;
}

/* Send what is due.  Returns when the next is, or 0 if there is nothing to
 * wait for.
 */
static uint64_t
pass_on (struct flow *f)
{
  struct chunk *c;
  ssize_t n;

  while ((c = f->first) != NULL && !f->full) {
    if (c->due > now_ns ())
      return c->due;
    n = write (f->to, c->data + c->sent, c->length - c->sent);
    if (n == -1 && errno == EAGAIN)
      f->full = true;
    else {
      c->sent += n == -1 ? c->length - c->sent : (size_t) n;
      if (c->sent == c->length) {
        f->first = c->next;
        free (c);
      }
    }
  }
  if (f->ended && f->first == NULL && !f->over) {
    f->over = true;
    shutdown (f->to, SHUT_WR);
  }
  return 0;
}

/* Connections whose directions are both over make room. */
static void
clear_up (void)
{
  unsigned i = 0;

  while (i < count)
    if (flows[i].over && flows[i + 1].over) {
      close (flows[i].from);
      close (flows[i].to);
      count -= 2;
      flows[i] = flows[count];
      flows[i + 1] = flows[count + 1];
    }
    else
      i += 2;
}

int
main (int argc, char *argv[])
{
  struct sockaddr_in target = { .sin_family = AF_INET }, here = target;
  socklen_t length = sizeof here;
  static struct pollfd fds[2 + 2 * FLOWS];
  int listener;
  unsigned i;

  if (argc != 3 && argc != 4) {
    fprintf (stderr, "usage: relay PORT MICROSECONDS [MEGABYTES]\n");
    exit (EXIT_FAILURE);
  }
  target.sin_port = htons (atoi (argv[1]));
  target.sin_addr.s_addr = here.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  delay = strtoull (argv[2], NULL, 10) * 1000;
  bandwidth = argc > 3 ? strtoull (argv[3], NULL, 10) : 0;
  signal (SIGPIPE, SIG_IGN);

  listener = new_socket ();
  check (bind (listener, (void *) &here, sizeof here) == -1 ||
         listen (listener, 128) == -1 ||
         getsockname (listener, (void *) &here, &length) == -1, "listen");
  printf ("%d\n", ntohs (here.sin_port));
  check (fflush (stdout) == EOF, "standard output");

  for (;;) {
    uint64_t next = 0, t;
    struct timespec wait;

    fds[0] = (struct pollfd) { .fd = listener, .events = POLLIN };
    fds[1] = (struct pollfd) { .fd = STDIN_FILENO, .events = POLLIN };
    for (i = 0; i < count; i++) {
      struct flow *f = &flows[i];

      t = pass_on (f);
      if (t != 0 && (next == 0 || t < next))
        next = t;
      fds[2 + 2 * i] = (struct pollfd)
        { .fd = f->ended ? -1 : f->from, .events = POLLIN };
      fds[3 + 2 * i] = (struct pollfd)
        { .fd = f->full ? f->to : -1, .events = POLLOUT };
    }
    t = now_ns ();
    t = next > t ? next - t : 0;
    wait = (struct timespec) { t / 1000000000, t % 1000000000 };
    check (ppoll (fds, 2 + 2 * count, next ? &wait : NULL, NULL) == -1, "poll");

    if (fds[1].revents && read (STDIN_FILENO, &wait, sizeof wait) <= 0)
      exit (EXIT_SUCCESS);
    for (i = 0; i < count; i++) {
      if (fds[2 + 2 * i].revents)
        receive (&flows[i]);
      if (fds[3 + 2 * i].revents)
        flows[i].full = false;
    }
    if (fds[0].revents)
      add_connection (accept4 (listener, NULL, NULL,
                               SOCK_CLOEXEC | SOCK_NONBLOCK), &target);
    clear_up ();
  }
}
