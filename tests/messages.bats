#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What is printed without being asked for, and what nbdkit -v adds.

load common

@test "without -v: what mode it is, at the start, and no more" {
  session MCSHIM_STATS_FILE="$stats" "$wbcache" <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"a" * 512, 0)
h[1].pread(512, 0)
h[1].flush()
EOT
  normal "$server_err"
  assert_equal "$(tail -n 1 "$server_err" | sed 's/[0-9.]*:/N:/')" \
    "mcshim N: wbcache: emulate; dirty level connection, handles 1"
}

# modes.bats has those of auto.
@test "the line at the start: with the mode and why, where that is sure" {
  local set wanted
  while IFS='|' read -r set wanted; do
    : > "$server_err"
    # shellcheck disable=SC2086 # words
    ODD=noflush serve MCSHIM_MODE=$set "$plugins/odd.so" log="$log"
    assert_equal "$(sed 's/ [0-9.]*:/ N:/' "$server_err" | tail -n 1)" \
      "mcshim N: odd: $wanted; dirty level connection, handles 1"
    stop_server
  done <<'EOT'
plugin|plugin: it has no multi-conn
disable|disable: as set
unsafe|unsafe: as set
emulate|emulate
EOT
}

@test "a filter that lets one request at a time through, for several handles" {
  local filter handles
  for filter in retry xz; do
    for handles in 1 4; do
      MCSHIM_HANDLES=$handles serve --filter=$filter "$wbcache" model=requests
      stop_server
      assert_equal "$(grep -c "the $filter filter lets one request at a time \
through: handles serve the pieces of requests above 512K" "$server_err")" \
        $((handles > 1))
      : > "$server_err"
    done
  done
}

@test "each mode that a connection ends up in is told once" {
  disk "${no_write[@]}" can_flush="test ! -e '$PWD/cut' || exit 3" \
    flush='exit 0'
  serve MCSHIM_TRACK_DIRTY=off sh ./script
  client <<<'h = [conn() for i in range(3)]'
  touch cut
  client <<<'h = [conn() for i in range(3)]'
  stop_server
  diff - <(sed 's/ [0-9.]*:/ N:/' "$server_err") <<'EOT'
mcshim N: sh: auto, settled as clients connect; dirty level off, handles 1
mcshim N: sh: emulate; dirty level off, handles 1
mcshim N: sh: plugin: read-only, nothing to flush; dirty level off, handles 1
EOT
}

# in_syslog COMMAND...: with a /dev/log of its own, whose lines go to "syslog".
in_syslog ()
{
  unshare -rm true 2>/dev/null || skip "this user may not make a mount namespace"
  unshare -rm sh -euc '
    mkdir -p dev
    mount --rbind /dev dev
    mount -t tmpfs none /dev
    ln -s "$PWD"/dev/* /dev/
    rm -f /dev/log
    python3 -c "import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(\"/dev/log\")
print(\"bound\", flush=True)
while True: print(s.recv(4096).decode(), flush=True)" > syslog 2>&1 &
    trap "kill $!" EXIT
    until grep -q bound syslog; do sleep 0.02; done
    "$@"' sh "$@" 3>&-
}

@test "the line goes where nbdkit's errors go: --log, and the background" {
  local line='mcshim [0-9.]*: wbcache: '
  local preload=${foreign}LD_PRELOAD=${test_preload:+$test_preload:}$shim_so
  in_syslog env "$preload" nbdkit -U - --log=syslog "$wbcache" \
    --run 'nbdinfo --size "$uri"' 2>err
  has "$line" syslog
  lacks mcshim err
  in_syslog env "$preload" nbdkit -U - --log null "$wbcache" \
    --run 'nbdinfo --size "$uri"' 2>err
  lacks mcshim syslog
  lacks mcshim err
  # It is seen until the server goes into the background.
  in_syslog sh -c 'env "$2" nbdkit -U "$sock" -P pid "$1"
    until test -s pid; do sleep 0.02; done
    nbdinfo --size "$uri"
    kill "$(cat pid)"
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.02; done' \
    sh "$wbcache" "$preload" 2>err
  has "^${line}auto, settled" err
  has "${line}emulate" syslog
  lacks "${line}emulate" err
}

@test "-v: the plugin, each connection, each replicated flush" {
  session MCSHIM_EXPORTNAME=true -v "$wbcache" model=requests <<'EOT'
h = [conn("a"), conn("a"), conn("b")]
h[0].pwrite(b"a" * 512, 0)
h[1].pread(512, 0)
h[1].flush()
h[2].flush()
EOT
  grep 'mcshim' "$server_err"
  has 'debug: mcshim [0-9.]*: plugin wbcache: API version 2, serialize_requests, mode auto, level connection$' "$server_err"
  assert_equal "$(grep -c 'debug: mcshim: connection: group "a", mode emulate$' "$server_err")" 2
  assert_equal "$(grep -c 'debug: mcshim: connection: group "b", mode emulate$' "$server_err")" 1
  has 'debug: mcshim: flush: replicas 2, phases 2, [0-9.]* ms$' "$server_err"
  has 'debug: mcshim: flush: replicas 0, phases 0, [0-9.]* ms$' "$server_err"
}

@test "the multi-conn filter beside us is said once, and another is not" {
  has_filter multi-conn
  session --filter=multi-conn "$wbcache" <<<'h = [conn() for i in range(2)]'
  assert_equal "$(grep -c 'mcshim: warning: the multi-conn filter is loaded' "$server_err")" 1
  : > "$server_err"
  serve --filter=noextents "$wbcache"
  stop_server
  normal "$server_err"
}

@test "what prints about the plugin says nothing of the server" {
  local option
  for option in --version --help --dump-plugin; do
    under_shim nbdkit "$wbcache" $option >/dev/null 2>err
    assert_equal "$(<err)" ""
  done
}
