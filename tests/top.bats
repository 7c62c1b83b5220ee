#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --top: the statistics of a running server.

load common

launcher=$BATS_TEST_DIRNAME/../scripts/mcshim

# What a terminal shows, without the colours that nobody uses.
screen () { tr -d '\r' < "$BATS_TEST_TMPDIR/screen"; }
shows () { screen | grep -q -- "$1"; }

# top_on_terminal: --top in a terminal of its own, whose keyboard is $keys.
top_on_terminal ()
{
  mkfifo keys
  # What runs in the background ignores ^C, and so would its children.
  env --default-signal=INT script -qefc "trap : INT; stty -a > before; $launcher --top $stats; echo \$? > status
                stty -a > after" screen < keys > /dev/null 3>&- &
  exec {keyboard}> keys
}

@test "in a terminal: rates and totals, until q, and the terminal is as before" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" model=requests
  top_on_terminal
  wait_until shows "waiting for $stats"
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"a" * 512, 0)
h[1].pread(512, 0)
h[1].flush()
wait_for("the screen", lambda: "client flushes" in open("screen").read())
EOT
  wait_until shows '^reads  *[0-9.]*  *1$'
  wait_until shows '^plugin flushes  *[0-9.]*  *2$'
  shows "server $(<"$server/pid"), up 0:00:0"
  shows '^mode auto, level connection, serialize_requests$'
  shows '^plugin flush  *[0-9.]*  *[0-9.]*  *[0-9.]*  *[0-9.]*$'
  printf q >&"$keyboard"
  wait_until test -s after
  assert_equal "$(<status)" 0
  assert_equal "$(<after)" "$(<before)"
  stop_server
}

@test "in a terminal: ^C ends it, and the terminal is as before" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  client <<<'conn()'
  top_on_terminal
  wait_until shows "q quits"
  printf '\003' >&"$keyboard"
  wait_until test -s after
  assert_equal "$(<status)" 130
  assert_equal "$(<after)" "$(<before)"
}

@test "in a pipe: a line a second, until the server has ended" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  "$launcher" --top "$stats" > lines < /dev/null 3>&- &
  local top=$!
  client <<'EOT'
h = conn()
h.pwrite(b"a" * 512, 0)
wait_for("a write", lambda: any(float(l.split()[3]) > 0
                               for l in open("lines").readlines()[1:]))
EOT
  stop_server
  wait "$top"
  assert_equal "$(awk 'NR == 1 { print $1, $4 }' lines)" "up,s writes/s"
  awk 'NR == 2 { exit !(NF == 8 && $2 == 1) }' lines
}

@test "in a pipe: ends when nobody reads any more" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  client <<<'conn()'
  "$launcher" --top "$stats" < /dev/null | head -n 1 > lines
  assert_equal "${PIPESTATUS[*]}" "141 0"
}

@test "a directory is refused" {
  run -2 "$launcher" --top "$BATS_TEST_TMPDIR"
  assert_output "mcshim: --top: '$BATS_TEST_TMPDIR' is a directory: must be the file that a server was given with --stats"
}
