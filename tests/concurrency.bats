#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Requests that overlap, on a real server; tests/unit/replicate.c has each case.
# The plugin holds one of them at a known point, by its control file, so that
# nothing here depends on speed.

load common

start ()
{
  : > "$control"
  serve MCSHIM_BLOCK=512 "$@" "$wbcache" log="$log" control="$control" summary="$summary"
}

no_overlap ()
{
  stop_server
  none overlaps after_close
}

@test "while a connection is flushed, all else goes on" {
  start MCSHIM_MODE=emulate
  client <<'EOT'
h = [conn() for i in range(5)]
h[1].pwrite(b"next", 0)
control("block-flush 1")
flush = h[0].aio_flush()
wait_log("1 flush")

# New connections, and all that they may do except flush.
new = conn()
wait_log("5 open")
new.pread(512, 0)
new.pwrite(b"x" * 512, 8192)
close(conn(), 6)

# Others, and that of the flush's own client.
close(h[4], 4)
finish(h[0], h[0].aio_pread(nbd.Buffer(512), 0))
finish(h[0], h[0].aio_pwrite(nbd.Buffer.from_bytearray(bytearray(512)), 4096))
for i in (2, 3):
    h[i].pread(512, 0)
    h[i].pwrite(b"x" * 512, 512 * (i + 2))
    h[i].zero(512, 512 * (i + 2))
    h[i].cache(512, 0)

# And on the handle that is being flushed.
expect(bytes(h[1].pread(4, 0)), b"next")
h[1].pwrite(b"x" * 512, 512)

expect(held(h[0], flush), True)
control()
finish(h[0], flush)
expect(bytes(h[3].pread(4, 0)), b"next")
EOT
  no_overlap
}

@test "with requests serialized per connection, other connections go on" {
  : > "$control"
  serve "$wbcache" model=requests log="$log" control="$control" \
    summary="$summary"
  client <<'EOT'
h = [conn() for i in range(4)]
h[1].pwrite(b"next", 0)
control("block-flush 1")
flush = Call(h[0].flush)
wait_log("1 flush")
h[2].pread(512, 0)
h[2].pwrite(b"x" * 512, 8192)
new = conn()
new.pread(512, 0)
close(h[3], 3)

# The handle in question is busy: its client's read waits.
read = Call(h[1].pread, 4, 0)
expect(read.held(), True)
expect(logged("1 read"), 0)
control()
flush.join()
expect(bytes(read.join()), b"next")
EOT
  no_overlap
}

# load_script SECONDS: clients that keep writing, flushing, reading, opening and
# closing, each on its own block.
load_script ()
{
  client <<EOT
stop = time.monotonic() + $1
problems, rounds = [], [0] * 6
def worker(n):
    try:
        a, b, c = conn(), conn(), conn()
        old = None
        while time.monotonic() < stop or rounds[n] < 3:
            rounds[n] += 1
            # Others flush between these writes, and during them.
            for i in range(3):
                new = bytes([n, rounds[n] & 255, i, 0]) * 128
                a.pwrite(new, n * 512)
            if rounds[n] % 3 == 0:
                a.shutdown()
                a = conn()
            b.flush()
            if bytes(c.pread(512, n * 512)) != new:
                problems.append("%d read old data in round %d" % (n, rounds[n]))
                return
    except nbd.Error as e:
        problems.append(str(e))
threads = [threading.Thread(target=worker, args=(n,)) for n in range(6)]
for t in threads:
    t.start()
for t in threads:
    t.join(60)
expect(problems, [])
EOT
}

delays=(flushdelay=400 readdelay=100 filldelay=200 writedelay=100 closedelay=100)

@test "under load: requests serialized: no two on one handle" {
  serve "$wbcache" model=requests summary="$summary" "${delays[@]}"
  load_script 2
  no_overlap
  none dirty_dropped_at_close
}

@test "under load: all requests serialized: no two at all, none on other threads" {
  serve "$wbcache" model=all summary="$summary" "${delays[@]}"
  load_script 2
  no_overlap
  none foreign_thread dirty_dropped_at_close
}

@test "under load: parallel" {
  serve "$wbcache" model=parallel summary="$summary" "${delays[@]}"
  load_script 2
  no_overlap
  none dirty_dropped_at_close
}
