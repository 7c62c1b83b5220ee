#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The manual pages render cleanly, and are complete.

load common

pages=("$source/build/mcshim.1" "$source/build/libmcshim.7")

# items PATTERN: of the =item lines on stdin, without markup.
items ()
{
  sed -n 's/^=item //p' | sed 's/[A-Z]<\([^<>]*\)>/\1/g' |
    grep -oE -- "$1" | sort -u
}

# section POD FROM
section ()
{
  awk -v from="=head1 $2" '/^=head1/ { on = $0 == from } on' \
    "$source/docs/$1.pod"
}

@test "podchecker finds nothing" {
  for pod in "$source"/docs/*.pod; do
    run -0 podchecker -warnings -warnings "$pod"
    assert_output --partial "pod syntax OK"
    assert_equal "${#lines[@]}" 1
  done
}

@test "man renders the pages without a warning" {
  needs man
  for page in "${pages[@]}"; do
    LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 run -0 --separate-stderr \
      man --warnings -E UTF-8 -l -Tutf8 -Z "$page"
    assert_equal "$stderr" ""
  done
}

@test "mandoc finds nothing" {
  needs mandoc
  run -0 mandoc -T lint -W warning "${pages[@]}"
  assert_output ""
}

@test "each option of the launcher, and no other" {
  diff <("$source/scripts/mcshim" --help | grep -oE -- '--[a-z][a-z-]*' |
           sort -u) \
    <(section mcshim OPTIONS | items '^--[a-z][a-z-]*')
}

@test "each knob, and no other" {
  under_shim nbdkit --help memory | sed -n 's/^\(MCSHIM_[A-Z_]*\): .*/\1/p' |
    sort > knobs
  has . knobs
  diff knobs <(section libmcshim ENVIRONMENT | items '^MCSHIM_[A-Z_]+')
  diff knobs <(sed -n 's/^| `\(MCSHIM_[A-Z_]*\)`.*/\1/p' \
                 "$source/README.md" | sort)
}

@test "each line of the statistics, and no other" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  stop_server
  diff <(sed -n 's/^# TYPE mcshim_\([a-z_]*\) .*/\1/p' "$stats" | sort) \
    <(section libmcshim STATISTICS | sed -n 's/^ \([a-z_]\+\) .*/\1/p' | sort)
}

@test "each message that it explains is one of ours" {
  # As one line for each file; C's pieces of a string are put together.
  for file in "$source"/*.c "$source"/interpose/*.c "$source"/scripts/mcshim*; do
    sed 's/\\$//' "$file" | tr -d '\n' | sed 's/"  *"//g'
    echo
  done > ours
  { section mcshim DIAGNOSTICS; section libmcshim MESSAGES; } |
    sed -n 's/^=item \(mcshim: \)\?//p' |
    sed 's/\[.*//; s/ *[A-Z]<[A-Za-z]*>/[^"]*/g' > explained
  has . explained
  while read -r message; do
    grep -qe "$message" ours || fail "nothing prints: $message"
  done < explained
}
