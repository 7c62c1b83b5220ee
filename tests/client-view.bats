#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What clients read through a plugin with a write-back cache per connection, in
# every mode.  FUA: if flushes are replicated FUA writes are too; otherwise the
# plugin's own FUA is left alone.

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
}

# flag_on_script FIRST SECOND [MCSHIM_X=VALUE...] [PARAMETER...]: what h0 reads
# after each flush.
flag_on_script ()
{
  session "${@:3}" <<EOT
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
    flag_on_script "Hello l cont" "Hello world." "${parameters[@]}"
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
  flag_on_script "Initial cont" "Initial cont" MCSHIM_MODE=unsafe fua=native
}

# fua_script SEEN FLUSHES PARAMETER...: what h1 reads after h0's FUA write, and
# how many flushes there were.
fua_script ()
{
  session MCSHIM_MODE=plugin "${@:3}" <<EOT
h = [conn() for i in range(2)]
assert h[0].can_fua()
h[0].pwrite(b"hello ", 0)
h[0].pwrite(b"world.", 6, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(12, 0)), b"$1")
expect(len(flushes()), $2)
EOT
}

# A native one covers all that was written, or its own request alone; the
# server turns the other kind into a flush.
@test "plugin: FUA is as the plugin has it" {
  fua_script "hello world." 1 fua=emulate
  fua_script "hello world." 0 fua=native fuaflush=1
  fua_script "Initiaworld." 0 fua=native
}

@test "emulate: a plugin's native FUA becomes a write and a flush" {
  serve MCSHIM_MODE=emulate "$wbcache" fua=native fuaflush=1 log="$log"
  client <<'EOT'
h = [conn() for i in range(3)]
h[2].pread(1024, 0)
h[0].pwrite(b"one", 0)
h[1].pwrite(b"two", 512, nbd.CMD_FLAG_FUA)
expect(sorted(flushes()), ["0", "1", "2"])
expect(bytes(h[2].pread(3, 0)), b"one")
expect(bytes(h[2].pread(3, 512)), b"two")
EOT
}

@test "auto: also for a connection that has multi-conn, where the first has not" {
  serve "$wbcache" multiconn=0 differs=1 fua=native
  client <<'EOT'
h = [conn(), conn()]
h[0].pread(4, 0)
h[1].pwrite(b"next", 0, nbd.CMD_FLAG_FUA)
expect(bytes(h[0].pread(4, 0)), b"next")
EOT
}

@test "emulate: zero and trim with FUA are replicated" {
  session MCSHIM_MODE=emulate fua=native <<'EOT'
h = [conn() for i in range(2)]
expect(bytes(h[1].pread(4, 0)), b"Init")
h[0].zero(4, 0, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(8, 0)), b"\0\0\0\0ial ")
h[0].trim(4, 4, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(8, 0)), bytes(8))
EOT
}

@test "a plugin without FUA has none under the shim, in any mode" {
  for mode in auto emulate plugin disable unsafe; do
    session MCSHIM_MODE=$mode fua=none <<'EOT'
expect(conn().can_fua(), False)
EOT
  done
}
