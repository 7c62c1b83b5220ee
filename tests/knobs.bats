#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The environment variables: that they reach the server, how it refuses wrong
# ones, and that no other program looks at them.  tests/unit/policy.c has each
# value that is taken, refused or suggested.

load common

# accepts VARIABLE=VALUE...: a server starts, and prints only the usual.
accepts ()
{
  run -0 --separate-stderr under_shim "$@" nbdkit -U - "$wbcache" \
    --run 'nbdinfo --size "$uri"'
  assert_output 1048576
  normal <(echo "$stderr")
}

# refuses LINES VARIABLE=VALUE...: the server does not start, and so many lines,
# which go to the file "lines", say why.
refuses ()
{
  run -1 --separate-stderr under_shim "${@:2}" \
    nbdkit -U - "$wbcache" --run 'echo started'
  assert_output ""
  assert_equal "${#stderr_lines[@]}" "$1"
  printf '%s\n' "${stderr_lines[@]}" > lines
}

@test "each takes a value, and an empty one" {
  accepts MCSHIM_MODE=emulate MCSHIM_TRACK_DIRTY=fast MCSHIM_EXPORTNAME=On \
    MCSHIM_FLUSH_ON_CLOSE=f MCSHIM_FLUSH_THREADS=64 MCSHIM_HANDLES=2 \
    MCSHIM_STRIPE=64K MCSHIM_BLOCK=512 MCSHIM_STATS_FILE="$stats"
  [ -s "$stats" ]
  accepts MCSHIM_MODE= MCSHIM_TRACK_DIRTY= MCSHIM_EXPORTNAME= \
    MCSHIM_FLUSH_ON_CLOSE= MCSHIM_FLUSH_THREADS= MCSHIM_HANDLES= \
    MCSHIM_STRIPE= MCSHIM_BLOCK= MCSHIM_STATS_FILE=
}

# A line has these words.
@test "each refuses others, and says what it takes" {
  local set words word
  while IFS='|' read -r set words; do
    refuses 1 "$set"
    for word in "${set%%=*}" "${set#*=}" $words; do
      has "$word" lines
    done
  done <<'END'
MCSHIM_MODE=bogus|auto emulate plugin disable unsafe
MCSHIM_FLUSH_ON_CLOSE=true |true false
MCSHIM_STATS_FILE=nowhere/stats|path
MCSHIM_STATS_FILE=/|path
MCSHIM_STATS_FILE=/proc/stats|path
MCSHIM_MODES=|MCSHIM_MODE?
MCSHIM_stats_file=x|MCSHIM_STATS_FILE?
END
}

@test "other variables are nobody's business" {
  accepts MCSHIMMODE=x MCSHI=x XMCSHIM_MODE=x
}

@test "several wrong ones: a line each" {
  refuses 4 MCSHIM_MODE=bogus MCSHIM_TRACK_DIRTY=dubious MCSHIM_MODUS=x \
    MCSHIM_STATS_FILE=/nowhere/stats
  has 'MCSHIM_MODE: .*bogus' lines
  has 'MCSHIM_TRACK_DIRTY: .*dubious' lines
  has 'MCSHIM_MODUS: ' lines
  has 'MCSHIM_STATS_FILE.*/nowhere/stats' lines
}

@test "control characters: the error is one line of text" {
  [ -z "$SHIM_TEST_ROOT$foreign" ] ||
    skip "a shell starts this nbdkit, and drops such a name"
  refuses 2 MCSHIM_MODE=$'a\nb\033c\177d e\303\251' $'MCSHIM_\n=\t'
  has $'MCSHIM_MODE: invalid value \'a?b?c?d e\303\251\'' lines
  has "MCSHIM_?: no such variable (value '?')" lines
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
