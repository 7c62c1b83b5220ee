#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# docs/troubleshooting.md: its headings are the names of these tests.

load common

# wrapped COMMAND...: does --dump-plugin of that nbdkit show the library?
wrapped () { "$@" --dump-plugin memory | grep -q '^mcshim_version='; }

# flag [LAUNCHER-OPTION...] -- NBDKIT-ARGUMENT...: prints what a client is told.
flag ()
{
  local options=()
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  "$launcher" "${options[@]}" nbdkit -U - "$@" \
    --run 'nbdinfo --can multi-conn "$uri"; echo $?' 2>>"$server_err"
}

@test "each heading has a test" {
  diff <(sed -n 's/^## //p' "$source/docs/troubleshooting.md" |
           sort) \
    <(sed -n 's/^@test "\([^"]*\)" {$/\1/p' "$BATS_TEST_FILENAME" |
        sed 's/: .*//' | grep -v '^each heading' | sort -u)
}

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

@test "The server runs as if nothing were preloaded: a static program is no obstacle" {
  needs gcc
  cat > run.c <<'EOT'
#include <unistd.h>
int main (int argc, char **argv) { (void) argc; execvp (argv[1], argv + 1); return 1; }
EOT
  gcc -static -o run run.c
  wrapped "$launcher" ./run nbdkit
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

@test "The flag does not show" {
  local wanted arguments
  while IFS='|' read -r wanted arguments; do
    eval "run -0 flag $arguments"
    assert_output "$wanted"
  done <<'END'
0|-- "$wbcache"
2|--mode=disable -- "$wbcache"
2|--mode=plugin -- "$wbcache"
2|-- "$wbcache" model=connections
2|-- --filter=noparallel "$wbcache" serialize=connections
2|-- --filter=multi-conn "$wbcache" multi-conn-mode=disable
END
  run -0 nbdkit --dump-plugin "$plugins/odd.so"
  assert_line --regexp '^max_thread_model=|^thread_model='
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

@test "The connection is refused" {
  export ODD=noflush
  run ! "$launcher" --mode=emulate nbdkit -U - "$plugins/odd.so" \
    --run 'nbdinfo "$uri"'
  assert_output --partial "needs a plugin with a working flush"
  run -0 flag -- -r "$plugins/odd.so"
  assert_output 0
  run -0 flag -- "$plugins/odd.so"
  assert_output 2
}

@test "The server does not start" {
  run -1 "$launcher" --mode=bogus nbdkit -U - memory 1M --run 'echo started'
  assert_output --partial "mcshim: MCSHIM_MODE: invalid value 'bogus': must be"
  MCSHIM_OTHERS=1 run -1 "$launcher" nbdkit -U - memory 1M --run 'echo started'
  assert_output --partial "mcshim: MCSHIM_OTHERS: no such variable"
}

@test "Slower than before" {
  # Two connections; three times, a write on each and a flush.
  local flags parameters client plugin
  while read -r flags parameters client plugin; do
    serve MCSHIM_STATS_FILE="$stats" "$wbcache" fua=native "$parameters"
    client <<EOT
h = [conn() for i in range(2)]
for i in range(3):
    for c in h:
        c.pwrite(b"x", 0, $flags)
    h[0].flush()
EOT
    stop_server
    counted client_flush_seconds_count "$client" plugin_flush_seconds_count "$plugin"
  done <<'END'
0 multiconn=0 3 6
nbd.CMD_FLAG_FUA multiconn=0 9 6
nbd.CMD_FLAG_FUA multiconn=1 3 3
END
}

@test "A flush fails, and no write had failed" {
  serve "$wbcache" log="$log" control="$control"
  client <<'EOT'
h = [conn() for i in range(2)]
control("fail-flush 1 EIO")
h[1].pwrite(b"lost", 0)
close(h[1], 1)
fails(errno.EIO, h[0].flush)
h[0].flush()
EOT
  stop_server
  has 'closing connection failed, its last writes are lost' \
    "$server_err"
}

@test "Connections show different data" {
  # different OPTION...: after a write and a flush elsewhere.
  different ()
  {
    "$launcher" "$@" nbdkit -U - "$wbcache" --run 'nbdsh -c - <<EOT
h = [nbd.NBD() for i in range(2)]
for c in h: c.connect_uri("$uri")
h[0].pread(4, 0)
h[1].pwrite(b"next", 0)
h[1].flush()
print(h[0].pread(4, 0) != b"next")
EOT' 2>>"$server_err"
  }
  for mode in plugin disable unsafe; do
    run -0 different --mode=$mode
    assert_output True
  done
  run -0 different
  assert_output False
}

@test "There are no statistics" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until test -s "$stats"
  run "$launcher" --stats="$stats" nbdkit -U - "$wbcache" --run true
  assert_output --partial "belongs to a running server"
  client <<<'conn()'
  wait_until counts connections_opened_total 1
  kill -KILL "$(<"$server/pid")"
  wait_until test -s "$server/status"
  counted running 1
  rm "$stats"
  [ "$(id -u)" -eq 0 ] || skip "needs root to change to another user"
  run "$launcher" --stats="$stats" nbdkit -u nobody -U - "$wbcache" --run true
  assert_output --partial "MCSHIM_STATS_FILE: $stats: Permission denied"
  refute [ -s "$stats" ]
}
