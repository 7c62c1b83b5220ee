#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# FUA: if flushes are replicated FUA writes are too; otherwise the plugin's own
# FUA is left alone.

load common

# fua_script SEEN: what h1 reads after h0's FUA write.
fua_script ()
{
  client <<EOT
h = [conn() for i in range(2)]
assert h[0].can_fua()
h[0].pwrite(b"hello ", 0)
h[0].pwrite(b"world.", 6, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(12, 0)), b"$1")
EOT
}

start () { serve "$1" "$wbcache" size=32 initial="Initial contents" log="$log" "${@:2}"; }

# A native one covers all that was written, or its own request alone; the
# server turns the other kind into a flush.
@test "plugin: FUA is as the plugin has it" {
  start MCSHIM_MODE=plugin fua=emulate
  fua_script "hello world."
  stop_server
  start MCSHIM_MODE=plugin fua=native fuaflush=1
  fua_script "hello world."
  stop_server
  start MCSHIM_MODE=plugin fua=native
  fua_script "Initiaworld."
  lacks flush "$log"
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
