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

# daemon [MCSHIM_X=VALUE...] nbdkit -f ARGUMENT...: without the -f, in the
# directory "d".  It returns when the server has ended, whose status is unknown.
daemon ()
{
  local words=() word
  for word; do [ "$word" = -f ] || words+=("$word"); done
  mkdir d
  (cd d && under_shim "${words[@]}") || return
  wait_until test -s "$server/pid"
  until gone "$(<"$server/pid")"; do read -rt 0.1 _ <>"$never" || :; done
}

# background ARGUMENT...: like serve (), which stays in the foreground.
background ()
{
  SERVE_WITH=daemon serve "$@"
  assert_equal "$(readlink "/proc/$server_pid/cwd")" /
}

@test "a relative MCSHIM_STATS_FILE is relative to where it was started" {
  mkdir elsewhere
  background MCSHIM_STATS_FILE=../elsewhere/stats "$wbcache"
  client <<<'conn(); conn()'
  stop_server
  stats=elsewhere/stats counted connections_opened_total 2
}

@test "flushes are replicated after the fork, on several threads" {
  background MCSHIM_FLUSH_THREADS=4 "$wbcache" log="$log" \
    summary="$summary" flushdelay=1000
  client <<'EOT'
h = [conn() for i in range(8)]
for round in range(3):
    for i in range(8):
        h[i].pwrite(bytes([round]) * 512, i * 512)
    h[0].flush()
    expect(bytes(h[7].pread(8 * 512, 0)), bytes([round]) * 512 * 8)
EOT
  stop_server
  none after_close
}
