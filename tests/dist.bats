#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What is released: there is one version, and a tarball for machines without a
# compiler.

load common

@test "the tarball works where it is unpacked" {
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

@test "the launcher, the library, the manual and the changes agree" {
  local version page
  version=$(sed -n 's/^version=//p' "$launcher")
  [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]
  run -0 "$launcher" --version
  assert_output "mcshim $version"
  run -0 under_shim nbdkit --dump-plugin memory
  assert_line "mcshim_version=$version"
  for page in mcshim.1 libmcshim.7; do
    grep -q "^\.TH .*\"mcshim $version\"" "$source/build/$page"
  done
  run -0 grep -m 1 '^## ' "$source/CHANGELOG.md"
  assert_output --regexp "^## ${version//./\\.}, (unreleased|20[0-9-]{8})$"
}
