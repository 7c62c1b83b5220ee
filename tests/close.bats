#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Connections that close, or are cut, with writes that no flush has covered.

load common

start ()
{
  : > "$control"
  serve "$@" "$wbcache" log="$log" control="$control" summary="$summary"
}

dropped () { sed -n 's/^dirty_dropped_at_close: //p' "$summary"; }

@test "orderly: flushed before the plugin's close" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(2)]
h[1].pwrite(b"kept", 0)
close(h[1], 1)
expect(flushes(), ["1"])
h[0].flush()
expect(bytes(h[0].pread(4, 0)), b"kept")
EOT
  stop_server
  assert_equal "$(dropped)" 0
  assert_equal "$(grep -x -e '1 flush' -e '1 close' "$log" | paste -sd,)" \
    "1 flush,1 close"
}

@test "orderly: a reader's old copy is dropped by the next flush" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(3)]
expect(bytes(h[0].pread(4, 0)), bytes(4))
h[1].pwrite(b"kept", 0)
close(h[1], 1)
h[2].flush()
expect(bytes(h[0].pread(4, 0)), b"kept")
EOT
}

@test "the client is killed: flushed too" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
cut(0)
h = conn()
h.flush()
expect(bytes(h.pread(3, 0)), b"cut")
EOT
  stop_server
  assert_equal "$(dropped)" 0
}

@test "the client is killed: a reader's old copy is dropped" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = conn()
expect(bytes(h.pread(3, 0)), bytes(3))
cut(1)
h.flush()
expect(bytes(h.pread(3, 0)), b"cut")
EOT
}

@test "the last connection of all: flushed" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = conn()
h.pwrite(b"kept", 0)
close(h, 0)
h = conn()
expect(bytes(h.pread(4, 0)), b"kept")
EOT
}

@test "zero and trim are writes" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].zero(512, 0)
h[1].trim(512, 0)
close(h[0], 0)
close(h[1], 1)
expect(flushes(), ["0", "1"])
EOT
}

@test "a connection that wrote nothing, or was flushed, is not flushed" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(4)]
h[1].pread(512, 0)
h[2].pwrite(b"kept", 0)
h[0].flush()
before = len(flushes())
h[3].pread(512, 0)
for i in range(4):
    close(h[i], i)
expect(len(flushes()), before)
EOT
}

@test "MCSHIM_FLUSH_ON_CLOSE=false: not flushed, the writes are gone" {
  start MCSHIM_MODE=emulate MCSHIM_FLUSH_ON_CLOSE=false
  client <<'EOT'
h = [conn() for i in range(2)]
h[1].pwrite(b"lost", 0)
close(h[1], 1)
h[0].flush()
expect(bytes(h[0].pread(4, 0)), bytes(4))
EOT
  stop_server
  lacks_line '1 flush' "$log"
  assert_equal "$(dropped)" 1
}

@test "outside emulate a close is the plugin's own affair, and the next flush too" {
  for mode in plugin disable unsafe; do
    : > "$log"
    start MCSHIM_MODE=$mode
    client <<'EOT'
h = conn()
h.pwrite(b"lost", 0)
close(h, 0)
expect(flushes(), [])
conn().flush()
expect(flushes(), ["1"])
EOT
    stop_server
  done
}

@test "no close in the plugin: flushed all the same" {
  ODD=noclose serve MCSHIM_STATS_FILE="$stats" "$plugins/odd.so" log="$log"
  client <<'EOT'
h = conn()
h.pwrite(b"kept", 0)
h.shutdown()
def flushed():
    with open(log) as f:
        return "flush\n" in f
wait_for("flush", flushed)
EOT
  stop_server
  counted flushes_at_close_total 1
}

@test "a close waits for a flush of its own handle" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(3)]
h[1].pwrite(b"kept", 0)
control("block-flush 1")
flush = Call(h[0].flush)
wait_log("1 flush")
h[1].shutdown()
h[2].pread(512, 0)              # Others go on.
settle()
expect(logged("1 close"), 0)
control()
flush.join()
wait_log("1 close")
h[2].flush()
expect(bytes(h[2].pread(4, 0)), b"kept")
EOT
  stop_server
  none after_close overlaps
}

@test "the server ends with connections open: the plugin is only unloaded" {
  start MCSHIM_MODE=emulate MCSHIM_STATS_FILE="$stats"
  client <<'EOT' &
h = [conn() for i in range(3)]
h[1].pwrite(b"lost", 0)
with open("ready.new", "w") as f:
    f.write(str(os.getpid()))
os.rename("ready.new", "ready")
signal.pause()
EOT
  local client=$!
  wait_until test -e ready
  # The server waits for its clients to go, but no longer calls close.
  local pid
  pid=$(<"$server/pid")
  kill -TERM "$pid"
  wait_until grep -q '^ShdPnd:.*0$' "/proc/$pid/status"
  kill -KILL "$(<ready)"
  wait_until test -s "$server/status"
  wait "$client" || true
  assert_equal "$(<"$server/status")" 0
  assert_equal "$(tail -1 "$log")" "- unload"
  lacks 'flush\|close' "$log"
  none after_close
  counted connections_opened_total 3
}
