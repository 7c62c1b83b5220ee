#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# docs/plugin.md: its commands do what it says.

load common

setup ()
{
  common_setup
  has_plugin python
  PATH=$source/scripts:$PATH
  # With the test's own socket and files.
  commands=$(sed -n 's/^    //p' "$source/docs/plugin.md" |
    sed "s|nbd://localhost|$uri|g; s|docs/disk.py|$source/&|
         s|build/stats|$stats|; s|nbdkit -f -i localhost|nbdkit -f -U $sock|")
  [ "$(grep -c "$source/docs/disk.py" <<<"$commands")" -eq 2 ]
  server=
}

teardown ()
{
  [ -z "$server" ] || kill "$server"
  common_teardown
}

# start COMMAND: in its own process, for the kill.
start ()
{
  eval "exec $1" 3>&- &
  server=$!
  wait_until test -S "$sock"
}

stop ()
{
  kill "$server"
  wait "$server"
  server=
  rm -f "$sock"
}

@test "a plugin of your own, for this machine only" {
  sed -n 's/^    //p' "$source/docs/plugin.md" > typed
  has 'nbdkit .*docs/disk.py' typed
  refute grep 'nbdkit .*docs/disk.py' <(grep -v -e '-i localhost' -e --probe typed)
}

two_clients ()
{
  run -0 timeout 60 bash -c "$(sed -n '/^nbdsh/,$p' <<<"$commands")"
}

@test "a plugin of your own, asked" {
  eval "run -0 $(grep -e --probe <<<"$commands")"
  assert_line "plugin        python, API version 2"
  assert_line "multi-conn    no"
  assert_line "use auto: a flush is replicated to all connections"
}

@test "a plugin of your own, with the shim and without" {
  serving=$(grep -e --stats <<<"$commands")
  start "$serving"
  run -0 timeout 60 bash -c "$(grep ^nbdinfo <<<"$commands")"
  assert_output on
  two_clients
  assert_output "bytearray(b'hello')"
  # It is written once a second.
  wait_until grep -q '^mcshim_connections_opened_total.*emulate' "$stats"
  eval "$(grep -e --top <<<"$commands") | head -n 3 > lines" < /dev/null
  sed -n 3p lines | grep ' x emulate$'
  stop
  counted plugin_flush_seconds_count 2

  start "${serving#mcshim --stats=* }"
  run -2 timeout 60 bash -c "$(grep ^nbdinfo <<<"$commands")"
  two_clients
  assert_output "bytearray(b'\\x00\\x00\\x00\\x00\\x00')"
  stop
}
