#!/usr/bin/env bats
# What the library shows to the loader.

load common

@test "dlsym is the only symbol" {
  run -0 nm -D --defined-only --format=posix "$shim_so"
  assert_equal "$(cut -d' ' -f1 <<<"$output")" dlsym
}

@test "libc is the only library that it needs" {
  # An old glibc has libdl and libpthread apart.
  run -0 readelf -d "$shim_so"
  local needed
  needed=$(sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$output")
  assert_equal "$(grep -v -e '^libdl\.' -e '^libpthread\.' <<<"$needed")" \
    libc.so.6
}

@test "it asks for no glibc newer than 2.17" {
  case $(uname -m) in
    x86_64|aarch64|i?86) ;;
    *) skip "elsewhere it asks for what the linker finds" ;;
  esac
  run -0 objdump -T "$shim_so"
  local newest
  newest=$(sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\).*/\1/p' <<<"$output" |
    sort -V | tail -n 1)
  run -0 sort -VC <<<"$newest"$'\n'2.17
}

@test "every program still runs, and says nothing" {
  for command in true "ls /" "sh -c true" "python3 -c pass" "bash -c :"; do
    # shellcheck disable=SC2086 # words
    run -0 --separate-stderr under_shim $command
    assert_equal "$stderr" ""
  done
}
