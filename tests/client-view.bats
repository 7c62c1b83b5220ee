#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What clients read through a plugin with a write-back cache per connection,
# in every mode.

load common

start () { serve "$1" "$wbcache" size=32 initial="Initial contents" log="$log" "${@:2}"; }

@test "plugin, disable: each connection's cache is its own" {
  local mode
  for mode in plugin disable; do
    session MCSHIM_MODE=$mode <<'EOT'
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [False] * 4)
def see(i):
    return bytes(h[i].pread(4, 0))
expect(see(0), b"Init")
h[1].pwrite(b"next", 0)
expect([see(0), see(1), see(2)], [b"Init", b"next", b"Init"])
h[2].flush()
expect([see(0), see(1)], [b"Init", b"next"])
h[1].flush()
expect([see(0), see(1), see(3)], [b"Init", b"next", b"next"])
h[0].flush()
h[2].flush()
expect([see(i) for i in range(4)], [b"next"] * 4)
EOT
  done
  session MCSHIM_MODE=disable multiconn=1 fua=native \
    <<<'expect(conn().can_multi_conn(), False)'
}

# flag_on_script FIRST SECOND: what h0 reads after each flush.
flag_on_script ()
{
  client <<EOT
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [True] * 4)
expect(bytes(h[0].pread(12, 0)), b"Initial cont")
h[1].pwrite(b"Hello ", 0, nbd.CMD_FLAG_FUA)
expect(bytes(h[0].pread(12, 0)), b"$1")
h[1].pwrite(b"world.", 6)
h[2].flush()
expect(bytes(h[0].pread(12, 0)), b"$2")
EOT
}

# Whatever the plugin's FUA, as the server emulates it.
@test "emulate, auto: a flush on any connection is a flush on all" {
  local parameters
  while read -ra parameters; do
    start "${parameters[@]}"
    flag_on_script "Hello l cont" "Hello world."
    stop_server
  done <<'END'
MCSHIM_MODE=emulate fua=emulate
MCSHIM_MODE=emulate fua=native
MCSHIM_MODE=emulate fua=native fuaflush=1
MCSHIM_MODE=auto fua=emulate
MCSHIM_MODE= fua=emulate
MCSHIM_TRACK_DIRTY=fast fua=emulate
MCSHIM_TRACK_DIRTY=off fua=emulate
END
}

@test "unsafe: the flag is on and nothing is replicated" {
  start MCSHIM_MODE=unsafe fua=native
  flag_on_script "Initial cont" "Initial cont"
}
