#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Connections that close, or are cut, with writes that no flush has covered.
# tests/unit/replicate.c has more cases, and hang.py and the checker's --churn
# those that overlap.

load common

start () { serve "$@" "$wbcache" log="$log" control="$control" summary="$summary"; }

dropped () { sed -n 's/^dirty_dropped_at_close: //p' "$summary"; }

@test "orderly: flushed before the plugin's close" {
  session MCSHIM_MODE=emulate <<'EOT'
h = [conn() for i in range(3)]
expect(bytes(h[0].pread(4, 0)), bytes(4))
h[1].pwrite(b"kept", 0)
close(h[1], 1)
expect(flushes(), ["1"])
h[2].flush()                    # Readers' old copies are dropped.
expect(bytes(h[0].pread(4, 0)), b"kept")
EOT
  assert_equal "$(dropped)" 0
  assert_equal "$(grep -x -e '1 flush' -e '1 close' "$log" | paste -sd,)" \
    "1 flush,1 close"
}

@test "the client is killed: flushed too" {
  session MCSHIM_MODE=emulate <<'EOT'
cut(0)
h = conn()
expect(bytes(h.pread(3, 0)), b"cut")
h.pwrite(b"old", 0)
h.flush()
h.pread(3, 0)
cut(2)
h.flush()
expect(bytes(h.pread(3, 0)), b"cut")
EOT
  assert_equal "$(dropped)" 0
}

@test "MCSHIM_FLUSH_ON_CLOSE=false: not flushed, the writes are gone" {
  session MCSHIM_MODE=emulate MCSHIM_FLUSH_ON_CLOSE=false <<'EOT'
h = [conn() for i in range(2)]
h[1].pwrite(b"lost", 0)
close(h[1], 1)
h[0].flush()
expect(bytes(h[0].pread(4, 0)), bytes(4))
EOT
  lacks '^1 flush$' "$log"
  assert_equal "$(dropped)" 1
}

@test "no close in the plugin: flushed all the same" {
  ODD=noclose serve MCSHIM_STATS_FILE="$stats" "$plugins/odd.so" log="$log"
  client <<'EOT'
h = conn()
h.pwrite(b"kept", 0)
h.shutdown()
wait_log("flush")
EOT
  stop_server
  counted flushes_at_close_total 1
}

@test "the server ends with connections open: the plugin is only unloaded" {
  session MCSHIM_MODE=emulate MCSHIM_STATS_FILE="$stats" <<'EOT'
h = [conn() for i in range(3)]
h[1].pwrite(b"lost", 0)
os.kill(int(os.environ["server_pid"]), signal.SIGTERM)
# It waits for its clients to go, but no longer calls close.
settle()
os._exit(0)
EOT
  assert_equal "$(tail -1 "$log")" "- unload"
  lacks 'flush\|close' "$log"
  none after_close
  counted connections_opened_total 3
}
