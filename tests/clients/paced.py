#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

"""A client with a given speed, for tests of what measures it.

It takes the first number of the file "figures", reads so many MiB from $uri,
in equal parts over $connections (or 2) connections, and moves the clock in the
file "clock", in nanoseconds, on by a second.  After a 1 it does not end before
its server: the file "over" is there from when it has read until the server has
gone.
"""

import os
import sys
from pathlib import Path

import nbd

figure, _, rest = Path("figures").read_text().strip().partition(" ")
if not figure:
    sys.exit("paced: it has run too often")
Path("figures").write_text(rest)
count = int(os.environ.get("connections", 2))
h = [nbd.NBD() for i in range(count)]
for c in h:
    c.connect_uri(os.environ["uri"])
for c in h:
    c.pread(int(figure) * 1024 * 1024 // count, 0)
clock = Path("clock")
clock.write_text("%d\n" % (int(clock.read_text()) + 10 ** 9))

if figure == "1":
    over = Path("over")
    over.touch()
    try:
        while True:
            h[0].poll(-1)
    except nbd.Error:
        over.unlink()
        sys.exit(1)
for c in h:
    c.shutdown()
