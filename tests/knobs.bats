#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The environment variables: what is taken, what is refused and how, and
# that no other program looks at them.

load common

# accepts VARIABLE=VALUE...: a server starts, and prints only the usual.
accepts ()
{
  run -0 --separate-stderr under_shim "$@" nbdkit -U - "$wbcache" \
    --run 'nbdinfo --size "$uri"'
  assert_output 1048576
  normal <(echo "$stderr")
}

# refuses VARIABLE VALUE ALLOWED...: the server does not start, and one line
# on stderr names all of these.
refuses ()
{
  local variable=$1 value=$2 word
  run -1 --separate-stderr under_shim "$variable=$value" \
    nbdkit -U - "$wbcache" --run 'echo started'
  assert_output ""
  assert_equal "${#stderr_lines[@]}" 1
  for word in "$variable" "$value" "${@:3}"; do
    [[ $stderr == *"$word"* ]] || fail "no '$word' in: $stderr"
  done
}

# suggests WRONG RIGHT
suggests () { refuses "$1" x "$2"; }

bad_booleans=(2 -1 maybe tru yess "true " oui)

@test "MCSHIM_MODE takes each mode" {
  # unsafe too, with a warning: see messages.bats.
  for mode in auto emulate plugin disable; do
    accepts MCSHIM_MODE=$mode
  done
}

@test "MCSHIM_MODE refuses others" {
  for mode in bogus Auto emulated "auto " 1; do
    refuses MCSHIM_MODE "$mode" auto emulate plugin disable unsafe
  done
}

@test "MCSHIM_TRACK_DIRTY takes each level" {
  for level in connection conn fast off; do
    accepts MCSHIM_TRACK_DIRTY=$level
  done
}

@test "MCSHIM_TRACK_DIRTY refuses others" {
  for level in bogus on connections co; do
    refuses MCSHIM_TRACK_DIRTY $level connection conn fast off
  done
}

@test "the booleans take what nbdkit's do" {
  for value in 1 true t yes y on TRUE True T YES Y ON On \
               0 false f no n off FALSE False F NO N OFF Off; do
    accepts MCSHIM_EXPORTNAME=$value MCSHIM_FLUSH_ON_CLOSE=$value
  done
}

@test "MCSHIM_EXPORTNAME refuses others" {
  for value in "${bad_booleans[@]}"; do
    refuses MCSHIM_EXPORTNAME "$value" true false
  done
}

@test "MCSHIM_FLUSH_ON_CLOSE refuses others" {
  for value in "${bad_booleans[@]}"; do
    refuses MCSHIM_FLUSH_ON_CLOSE "$value" true false
  done
}

@test "MCSHIM_FLUSH_THREADS takes auto and 1 to 64" {
  for value in auto 1 2 64; do
    accepts MCSHIM_FLUSH_THREADS=$value
  done
}

@test "MCSHIM_FLUSH_THREADS refuses others" {
  for value in 0 65 -1 +1 1x " 1" many 4294967297 18446744073709551617; do
    refuses MCSHIM_FLUSH_THREADS "$value" auto 64
  done
}

@test "MCSHIM_STATS_FILE takes a path" {
  accepts MCSHIM_STATS_FILE="$stats"
  [ -s "$stats" ]
}

@test "MCSHIM_STATS_FILE refuses one that can't be written" {
  refuses MCSHIM_STATS_FILE "$BATS_TEST_TMPDIR/nowhere/stats"
  refuses MCSHIM_STATS_FILE nowhere/stats
  refuses MCSHIM_STATS_FILE "$BATS_TEST_TMPDIR"
  refuses MCSHIM_STATS_FILE /proc/stats
}

@test "empty is unset" {
  accepts MCSHIM_MODE= MCSHIM_TRACK_DIRTY= MCSHIM_EXPORTNAME= \
    MCSHIM_FLUSH_ON_CLOSE= MCSHIM_FLUSH_THREADS= MCSHIM_STATS_FILE=
}

@test "an unknown variable: the closest real one is named" {
  suggests MCSHIM_MODES MCSHIM_MODE
  suggests MCSHIM_TRACKDIRTY MCSHIM_TRACK_DIRTY
  suggests MCSHIM_EXPORT_NAME MCSHIM_EXPORTNAME
  suggests MCSHIM_FLUSH_CLOSE MCSHIM_FLUSH_ON_CLOSE
  suggests MCSHIM_FLUSHTHREADS MCSHIM_FLUSH_THREADS
  suggests MCSHIM_STATS MCSHIM_STATS_FILE
  suggests MCSHIM_TRACK MCSHIM_TRACK_DIRTY
  suggests MCSHIM_stats_file MCSHIM_STATS_FILE
}

@test "an unknown variable is an error even if empty" {
  refuses MCSHIM_MODES "" MCSHIM_MODE
}

@test "other variables are nobody's business" {
  accepts MCSHIMMODE=x MCSHI=x XMCSHIM_MODE=x
}

@test "two wrong ones: a line each" {
  run -1 --separate-stderr under_shim MCSHIM_MODE=bogus \
    MCSHIM_TRACK_DIRTY=dubious nbdkit -U - "$wbcache" --run 'echo started'
  assert_output ""
  assert_equal "${#stderr_lines[@]}" 2
  printf '%s\n' "${stderr_lines[@]}" > lines
  has 'MCSHIM_MODE.*bogus' lines
  has 'MCSHIM_TRACK_DIRTY.*dubious' lines
}

@test "a wrong value and an unknown name: a line each" {
  run -1 --separate-stderr under_shim MCSHIM_MODE=bogus MCSHIM_MODUS=x \
    MCSHIM_FLUSH_THREADS=0 nbdkit -U - "$wbcache" --run 'echo started'
  assert_equal "${#stderr_lines[@]}" 3
}

@test "control characters: the error is one line of text" {
  [ -z "$SHIM_TEST_ROOT$foreign" ] || skip "a shell starts this nbdkit, and drops such a name"
  run -1 --separate-stderr under_shim MCSHIM_MODE=$'a\nb\033c\177d e\303\251' \
    $'MCSHIM_\n=\t' nbdkit -U - "$wbcache" --run true
  assert_equal "${#stderr_lines[@]}" 2
  printf '%s\n' "${stderr_lines[@]}" > lines
  has $'MCSHIM_MODE: invalid value \'a?b?c?d e\303\251\'' lines
  has "MCSHIM_?: no such variable (value '?')" lines
}

@test "every wrong line is there with a stats file that can't be written" {
  run -1 --separate-stderr under_shim MCSHIM_MODE=bogus \
    MCSHIM_STATS_FILE=/nowhere/stats nbdkit -U - "$wbcache" --run true
  printf '%s\n' "${stderr_lines[@]}" > lines
  has 'MCSHIM_MODE.*bogus' lines
  has 'MCSHIM_STATS_FILE.*/nowhere/stats' lines
}

@test "in another program nothing is read, checked or printed" {
  run -0 --separate-stderr under_shim MCSHIM_MODE=bogus MCSHIM_NONE=x \
    MCSHIM_STATS_FILE="$stats" echo hello
  assert_output hello
  assert_equal "$stderr" ""
  refute [ -e "$stats" ]
}

@test "nor in a program that loads libraries by itself" {
  run -0 --separate-stderr under_shim MCSHIM_MODE=bogus \
    python3 -c 'import ctypes; print(ctypes.CDLL("libc.so.6").getpid() > 0)'
  assert_output True
  assert_equal "$stderr" ""
}
