# A plugin to begin with: each connection works on a copy of the disk, and only
# its flush brings the two together.  Run it as "nbdkit python docs/disk.py".

import nbdkit

API_VERSION = 2
disk = bytearray(1024 * 1024)


def thread_model():
    return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS


# What it returns is the h of every later call.
def open(readonly):
    return {"copy": bytearray(disk), "unwritten": []}


def get_size(h):
    return len(disk)


def pread(h, buf, offset, flags):
    buf[:] = h["copy"][offset:offset + len(buf)]


def pwrite(h, buf, offset, flags):
    h["copy"][offset:offset + len(buf)] = buf
    h["unwritten"].append((offset, bytes(buf)))


def flush(h, flags):
    for offset, data in h["unwritten"]:
        disk[offset:offset + len(data)] = data
    h["unwritten"].clear()
    h["copy"][:] = disk
