#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# NBD_FLAG_CAN_MULTI_CONN by mode, and which connections are refused.

load common

# flag VALUE NBDKIT-ARGUMENT...: what every connection is told.
flag ()
{
  session "${@:2}" \
    <<<"expect([conn().can_multi_conn() for i in range(2)], [$1] * 2)"
}

# refused WORD: connecting fails and the server says why.
refused ()
{
  client <<<'refused()'
  run -0 grep -i 'mcshim.*flush' "$server_err"
  assert_output --partial "$1"
}

@test "the flag, by mode" {
  while read -r mode without with; do
    flag "$without" MCSHIM_MODE="$mode" "$wbcache" multiconn=0
    flag "$with" MCSHIM_MODE="$mode" "$wbcache" multiconn=1
  done <<'END'
auto    True  True
emulate True  True
plugin  False True
disable False False
unsafe  True  True
END
}

@test "no flag where connections are serialized, by the plugin or a filter" {
  for mode in auto emulate plugin disable unsafe; do
    for multiconn in 0 1; do
      flag False MCSHIM_MODE=$mode "$wbcache" model=connections \
        multiconn=$multiconn
    done
    flag False MCSHIM_MODE=$mode --filter=noparallel "$wbcache" \
      serialize=connections
  done
  for model in all requests parallel; do
    flag True MCSHIM_MODE=emulate "$wbcache" model=$model
  done
}

@test "the thread model is asked for once, however many connections" {
  session "$wbcache" model=requests log="$log" \
    <<<'h = [conn() for i in range(3)]'
  # Servers before 1.14 do not ask.
  [ "$(grep -c 'thread_model$' "$log")" -le 1 ]
}

# no_flag: a writable connection without a flush is served as without the shim.
no_flag ()
{
  client <<'EOT'
for h in [conn() for i in range(2)]:
    expect(h.can_multi_conn(), False)
    expect(h.is_read_only(), False)
    h.pwrite(b"next", 0)
EOT
}

no_flush_said="disable: no flush, start with -r"
unsettled="auto, settled as clients connect"

# said TIMES WORDS [LEVEL]: so often the log tells the plugin's mode in WORDS.
said ()
{
  run grep -cx "mcshim [0-9.]*: [a-z0-9]*: $2; dirty level ${3:-connection}, handles [0-9]*" \
    "$server_err"
  assert_output "$1"
}

# said_alone WORDS: and the log has nothing else.
said_alone ()
{
  said 1 "$1"
  assert_equal "$(wc -l < "$server_err")" 1
}

@test "auto: no flush: without the flag, said at the start with what to do" {
  ODD=noflush serve MCSHIM_MODE=auto "$plugins/odd.so" log="$log"
  said_alone "$no_flush_said"
  no_flag
  stop_server
  said_alone "$no_flush_said"
}

@test "auto: no flush, and the struct does not tell: said in the log, once" {
  local can
  for can in "" "exit 3"; do
    : > "$server_err"
    disk can_flush="$can" flush="${can:+exit 0}"
    serve MCSHIM_MODE=auto eval "${disk[@]}"
    said_alone "$unsettled"
    no_flag
    stop_server
    said 1 "$no_flush_said"
    assert_equal "$(wc -l < "$server_err")" 2
  done
}

@test "auto: what is started read-only is told nothing" {
  local option options=(-r -vr -nr --read-only --readonly)
  # musl finds this one ambiguous.
  on_musl || options+=(--read)
  for option in "${options[@]}"; do
    : > "$server_err"
    ODD=noflush serve MCSHIM_MODE=auto "$option" "$plugins/odd.so" log="$log"
    stop_server
    said 1 "plugin: read-only, nothing to flush"
    lacks "$no_flush_said" "$server_err"
  done
}

@test "auto: the value of another option is not -r" {
  local option
  for option in -er "-t 4"; do
    : > "$server_err"
    # shellcheck disable=SC2086 # words
    ODD=noflush serve MCSHIM_MODE=auto $option "$plugins/odd.so" log="$log"
    stop_server
    said_alone "$no_flush_said"
  done
}

@test "auto: a filter may open the plugin read-only: not said before it is known" {
  ODD=noflush session MCSHIM_MODE=auto --filter=cow "$plugins/odd.so" \
    log="$log" <<<'conn().pwrite(b"next", 0)'
  said 1 "plugin: read-only, nothing to flush"
  lacks "$no_flush_said" "$server_err"
  : > "$server_err"
  ODD=noflush serve MCSHIM_MODE=auto --filter=nozero "$plugins/odd.so" log="$log"
  said_alone "$unsettled"
  no_flag
  stop_server
  said 1 "$no_flush_said"
}

# One kind of group: what joins while a flush of another is passed on could not
# be flushed with it.
@test "auto: without multi-conn after one that has it: no flag" {
  session "$wbcache" multiconn=1 differs=1 <<'EOT'
h = [conn(), conn()]
expect([c.can_multi_conn() for c in h], [True, False])
EOT
  said 1 "plugin: it has multi-conn"
  said 1 "disable: it has no multi-conn, the first one has"
}

@test "auto: with multi-conn after one that has it not: both are replicated" {
  session "$wbcache" multiconn=0 differs=1 log="$log" <<'EOT'
h = [conn(), conn()]
expect([c.can_multi_conn() for c in h], [True] * 2)
for new in b"one", b"two":
    h[0].pread(3, 0)
    h[1].pwrite(new, 0)
    h[1].flush()
    h.reverse()
    expect([bytes(c.pread(3, 0)) for c in h], [new] * 2)
EOT
  said 1 "emulate"
  said 1 "emulate: it has multi-conn, the first one has not"
}

# apart ARGUMENT...: auto leaves it alone, writable or not; emulate still
# emulates.
apart ()
{
  local option
  for option in "" -r; do
    session MCSHIM_MODE=auto $option "$@" \
      <<<'expect(conn().can_multi_conn(), False)'
    session MCSHIM_MODE=unsafe $option "$@" \
      <<<'expect(conn().can_multi_conn(), True)'
  done
  normal <(grep -v MCSHIM_MODE=unsafe "$server_err")
  said 2 "disable: its connections do not share their data"
  : > "$server_err"
}

@test "auto: plugins that keep connections apart do not get the flag" {
  has_plugin tmpdisk
  has_plugin ondemand
  has_plugin example3
  mkdir exports
  apart tmpdisk size=1M command='truncate -s $size $disk'
  apart ondemand dir="$PWD/exports" size=1M command='truncate -s $size $disk'
  apart example3
}

@test "auto: the info plugin has the flag where it is the same for all" {
  has_plugin info
  local mode
  for mode in time uptime conntime address; do
    apart info mode=$mode
  done
  session MCSHIM_MODE=auto info mode=exportname \
    <<<'expect(conn("name").can_multi_conn(), True)'
}

@test "emulate: no flush: refused, with a mode that does connect" {
  ODD=noflush serve MCSHIM_MODE=emulate "$plugins/odd.so" log="$log"
  refused "MCSHIM_MODE="
  wait_log close
  assert_equal "$(grep -c close "$log")" 1
  stop_server
  local mode
  mode=$(sed -n 's/.*MCSHIM_MODE=\([a-z]*\).*/\1/p' "$server_err" | head -1)
  ODD=noflush session MCSHIM_MODE="$mode" "$plugins/odd.so" \
    <<<'conn().pwrite(b"next", 0)'
}

@test "auto: nobody can write, and no flush: the flag, and no replication" {
  ODD=noflush flag True MCSHIM_MODE=auto -r "$plugins/odd.so"
  local can_write
  for can_write in "" "exit 3"; do
    disk "${no_write[@]}" can_write="$can_write" pwrite="${can_write:+cat >/dev/null}"
    flag True MCSHIM_MODE=auto eval "${disk[@]}"
  done
}

@test "emulate: read-only and no flush, or can_flush denies it: refused" {
  ODD=noflush serve MCSHIM_MODE=emulate -r "$plugins/odd.so"
  refused "MCSHIM_MODE="
  stop_server
  : > "$server_err"
  disk can_flush='exit 3'
  serve MCSHIM_MODE=emulate eval "${disk[@]}"
  refused "MCSHIM_MODE="
}

@test "the server goes on after a connection that was refused" {
  disk can_flush="test -f $BATS_TEST_TMPDIR/can-flush || exit 3"
  serve MCSHIM_MODE=emulate eval "${disk[@]}"
  refused
  touch can-flush
  client <<<'expect(conn().can_multi_conn(), True)'
}
