/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* Doubly linked lists, with the names of <sys/queue.h>, which musl lacks:
 * only what is used here.  A TAILQ can also be appended to.
 *
 * An entry's "link" is the pointer that points to it: the one before it, or
 * the head's.
 */

#ifndef MCSHIM_QUEUE_H
#define MCSHIM_QUEUE_H

#include <stddef.h>

#define LIST_HEAD(name, type) struct name { struct type *first; }
#define LIST_HEAD_INITIALIZER(head) { NULL }
#define LIST_ENTRY(type) struct { struct type *next, **link; }

#define LIST_INIT(head) ((void) ((head)->first = NULL))
#define LIST_FIRST(head) ((head)->first)
#define LIST_FOREACH(e, head, field) \
  for ((e) = (head)->first; (e) != NULL; (e) = (e)->field.next)

#define LIST_INSERT_HEAD(head, e, field) do {           \
    (e)->field.next = (head)->first;                    \
    (e)->field.link = &(head)->first;                   \
    if ((e)->field.next != NULL)                        \
      (e)->field.next->field.link = &(e)->field.next;   \
    (head)->first = (e);                                \
  } while (0)

#define LIST_REMOVE(e, field) do {                      \
    if ((e)->field.next != NULL)                        \
      (e)->field.next->field.link = (e)->field.link;    \
    *(e)->field.link = (e)->field.next;                 \
  } while (0)

#define TAILQ_HEAD(name, type) struct name { struct type *first, **end; }
#define TAILQ_ENTRY(type) LIST_ENTRY (type)

#define TAILQ_INIT(head) \
  ((head)->first = NULL, (void) ((head)->end = &(head)->first))
#define TAILQ_FIRST(head) LIST_FIRST (head)
#define TAILQ_FOREACH(e, head, field) LIST_FOREACH (e, head, field)

#define TAILQ_INSERT_HEAD(head, e, field) do {          \
    if ((head)->first == NULL)                          \
      (head)->end = &(e)->field.next;                   \
    LIST_INSERT_HEAD (head, e, field);                  \
  } while (0)

#define TAILQ_INSERT_TAIL(head, e, field) do {          \
    (e)->field.next = NULL;                             \
    (e)->field.link = (head)->end;                      \
    *(head)->end = (e);                                 \
    (head)->end = &(e)->field.next;                     \
  } while (0)

#define TAILQ_REMOVE(head, e, field) do {               \
    if ((e)->field.next == NULL)                        \
      (head)->end = (e)->field.link;                    \
    LIST_REMOVE (e, field);                             \
  } while (0)

#endif /* MCSHIM_QUEUE_H */
