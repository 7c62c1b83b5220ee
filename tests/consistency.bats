#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The consistency checker, briefly, in each thread model; tests/soak runs it at
# length.  The last tests check the checker: it must see what is wrong.

load common

# consistent [MCSHIM_X=VALUE...] [PLUGIN-PARAMETER...] [--CHECKER-OPTION...]
# "beside" has what the checker runs beside.
consistent ()
{
  local word options=() words=()
  for word; do
    case $word in --*) options+=("$word") ;; *) words+=("$word") ;; esac
  done
  serve "$wbcache" summary="$summary" size=2M flushdelay=200 readdelay=50 \
    filldelay=100 writedelay=50 fua=native "${words[@]}"
  run -0 "${beside[@]}" "$checker" --seconds=1 "${options[@]}" "$uri"
  stop_server
  none overlaps after_close foreign_thread
  # A flush that fails at close loses what it should have written back.
  [[ ${words[*]} == *failflush* ]] || none dirty_dropped_at_close
}

@test "parallel" {
  consistent model=parallel --reads-first --commands-in-flight
}

@test "parallel, clients come and go" { consistent model=parallel --churn; }

@test "requests serialized" { consistent model=requests --reads-first; }

@test "requests serialized, clients come and go" {
  consistent model=requests --churn --hard-cuts
}

@test "all requests serialized, clients come and go" {
  consistent model=all --churn --hard-cuts
}

@test "a map of extents that is a cache of its own" {
  consistent mapcache=1 --mixed --commands-in-flight
}

# What the levels fast and off promise to handle.
demanding=(refresh=1 opencopy=1 opendelay=500 readahead=300 mapcache=1)

@test "fast: copies that are renewed, taken at open and read ahead" {
  consistent MCSHIM_TRACK_DIRTY=fast "${demanding[@]}" --mixed --churn
}

@test "off, requests serialized: the same" {
  consistent MCSHIM_TRACK_DIRTY=off model=requests "${demanding[@]}" --mixed \
    --churn --hard-cuts
}

@test "fast, all requests serialized: the same" {
  consistent MCSHIM_TRACK_DIRTY=fast model=all "${demanding[@]}" earlydrop=1 \
    --mixed
}

@test "fast, with one flush thread: copies that are renewed at once" {
  consistent MCSHIM_TRACK_DIRTY=fast MCSHIM_FLUSH_THREADS=1 \
    refresh=1 earlydrop=1
}

# One in ten, as a slow machine gets only to some dozens.
@test "flushes that fail" {
  consistent failflush=100 seed=1 --churn --allow-errors
  refute_line "errors: 0"
}

@test "requests serialized: flushes that fail" {
  consistent model=requests failflush=100 seed=2 --churn --hard-cuts \
    --allow-errors
  refute_line "errors: 0"
}

@test "off: flushes that fail, copies that are renewed" {
  consistent MCSHIM_TRACK_DIRTY=off "${demanding[@]}" failflush=100 seed=3 \
    --mixed --allow-errors
  refute_line "errors: 0"
}

# beside_hanging HANG-OPTIONS CONSISTENT-ARGUMENT...
beside_hanging ()
{
  local beside
  # shellcheck disable=SC2206 # words
  beside=(python3 "$BATS_TEST_DIRNAME/clients/hang.py" $1)
  consistent "${@:2}" --size=1048576
  refute_line "hung: 0"
}

@test "beside requests that hang, flushes do not" {
  beside_hanging "--writes --opens" control="$control" mapcache=1 --mixed
}

@test "requests serialized: nor there" {
  beside_hanging --opens MCSHIM_TRACK_DIRTY=fast \
    model=requests control="$control"
}

@test "nor where clients come and go" {
  beside_hanging "" control="$control" --churn
}

# in_order: the same, and each connection sees what it has itself done.
in_order ()
{
  consistent "$@" mapcache=1 --own-order --mixed --threads=12 \
    --commands-in-flight
}

@test "one connection's own order, without the shim" {
  export SERVE_WITH=no_shim
  for model in parallel requests all connections; do
    in_order model=$model ownorder=1 --connections=1
  done
}

@test "one connection's own order" {
  in_order model=parallel ownorder=1 --connections=1 --block=1024 --stripe=4096
  in_order model=requests --connections=3 --stripe=65536
}

# One connection with several handles; its requests include a long zero.
several=(MCSHIM_HANDLES=2 MCSHIM_STRIPE=4096)
across=(--connections=1 --block=4096 --stripe=4096 --churn)

@test "several handles: one connection's own order" {
  for model in parallel requests all; do
    in_order "${several[@]}" model=$model ownorder=1 "${across[@]}"
  done
  in_order MCSHIM_HANDLES=16 MCSHIM_STRIPE=4096 model=requests \
    --connections=1 --block=1024 --stripe=4096
}

@test "several handles: the same in other modes" {
  for mode in plugin disable unsafe; do
    in_order "${several[@]}" MCSHIM_MODE=$mode model=requests "${across[@]}"
  done
  in_order "${several[@]}" MCSHIM_MODE=disable model=parallel ownorder=1 \
    "${across[@]}"
}

@test "several handles: copies that are renewed, taken at open and read ahead" {
  in_order "${several[@]}" MCSHIM_TRACK_DIRTY=fast model=requests \
    "${demanding[@]}" "${across[@]}"
}

@test "several handles: many connections, clients come and go" {
  for model in parallel requests; do
    consistent "${several[@]}" model=$model mapcache=1 --mixed --churn \
      --commands-in-flight --block=4096
  done
}

@test "several handles: flushes that fail" {
  consistent "${several[@]}" model=requests failflush=100 seed=4 --churn \
    --allow-errors --block=4096
  refute_line "errors: 0"
}

# sees "PATTERN" CHECKER-OPTION...: the checker finds that.
sees ()
{
  run -1 "$checker" "${@:2}" "$uri"
  assert_line --regexp "^found: ($1)$"
}

@test "the checker sees any handle that is given to any write" {
  shim_so=${shim_so%/*}/build/any-handle/libmcshim.so
  [ -e "$shim_so" ] || skip "only where it is built"
  for model in parallel requests; do
    serve "${several[@]}" "$wbcache" size=2M model=$model
    sees own --seconds=5 "${across[@]}" --own-order
    stop_server
  done
}

@test "the checker sees what unsafe breaks" {
  serve MCSHIM_MODE=unsafe "$wbcache" size=16M
  sees "order|overlap" --seconds=1
}

@test "the checker sees that the multi-conn filter keeps no order" {
  has_filter multi-conn
  SERVE_WITH=no_shim serve --filter=multi-conn "$wbcache" size=2M
  sees order --seconds=1 --threads=1 --one-at-a-time
}

@test "the checker sees what a plugin that loses everything does" {
  SERVE_WITH=no_shim serve null size=1M
  sees overlap --seconds=1 --connections=1
  assert_line --regexp "read zeroes"
  sees own --seconds=1 --connections=1 --own-order
}

@test "the checker sees a block status that hides data" {
  not_under_tsan
  [ -z "$foreign" ] || on_musl ||
    skip "qemu's fork beside other threads may hang (without the shim, too)"
  file_disk 64K can_extents='exit 0' extents='echo $4 $3 hole,zero'
  SERVE_WITH=no_shim serve eval "${disk[@]}"
  "$checker" --operations=10 --threads=2 --connections=1 "$uri"
  sees extents --operations=100 --threads=2 --connections=1 --mixed
}

@test "hang.py sees a flush that waits for a request that hangs" {
  serve "$wbcache" size=2M model=all control="$control"
  run -1 python3 "$BATS_TEST_DIRNAME/clients/hang.py" --patience=1 "$checker" \
    --seconds=30 --size=1048576 "$uri"
  assert_line --regexp "^violation: held up: no reply .*, beside .* that hangs"
}
