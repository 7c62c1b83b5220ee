#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# nbdkit's vddk plugin, over a stand-in for VMware's library
# (tests/plugins/vixDiskLib.c), and a plugin of the shape that it had in nbdkit
# 1.24 (tests/plugins/vddk124.c).

load common

setup ()
{
  ask_setup
  needs nbdcopy qemu-img
  [ -z "$foreign" ] || on_musl || skip "qemu does not execute a server again"
  mkdir lib
  ln -s "$plugins/vixDiskLib.so" lib/libvixDiskLib.so.7
  # Data and holes, over more than the 128 MiB that nbdcopy gives a connection.
  truncate -s 400M image
  local at
  for at in 0 1 130 260 398; do
    dd if=/dev/urandom of=image bs=64K count=9 seek=$((at * 16 + at % 7)) \
      conv=notrunc status=none
  done
  cp --sparse=always image disk
  library
}

# library [WORD...]: what the library does, besides to keep a log.
library () { export VIXDISKLIB="log=$log $*"; }

# real: the tests are of nbdkit's own plugin; where this nbdkit has none, of
# Debian 13's, by its path.  It wants a newer glibc than a Debian 11 has.
real ()
{
  vddk=vddk
  ! dumps || return 0
  local root
  root=$("$BATS_TEST_DIRNAME/compat/root" --made trixie 2>&1) ||
    skip "nbdkit's vddk plugin is not installed (${root#*: })"
  vddk=$(echo "$root"/usr/lib/*/nbdkit/plugins/nbdkit-vddk-plugin.so)
  ! dumps || return 0
  local parts
  parts=$(cd "$SHIM_TEST_ROOT" && echo usr/bin/nbdkit usr/lib/*/nbdkit)
  export SHIM_TEST_PARTS=$parts
  dumps || skip "Debian 13's vddk plugin does not load here"
}

dumps () { nbdkit --dump-plugin "$vddk" >/dev/null 2>&1; }

shape () { vddk=$plugins/vddk124.so; }

# start [MCSHIM_X=VALUE...] [NBDKIT-OPTION...]
start () { serve "$@" "$vddk" libdir="$PWD/lib" "$PWD/disk"; }

# The library forbids what would end the server.
ends_well ()
{
  wait_until all_closed
  stop_server
  assert_equal "$(grep -c '^init$' "$log")" 1
  lacks '^a disk\|^two threads\|^initialized' "$log"
}

# A server that is told to end may leave disks open.
all_closed ()
{
  [ "$(grep -c '^connect$' "$log")" = "$(grep -c '^disconnect$' "$log")" ]
}

# opened N: so many disks.
opened () { assert_equal "$(grep -c ' open to ' "$log")" "$1"; }

nbdcopies () { nbdcopy --connections="$1" --threads="$1" "${@:2}"; }
alike () { qemu-img compare -q -f raw -F raw "$1" image; }
fetched () { alike copy; rm copy; }
fetches () { nbdcopies "$1" "$uri" copy; fetched; }

# Each test is done with both plugins.

flag ()
{
  # In auto a client must not open a second time what VMware locks.
  library lock=1
  start -v
  client <<<'expect(conn().can_multi_conn(), False)'
  wait_until all_closed         # It is locked until then.
  fetches 4
  ends_well
  opened 2
  has '^mcshim .*: vddk: disable: VMware .* once, start with -r; dirty' "$server_err"
  assert_equal "$(grep -c '^mcshim' "$server_err")" 1
  start -r
  client <<<'expect([c.can_multi_conn() for c in (conn(), conn())], [True, True])'
  fetches 4
  ends_well
  opened 6
  library
  start MCSHIM_MODE=emulate
  all_see True
  ends_well
}
@test "vddk: the flag" { real; flag; }
@test "1.24's vddk: the flag" { shape; flag; }

reads ()
{
  local handles
  for handles in 1 4 16; do
    start MCSHIM_STATS_FILE="$stats" MCSHIM_HANDLES=$handles -r
    fetches 1
    fetches 4
    qemu-img convert -m 16 -W -O raw "nbd:unix:$sock" copy
    fetched
    ends_well
    [ $handles = 1 ] || [ "$(value handles_most_at_once)" -gt 1 ]
  done
}
@test "vddk: copies" { real; reads; }
@test "1.24's vddk: copies" { shape; reads; }

# What is written comes to the disk, and all see it.
writes ()
{
  local handles
  for handles in 1 4 16; do
    truncate -s 0 disk
    truncate -s 400M disk
    start MCSHIM_STATS_FILE="$stats" MCSHIM_MODE=emulate MCSHIM_HANDLES=$handles
    nbdcopies 4 --destination-is-zero --flush image "$uri"
    fetches 1
    alike disk
    dd if=/dev/urandom of=image bs=1M count=2 seek=129 conv=notrunc status=none
    qemu-img convert -n -m 16 -W -f raw -O raw -S 64k --target-is-zero image \
      "nbd:unix:$sock"
    fetches 4
    ends_well
    alike disk
    [ $handles = 1 ] || [ "$(value handles_most_at_once)" -gt 1 ]
  done
}
@test "vddk: writes" { real; writes; }
@test "1.24's vddk: writes" { shape; writes; }
@test "vddk: writes, and each handle has a cache" { real; library cache=1; writes; }
@test "1.24's vddk: writes, and each handle has a cache" { shape; library cache=1; writes; }

# It goes on with one handle, and says so once.
locks ()
{
  library lock=1 open=50000 latency=1000
  start MCSHIM_HANDLES=4
  qemu-img bench -w -f raw -c 1000 -d 16 -s 64k "nbd:unix:$sock" >/dev/null
  wait_until grep -q 'goes on with 1' "$server_err" # requests don't wait for it
  assert_equal "$(grep -c '^locked$' "$log")" 1
  assert_equal "$(grep -c 'goes on with 1 of up to 4 handles' "$server_err")" 1
  nbdcopies 4 --destination-is-zero --flush image "$uri"
  ends_well
  alike disk
}
@test "vddk: a lock" { real; locks; }
@test "1.24's vddk: a lock" { shape; locks; }

# However the server is started, it is executed again, and its children have the
# environment that it was given.
starts ()
{
  local server=(nbdkit -r "$vddk" libdir="$PWD/lib" "$PWD/disk")
  run -0 --separate-stderr under_shim nbdkit -U - "${server[@]:1}" --run \
    "$flag"'; env | grep "^LD_" || nbdcopy "$uri" copy'
  assert_output true
  fetched
  run -0 --separate-stderr under_shim LD_LIBRARY_PATH=/tmp nbdkit -U - \
    "${server[@]:1}" --run 'env | grep "^LD_"'
  assert_output LD_LIBRARY_PATH=/tmp
  # A second process would not get the socket of its activation.
  run -0 under_shim nbdinfo --can multi-conn -- [ env LD_LIBRARY_PATH="$PWD/lib" \
    "${server[@]}" ]

  under_shim nbdkit -P pid -U "$sock" "${server[@]:1}" 3>&-
  wait_until test -s pid
  nbdcopies 4 "$uri" copy || :
  kill "$(<pid)"
  wait_until gone "$(<pid)"
  fetched

  # It says what it would have said, and more.
  local option
  for option in --help --version --dump-plugin; do
    nbdkit $option "${server[@]:2}" > without
    under_shim nbdkit $option "${server[@]:2}" > with
    run -1 grep -vxFf with <(grep -v '^struct_size=' without)
    assert_output ""
  done
}
@test "vddk: however it is started" { real; starts; }
@test "1.24's vddk: however it is started" { shape; starts; }

@test "vddk: a password from a descriptor or a file" {
  real
  echo secret > secret
  local password
  for password in password=-7 password=+secret; do
    run -0 --separate-stderr under_shim nbdkit -U - -r "$vddk" libdir="$PWD/lib" \
      "$PWD/disk" server=host user=root vm=moref=1 thumbprint=00 $password \
      --run "$flag" 7<secret
    assert_output true
  done
}

# asks [-r]: what --probe says.
asks ()
{
  answers 0 --probe nbdkit "$@" "$vddk" libdir="$PWD/lib" "$PWD/disk"
}

probes ()
{
  asks
  assert_equal "$(told '[.server.thread_model, .more_handles, .modes.auto.flag,
    .advice]')" "[\"$1\",true,false,\"use auto, read-only\"]"
  assert_equal "$(told .handles)" \
    '"with -r, for a client with one connection: --handles=4"'
  asks -r
  assert_equal "$(told .handles)" \
    '"yes, for a client with one connection: --handles=4"'
  assert_equal "$(told '[.modes.auto.flag, .advice]')" '[true,"use auto"]'
}
@test "vddk: --probe" { real; probes parallel; }
@test "1.24's vddk: --probe" { shape; probes serialize_requests; }
