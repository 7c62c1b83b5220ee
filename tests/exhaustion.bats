#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The shim runs out of memory or threads: that client gets an error, and
# everything else goes on.

load common

start ()
{
  export EXHAUST=$BATS_TEST_TMPDIR/exhaust
  PRELOAD_AFTER=$plugins/exhaust.so serve MCSHIM_MODE=emulate MCSHIM_BLOCK=512 "$@" "$wbcache" \
    log="$log" control="$control" summary="$summary" flushdelay=1000 \
    model="${model:-parallel}"
}

# A client can't connect because FUNCTION fails; one before and one after can.
refuses_one ()
{
  FUNCTION=$1 client <<'EOT'
a = conn()
a.pwrite(b"a", 0)
exhaust = os.environ["EXHAUST"]
with open(exhaust, "w") as f:
    f.write(os.environ["FUNCTION"] + "\n")
refused(os.environ.get("EXPORT"))
expect(logged("1 open"), 0)
# The connected client has lost nothing.
a.flush()
os.unlink(exhaust)
b = conn()
expect(bytes(b.pread(1, 0)), b"a")
expect(flushes(), ["0"])
EOT
  stop_server
  has 'no memory for another connection' "$server_err"
}

@test "no memory for a connection: that one is refused, and no handle opened" {
  start
  refuses_one posix_memalign
}

@test "no memory for a group: the same" {
  start MCSHIM_EXPORTNAME=true
  EXPORT=other refuses_one calloc
}

@test "no threads: a long request goes on without them" {
  local model=requests
  start MCSHIM_HANDLES=2 MCSHIM_STRIPE=4K
  echo pthread_create > "$EXHAUST"
  client <<'EOT'
h = conn()
for i in range(3):
    h.pwrite(b"abcd" * 4096, 0)
    expect(bytes(h.pread(16384, 0)), b"abcd" * 4096)
# It has opened the other handle itself.
expect(logged("1 open"), 1)
expect(logged("1 write") > 1, True)
expect(len(threads(int(os.environ["server_pid"]))) < 20, True)
EOT
  stop_server
}

@test "no threads: the flush goes on without them" {
  start
  echo pthread_create > "$EXHAUST"
  client <<'EOT'
h = [conn() for i in range(4)]
for i in range(4):
    h[i].pwrite(b"%d" % i, i * 512)
h[0].flush()
expect(sorted(flushes()), ["0", "1", "2", "3"])
for i in range(4):
    expect(bytes(h[3 - i].pread(1, i * 512)), b"%d" % i)
os.unlink(os.environ["EXHAUST"])
for i in range(4):
    h[i].pwrite(b"x", i * 512)
h[0].flush()
expect(len(flushes()), 8)
EOT
  stop_server
}
