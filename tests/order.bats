#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Of two answered writes of one place the later one wins, on whichever
# connections they come.

load common

start ()
{
  serve "$wbcache" log="$log" control="$control" summary="$summary" \
    fua=emulate "$@"
}

# rewrite VARIABLE... OPTION...: two connections rewrite places in turn, in every way.
rewrite ()
{
  session "$@" <<'EOT'
h = [conn() for i in range(4)]
a, b, c, reader = h
size = 4096

def check(offset, new):
    expect([bytes(x.pread(len(new), offset)) for x in h], [new] * 4)

def values():
    i = 0
    while True:
        i += 1
        yield bytes([i % 250 + 1]) * size

new = values()
# c writes X, a writes X, a writes Y, c writes Y, b flushes; all have old copies.
for turn in range(4):
    for x in h:
        x.pread(4 * size, 0)
    x0, x1, y0, y1 = (next(new) for i in range(4))
    c.pwrite(x0, 0)
    a.pwrite(x1, 0)
    a.pwrite(y0, size)
    c.pwrite(y1, size)
    b.flush()
    check(0, x1)
    check(size, y1)

# The second one with FUA, or the first.
v, w = next(new), next(new)
c.pwrite(v, 0)
a.pwrite(w, 0, nbd.CMD_FLAG_FUA)
check(0, w)
c.pwrite(v, 0, nbd.CMD_FLAG_FUA)
a.pwrite(w, 0)
b.flush()
check(0, w)

# Zeroes and trims, also long ones, against writes.
for fn in (nbd.NBD.zero, nbd.NBD.trim):
    c.pwrite(next(new), size)
    fn(a, 4 * size, 0)
    b.flush()
    if fn is nbd.NBD.zero:
        check(size, bytes(size))
    fn(a, 4 * size, 0)
    w = next(new)
    c.pwrite(w, size)
    b.flush()
    check(size, w)

# Parts of a block: nobody loses what he has not written.
a.zero(size, 0)
b.flush()
expected = bytearray(size)
for i in range(8):
    x = h[i % 3]
    x.pwrite(bytes([i + 1]) * 100, 100 * i)
    expected[100 * i:100 * i + 100] = bytes([i + 1]) * 100
b.flush()
check(0, bytes(expected))

# What is written back as the connections close.
v, w = next(new), next(new)
c.pwrite(v, 0)
a.pwrite(w, 0)
c.shutdown()
a.shutdown()
wait_for("both to close", lambda: sum(l.endswith(" close\n") for l in open(log)) >= 2)
b.flush()
expect(bytes(reader.pread(size, 0)), w)
EOT
  none overlaps after_close
}

@test "in parallel" { rewrite MCSHIM_MODE=emulate; }
@test "one request at a time on a handle" { rewrite model=requests; }
@test "one request at a time on a handle, one flush thread" {
  rewrite MCSHIM_FLUSH_THREADS=1 model=requests
}
@test "one request at a time" { rewrite model=all; }
@test "level fast, copies are renewed" {
  rewrite MCSHIM_TRACK_DIRTY=fast refresh=1 opencopy=1
}
@test "level off" { rewrite MCSHIM_TRACK_DIRTY=off model=requests; }
@test "four handles" {
  rewrite MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K model=requests
}
@test "four handles, unsafe: the same, since flushes are replicated" {
  rewrite MCSHIM_MODE=unsafe MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K
}

# neighbours VARIABLE... OPTION...: four connections write parts of blocks,
# each after the reply to the others, and as many at the same time.
neighbours ()
{
  session "$@" size=256k <<'EOT'
h = [conn() for i in range(4)]
for together in (False, True):
    expected = bytearray()
    for i in range(0, 512, 4):
        pieces = [bytes([(i + j) % 250 + 1 + together]) * 512 for j in range(4)]
        if together:
            buffers = [nbd.Buffer.from_bytearray(bytearray(p)) for p in pieces]
            cookies = [h[j].aio_pwrite(buffers[j], (i + j) * 512)
                       for j in range(4)]
            for j in range(4):
                finish(h[j], cookies[j])
        else:
            for j in range(4):
                h[j].pwrite(pieces[j], (i + j) * 512)
        expected += b"".join(pieces)
    h[0].flush()
    expect([bytes(x.pread(len(expected), 0)) for x in h],
           [bytes(expected)] * 4)
EOT
}

@test "whole blocks are written back, 4 KiB" { neighbours together=8; }
@test "whole blocks, one request at a time on a handle" {
  neighbours together=8 model=requests
}
@test "whole blocks are written back, as MCSHIM_BLOCK says" {
  neighbours MCSHIM_BLOCK=64K together=128
}
@test "whole blocks are written back, as the plugin says" {
  [ "$(nbdkit --dump-plugin "$wbcache" | sed -n 's/^has_block_size=//p')" = 1 ] ||
    skip "nbdkit asks for the block size since 1.30"
  neighbours together=128 prefers=65536
}

@test "if the other's flush fails, so does the write, and the next one tries again" {
  session <<'EOT'
h = [conn() for i in range(3)]
h[0].pwrite(b"a" * 512, 0)
control("fail-flush-once 0 ENOSPC")
fails(errno.ENOSPC, h[1].pwrite, b"b" * 512, 0)
h[2].flush()
expect(bytes(h[2].pread(1, 0)), b"a")
h[1].pwrite(b"b" * 512, 0)
h[2].flush()
expect(bytes(h[2].pread(1, 0)), b"b")
EOT
}

@test "writes that meet nobody cause no flush" {
  session MCSHIM_STATS_FILE="$stats" size=4M <<'EOT'
h = [conn() for i in range(4)]
for i in range(64):
    h[i % 4].pwrite(bytes([i]) * 8192, 8192 * i)
expect(flushes(), [])
h[0].flush()
for i in range(64):
    h[(i + 1) % 4].pwrite(bytes([i]) * 8192, 8192 * i)
expect(len(flushes()), 4)
EOT
  has '^mcshim_conflicts_total 0$' "$stats"
}
