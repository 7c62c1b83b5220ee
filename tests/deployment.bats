#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# docs/deployment.md: each of its blocks is run as it is there.  /usr/local, /run
# and so on are the test's own directories.

load common

setup ()
{
  common_setup
  [ -z "$test_preload" ] || skip "the recipes set LD_PRELOAD themselves"
  box=$BATS_TEST_TMPDIR/box
  mkdir -p "$box"/usr/local/{bin,lib} "$box"/{etc/systemd/system,run,srv}
  unshare -rm mount --bind "$box/srv" /srv ||
    skip "this user may not make a mount namespace"
  cp "$source/scripts/mcshim" "$box/usr/local/bin"
  cp "$shim_so" "$box/usr/local/lib/libmcshim.so"
  cp "$source/docs/disk.py" "$box/srv"
}

# recipe HEADING: a block that begins with the path of a file becomes that file,
# as if pasted; the path may come after #!.  The other blocks go to "block".
recipe ()
{
  sed -n "/^## $1\$/,/^## /p" "$source/docs/deployment.md" |
    awk -v box="$box" '
      /^```/ { inside = !inside; file = "block"; first = 1; next }
      !inside { next }
      first && /^#!/ { interpreter = $0 "\n"; next }
      first && /^# \// {
        file = box $2
        dir = file
        sub("/[^/]*$", "", dir)
        system("mkdir -p " dir)
      }
      { printf "%s%s\n", interpreter, $0 > file }
      { first = 0; interpreter = "" }'
}

# in_box SCRIPT: runs it, and at its end stops what it leaves in the background.
# "flag SOCKET" waits for a server and is true if it sets the flag; "off
# COMMAND" is true if COMMAND has found the flag off.
in_box ()
{
  local prelude='
    for dir in /etc/systemd/system /run /srv /usr/local; do
      mount --bind "$box$dir" "$dir"
    done
    trap "kill \$(jobs -p) 2>/dev/null || :; wait" EXIT
    flag () {
      for ((i = 0; i < 1500; i++)); do
        test ! -S "$1" || break
        sleep 0.02
      done
      nbdinfo --can multi-conn "nbd+unix:///?socket=$1"
    }
    off () { local status=0; "$@" || status=$?; test $status -eq 2; }
    key () { sed -n "s/^$1=//p" "${@:2}"; }'
  box=$box PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    timeout 90 unshare -rm bash -euc "$prelude
      $1" </dev/null
}

# What systemd would run, and with which environment.
@test "a systemd service, without and with the drop-in" {
  needs systemd-analyze
  recipe "A systemd service"
  in_box '
    cd /etc/systemd/system
    systemd-analyze verify disk.service
    env -i PATH="$PATH" $(key ExecStart disk.service) &
    off flag /run/disk.sock
    kill %1; wait; rm /run/disk.sock
    env -i PATH="$PATH" $(key Environment disk.service.d/*) \
      $(key ExecStart disk.service) &
    flag /run/disk.sock'
}

@test "a socket-activated service" {
  needs systemd-analyze systemd-socket-activate
  recipe "A socket-activated service"
  in_box '
    cd /etc/systemd/system
    systemd-analyze verify lazy.socket lazy.service
    systemd-socket-activate -l "$(key ListenStream lazy.socket)" \
      $(key ExecStart lazy.service) &
    flag /run/lazy.sock'
}

@test "a program that starts nbdkit" {
  recipe "A program that starts nbdkit"
  run -0 --separate-stderr in_box '. ./block'
  assert_output on
  run -0 --separate-stderr in_box 'python3 /srv/parent.py'
  assert_output on
}

@test "a program that clears the environment" {
  recipe "A program that clears the environment"
  in_box '
    parent () {
      env -i PATH="$PATH" nbdkit -U - python /srv/disk.py \
        --run "nbdinfo --can multi-conn \$uri"
    }
    off parent
    head -c 2 /usr/local/bin/nbdkit | grep -qx "#!"
    chmod +x /usr/local/bin/nbdkit
    hash -r
    parent'
}

@test "a container's entry point" {
  recipe "A container"
  in_box '
    mapfile -t words < <(python3 -c "
import json, sys
for line in sys.stdin:
    if line.startswith(\"ENTRYPOINT \"):
        print(*json.loads(line.split(None, 1)[1]), sep=\"\\n\")" < block)
    "${words[@]}" -U /run/disk.sock &
    flag /run/disk.sock'
}

@test "with other preloads" {
  for name in libjemalloc.so.2 libeatmydata.so; do
    [[ -z $(LD_PRELOAD=$name true 2>&1) ]] || skip "no $name"
  done
  recipe "With other preloads"
  in_box '
    eval "exec env $(<block)" &         # So that $! is nbdkit.
    flag /run/disk.sock
    for name in libmcshim libjemalloc libeatmydata; do
      grep -q "/$name" /proc/$!/maps
    done'
}
