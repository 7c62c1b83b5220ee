#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# How many flushes the plugin sees for a client's, by level and mode;
# tests/unit/replicate.c has the whole table.

load common

# The columns: level, mode, the plugin's multi-conn, flushes.
@test "flushes of a script with four" {
  while read -r level mode multiconn wanted; do
    serve MCSHIM_TRACK_DIRTY="${level#default}" MCSHIM_MODE="$mode" \
      "$wbcache" multiconn="$multiconn" log="$log"
    client <<<"expect(count_flushes(), $wanted)" || fail "$level $mode $multiconn"
    stop_server
  done <<'END'
off        emulate 0  16
connection emulate 1   4
default    emulate 0   4
fast       emulate 0   8
connection auto    0   4
off        plugin  1   4
connection plugin  0   3
connection plugin  1   2
fast       plugin  0   2
connection disable 0   3
conn       unsafe  0   3
off        auto    1   4
connection auto    1   4
fast       auto    1   4
END
}
