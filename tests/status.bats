#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --status: the servers that run with the library.  mcshim --top: a line a
# second of a running server's statistics.

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

# top [COMMAND...]: prints to the file "lines" until the test ends.
top ()
{
  "$@" "$launcher" --top "$stats" > lines < /dev/null 3>&- &
  top=$!
}

teardown ()
{
  [ -z "${top-}" ] || kill "$top" 2>/dev/null || true
  common_teardown
}

header='^conn  reads writes flushes plugin     ms$'

# busy: one client, which has requests in flight for as long as needed.
busy ()
{
  client <<'EOT'
h = conn()
def went_on():
    h.pread(512, 0)
    h.pwrite(b"a" * 512, 0)
    h.flush()
    with open("lines") as f:
        return any(len(l.split()) == 6 and l.split()[0] == "1" and
                   all(float(n) > 0 for n in l.split()) for l in f)
wait_for("a line of it", went_on)
EOT
}

@test "it waits, and tells who the server is, and what goes on" {
  top
  wait_until grep -qx "waiting for $stats" lines
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" model=requests flushdelay=2000
  wait_until grep -q "$header" lines
  has_line "wbcache, process $(<"$server/pid"):" lines
  has_line "auto, connection" lines
  busy
  # A flush takes at least 2 ms.
  awk 'NF == 6 && $6 ~ /^[0-9.]+$/ && $6 < 2 { exit wrong = 1 }
    END { exit wrong }' lines
}

@test "it waits through restarts, and says when the process has gone" {
  local first
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  first=$(<"$server/pid")
  top
  wait_until grep -q "$header" lines
  stop_server
  wait_until grep -qx "process $first has ended" lines
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until grep -q "^wbcache, process $(<"$server/pid"):" lines
  kill -KILL "$(<"$server/pid")"
  wait_until grep -qx "no process $(<"$server/pid") here" lines
}

# With each awk that there is, a decimal comma in the locale, and a terminal
# that can do nothing.
@test "40 columns, plain text, whatever the awk, the locale and the terminal" {
  localedef -i de_DE -f UTF-8 "$PWD/de_DE.UTF-8" || true
  mkdir bin
  # Slow enough that no column rounds to zero.
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" flushdelay=200
  local awk
  for awk in mawk gawk original-awk "busybox awk"; do
    command -v "${awk% *}" || continue
    program bin/awk "exec $awk \"\$@\""
    top env PATH="$PWD/bin:$PATH" LOCPATH="$PWD" LC_ALL=de_DE.UTF-8 TERM=dumb
    wait_until grep -q "$header" lines
    busy
    kill "$top"
    refute grep '.\{41\}\|,[0-9]\|[^ -~]' lines
  done
}

@test "control characters in the file are not passed on" {
  printf 'mcshim_info{version="1",plugin="\033[31mred\a",mode="a",level="b"} 1
mcshim_process_id %d\nmcshim_start_time_seconds 1\n' $$ > "$stats"
  top
  wait_until grep -qx "\[31mred, process $$:" lines
  refute grep '[^ -~]' lines
}

@test "it ends when nobody reads any more" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  "$launcher" --top "$stats" < /dev/null | head -n 1 > lines
  assert_equal "${PIPESTATUS[*]}" "141 0"
}
