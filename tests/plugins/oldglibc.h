/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* For what moved into libc with glibc 2.34: a library that is preloaded
 * beside the shim into programs with an older glibc must ask for the older
 * version.  See interpose/oldglibc.h.
 */

#if defined (__GLIBC__) && defined (__x86_64__) && !defined (__ILP32__)
#define OLD(function)                                                   \
  __asm__ (".symver " #function "," #function "@GLIBC_2.2.5")
#else
#define OLD(function) _Static_assert (1, "what the linker finds")
#endif
