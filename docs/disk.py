# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# A plugin to start from: each connection works on a copy of the disk, which it
# takes when it needs one and drops when it flushes.  Run it as
# "nbdkit python docs/disk.py".

import nbdkit

API_VERSION = 2
disk = bytearray(1024 * 1024)


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS


# What it returns is the h of every later call.
def open(readonly):
    return {"copy": None, "unwritten": []}


def copy(h):
    if h["copy"] is None:
        h["copy"] = bytearray(disk)
    return h["copy"]


def get_size(h):
    return len(disk)


def pread(h, buf, offset, flags):
    buf[:] = copy(h)[offset:offset + len(buf)]


def pwrite(h, buf, offset, flags):
    copy(h)[offset:offset + len(buf)] = buf
    h["unwritten"].append((offset, bytes(buf)))


# The copy may be old by now: the next request takes another.
def flush(h, flags):
    for offset, data in h["unwritten"]:
        disk[offset:offset + len(data)] = data
    h["unwritten"].clear()
    h["copy"] = None
