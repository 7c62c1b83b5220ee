#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# MCSHIM_EXPORTNAME: which connections a flush is replicated to.

load common

# The columns: MCSHIM_EXPORTNAME, the level, the handles that a flush goes to.
@test "a flush on b, after writes on a and b" {
  while IFS='|' read -r exportname level wanted; do
    session MCSHIM_EXPORTNAME="$exportname" MCSHIM_TRACK_DIRTY="$level" \
      "$wbcache" log="$log" <<EOT
h = [conn("a"), conn("b"), conn("a"), conn("b")]
h[0].pwrite(b"a", 0)
h[1].pwrite(b"b", 512)
h[3].flush()
expect(" ".join(sorted(flushes())), "$wanted")
EOT
  done <<'END'
false|connection|0 1
|connection|0 1
true|connection|1
true|fast|1 3
true|off|1 3
END
}

# By name also without the knob.
@test "plugin, disable, unsafe: a flush counts for its own export" {
  local mode level
  for mode in plugin disable unsafe; do
    for level in connection fast; do
      session MCSHIM_MODE=$mode MCSHIM_TRACK_DIRTY=$level \
        "$wbcache" multiconn=1 log="$log" <<'EOT'
h = [conn("x"), conn("y"), conn("z")]
h[0].pwrite(b"x", 0)
h[1].pwrite(b"y", 512)
for i in 0, 1, 2, 1, 0:
    h[i].flush()
expect(flushes(), ["0", "1"])
EOT
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
    session file dir="$PWD/files" <<'EOT'
h = [conn("x"), conn("y")]
for c in h:
    c.pwrite(b"new", 0)
for c in h:
    c.flush()
EOT
  has 'sync([0-9]*<.*/files/x>' trace
  has 'sync([0-9]*<.*/files/y>' trace
}

@test "true: a group outlives its connections, not the other way round" {
  session MCSHIM_EXPORTNAME=true "$wbcache" log="$log" <<'EOT'
for i in range(3):
    a, b = conn("a"), conn("b")
    a.pread(4, 0)
    b.pwrite(b"next", 0)
    b.flush()
    expect(flushes(), [str(j * 2 + 1) for j in range(i + 1)])
    close(a, i * 2)
    close(b, i * 2 + 1)
EOT
}
