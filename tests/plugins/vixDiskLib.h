/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* What vddk124.c uses of VMware's library.  nbdkit's own plugin uses more. */

#include <stdint.h>

#define SECTOR 512
#define OPEN_READ_ONLY 4

enum { OK = 0, FAIL = 1, NO_ACCESS = 13, ASYNC = 25000 };

struct disk;

struct info {
  uint32_t geometry[6];
  uint64_t capacity;
  int adapter, links;
  char *parent, *uuid;
  uint32_t logical, physical;
};

struct blocks {
  uint32_t n;
  struct { uint64_t offset, length; } block[];
};

uint64_t VixDiskLib_InitEx (uint32_t major, uint32_t minor, void *log,
                            void *warn, void *panic, const char *dir,
                            const char *config);
void VixDiskLib_Exit (void);
uint64_t VixDiskLib_ConnectEx (void *params, char read_only,
                               const char *snapshot, const char *transports,
                               void **connection);
uint64_t VixDiskLib_Disconnect (void *connection);
uint64_t VixDiskLib_Open (void *connection, const char *path, uint32_t flags,
                          struct disk **disk);
uint64_t VixDiskLib_Close (struct disk *d);
uint64_t VixDiskLib_GetInfo (struct disk *d, struct info **info);
void VixDiskLib_FreeInfo (struct info *info);
uint64_t VixDiskLib_Read (struct disk *d, uint64_t start, uint64_t n,
                          uint8_t *buf);
uint64_t VixDiskLib_Write (struct disk *d, uint64_t start, uint64_t n,
                           const uint8_t *buf);
uint64_t VixDiskLib_Flush (struct disk *d);
uint64_t VixDiskLib_QueryAllocatedBlocks (struct disk *d, uint64_t start,
                                          uint64_t n, uint64_t chunk,
                                          struct blocks **list);
uint64_t VixDiskLib_FreeBlockList (struct blocks *list);
