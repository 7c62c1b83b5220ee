#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The programs around a server: what starts it, and what it starts.

load common

@test "started with an empty environment and the preload set again" {
  local emptied=(env -i PATH="$PATH" SHIM_TEST_ROOT="${SHIM_TEST_ROOT-}")
  run -0 --separate-stderr under_shim "${emptied[@]}" LD_PRELOAD="$shim_so" \
    nbdkit -U - "$wbcache" --run "$flag"
  assert_output true
  run -0 under_shim "${emptied[@]}" nbdkit -U - "$wbcache" --run "$flag"
  assert_output false
}

@test "socket activation, by libnbd" {
  run -0 under_shim nbdinfo --can multi-conn [ nbdkit "$wbcache" ]
  run -2 no_shim nbdinfo --can multi-conn [ nbdkit "$wbcache" ]
}

@test "socket activation, as systemd does it" {
  # The socket is descriptor 3, and exec keeps the process ID that it is for.
  activated ()
  {
    under_shim "$1" python3 -c 'import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(os.environ["sock"])
s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[1], sys.argv[1:])' "${@:2}"
  }
  # In place of -U.
  SERVE_ON=-f SERVE_WITH=activated serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  all_see True
  stop_server
  counted connections_opened_total 4
}

@test "captive: the command's status, and the statistics, are there after it" {
  run -7 --separate-stderr under_shim MCSHIM_STATS_FILE="$stats" nbdkit -U - "$wbcache" \
    --run "$flag; exit 7"
  assert_output true
  [ -s "$stats" ]
}

@test "one client on stdin and stdout" {
  MCSHIM_STATS_FILE=$stats on_stdio "$wbcache"
  wait_until counts plugin_flush_seconds_count 1
}

@test "--exit-with-parent: the server ends in good order" {
  # The parent must not be one of our programs, and dies at once.
  under_shim MCSHIM_STATS_FILE="$stats" sh -c '
    nbdkit -f -U "$sock" -P pid --exit-with-parent "$1" &
    until test -s pid; do sleep 0.02; done
    kill -9 $$' sh "$wbcache" 3>&- 2>>"$server_err" || [ $? -eq 137 ]
  wait_until test -s "$stats"
  wait_until gone "$(<pid)"
}

# compile_exec COMPILER-ARGUMENT...: a program "exec" that executes its
# arguments.
compile_exec ()
{
  cat > exec.c <<'EOT'
#include <stdio.h>
#include <unistd.h>
int main (int argc, char *argv[])
{ execvp (argv[1], argv + 1); perror (argv[1]); return 1; }
EOT
  "$@" -o exec exec.c 2>cc.err
}

@test "a program that is statically linked, above the server and below it" {
  compile_exec cc -static || skip "no static libc: $(tail -n 1 cc.err)"
  run -0 --separate-stderr under_shim ./exec nbdkit -U - "$wbcache" \
    --run "$PWD/exec $flag"
  assert_output true
  normal <(echo "$stderr")
}

@test "a program of another architecture, above the server and below it" {
  # The 32-bit C library is easy to install, the compiler's is not.
  compile_exec cc -m32 -nostdlib "$(cc -m32 -print-file-name=crt1.o)" -lc ||
    skip "no program of 32 bits: $(tail -n 1 cc.err)"
  ./exec true || skip "this kernel runs no program of 32 bits"
  nbdkit -U - null --run "$PWD/exec true" 2>/dev/null ||
    skip "there is no C library of 32 bits beside this nbdkit"
  # Its ld.so says that it can't preload the library, and goes on.
  run -0 --separate-stderr under_shim ./exec nbdkit -U - "$wbcache" \
    --run "$PWD/exec $flag"
  assert_output true
  normal <(grep -v '^ERROR: ld.so: .*wrong ELF class: .* ignored\.$' \
             <<<"$stderr")
}
