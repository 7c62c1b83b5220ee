#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The shim runs out of memory: that client gets an error, and everything else
# goes on.  Without threads it does alone what they would help with:
# tests/unit/.

load common

start ()
{
  export EXHAUST=$BATS_TEST_TMPDIR/exhaust
  PRELOAD_AFTER=$plugins/exhaust.so serve MCSHIM_MODE=emulate "$@" "$wbcache" \
    log="$log"
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
