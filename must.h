/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright (C) 2026 mcshim authors
 */

/* For calls that can't fail unless memory is corrupt, and then no promise can
 * be kept: nbdkit's own locks also abort.
 */

#ifndef MCSHIM_MUST_H
#define MCSHIM_MUST_H

#include <stdlib.h>

static inline void
must (int err)
{
  if (err != 0)
    abort ();
}

#endif /* MCSHIM_MUST_H */
