#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# After which requests a replicated flush goes to a connection.

load common

# pair READ WRITE: h0 reads and h1 writes in these ways; a flush on h2, which did
# nothing, goes to these two, and h0 then sees what h1 wrote.
pair ()
{
  serve "$wbcache" size=64K initial="Initial contents" log="$log"
  client <<EOT
h = [conn() for i in range(3)]
def see():
    kinds = []
    h[0].block_status(512, 0, lambda c, o, e, err: kinds.append(e[1]))
    return bytes(h[0].pread(4, 0)), kinds[-1] & nbd.STATE_ZERO
h[0].$1
h[1].$2
h[2].flush()
expect(sorted(flushes()), ["0", "1"])
got = see()
expect(got, $3)
# Both are clean by now, except for what see () did.
h[2].flush()
expect(len(flushes()), 2)
EOT
}

zeroed='(bytes(4), nbd.STATE_ZERO)'
extents='block_status(512, 0, lambda c, o, e, err: 0)'

@test "read, write" { pair 'pread(4, 0)' 'pwrite(b"next", 0)' '(b"next", 0)'; }
@test "read, zero" { pair 'pread(4, 0)' 'zero(512, 0)' "$zeroed"; }
@test "read, trim" { pair 'pread(4, 0)' 'trim(512, 0)' "$zeroed"; }
@test "cache, write" { pair 'cache(512, 0)' 'pwrite(b"next", 0)' '(b"next", 0)'; }
@test "cache, zero" { pair 'cache(512, 0)' 'zero(512, 0)' "$zeroed"; }
@test "cache, trim" { pair 'cache(512, 0)' 'trim(512, 0)' "$zeroed"; }
@test "extents, write" { pair "$extents" 'pwrite(b"next", 0)' '(b"next", 0)'; }
@test "extents, zero" { pair "$extents" 'zero(512, 0)' "$zeroed"; }
@test "extents, trim" { pair "$extents" 'trim(512, 0)' "$zeroed"; }

@test "a write, zero or trim that fails counts all the same" {
  : > "$control"
  serve "$wbcache" log="$log" control="$control"
  client <<'EOT'
h = [conn() for i in range(4)]
control("fail-write 0 EIO", "fail-zero 1 ENOSPC", "fail-trim 2 EIO")
fails(errno.EIO, h[0].pwrite, b"next", 0)
fails(errno.ENOSPC, h[1].zero, 512, 0)
fails(errno.EIO, h[2].trim, 512, 0)
control()
h[3].flush()
expect(sorted(flushes()), ["0", "1", "2"])
EOT
}

@test "a read that fails counts all the same" {
  : > "$control"
  serve "$wbcache" log="$log" control="$control"
  client <<'EOT'
h = [conn() for i in range(3)]
control("fail-read 0 EIO")
fails(errno.EIO, h[0].pread, 512, 0)
h[1].pwrite(b"next", 0)
h[2].flush()
expect(sorted(flushes()), ["0", "1"])
EOT
}

@test "write-dirty connections are flushed before read-marked ones" {
  serve "$wbcache" log="$log"
  client <<'EOT'
h = [conn() for i in range(6)]
for i in (0, 2, 4):
    h[i].pread(512, 0)
for i in (1, 3, 5):
    h[i].pwrite(b"next", 512 * i)
h[0].flush()
expect(sorted(flushes()[:3]), ["1", "3", "5"])
expect(sorted(flushes()[3:]), ["0", "2", "4"])
EOT
}
