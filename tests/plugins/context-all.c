/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin whose flush asks for the client, and sleeps: see context.h. */

#define ASK_NAME
#define ASK_PEER
#define ASK_SLEEP
#include "context.h"
