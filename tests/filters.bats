#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# nbdkit's filters, which sit above the shim.

load common

# above FILTER PARAMETER...: under this filter the plugin looks like one that
# advertises multi-conn itself, and a third connection reads what one writes and
# another flushes.
above ()
{
  SERVE_WITH=no_shim serve --filter="$1" "$wbcache" \
    fua=emulate multiconn=1 "${@:2}"
  local flag
  flag=$(client <<<'print(conn().can_multi_conn())')
  stop_server
  session --filter="$1" "$wbcache" summary="$summary" \
    fua=emulate "${@:2}" <<EOT
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [$flag] * 4)
all_see(h)
h[0].pwrite(b"x" * 4096, 8192, nbd.CMD_FLAG_FUA)
expect([bytes(c.pread(4096, 8192)) for c in h], [b"x" * 4096] * 4)
EOT
  none overlaps after_close
}

@test "cache" { above cache; }
@test "cache, write-through" { above cache cache=writethrough; }
@test "cow" { above cow; }
@test "blocksize" { above blocksize minblock=1 maxdata=4096; }
# Older ones have no flag then either.
@test "blocksize: no flag where it rewrites whole blocks" {
  # settles_on WORDS OPTION...
  settles_on ()
  {
    : > "$server_err"
    session --filter=blocksize "$wbcache" "${@:2}" <<<"conn()"
    has ": wbcache: $1; " "$server_err"
  }
  settles_on "disable: a filter rewrites whole blocks, start with -r" minblock=1024
  settles_on emulate -r minblock=1024
  settles_on emulate minblock=1
  settles_on emulate MCSHIM_MODE=emulate minblock=1024
  session --filter=blocksize "$wbcache" minblock=1024 \
    <<<"expect(conn().can_multi_conn(), False)"
}
@test "fua, none" {
  session --filter=fua "$wbcache" fua=emulate \
    <<<'expect(conn().can_fua(), False)'
}
@test "fua, emulate" { above fua fuamode=emulate; }
@test "fua, native" { above fua fuamode=native fua=native; }
@test "fua, force" { above fua fuamode=force; }
@test "noparallel" { above noparallel; }
@test "noparallel, all requests" { above noparallel serialize=all-requests; }
@test "retry" { above retry; }
@test "stats" {
  has_filter stats
  above stats statsfile="$BATS_TEST_TMPDIR/filter-stats"
}
@test "log" { above log logfile="$BATS_TEST_TMPDIR/filter-log"; }

@test "fua, force: each write is a flush of what is dirty, no more" {
  session --filter=fua "$wbcache" fuamode=force fua=native log="$log" <<'EOT'
h = [conn() for i in range(3)]
h[0].pread(512, 0)
h[1].pwrite(b"next", 0)
expect(sorted(flushes()), ["0", "1"])
expect(bytes(h[0].pread(4, 0)), b"next")
EOT
}

@test "retry: a handle that is opened anew keeps what was written" {
  session --filter=retry "$wbcache" retries=2 retry-delay=1 \
    control="$control" log="$log" summary="$summary" <<'EOT'
a, b = conn(), conn()
a.pwrite(b"kept", 0)
control("fail-read-once 0 EIO")
expect(bytes(a.pread(4, 512)), bytes(4))
assert logged("0 close") == 1 and logged("2 open") == 1
b.flush()
expect(bytes(b.pread(4, 0)), b"kept")
a.pwrite(b"more", 0)
b.flush()
expect(bytes(b.pread(4, 0)), b"more")
EOT
  none dirty_dropped_at_close after_close
}

# Without the shim the filter that tracks nothing would make 16.
@test "multi-conn: nothing is replicated twice" {
  has_filter multi-conn
  local parameter
  for parameter in multi-conn-track-dirty={conn,off}; do
    session --filter=multi-conn "$wbcache" log="$log" "$parameter" \
      <<<'expect(count_flushes(), 4)'
  done
}
