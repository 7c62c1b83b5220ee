#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# How many flushes the plugin sees for a client's, at every level;
# tests/unit/replicate.c has the whole table.

load common

# count SCRIPT...: run each against the server, one after another, and print the
# flushes that it caused.
count ()
{
  client <<EOT
def script_a():
    h = [conn() for i in range(3)]
    h[0].flush()
    h[0].pread(512, 0)
    h[0].flush()
    return h

def script_b():
    h = [conn() for i in range(4)]
    h[0].pread(512, 0)
    h[1].zero(512, 0)
    h[3].flush()
    h[2].zero(512, 0)
    h[0].pread(512, 0)
    h[3].flush()
    h[3].flush()
    return h

def script_c():
    h = [conn() for i in range(3)]
    h[0].pread(512, 0)
    h[1].trim(512, 0)
    h[0].flush()
    h[1].flush()
    h[0].pread(512, 0)
    h[2].trim(512, 0)
    h[0].flush()
    h[2].flush()
    return h

for script in "$*".split():
    os.truncate(log, 0)
    h = globals()["script_" + script]()
    print(len(flushes()))
    for c in h:
        c.shutdown()
    wait_for("the connections to close", lambda: len(h) == sum(
        l.endswith(" close\n") for l in open(log)))
EOT
}

# row LEVEL MODE MULTICONN A B C
row ()
{
  : > "$log"
  serve MCSHIM_TRACK_DIRTY="$1" MCSHIM_MODE="$2" \
    "$wbcache" multiconn="$3" log="$log"
  run -0 count a b c
  stop_server
  assert_output "$4
$5
$6"
}

@test "replicated" {
  row off emulate 0 6 12 12
  row connection emulate 1 0 4 4
  row fast emulate 0 0 8 6
  row connection auto 0 0 4 4
}

@test "passed on" {
  row off plugin 1 2 3 4
  row connection plugin 0 0 3 4
  row connection plugin 1 0 2 2
  row fast plugin 0 0 2 2
  row connection disable 0 0 3 4
  row conn unsafe 0 0 3 4
}

@test "in auto none is skipped" {
  local level
  for level in connection fast off; do
    row $level auto 1 2 3 4
  done
}

@test "the default level is connection" {
  serve MCSHIM_MODE=emulate "$wbcache" log="$log"
  assert_equal "$(count b)" 4
}
