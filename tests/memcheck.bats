#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The library under valgrind's memcheck.

load common

setup ()
{
  common_setup
  [ -z "$test_wrapper$test_preload" ] ||
    skip "the server already runs under another checker"
  needs valgrind
  test_wrapper="valgrind --leak-check=full --show-leak-kinds=all \
    --track-fds=no --xml=yes --xml-file=$BATS_TEST_TMPDIR/memcheck.xml"
}

# check_memory: no error at all, and no leak of what the library allocated.
# Leaks of the server and the plugins do not count.  The statistics show that
# the library was there.
check_memory ()
{
  [ -s "$stats" ]
  python3 - "$BATS_TEST_TMPDIR/memcheck.xml" <<'EOT'
import sys
import xml.etree.ElementTree as tree
bad = []
for error in tree.parse(sys.argv[1]).getroot().iter("error"):
    # A plugin is unloaded by the end: its frames have no object.
    objects = [f.findtext("obj") or "?" for f in error.find("stack")]
    allocator = [o for o in objects
                 if "vgpreload" not in o and "/libc.so" not in o][:1]
    if (not error.findtext("kind").startswith("Leak_") or
        "libmcshim" in "".join(allocator)):
        bad.append(tree.tostring(error, "unicode"))
sys.exit("\n".join(bad) or None)
EOT
}

start () { serve MCSHIM_STATS_FILE="$stats" "$@"; }

# checked KNOB PLUGIN PARAMETER...: all that a client may do.
checked ()
{
  session "$@" fua=native log="$log" control="$control" <<'EOT'
h = [conn("a"), conn("b"), conn("a"), conn("a")]
for i in range(3):
    h[0].pread(4096, 0)
    h[1].pwrite(b"x" * 512, 0)
    h[2].zero(512, 512)
    h[2].flush()
    h[3].pwrite(b"y" * 512, 1024, nbd.CMD_FLAG_FUA)
h[2].pwrite(b"z" * 512, 1024)
close(h[2], 2)
h[1].pwrite(b"z" * 512, 1024)
cut(4)
h[3].pwrite(b"z" * 512, 1024)
control("fail-flush 3 EIO")
fails(errno.EIO, h[0].flush)
close(h[3], 3)
control()
fails(errno.EIO, h[0].flush)
h[0].flush()
# The server ends with this connection open and dirty.
h[1].pwrite(b"z" * 512, 1024)
EOT
  check_memory
}

@test "parallel" {
  checked MCSHIM_EXPORTNAME=false "$wbcache"
  counted connections_opened_total 5
}

@test "requests serialized, groups by export name" {
  checked MCSHIM_EXPORTNAME=true "$wbcache" model=requests
}

@test "one at a time" { checked MCSHIM_TRACK_DIRTY=off "$wbcache" model=all; }

# brief KNOB PLUGIN: writes, a flush on another connection, and a close.
brief ()
{
  session "$@" <<'EOT'
h = [conn() for i in range(3)]
h[1].pwrite(b"x" * 512, 0)
h[0].flush()
h[1].flush()
h[1].pwrite(b"x" * 512, 0)
h[1].shutdown()
EOT
  check_memory
  rm "$stats"
}

@test "outside emulate" { brief MCSHIM_MODE=plugin "$wbcache" fua=native; }

@test "a plugin of API version 1" { brief MCSHIM_MODE=auto "$plugins/api1.so"; }

@test "odd structs: nothing past their end is read" {
  for ODD in ancient short long notneeded noclose; do
    export ODD
    brief MCSHIM_MODE=auto "$plugins/odd.so"
  done
}

@test "connections that are refused" {
  export ODD=noflush
  start MCSHIM_MODE=emulate "$plugins/odd.so"
  run -1 nbdinfo "$uri"
  run -1 nbdinfo "$uri"
  stop_server
  check_memory
}

@test "a wrong knob" {
  # What is left as it exits is no leak.
  test_wrapper=${test_wrapper/--show-leak-kinds=all/}
  echo untouched > "$stats"
  run -1 under_shim MCSHIM_MODE=bogus MCSHIM_STATS_FILE=x MCSHIM_X=y \
    nbdkit -U - "$wbcache" --run true
  check_memory
}
