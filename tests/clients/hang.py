# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

"""Requests that hang in wbcache, while a command runs beside them.

hang.py [--writes] [--opens] [--errors] [--patience=25] COMMAND... URI

Until the command (the consistency checker, with its --size=1048576) ends,
requests of one connection are held up by wbcache's control file, $control.
Others write and flush meanwhile, beyond the command's part of the disk, and
must have their replies within so many seconds.  Then the request is let go,
and its connection must see what they have flushed.

--writes: the connection may have written before.  Not if requests are
serialized: its flush then waits for what hangs.  --opens: opens hang as well.
--errors: requests may fail.

Prints what is wrong, and how many requests hung.  The exit status is 1 if
something is wrong, otherwise the command's.
"""

import argparse
import os
import random
import subprocess
import sys
import time

import nbd

parser = argparse.ArgumentParser()
for option in "writes", "opens", "errors":
    parser.add_argument("--" + option, action="store_true")
parser.add_argument("--patience", type=int, default=25)
parser.add_argument("command", nargs=argparse.REMAINDER)
args = parser.parse_args()

BLOCK = 4096                    # what the library keeps apart
FIRST = 1024 * 1024             # of the others' blocks
OTHERS = 3
OWN = FIRST + OTHERS * BLOCK    # the block of the connection that hangs
ODD = FIRST + 8                 # where no other request begins
SPAN = OTHERS * BLOCK - 8

KINDS = [
    ("read", ODD, lambda h: h.aio_pread(nbd.Buffer(SPAN), ODD)),
    ("fill", ODD, lambda h: h.aio_pread(nbd.Buffer(SPAN), ODD)),
    ("fill", ODD, lambda h: h.aio_cache(SPAN, ODD)),
    ("fill", ODD, lambda h: h.aio_block_status(SPAN, ODD, lambda *_: 0)),
    ("write", OWN, lambda h: h.aio_pwrite(bytes(BLOCK), OWN)),
    ("zero", OWN, lambda h: h.aio_zero(BLOCK, OWN)),
    ("trim", OWN, lambda h: h.aio_trim(BLOCK, OWN)),
]

flushed = [None] * OTHERS       # what all must see of each one's block
version = hung = 0


def tell(text):
    with open(os.environ["control"] + ".new", "w") as f:
        f.write(text)
    os.rename(os.environ["control"] + ".new", os.environ["control"])


def violation(text):
    tell("")
    print("violation: " + text)
    checker.terminate()
    checker.wait()
    sys.exit(1)


def create():
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    return h


def connect():
    h = create()
    h.connect_uri(args.command[-1])
    return h


def reply(h, cookie, beside=None):
    """Wait for it.  Returns false if the request has failed."""
    end = time.monotonic() + args.patience
    try:
        while not h.aio_command_completed(cookie):
            left = end - time.monotonic()
            if beside and left <= 0:
                violation("held up: no reply to a flush for %d s, beside %s "
                          "that hangs" % (args.patience, beside))
            h.poll(max(1, int(left * 1000)) if beside else -1)
        return True
    except nbd.Error:
        if not args.errors:
            raise
        return False


def work_beside(what):
    """Let each of the others write and another one flush."""
    global version
    for i, h in enumerate(others):
        version += 1
        flusher = others[(i + 1) % OTHERS]
        data = version.to_bytes(8, "big") * (BLOCK // 8)
        flushed[i] = None
        written = reply(h, h.aio_pwrite(data, FIRST + i * BLOCK), what)
        if reply(flusher, flusher.aio_flush(), what) and written:
            flushed[i] = data


def look(h):
    for i, data in enumerate(flushed):
        buf = nbd.Buffer(BLOCK)
        if reply(h, h.aio_pread(buf, FIRST + i * BLOCK)) and data and \
                bytes(buf.to_bytearray()) != data:
            violation("stale: what was flushed beside a request that hung")


def open_slowly():
    global hung
    h = create()
    tell("block-open *\n")
    h.aio_connect_uri(args.command[-1])
    work_beside("an open")
    hung += h.aio_is_connecting()
    tell("")
    while h.aio_is_connecting():
        h.poll(-1)
    look(h)
    return h


def hang_on(h):
    global hung
    point, offset, start = random.choice(KINDS)
    if args.writes and random.randrange(2):
        reply(h, h.aio_pwrite(bytes(BLOCK), OWN))
    tell("block-%s @%d\n" % (point, offset))
    cookie = start(h)
    work_beside("a " + point)
    while h.poll(0) > 0:
        pass
    hung += not h.aio_peek_command_completed()
    tell("")
    reply(h, cookie)
    look(h)
    return args.writes or reply(h, h.aio_flush())


others = [connect() for i in range(OTHERS)]
tell("")
checker = subprocess.Popen(args.command)
h = None
while checker.poll() is None:
    if h and random.randrange(4) == 0:
        h.shutdown()
        h = None
    if h is None:
        h = open_slowly() if args.opens and random.randrange(2) else connect()
    if not hang_on(h):
        h = None
print("hung: %d" % hung)
sys.exit(checker.returncode)
