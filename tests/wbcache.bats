#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The plugin with which the others test: is it as bad as it must be?  There is
# no shim.  Each test that holds a request up or has it fail tests that itself,
# and consistency.bats that flushes fail.

load common

start ()
{
  SERVE_WITH=no_shim serve "$wbcache" log="$log" control="$control" \
    summary="$summary" "$@"
}

@test "a flush renews a copy and keeps it, or drops it" {
  for parameters in "refresh=1" "refresh=1 earlydrop=1" "" "earlydrop=1"; do
    read -ra words <<< "$parameters"
    refresh=${parameters%% *} session "${words[@]}" <<'EOT'
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
  done
}

@test "a copy at open, also one that is held up" {
  session opencopy=1 <<'EOT'
h = [conn() for i in range(2)]
control("block-open 2")
opening = call(conn)
wait_log("2 open")
settle()
expect(opening.done(), False)
h[1].pwrite(b"new", 0)
h[1].flush()
control()
for c in h[0], opening.result():
    expect(bytes(c.pread(3, 0)), bytes(3))
    c.flush()
    expect(bytes(c.pread(3, 0)), b"new")
expect(bytes(conn().pread(3, 0)), b"new")
EOT
}

@test "a thread that reads ahead, and a flush that ends what it has" {
  session readahead=100 <<'EOT'
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
}

@test "a map that is older than the data" {
  for refresh in 0 1; do
    session mapcache=1 refresh=$refresh <<'EOT'
def status(h):
    got = []
    h.block_status(512, 0, lambda m, o, e, err: got.extend(e))
    return got[1]

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
  done
}

@test "it loads on servers from 1.10 on" {
  [ -z "$foreign" ] || skip "another architecture's"
  run -0 nm -D --undefined-only "$wbcache"
  # What nbdkit 1.10 has, and what may be missing.
  refute_output --regexp \
    'U nbdkit_(.*[^a-z_])?(add_extent|is_tls|parse_unsigned|strdup_intern)'
  assert_equal "$(sed -n 's/^ *U \(nbdkit_.*\)/\1/p' <<< "$output" |
    paste -sd ' ')" "nbdkit_absolute_path nbdkit_error \
nbdkit_parse_size nbdkit_set_error"
}
