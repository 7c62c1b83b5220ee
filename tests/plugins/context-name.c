/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* A plugin whose flush asks what any plugin may: see context.h. */

#define ASK_NAME
#include "context.h"
