#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# MCSHIM_STATS_FILE: what is counted, and how the file is written.

load common

@test "every counter, in the form key: value" {
  : > "$control"
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" model=requests log="$log" \
    control="$control"
  client <<'EOT'
h = [conn() for i in range(3)]
h[0].flush()                    # Clean: skipped.
h[0].pread(512, 0)
h[0].pread(512, 0)
h[1].pwrite(b"a" * 512, 0)
h[2].flush()                    # Goes to h1 and h0.
h[1].zero(512, 0)
h[1].trim(512, 0)
control("fail-flush 1 EIO")
fails(errno.EIO, h[2].flush)
control()
h[2].flush()
h[2].pwrite(b"b" * 512, 0)
close(h[2], 2)                  # Unflushed: flushed now.
h[2] = conn()
EOT
  stop_server
  refute grep -v '^[a-z0-9_]*: [a-z0-9_.]*$' "$stats"
  counted mode auto
  counted level connection
  counted thread_model serialize_requests
  counted connections_opened 4
  counted connections_most_at_once 3
  counted client_flushes 4
  assert_equal "$(value plugin_flushes)" "$(grep -c ' flush$' "$log")"
  counted flushes_skipped_clean 1
  counted flushes_at_close 1
  counted failed_flushes 1
  counted writes 4
  counted reads 2
  # A round for each flush but the one that was clean.  The first took two
  # connections; so did the last, since the one before it failed.
  counted rounds 3
  assert_equal "$(value replicas)" "$(($(value plugin_flushes) - 1))"
  counted running false
}

@test "latencies: no quantile beyond the maximum, none below the plugin's delay" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" flushdelay=3000
  client <<'EOT'
h = conn()
for i in range(10):
    h.pwrite(b"a" * 512, 0)
    h.flush()
EOT
  stop_server
  local kind
  for kind in client_flush plugin_flush; do
    awk -v mean="$(value ${kind}_us_mean)" -v p50="$(value ${kind}_us_p50)" \
        -v p99="$(value ${kind}_us_p99)" -v max="$(value ${kind}_us_max)" \
        'BEGIN { exit !(3000 <= mean && mean <= max && 3000 <= p50 &&
                        p50 <= p99 && p99 <= max) }'
  done
}

@test "the file follows the server while it runs, and rests while it does" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  client <<'EOT'
path = os.environ["sock"].replace("/sock", "/stats")
def says(line):
    try:
        with open(path) as f:
            return line + "\n" in f
    except FileNotFoundError:
        return False
h = conn()
h.pwrite(b"a" * 512, 0)
wait_for("a write", lambda: says("writes: 1"))
assert says("running: true") and says("connections_open: 1")
before = os.stat(path).st_mtime_ns
tick()
expect(os.stat(path).st_mtime_ns, before)
h.flush()
wait_for("a flush", lambda: says("client_flushes: 1"))
EOT
  stop_server
  counted running false
}

@test "a file that can't be written any more is said once, until it can" {
  not_under_tsan
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  rmdir d
  client <<'EOT'
h = conn()
err = os.environ["sock"].replace("/sock", "/server.err")
wait_for("the complaint", lambda: "d/stats" in open(err).read())
h.pread(512, 0)
tick()                          # It tries again.
EOT
  assert_equal "$(grep -c 'MCSHIM_STATS_FILE.*d/stats' "$server_err")" 1
  mkdir d
  client <<<'conn()'
  stop_server
  test -s d/stats
}

@test "the mode and level that were set" {
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_MODE=emulate \
    MCSHIM_TRACK_DIRTY=conn "$wbcache" model=all
  stop_server
  counted mode emulate
  counted level connection
  counted thread_model serialize_all_requests
}

@test "an existing file is replaced, in one step" {
  echo old > "$stats"
  ln "$stats" keep
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  assert_equal "$(<"$stats")" old
  client <<<'conn()'
  stop_server
  counted connections_opened 1
  assert_equal "$(<keep)" old
  run ls
  refute_line --regexp '^(\.|)stats.+'
}

@test "nothing is left of the check at start" {
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  assert_equal "$(ls -A d)" ""
  stop_server
  assert_equal "$(ls -A d)" stats
}

@test "a server that fails to start for other reasons leaves no file behind" {
  mkdir d
  run -1 under_shim MCSHIM_STATS_FILE=d/stats nbdkit -U - "$wbcache" \
    size=bogus --run true
  assert_equal "$(find d -type f ! -name stats)" ""
}

@test "a directory that has gone by the end is an error, not a crash" {
  not_under_tsan
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  rmdir d
  stop_server
  has 'MCSHIM_STATS_FILE.*d/stats' "$server_err"
}
