#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The ways to reach a server, besides a Unix socket; and one that goes into the
# background: it forks and changes directory after the plugin has been loaded.
# around.bats has servers that another program starts.

load common

# replicates URI: flushes there are replicated to four connections.
replicates ()
{
  uri=$1 client <<'EOT'
h = [nbd.NBD() for i in range(4)]
for c in h:
    c.set_uri_allow_local_file(True)
    c.connect_uri(os.environ["uri"])
expect([c.can_multi_conn() for c in h], [True] * 4)
all_see(h)
EOT
}

@test "a TCP port" {
  # Another program may have the port.
  local port
  for _ in 1 2 3; do
    port=$((20000 + RANDOM % 12000))
    ! SERVE_ON="-i 127.0.0.1 -p $port" serve "$wbcache" || break
  done
  replicates "nbd://127.0.0.1:$port"
}

@test "TLS with a pre-shared key" {
  has_tls
  echo alice:0123456789abcdef0123456789abcdef > keys
  serve --tls=require --tls-psk="$PWD/keys" "$wbcache"
  run -1 nbdinfo "$uri"
  replicates "nbds+unix://alice@/?socket=$sock&tls-psk-file=$PWD/keys"
}

# background NBDKIT-ARGUMENT...: like serve (), which stays in the foreground,
# but for a daemon.
background ()
{
  mkdir d server.daemon
  server=$BATS_TEST_TMPDIR/server.daemon
  (cd d && under_shim nbdkit -U "$sock" -P "$server/pid" "$@" \
     3>&- </dev/null 2>>"$server_err") || return
  wait_until test -s "$server/pid"
  assert_equal "$(readlink "/proc/$(<"$server/pid")/cwd")" /
}

stop_background ()
{
  kill "$(<"$server/pid")"
  # It is not our child, so its exit status is not known.
  wait_until gone "$(<"$server/pid")"
  echo 0 > "$server/status"
}

teardown ()
{
  if [ -s "$server/pid" ] && [ ! -e "$server/status" ]; then
    kill -9 "$(<"$server/pid")" || true # it may have crashed
    wait_until gone "$(<"$server/pid")"
    echo 137 > "$server/status"
  fi
  common_teardown
}

@test "a relative MCSHIM_STATS_FILE is relative to where it was started" {
  mkdir elsewhere
  MCSHIM_STATS_FILE=../elsewhere/stats background "$wbcache"
  client <<<'conn(); conn()'
  stop_background
  stats=elsewhere/stats counted connections_opened_total 2
}

@test "flushes are replicated after the fork, on several threads" {
  MCSHIM_FLUSH_THREADS=4 background "$wbcache" log="$log" \
    summary="$summary" flushdelay=1000
  client <<'EOT'
h = [conn() for i in range(8)]
for round in range(3):
    for i in range(8):
        h[i].pwrite(bytes([round]) * 512, i * 512)
    h[0].flush()
    expect(bytes(h[7].pread(8 * 512, 0)), bytes([round]) * 512 * 8)
EOT
  stop_background
  none after_close
}
