#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The tarball for machines without a compiler.

load common

@test "it works where it is unpacked" {
  tar -xf "$(env -u MAKEFLAGS make -sC "$source" dist |
    sed "s|^|$source/|")"
  mv mcshim-* elsewhere
  for file in README.md LICENSE; do [ -s elsewhere/$file ]; done
  # In the shell of a server, which may be that of another root.
  export wbcache flag
  run -0 --separate-stderr nbdkit -U - null \
    --run 'elsewhere/mcshim nbdkit -U - "$wbcache" --run "$flag"'
  assert_output true
}
