/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* One binary for every glibc since 2.17 (RHEL 7).
 *
 * Linked against a newer glibc, these symbols would ask for the version
 * in which they moved from libpthread to libc, or became a function of
 * their own.  Their old versions are still there: ask for those.  They
 * are weak because before 2.34 only programs linked with libpthread have
 * them.  nbdkit is; other programs with this preload may not be.
 *
 * The old version is the first that glibc had on the architecture.  On
 * other architectures the library asks for what the linker finds.
 */

#ifndef MCSHIM_OLDGLIBC_H
#define MCSHIM_OLDGLIBC_H

#include <sys/stat.h>

/* A 32-bit build with 64-bit times needs a glibc that has them (2.34). */
#if defined (__GLIBC__) && \
  !(defined (__USE_TIME_BITS64) && __SIZEOF_LONG__ == 4)
#if defined (__x86_64__) && !defined (__ILP32__)
#define OLDEST "GLIBC_2.2.5"
#define STAT_VERSION 1
#elif defined (__i386__)
#define OLDEST "GLIBC_2.0"
#define OLDEST_CREATE "GLIBC_2.1"
#define STAT_VERSION 3
#elif defined (__aarch64__)
#define OLDEST "GLIBC_2.17"
#define STAT_VERSION 0
#elif defined (__arm__) && defined (__ARM_EABI__)
#define OLDEST "GLIBC_2.4"
#define STAT_VERSION 3
#elif defined (__s390x__)
#define OLDEST "GLIBC_2.2"
#define STAT_VERSION 1
#elif defined (__powerpc64__) && _CALL_ELF == 2
#define OLDEST "GLIBC_2.17"
#define STAT_VERSION 1
#elif defined (__riscv) && __riscv_xlen == 64
#define OLDEST "GLIBC_2.27"
#define STAT_VERSION 0
#elif defined (__mips__) && _MIPS_SIM == _ABI64
#define OLDEST "GLIBC_2.0"
#define OLDEST_CREATE "GLIBC_2.2"
#define STAT_VERSION 3
#endif
#endif

#ifndef OLDEST_CREATE
#define OLDEST_CREATE OLDEST
#endif

#ifdef OLDEST
#define OLD(function, version)                                      \
  __asm__ (".weak " #function "\n\t"                                \
           ".symver " #function "," #function "@" version)
OLD (pthread_create, OLDEST_CREATE);
OLD (pthread_join, OLDEST);
OLD (pthread_getspecific, OLDEST);
OLD (pthread_setspecific, OLDEST);
#undef OLD

/* Before 2.33 stat and fstat were inline functions around these, which take
 * the layout of the struct as a number.  The struct is the one for large
 * files.  Their headers declare these functions too, for another struct.
 */
extern int old_stat (int version, const char *path, struct stat *st)
  __asm__ ("__xstat64");
extern int old_fstat (int version, int fd, struct stat *st)
  __asm__ ("__fxstat64");
#define stat(path, st) old_stat (STAT_VERSION, path, st)
#define fstat(fd, st) old_fstat (STAT_VERSION, fd, st)
#endif

#endif /* MCSHIM_OLDGLIBC_H */
