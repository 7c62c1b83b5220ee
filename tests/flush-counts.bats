#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# How many flushes the plugin sees for a client's, by level and mode, and after
# which requests; tests/unit/replicate.c has the whole table.

load common

# The columns: level, mode, the plugin's multi-conn, flushes.
@test "flushes of a script with four" {
  while read -r level mode multiconn wanted; do
    serve MCSHIM_TRACK_DIRTY="${level#default}" MCSHIM_MODE="$mode" \
      "$wbcache" multiconn="$multiconn" log="$log"
    client <<<"expect(count_flushes(), $wanted)" || fail "$level $mode $multiconn"
    stop_server
  done <<'END'
off        emulate 0  16
connection emulate 1   4
default    emulate 0   4
fast       emulate 0   8
connection auto    0   4
off        plugin  1   4
connection plugin  0   3
connection plugin  1   2
fast       plugin  0   2
connection disable 0   3
conn       unsafe  0   3
off        auto    1   4
connection auto    1   4
fast       auto    1   4
END
}

# pair READ WRITE SEEN: h0 reads and h1 writes in these ways; a flush on h2,
# which did nothing, goes to these two, and h0 then sees what h1 wrote.
pair ()
{
  session "$wbcache" size=64K initial="Initial contents" log="$log" <<EOT
h = [conn() for i in range(3)]
def see():
    kinds = []
    h[0].block_status(512, 0, lambda c, o, e, err: kinds.append(e[1]))
    return bytes(h[0].pread(4, 0)), kinds[-1] & nbd.STATE_ZERO
h[0].$1
h[1].$2
h[2].flush()
expect(sorted(flushes()), ["0", "1"])
expect(see(), $3)
# Both are clean by now, except for what see () did.
h[2].flush()
expect(len(flushes()), 2)
EOT
}

zeroed='(bytes(4), nbd.STATE_ZERO)'

@test "read, write" { pair 'pread(4, 0)' 'pwrite(b"next", 0)' '(b"next", 0)'; }
@test "cache, zero" { pair 'cache(512, 0)' 'zero(512, 0)' "$zeroed"; }
@test "extents, trim" {
  pair 'block_status(512, 0, lambda c, o, e, err: 0)' 'trim(512, 0)' "$zeroed"
}

@test "a request that fails counts all the same" {
  session "$wbcache" log="$log" control="$control" <<'EOT'
h = [conn() for i in range(5)]
control("fail-write 0 EIO", "fail-zero 1 ENOSPC", "fail-trim 2 EIO",
        "fail-read 3 EIO")
fails(errno.EIO, h[0].pwrite, b"next", 0)
fails(errno.ENOSPC, h[1].zero, 512, 0)
fails(errno.EIO, h[2].trim, 512, 0)
fails(errno.EIO, h[3].pread, 512, 0)
control()
h[4].flush()
expect([sorted(flushes()[:3]), flushes()[3:]], [["0", "1", "2"], ["3"]])
EOT
}
