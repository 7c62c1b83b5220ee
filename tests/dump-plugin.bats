#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# --dump-plugin, --help and --version of a plugin under the shim.

load common

# same_dump PLUGIN: the same, except for what the shim must change.
same_dump ()
{
  no_shim nbdkit --dump-plugin "$@" > plain
  under_shim MCSHIM_MODE=unsafe nbdkit --dump-plugin "$@" > shimmed
  local ours='^struct_size=\|^has_close=\|^has_can_multi_conn=\|^has_can_fua=\|^mcshim_'
  diff <(grep -v "$ours" plain) <(grep -v "$ours" shimmed)
  has_line 'has_can_multi_conn=1' shimmed
  has_line 'mcshim_mode=unsafe' shimmed
  has_line 'mcshim_version=[0-9][0-9.]*' shimmed
  # What the plugin has it still has.
  diff <(grep '^has_' plain) <(grep '^has_' shimmed) |
    grep '^<' && fail "a callback is gone"
  return 0
}

@test "packaged plugins, those of the tests, and odd structs" {
  local names=(memory file split data null cc "$wbcache" "$plugins/api1.so")
  # With musl there is no nbd and no curl, and see below.
  on_musl || names+=(sh eval nbd curl)
  for plugin in "${names[@]}"; do
    same_dump "$plugin"
  done
  for ODD in ancient short long noflush nofua noclose; do
    export ODD
    same_dump "$plugins/odd.so"
  done
}

@test "close is always there: a connection ends, whatever was taken for what" {
  ODD=noclose run -0 under_shim nbdkit --dump-plugin "$plugins/odd.so"
  assert_line has_close=1
}

@test "no flush: no can_fua is made up" {
  run -0 under_shim nbdkit --dump-plugin zero
  refute_line has_can_fua=1
}

@test "with a parameter" {
  # Here the plugin's shell still has the library preloaded.
  ! on_musl || skip "the shell has another C library than nbdkit"
  disk dump_plugin='echo of=script'
  run -0 under_shim nbdkit --dump-plugin sh ./script
  assert_line of=script
  assert_line --regexp '^mcshim_version='
}

@test "a wrong knob is an error here too" {
  run -1 under_shim MCSHIM_MODE=bogus nbdkit --dump-plugin memory
  assert_output --partial MCSHIM_MODE
}

@test "--version and --help of a plugin: first what they say without the shim" {
  local plain
  for plugin in memory "$wbcache" "$plugins/api1.so"; do
    run -0 no_shim nbdkit --help "$plugin"
    plain=$output
    run -0 under_shim nbdkit --help "$plugin"
    assert_equal "${output:0:${#plain}}" "$plain"
    run -0 no_shim nbdkit --version "$plugin"
    plain=$output
    run -0 under_shim nbdkit --version "$plugin"
    assert_output "$plain"
  done
}

@test "--help ends with the knobs, wherever it stands" {
  local listed first=
  for arguments in "--help memory" "--hel memory" "memory --help" \
                   "--help --filter=cow memory"; do
    # shellcheck disable=SC2086 # words
    run -0 under_shim nbdkit $arguments
    assert_line --index -1 --regexp '^MCSHIM_.*: .'
    listed=$(sed -n '/^MCSHIM_MODE: ./,$p' <<<"$output")
    assert_equal "$listed" "${first:=$listed}"
  done
  # Each is one.
  local knob knobs=()
  while IFS=: read -r knob _; do knobs+=("$knob="); done <<<"$first"
  run -0 under_shim "${knobs[@]}" nbdkit --version memory
}

@test "no statistics of a server that only prints something" {
  echo old > "$stats"
  for option in --dump-plugin --help --version -V; do
    run -0 under_shim MCSHIM_STATS_FILE="$stats" nbdkit $option memory
    assert_equal "$(<"$stats")" old
  done
}

@test "the options are known without /proc" {
  unshare -rm true 2>/dev/null || skip "this user may not make a mount namespace"
  [ -z "$SHIM_TEST_ROOT$test_preload" ] || skip "something else needs /proc"
  run -0 under_shim MCSHIM_STATS_FILE="$stats" unshare -rm sh -euc '
    mount -t tmpfs none /proc
    nbdkit --dump-plugin "$1"
    test ! -e "$MCSHIM_STATS_FILE"
    nbdkit -U - "$1" --run true' sh "$wbcache"
  refute_line has_get_ready=1
  assert_line --regexp '^mcshim_version='
  # With --run the server has forked, but still has its stderr.
  assert_line --regexp '^mcshim [0-9.]*: wbcache: auto'
}

@test "options as the values of others: it serves" {
  local words
  for words in "-e --dump-plugin" "-fe --help" "--export --version" \
               "--exportname --help" "-e -V"; do
    # shellcheck disable=SC2086 # words
    run -0 under_shim MCSHIM_STATS_FILE="$stats" nbdkit -U - $words \
      "$wbcache" --run "$flag"
    assert_line true
    [ -s "$stats" ]
    rm "$stats"
  done
  # Nor is it misled into leaving out close if the plugin has none.
  ODD=noclose serve MCSHIM_STATS_FILE="$stats" -e --dump-plugin \
    "$plugins/odd.so"
  all_see True
  stop_server
  counted connections 0 connections_opened_total 4
  # shellcheck disable=SC2086 # words
  for words in "-e x --dump-plugin" "-ex --dump-plugin" "--export=x --dump-plugin"; do
    run -0 under_shim nbdkit $words "$plugins/odd.so"
    assert_line --regexp '^mcshim_version='
  done
}
