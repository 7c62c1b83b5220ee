#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# MCSHIM_EXPORTNAME: which connections a flush is replicated to.

load common

# start VALUE: h0 and h1 write on exports a and b; prints the handles that
# were flushed by a flush on b.
start_and_flush ()
{
  serve MCSHIM_EXPORTNAME="$1" MCSHIM_TRACK_DIRTY="${2:-connection}" \
    "$wbcache" log="$log" || return
  client <<'EOT'
h = [conn("a"), conn("b"), conn("a"), conn("b")]
h[0].pwrite(b"a", 0)
h[1].pwrite(b"b", 512)
h[3].flush()
print(" ".join(sorted(flushes())))
EOT
}

@test "false: one group whatever the export" {
  run start_and_flush false
  assert_output "0 1"
}

@test "not set: one group whatever the export" {
  run start_and_flush ""
  assert_output "0 1"
}

@test "true: a flush stays in the group of its export" {
  run start_and_flush true
  assert_output "1"
}

@test "true: fast stays in the group" {
  run start_and_flush true fast
  assert_output "1 3"
}

@test "true: off stays in the group" {
  run start_and_flush true off
  assert_output "1 3"
}

@test "true: dirt in one group is not dirt in another" {
  serve MCSHIM_EXPORTNAME=true MCSHIM_TRACK_DIRTY=fast "$wbcache" log="$log"
  client <<'EOT'
h = [conn("a"), conn("b")]
h[0].pwrite(b"a", 0)
h[1].flush()
expect(flushes(), [])
h[0].flush()
expect(flushes(), ["0"])
EOT
}

# By name also without the knob.
@test "plugin, disable, unsafe: a flush counts for its own export" {
  local mode level
  for mode in plugin disable unsafe; do
    for level in connection fast; do
      : > "$log"
      serve MCSHIM_MODE=$mode MCSHIM_TRACK_DIRTY=$level \
        "$wbcache" multiconn=1 log="$log"
      client <<'EOT'
h = [conn("x"), conn("y"), conn("z")]
h[0].pwrite(b"x", 0)
h[1].pwrite(b"y", 512)
for i in 0, 1, 2, 1, 0:
    h[i].flush()
expect(flushes(), ["0", "1"])
EOT
      stop_server
    done
  done
}

@test "auto: the file plugin syncs each file of a directory" {
  needs strace
  mkdir files
  truncate -s 1M files/x files/y
  under_shim nbdkit --dump-plugin file | grep -qx has_list_exports=1 ||
    skip "this file plugin serves no directory"
  test_wrapper="strace -f -qq -y -o trace -e trace=fsync,fdatasync $test_wrapper" \
    serve file dir="$PWD/files"
  client <<'EOT'
h = [conn("x"), conn("y")]
for c in h:
    c.pwrite(b"new", 0)
for c in h:
    c.flush()
EOT
  stop_server
  has 'sync([0-9]*<.*/files/x>' trace
  has 'sync([0-9]*<.*/files/y>' trace
}

@test "true: a group outlives its connections, not the other way round" {
  serve MCSHIM_EXPORTNAME=true "$wbcache" log="$log"
  client <<'EOT'
for i in range(3):
    a, b = conn("a"), conn("b")
    a.pread(4, 0)
    b.pwrite(b"next", 0)
    b.flush()
    expect(flushes(), [str(j * 2 + 1) for j in range(i + 1)])
    close(a, i * 2)
    close(b, i * 2 + 1)
EOT
  stop_server
}

@test "true: two connections to the same export are one group" {
  serve MCSHIM_EXPORTNAME=true "$wbcache" log="$log"
  client <<'EOT'
h = [conn("x"), conn("x"), conn("")]
h[0].pread(4, 0)
h[1].pwrite(b"next", 0)
h[0].flush()
expect(sorted(flushes()), ["0", "1"])
expect(bytes(h[0].pread(4, 0)), b"next")
EOT
}
