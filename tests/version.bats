#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# There is one version.

load common

version=$(sed -n 's/^version=//p' "$launcher")

@test "the launcher, the library, the manual and the changes agree" {
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
