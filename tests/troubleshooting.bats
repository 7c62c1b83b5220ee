#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# docs/troubleshooting.md: what no other file tests.

load common

# wrapped COMMAND...: does --dump-plugin of that nbdkit show the library?
wrapped () { "$@" --dump-plugin memory | grep -q '^mcshim_version='; }

@test "The server runs as if nothing were preloaded: how one sees it" {
  SERVE_WITH=no_shim serve memory 1M
  refute grep libmcshim "/proc/$(<"$server/pid")/maps"
  stop_server
  serve memory 1M
  grep libmcshim "/proc/$(<"$server/pid")/maps"
  "$launcher" --status | grep "^process  *$(<"$server/pid"): "
  stop_server
  run -0 bash -c '"$1" nbdkit -fv -U - memory 1M --run true 2>&1 |
    grep mcshim' - "$launcher"
  assert_output --partial "plugin memory"
}

@test "The server runs as if nothing were preloaded: a program in between" {
  refute wrapped "$launcher" env -u LD_PRELOAD nbdkit
  wrapped env -i PATH="$PATH" "$launcher" nbdkit
}

@test "The server runs as if nothing were preloaded: set-user-ID" {
  [ "$(id -u)" -eq 0 ] || skip "needs root to make such a file"
  cp "$(command -v nbdkit)" server
  wrapped "$launcher" ./server
  chown nobody server
  chmod u+s server
  refute wrapped "$launcher" ./server
}

@test "The server runs as if nothing were preloaded: a file capability" {
  [ "$(id -u)" -eq 0 ] || skip "needs root to make such a file"
  needs setcap
  # The user nobody may not look into the test's own directory.
  local dir
  dir=$(mktemp -d)
  chmod 755 "$dir"
  cp "$(command -v nbdkit)" "$dir/server"
  cp "$launcher" "$shim_so" "$dir"
  as_nobody=(setpriv --reuid=65534 --clear-groups)
  run wrapped "${as_nobody[@]}" "$dir/mcshim" "$dir/server"
  local without=$status with
  setcap cap_net_bind_service+ep "$dir/server" ||
    { rm -r "$dir"; skip "no file capabilities on $dir"; }
  run wrapped "${as_nobody[@]}" "$dir/mcshim" "$dir/server"
  with=$status
  rm -r "$dir"
  assert_equal "$without $with" "0 1"
}

@test "The server runs as if nothing were preloaded: another library before it" {
  refute wrapped env LD_PRELOAD="$plugins/dlsymmer.so:$shim_so" nbdkit
  wrapped env LD_PRELOAD="$plugins/dlsymmer.so" "$launcher" nbdkit
}

@test "cannot be preloaded" {
  local message="cannot be preloaded (cannot open shared object file)"
  # preload VALUE: prints what any program says about it.
  preload () { LD_PRELOAD=$1 run -0 /bin/true; }
  mkdir "with space" other
  cp "$shim_so" "with space/libmcshim.so"
  cp "$shim_so" "$launcher" "with space"
  # For another machine: change that word of the ELF header.
  cp "$shim_so" other/libmcshim.so
  printf '\377\1' |
    dd of=other/libmcshim.so bs=1 seek=18 conv=notrunc status=none
  for path in /nowhere/libmcshim.so no/libmcshim.so libmcshim.so \
              "$PWD/with space/libmcshim.so" other/libmcshim.so; do
    preload "$path"
    assert_output --partial "$message"
  done
  preload "$shim_so"
  assert_output ""
  run -2 "with space/mcshim" true
  assert_output --partial "with a space or colon"
  ln -s "with space/libmcshim.so" link.so
  preload ./link.so
  assert_output ""
}

@test "The flag is set, and there is still one connection" {
  needs qemu-img
  # most COMMAND: how many connections it opened.
  most ()
  {
    MCSHIM_STATS_FILE=$stats "$launcher" nbdkit -U - "$wbcache" --run "$1" \
      2>>"$server_err"
    value connections_most_at_once
  }
  assert_equal "$(most 'nbdcopy --threads=4 "$uri" null:')" 4
  assert_equal "$(most 'nbdcopy --threads=2 "$uri" null:')" 2
  assert_equal "$(most 'nbdcopy --threads=4 "$uri" - | cat >/dev/null')" 1
  assert_equal "$(most 'qemu-img convert -O raw "$uri" image')" 1
}
