#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# nbdkit's own plugins, as they are packaged; languages.bats has those for
# languages.

load common

served ()
{
  serve "$@"
  all_see True
  stop_server
}

@test "memory, data and file" {
  truncate -s 1M disk
  served memory 1M
  served data data='@0x1000 "text"' size=1M
  served file disk
  served MCSHIM_MODE=emulate file disk
  assert_equal "$(stat -c %s disk)" 1048576
}

@test "sh and eval" {
  file_disk 64K
  served sh ./script
  served eval "${disk[@]}"
}

@test "nbd, to a server that has the flag, and one that has not" {
  has_plugin nbd
  local plugin
  for plugin in memory "$wbcache"; do
    sock=$PWD/backend SERVE_WITH=no_shim serve "$plugin" size=1M
    served nbd socket="$PWD/backend"
  done
}

@test "split, which has no flush: no flag, unless it is read-only" {
  echo first > one
  truncate -s 64K one two
  serve split one two
  client <<<'expect(conn().can_multi_conn(), False)'
  has 'mcshim.*flush' "$server_err"
  stop_server
  session -r split one two <<'EOT'
h = [conn() for i in range(2)]
expect([c.can_multi_conn() for c in h], [True] * 2)
expect(bytes(h[1].pread(5, 0)), b"first")
EOT
}

# several [MCSHIM_X=VALUE...] COMMAND...: serves it with several handles.  Many
# requests on one connection use as many of these as happen to be busy.
several ()
{
  serve MCSHIM_HANDLES=4 MCSHIM_STRIPE=64K MCSHIM_STATS_FILE="$stats" "$@"
  has 'handles 4$' "$server_err"
}

# copies_out: the image comes back.
copies_out ()
{
  nbdcopy --connections=1 --requests=16 --request-size=65536 "$uri" copy
  stop_server
  cmp image copy
  counted handle_opens_failed_total 0 plugin_flush_seconds_count 0
}

@test "split, with several handles: reads" {
  head -c 3M /dev/urandom > image
  split -b 1M image part.
  several -r split part.a[abc]
  copies_out
}

# It has no flush, and so none is called when the connection closes.  One file:
# this plugin itself writes in the wrong place in the others.
@test "split, with several handles: writes" {
  head -c 3M /dev/urandom > image
  local mode
  for mode in auto plugin disable unsafe; do
    rm -f part copy
    truncate -s 3M part
    several MCSHIM_MODE=$mode split part
    nbdcopy --connections=1 --requests=16 --request-size=65536 image "$uri"
    copies_out
    cmp image part
  done
}

@test "gzip, with several handles" {
  has_plugin gzip
  head -c 3M /dev/urandom > image
  gzip --keep image
  several -r gzip image.gz
  copies_out
}
