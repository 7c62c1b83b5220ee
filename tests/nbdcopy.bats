#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# A large image, copied in and out over several connections.

load common

@test "64 MiB of random bytes come back the same" {
  head -c 64M /dev/urandom > image
  truncate -s 64M disk
  # The file plugin itself advertises multi-conn.
  serve MCSHIM_MODE=emulate MCSHIM_STATS_FILE="$stats" file disk
  nbdcopy --connections=4 --threads=4 --flush image "$uri"
  nbdcopy --connections=4 --threads=4 "$uri" copy
  cmp image copy
  stop_server
  cmp image disk
  counted connections_most_at_once 4
}

@test "the same through a cache per connection" {
  head -c 16M /dev/urandom > image
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" size=16M summary="$summary"
  nbdcopy --connections=4 --threads=4 --flush image "$uri"
  nbdcopy --connections=4 --threads=4 "$uri" copy
  cmp image copy
  stop_server
  counted connections_most_at_once 4
  none dirty_dropped_at_close
}

@test "a plugin that serializes its requests" {
  head -c 16M /dev/urandom > image
  for model in requests all; do
    serve MCSHIM_STATS_FILE="$stats" "$wbcache" size=16M model=$model \
      summary="$summary"
    nbdcopy --connections=4 --threads=4 --flush image "$uri"
    nbdcopy --connections=4 --threads=4 "$uri" copy
    cmp image copy
    stop_server
    counted connections_most_at_once 4
    none overlaps foreign_thread
  done
}
