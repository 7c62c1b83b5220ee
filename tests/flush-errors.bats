#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# A plugin flush that fails: the client is told, the other connections are
# flushed all the same, and the next flush tries again.

load common

start ()
{
  : > "$control"
  serve MCSHIM_BLOCK=512 "$@" "$wbcache" log="$log" control="$control" summary="$summary" \
    fua=native
}

@test "on one of several connections" {
  for threads in 1 4; do
    : > "$log"
    start MCSHIM_FLUSH_THREADS=$threads
    client <<'EOT'
h = [conn() for i in range(5)]
for i in range(4):
    h[i].pwrite(b"%d" % i, i * 512)
control("fail-flush 1 ENOSPC")
fails(errno.ENOSPC, h[4].flush)
expect(sorted(flushes()), ["0", "1", "2", "3"])
def seen():
    return [bytes(h[4].pread(1, i * 512)) for i in range(4)]
expect(seen(), [b"0", b"\0", b"2", b"3"])

# Still failing: an error again, and for any client.
fails(errno.ENOSPC, h[3].flush)

control()
h[4].flush()
expect(flushes().count("1"), 3)
expect(seen(), [b"0", b"1", b"2", b"3"])
h[4].flush()
expect(flushes().count("1"), 3)
EOT
    stop_server
  done
}

@test "at every level" {
  for level in connection fast off; do
    : > "$log"
    start MCSHIM_TRACK_DIRTY=$level
    client <<'EOT'
h = [conn() for i in range(3)]
h[0].pwrite(b"0", 0)
h[1].pwrite(b"1", 512)
control("fail-flush 0 EIO")
fails(errno.EIO, h[2].flush)
control()
h[2].flush()
expect(bytes(h[2].pread(1, 0)), b"0")
expect(bytes(h[2].pread(1, 512)), b"1")
EOT
    stop_server
  done
}

@test "on the connection of the client itself" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"0", 0)
h[1].pwrite(b"1", 512)
control("fail-flush 0 ENOMEM")
fails(errno.ENOMEM, h[0].flush)
expect(sorted(flushes()), ["0", "1"])
control()
h[0].flush()
expect(bytes(h[1].pread(1, 0)), b"0")
EOT
}

@test "on a connection that had only read" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(3)]
h[0].pread(1, 0)
h[1].pwrite(b"1", 0)
control("fail-flush 0 EIO")
fails(errno.EIO, h[2].flush)
expect(bytes(h[0].pread(1, 0)), b"\0")
control()
h[2].flush()
expect(bytes(h[0].pread(1, 0)), b"1")
EOT
}

@test "of a writer: what read before is flushed all the same, at the retry too" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(4)]
h[0].pread(512, 0)
h[1].pwrite(b"1", 0)
h[2].pwrite(b"2", 512)
control("fail-flush 1 EIO")
fails(errno.EIO, h[3].flush)
expect(sorted(flushes()), ["0", "1", "2"])
# h0 reads again, before h1's write has been written back.
expect(bytes(h[0].pread(1, 0)), b"\0")
control()
h[3].flush()
expect(bytes(h[0].pread(1, 0)), b"1")
EOT
}

@test "several fail: the client gets the first error" {
  start MCSHIM_FLUSH_THREADS=1
  client <<'EOT'
h = [conn() for i in range(4)]
names = ["ENOSPC", "ENOMEM", "EIO"]
for i in range(3):
    h[i].pwrite(b"x", i * 512)
control(*["fail-flush %d %s" % (i, names[i]) for i in range(3)])
try:
    h[3].flush()
except nbd.Error as e:
    got = e.errnum
else:
    sys.exit("the flush did not fail")
expect(sorted(flushes()), ["0", "1", "2"])
expect(got, getattr(errno, names[int(flushes()[0])]))
control()
h[3].flush()
expect(bytes(h[3].pread(1025, 0))[::512], b"xxx")
EOT
}

@test "after a FUA write, the write has the error" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"0", 0)
control("fail-flush 0 ENOSPC")
fails(errno.ENOSPC, h[1].pwrite, b"1", 512, nbd.CMD_FLAG_FUA)
control()
h[1].pwrite(b"2", 512, nbd.CMD_FLAG_FUA)
expect(bytes(h[1].pread(1, 0)), b"0")
EOT
}

@test "outside emulate an error is that of the client's own connection" {
  start MCSHIM_MODE=plugin
  client <<'EOT'
h = [conn() for i in range(2)]
h[0].pwrite(b"0", 0)
h[1].pwrite(b"1", 512)
control("fail-flush 0 ENOSPC")
h[1].flush()
fails(errno.ENOSPC, h[0].flush)
control()
h[0].flush()
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

@test "at close: logged, and the next flush of the group fails once" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(3)]
h[1].pwrite(b"lost", 0)
control("fail-flush 1 ENOSPC")
close(h[1], 1)
control()
fails(errno.ENOSPC, h[0].flush)
h[0].flush()
h[2].flush()
EOT
  has 'nbdkit:.*error:.*mcshim' "$server_err"
}

@test "at close: a later connection's flush fails, if it is the next" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = conn()
h.pwrite(b"lost", 0)
control("fail-flush 0 EIO")
close(h, 0)
control()
h = conn()
fails(errno.EIO, h.flush)
h.flush()
EOT
}

@test "at close: also the next flush after a FUA write" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(2)]
h[1].pwrite(b"lost", 0)
control("fail-flush 1 EIO")
close(h[1], 1)
control()
fails(errno.EIO, h[0].pwrite, b"x", 512, nbd.CMD_FLAG_FUA)
h[0].pwrite(b"x", 512, nbd.CMD_FLAG_FUA)
EOT
}

@test "at close: another group is not told" {
  start MCSHIM_EXPORTNAME=true
  client <<'EOT'
a, b, a2 = conn("a"), conn("b"), conn("a")
a.pwrite(b"lost", 0)
control("fail-flush 0 EIO")
close(a, 0)
control()
b.pwrite(b"kept", 512)
b.flush()
fails(errno.EIO, a2.flush)
EOT
}
