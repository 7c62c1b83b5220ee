#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What is printed without being asked for, and what nbdkit -v adds.

load common

@test "without -v nothing is printed" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"a" * 512, 0)
h[1].pread(512, 0)
h[1].flush()
EOT
  stop_server
  assert_equal "$(<"$server_err")" ""
}

@test "-v: the plugin, each connection, each replicated flush" {
  serve MCSHIM_EXPORTNAME=true -v "$wbcache" model=requests
  client <<'EOT'
h = [conn("a"), conn("a"), conn("b")]
h[0].pwrite(b"a" * 512, 0)
h[1].pread(512, 0)
h[1].flush()
h[2].flush()
EOT
  stop_server
  grep 'mcshim' "$server_err"
  has 'debug: mcshim [0-9.]*: plugin wbcache: API version 2, serialize_requests, mode auto, level connection$' "$server_err"
  assert_equal "$(grep -c 'debug: mcshim: connection: mode emulate, group "a"$' "$server_err")" 2
  assert_equal "$(grep -c 'debug: mcshim: connection: mode emulate, group "b"$' "$server_err")" 1
  has 'debug: mcshim: flush: replicas 2, phases 2, [0-9.]* ms$' "$server_err"
  has 'debug: mcshim: flush: replicas 0, phases 0, [0-9.]* ms$' "$server_err"
}

@test "unsafe is said once, at start" {
  serve MCSHIM_MODE=unsafe "$wbcache"
  client <<<'h = [conn() for i in range(2)]'
  stop_server
  assert_equal "$(grep -c 'mcshim: warning: MCSHIM_MODE=unsafe' "$server_err")" 1
}

@test "the multi-conn filter beside us is said once, and another is not" {
  has_multi_conn_filter
  serve --filter=multi-conn "$wbcache"
  client <<<'h = [conn() for i in range(2)]'
  stop_server
  assert_equal "$(grep -c 'mcshim: warning: the multi-conn filter is loaded' "$server_err")" 1
  : > "$server_err"
  serve --filter=noextents "$wbcache"
  stop_server
  assert_equal "$(<"$server_err")" ""
}

@test "what prints about the plugin says nothing of the server" {
  local option
  for option in --version --help --dump-plugin; do
    under_shim nbdkit "$wbcache" $option >/dev/null 2>err
    assert_equal "$(<err)" ""
  done
}
