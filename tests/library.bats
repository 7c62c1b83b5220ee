#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What the library shows to the loader.

load common

@test "dlsym is the only symbol" {
  local expected=dlsym
  # musl's crti.o puts two into every library.
  ! on_musl || expected=$'_fini\n_init\ndlsym'
  run -0 nm -D --defined-only --format=posix "$shim_so"
  assert_equal "$(cut -d' ' -f1 <<<"$output")" "$expected"
}

check_library=$source/scripts/check-library

@test "it asks for libc alone, and none newer than 2.17" {
  CI=1 run -0 "$check_library" "$shim_so"
  assert_output ""
}

@test "a library that asks for more: an error in CI, elsewhere a warning" {
  echo 'double cbrt (double); double f (double x) { return cbrt (x); }' > m.c
  cc -shared -fPIC -o m.so m.c -lm
  CI=1 run -1 "$check_library" m.so
  assert_output --regexp '^check-library: m\.so: error: needs libm\.so\.6, '
  CI='' run -0 "$check_library" m.so
  assert_output --regexp '^check-library: m\.so: needs libm\.so\.6, '

  echo 'int getentropy (void *, long); int f (void) { return getentropy (0, 0); }' > new.c
  cc -shared -fPIC -o new.so new.c
  CI=1 run -1 "$check_library" new.so
  assert_output --regexp 'needs GLIBC_2\.25, newer .* for: getentropy \(inter'

  # gcov asks for what this system has.
  cc -shared -fPIC --coverage -o new.so new.c
  CI=1 run -0 "$check_library" new.so
  assert_output --regexp '^check-library: new\.so: needs .*--coverage'

  echo text > no.so
  CI=1 run -1 "$check_library" no.so
}

@test "every program still runs, and says nothing" {
  for command in true "ls /" "sh -c true" "python3 -c pass" "bash -c :"; do
    # shellcheck disable=SC2086 # words
    run -0 --separate-stderr under_shim $command
    assert_equal "$stderr" ""
  done
}
