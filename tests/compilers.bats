#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The library as each compiler builds it, with flags that a user may have.

load common

# passes_on LIBRARY: its dlsym ends in a jump, and libraries after it find the
# next one.
passes_on ()
{
  local jump='(jmp +\*%[re]ax|br\s+(x16|%r1)|bx\s+ip|bctr|jr\s+t1)'
  run -0 objdump -d --no-show-raw-insn --disassemble=dlsym "$1"
  grep -A 99 '<dlsym>:$' <<<"$output" | sed -n '2,/^$/p' | grep . > dlsym.s
  tail -n 1 dlsym.s | grep -Eq "\s$jump(\s|$)"
  refute grep -Ew 'ret|retq|blr' dlsym.s
  local after=$plugins/next.so eatmydata
  eatmydata=$(find /usr/lib* -name libeatmydata.so -print -quit)
  shim_so=$1 PRELOAD_AFTER=$after${eatmydata:+:$eatmydata} run -0 under_shim cat x.c
  assert_output 'int x;'
}

@test "RTLD_NEXT, whatever the compiler and its flags" {
  [ -z "$SHIM_TEST_ROOT$test_preload" ] || skip "it builds for this system"
  echo 'int x;' > x.c
  local cc flags
  for cc in gcc clang; do
    command -v $cc || continue
    for flags in -O0 "-Og --coverage" "-O1 -fstack-protector-all" -O2; do
      rm -rf built
      CI=1 make -s -C "$source" CC=$cc CFLAGS="$flags" \
        build="$PWD/built" lib="$PWD/built/libmcshim.so" \
        "$PWD/built/libmcshim.so"
      passes_on "$PWD/built/libmcshim.so"
    done
  done
}
