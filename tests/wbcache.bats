#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The plugin with which the others test: does it do what it must?  There is no
# shim, unless a test says so.

load common

start ()
{
  SERVE_WITH=no_shim serve "$wbcache" log="$log" control="$control" \
    summary="$summary" "$@"
}

@test "a flush renews a copy and keeps it, or drops it" {
  for parameters in "refresh=1" "refresh=1 earlydrop=1" "" "earlydrop=1"; do
    read -ra words <<< "$parameters"
    start "${words[@]}"
    refresh=${parameters%% *} client <<'EOT'
h = [conn() for i in range(2)]
expect(bytes(h[0].pread(1, 0)), b"\0")
for version in b"1", b"2":
    h[1].pwrite(version, 0)
    h[1].flush()
    if version == b"1":
        expect(bytes(h[0].pread(1, 0)), b"\0")
        h[0].flush()
kept = os.environ["refresh"] == "refresh=1"
expect(bytes(h[0].pread(1, 0)), b"1" if kept else b"2")
h[0].flush()
expect(bytes(h[0].pread(1, 0)), b"2")
EOT
    stop_server
  done
}

@test "what a flush has written back stays as a copy, if copies are renewed" {
  start refresh=1
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"1", 0)
h[0].flush()
h[1].pwrite(b"2", 0)
h[1].flush()
expect(bytes(h[0].pread(1, 0)), b"1")
h[0].flush()
expect(bytes(h[0].pread(1, 0)), b"2")
EOT
}

@test "a copy at open, also one that is held up" {
  start opencopy=1
  client <<'EOT'
h = [conn() for i in range(2)]
control("block-open 2")
opening = Call(conn)
wait_log("2 open")
expect(opening.held(), True)
h[1].pwrite(b"new", 0)
h[1].flush()
control()
for c in h[0], opening.join():
    expect(bytes(c.pread(3, 0)), bytes(3))
    c.flush()
    expect(bytes(c.pread(3, 0)), b"new")
expect(bytes(conn().pread(3, 0)), b"new")
EOT
  stop_server
  has_line 'held: 1' "$summary"
}

@test "a thread that reads ahead, and a flush that ends what it has" {
  start readahead=100
  client <<'EOT'
writer = conn()
version = 0
def has_read_ahead():
    global version
    c = conn()
    version += 1
    new = b"%8d" % version
    writer.pwrite(new, 0)
    writer.flush()
    if bytes(c.pread(8, 0)) == new:
        return False
    c.flush()
    expect(bytes(c.pread(8, 0)), new)
    return True
wait_for("a block read ahead", has_read_ahead)
EOT
  stop_server
}

@test "a server that ends with connections open ends their threads" {
  start readahead=100
  end_with_connections
  lacks close "$log"
}

# For a client: what a map says about a block.
map_of='
def status(h, offset=0):
    got = []
    h.block_status(512, offset, lambda m, o, e, err: got.extend(e))
    return got[1]
'

@test "a map that is older than the data" {
  for refresh in 0 1; do
    start mapcache=1 refresh=$refresh
    { echo "$map_of"; cat; } <<'EOT' | client
h = [conn() for i in range(2)]
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
expect(status(h[0]), hole)
h[1].pwrite(b"x" * 512, 0)
h[1].flush()
expect(status(h[0]), hole)
expect(bytes(h[0].pread(1, 0)), b"x")
h[0].flush()
expect(status(h[0]), 0)
# It sees its own zeroes and data at once.
h[0].zero(512, 0)
expect(status(h[0]), hole)
h[0].pwrite(b"x", 0)
expect(status(h[0]), 0)
EOT
    stop_server
  done
}

@test "a flush that fails first, halfway or last" {
  start
  client <<'EOT'
# How many of four blocks have been written back?
for n, (point, done) in enumerate([("flush", 0), ("half", 2), ("end", 4)]):
    base = 4096 * n
    h = conn()
    for i in range(4):
        h.pwrite(b"x", base + 512 * i)
    control("fail-%s %d ENOSPC" % (point, 2 * n))
    fails(errno.ENOSPC, h.flush)
    c = conn()
    seen = bytes(c.pread(2048, base))[::512]
    expect(seen, b"x" * done + bytes(4 - done))
    control()
    h.flush()
    c.flush()
    expect(bytes(c.pread(2048, base))[::512], b"x" * 4)
EOT
}

@test "a flush that is held up halfway" {
  start
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"x" * 1024, 0)
control("block-half 0")
flush = Call(h[0].flush)
wait_log("0 half")
expect(bytes(h[1].pread(1024, 0)), b"x" * 512 + bytes(512))
control()
flush.join()
h[1].flush()
expect(bytes(h[1].pread(1024, 0)), b"x" * 1024)
EOT
}

@test "flushes that fail at random do so again with the same seed" {
  : > outcomes
  for seed in 5 5 6; do
    start failflush=300 seed=$seed
    client >> outcomes <<'EOT'
h = conn()
outcome = ""
i = 0
while i < 60 or outcome[-1] == "f":
    h.pwrite(b"%d" % i, 512 * i)
    i += 1
    try:
        h.flush()
        outcome += "."
    except nbd.Error as e:
        expect(e.errnum, errno.EIO)
        outcome += "f"
with open(log) as f:
    points = [l.split()[1] for l in f]
# Some at each of the points, which are reached less and less often.
assert points.count("flush") > points.count("half") > points.count("end")
assert points.count("end") > outcome.count(".")
for i in range(60):
    expect(bytes(conn().pread(2, 512 * i)).strip(b"\0"), b"%d" % i)
print(outcome)
EOT
    stop_server
  done
  cat outcomes
  assert_equal "$(sed -n 1p outcomes)" "$(sed -n 2p outcomes)"
  refute [ "$(sed -n 1p outcomes)" = "$(sed -n 3p outcomes)" ]
}

@test "a request is held up by its offset" {
  start
  client <<'EOT'
h = [conn() for i in range(2)]
control("block-read @1024")
read = Call(h[0].pread, 512, 1024)
wait_log("0 read")
for offset in 0, 512, 1536:
    h[1].pread(512, offset)
expect(read.held(), True)
control()
read.join()
EOT
  stop_server
  has_line 'held: 1' "$summary"
}

@test "only a flush with something to write back waits for the disk" {
  start writebackdelay=1000000000
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pread(512, 0)
h[0].flush()
h[1].pwrite(b"x", 0)
flush = h[1].aio_flush()
wait_log("1 flush")
h[0].flush()
expect(held(h[1], flush), True)
EOT
}

@test "an old copy that comes after a write and its flush, or does not" {
  for own_order in 1 0; do
    start mapcache=1 ownorder=$own_order
    { echo "$map_of"; cat; } <<'EOT' | own_order=$own_order client
own_order = os.environ["own_order"] == "1"
h = conn()
def read(offset):
    return h.aio_pread(nbd.Buffer(512), offset)
def ask(offset):
    return h.aio_block_status(512, offset, lambda *args: 0)
for i, late in enumerate([read, ask]):
    offset = 512 * i
    control("block-fill @%d" % offset)
    fills = logged("0 fill")
    cookie = late(offset)
    wait_log("0 fill", fills + 1)
    h.pwrite(b"new", offset)
    h.flush()
    expect(held(h, cookie), True)
    control()
    finish(h, cookie)
    if own_order:
        expect(bytes(h.pread(3, offset)), b"new")
        expect(status(h, offset), 0)
    elif late == read:
        expect(bytes(h.pread(3, offset)), bytes(3))
    else:
        expect(status(h, offset), nbd.STATE_HOLE | nbd.STATE_ZERO)
EOT
    stop_server
  done
}

@test "it loads on servers from 1.10 on" {
  [ -z "$foreign" ] || skip "another architecture's"
  run -0 nm -D --undefined-only "$wbcache"
  # What nbdkit 1.10 has, and what may be missing.
  refute_output --regexp \
    'U nbdkit_(.*[^a-z_])?(add_extent|is_tls|parse_unsigned|strdup_intern)'
  assert_equal "$(sed -n 's/^ *U \(nbdkit_.*\)/\1/p' <<< "$output" |
    paste -sd ' ')" "nbdkit_absolute_path nbdkit_error nbdkit_parse_bool \
nbdkit_parse_size nbdkit_set_error"
}
