#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The plugins of nbdkit 1.24 that fetch a disk from another machine and lack
# multi-conn, while clients need several connections.

load common

# backend nginx|sshd PLUGIN: starts that server for that plugin, with the
# directory "remote", on $port.
backend ()
{
  has_plugin "$2"
  "$BATS_TEST_DIRNAME/compat/root" --made bullseye >/dev/null 2>&1 ||
    skip "nginx and sshd are in the bullseye root, made by make check-compat"
  mkdir -p remote
  # Nobody can tell which port is free, so try some.
  local tries
  for ((tries = 0; tries < 20; tries++)); do
    port=$((20000 + RANDOM % 12000))
    "$BATS_TEST_DIRNAME/backend" "$1" "$PWD/remote" $port \
      </dev/null >>backend.err 2>&1 3>&- &
    backend_pid=$!
    wait_until backend_started
    if [ -s remote/pid ]; then return; fi
  done
  cat backend.err
  return 1
}

backend_started () { [ -s remote/pid ] || gone "$backend_pid"; }

# wire: starts a relay to $port that delays each direction by 1 ms, and sets
# $port to the relay's.  It ends when the test closes its input.
wire ()
{
  mkfifo wire.in
  "$BATS_TEST_DIRNAME/clients/relay" "$port" 1000 <wire.in >wire.port 3>&- &
  exec {wire}>wire.in
  wait_until [ -s wire.port ]
  port=$(cat wire.port)
}

teardown ()
{
  local status=0
  common_teardown || status=$?
  [ -z "${wire:-}" ] || exec {wire}>&-
  if [ -n "${backend_pid:-}" ] && kill "$backend_pid" 2>/dev/null; then
    wait "$backend_pid"
  fi
  [ ! -s backend.err ] || sed 's/^/backend: /' backend.err
  return $status
}

# nbdcopy gives each connection 128 MiB to copy before the next: make it large
# enough that all four have something.
make_image ()
{
  local i
  truncate -s 385M "$1"
  for i in 0 128 256 384; do
    dd if=/dev/urandom of="$1" bs=1M count=1 seek=$i conv=notrunc status=none
  done
}

same_data () { sha256sum -c <(sha256sum < "$1" | sed "s|-$|$2|"); }

# serve_ssh SIZE [MCSHIM_X=VALUE...]: serves the file remote/disk, over ssh.
# With $wired, there is latency.
serve_ssh ()
{
  backend sshd ssh
  [ -z "${wired:-}" ] || wire
  truncate -s "$1" remote/disk
  serve "${@:2}" MCSHIM_STATS_FILE="$stats" ssh host=127.0.0.1 port="$port" \
    user=root identity="$PWD/remote/key" verify-remote-host=false \
    path=/mnt/disk
}

@test "ssh: what one connection writes and another flushes, a third reads" {
  serve_ssh 1M MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [True] * 4)
for i in range(4):
    h[i].pwrite(bytes([65 + i]) * 4096, 4096 * i)
h[0].flush()
for i in range(4):
    expect(bytes(h[3 - i].pread(4096, 4096 * i)), bytes([65 + i]) * 4096)
h[1].pwrite(b"last", 0)
h[2].flush()
expect(bytes(h[3].pread(4, 0)), b"last")
EOT
  stop_server
  counted client_flush_seconds_count 2
  # Four are dirty; then one is, and four have read.
  counted plugin_flush_seconds_count 8 failed_flushes_total 0
  assert_equal "$(head -c 4 remote/disk)" last
}

@test "ssh: nbdcopy writes over four connections, and flushes" {
  serve_ssh 385M
  make_image image
  nbdcopy --connections=4 --threads=4 --destination-is-zero --flush \
    image "$uri"
  stop_server
  same_data image remote/disk
  counted connections_most_at_once 4 flushes_at_close_total 0 failed_flushes_total 0
}

@test "curl, which has no flush: nbdcopy reads over four connections" {
  backend nginx curl
  make_image remote/disk
  serve MCSHIM_STATS_FILE="$stats" -r curl url="http://127.0.0.1:$port/disk"
  nbdinfo --can multi-conn "$uri"
  nbdcopy --connections=4 --threads=4 "$uri" copy
  stop_server
  same_data remote/disk copy
  counted connections_most_at_once 4 plugin_flush_seconds_count 0
}

# Over one connection, with several handles.

@test "ssh: one connection writes with eight handles, over a wire" {
  wired=yes serve_ssh 33M MCSHIM_HANDLES=8
  head -c 33M /dev/urandom > image
  nbdcopy --connections=1 --destination-is-zero --flush image "$uri"
  stop_server
  same_data image remote/disk
  counted handle_opens_failed_total 0
  [ "$(value handles_most_at_once)" -gt 1 ]
}

@test "curl: one connection reads with sixteen handles, over a wire" {
  backend nginx curl
  head -c 65M /dev/urandom > remote/disk
  wire
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_HANDLES=16 -r curl \
    url="http://127.0.0.1:$port/disk"
  nbdcopy --connections=1 --requests=16 "$uri" copy
  stop_server
  same_data remote/disk copy
  counted handle_opens_failed_total 0
  [ "$(value handles_most_at_once)" -gt 1 ]
}

@test "curl: a server that answers fewer connections than there are handles" {
  ! nbdkit --dump-plugin curl | grep -q '^max_thread_model=parallel' ||
    skip "this curl plugin has as many connections without us"
  MCSHIM_LIMIT=4 backend nginx curl
  head -c 17M /dev/urandom > remote/disk
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_HANDLES=8 -r curl \
    url="http://127.0.0.1:$port/disk"
  nbdcopy --connections=1 --requests=16 "$uri" copy
  stop_server
  same_data remote/disk copy
  has "a connection goes on with .* handles: a read failed" "$server_err"
}
