/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin whose flush asks for the client too: see context.h. */

#define ASK_NAME
#define ASK_PEER
#include "context.h"
