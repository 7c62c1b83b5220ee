#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --status: the servers that run with the library.

load common

setup ()
{
  common_setup
  [ -z "$SHIM_TEST_ROOT$foreign" ] || skip "it looks for the host's nbdkit"
  shim_so=$BATS_TEST_TMPDIR/libmcshim.so
  cp "$source/libmcshim.so" "$shim_so"
  version=$("$launcher" --version | cut -d' ' -f2)
}

@test "its version, settings, and the modes of its connections" {
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_MODE= MCSHIM_TRACK_DIRTY=fast \
    "$wbcache"
  wait_until test -s "$stats"
  run -0 "$launcher" --status "$server_pid"
  assert_output "process    $server_pid: nbdkit -f -U $sock -P $server/pid $wbcache
library    $shim_so, version $version
settings   MCSHIM_STATS_FILE=$stats
           MCSHIM_TRACK_DIRTY=fast
modes      no connection yet"
  # It counts also those that have gone.
  client <<<'h = [conn() for i in range(2)]'
  wait_until counts connections_opened_total 2
  run -0 "$launcher" --status "$server_pid"
  assert_line --index -1 "modes      emulate (connections so far: 2)"
}

@test "by default, and without statistics" {
  serve "$wbcache"
  run -0 "$launcher" --status "$server_pid"
  assert_line "settings   none: all as they are by default"
  assert_line "modes      in the server's log; with --stats also here"
}

@test "a library that has been replaced, or removed" {
  serve "$wbcache"
  cp "$shim_so" new
  mv new "$shim_so"
  run -0 "$launcher" --status "$server_pid"
  assert_line --index 2 \
    "           another file is there by now: restart the server to use it"
  rm "$shim_so"
  run -0 "$launcher" --status "$server_pid"
  assert_line --index 2 "           the file has been removed"
  assert_line --partial "library    $shim_so, version "
}

@test "all of them, and no other" {
  local first
  serve "$wbcache"
  first=$server_pid
  serve "$wbcache"
  SERVE_WITH=no_shim serve "$wbcache"
  run -0 "$launcher" --status
  assert_line --partial "process    $first: "
  refute_line --partial "process    $server_pid: "
  run -1 "$launcher" --status "$server_pid"
  assert_output "mcshim: --status: no such nbdkit runs with the library, or it is another user's"
  # A program that starts nbdkit is not one.
  LD_PRELOAD=$shim_so sleep 300 3>&- &
  run -1 "$launcher" --status $!
  kill $!
}

@test "what is no number is refused, and control characters are not printed" {
  run -2 "$launcher" --status 12x
  assert_output "mcshim: --status: '12x': must be a process ID"
  serve MCSHIM_STATS_FILE=$'odd\033[31m' "$wbcache"
  run -0 "$launcher" --status "$server_pid"
  assert_line 'settings   MCSHIM_STATS_FILE=odd?[31m'
}
