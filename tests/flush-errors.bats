#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# A plugin flush that fails: the client is told, the other connections are
# flushed all the same, and the next flush tries again.  tests/unit/replicate.c
# has each case; handles.bats that of a flush at close.

load common

start ()
{
  serve MCSHIM_BLOCK=512 "$@" "$wbcache" log="$log" control="$control" fua=native
}

@test "on one of several connections" {
  for threads in 1 4; do
    session MCSHIM_FLUSH_THREADS=$threads <<'EOT'
h = [conn() for i in range(5)]
for i in range(4):
    h[i].pwrite(b"%d" % i, i * 512)
control("fail-flush 1 ENOSPC")
fails(errno.ENOSPC, h[4].flush)
expect(sorted(flushes()), ["0", "1", "2", "3"])
def seen():
    return [bytes(h[4].pread(1, i * 512)) for i in range(4)]
expect(seen(), [b"0", b"\0", b"2", b"3"])

# Still failing: an error again, and for any client, also that of the handle.
fails(errno.ENOSPC, h[3].flush)
fails(errno.ENOSPC, h[1].flush)

control()
h[4].flush()
expect(flushes().count("1"), 4)
expect(seen(), [b"0", b"1", b"2", b"3"])
h[4].flush()
expect(flushes().count("1"), 4)
EOT
  done
}

@test "after a FUA write, the write has the error" {
  session MCSHIM_MODE=emulate <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"0", 0)
control("fail-flush 0 ENOSPC")
fails(errno.ENOSPC, h[1].pwrite, b"1", 512, nbd.CMD_FLAG_FUA)
control()
h[1].pwrite(b"2", 512, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(1, 0)), b"0")
EOT
}

@test "of a script: the errno comes through" {
  not_under_tsan
  disk flush='if test -f fail; then echo ENOSPC no space >&2; exit 1; fi'
  touch fail
  serve sh ./script
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"0", 0)
fails(errno.ENOSPC, h[1].flush)
os.unlink("fail")
h[1].flush()
EOT
}
