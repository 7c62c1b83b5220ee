#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What a flush waits for, on a real server: the plugin holds requests at known
# points, and each test ends only if nothing waits for them.

load common

# start [MCSHIM_X=VALUE...] [PARAMETER...]
start ()
{
  local knobs=()
  while [[ ${1-} = MCSHIM_* ]]; do
    knobs+=("$1")
    shift
  done
  : > "$control"
  serve "${knobs[@]}" "$wbcache" log="$log" control="$control" \
    summary="$summary" "$@"
}

ends_well ()
{
  stop_server
  has_line 'overlaps: 0' "$summary"
  has_line 'after_close: 0' "$summary"
}

# Reads hang on all connections but two: one of these writes and one flushes.
hung_reads ()
{
  start "$@"
  client <<'EOT'
h = [conn() for i in range(10)]
control(*["block-fill %d" % i for i in range(2, 10)])
reads = [Call(h[i].pread, 3, 0) for i in range(2, 10)]
for i in range(2, 10):
    wait_log("%d fill" % i)
for new in (b"one", b"two", b"six"):
    h[0].pwrite(new, 0)
    h[1].flush()
    expect(bytes(h[1].pread(3, 0)), new)
# No flush has gone to a handle with a read inside.
expect(set(flushes()) <= {"0", "1"}, True)
control()
for read in reads:
    read.join()
# What was owed is paid by the next request, and not before.
for i in range(2, 10):
    expect(logged("%d flush" % i), 0)
    expect(bytes(h[i].pread(3, 0)), b"six")
    expect(logged("%d flush" % i), 1)
EOT
  ends_well
}

@test "hung reads on eight connections, parallel" {
  hung_reads model=parallel
}
@test "hung reads on eight connections, requests serialized" {
  hung_reads model=requests
}
@test "hung reads on eight connections, level fast" {
  hung_reads MCSHIM_TRACK_DIRTY=fast model=requests
}

@test "a dirty handle's flush comes after the one read inside" {
  start model=requests
  client <<'EOT'
h = [conn() for i in range(2)]
h[1].pwrite(b"new", 0)
control("block-fill 1")
reads = [h[1].aio_pread(nbd.Buffer(3), 8192 * i) for i in range(1, 5)]
poll = Call(lambda: [finish(h[1], r) for r in reads])
wait_log("1 fill")
flush = Call(h[0].flush)
expect(flush.held(), True)
control()
flush.join()
poll.join()
with open(log) as f:
    lines = f.read().split("\n")
at = lines.index("1 flush")
expect(lines[:at].count("1 read"), 1)
expect(bytes(h[0].pread(3, 0)), b"new")
EOT
  ends_well
}

# A's read is inside until B's write has been flushed; A has also written.
depends ()
{
  start "$@" model=requests
  client <<'EOT'
h = [conn() for i in range(4)]
for i in range(3):
    h[i].pwrite(b"%d" % i, 512 * i)
control("block-fill 0")
read = Call(h[0].pread, 1, 8192)
wait_log("0 fill")
flush = Call(h[3].flush)
wait_log("1 flush")
wait_log("2 flush")
control()
read.join()
flush.join()
expect(sorted(flushes()), ["0", "1", "2"])
EOT
  ends_well
}

@test "a read waits for another's flush, one flush thread" {
  depends MCSHIM_FLUSH_THREADS=1
}
@test "a read waits for another's flush, threads as needed" {
  depends MCSHIM_FLUSH_THREADS=auto
}

@test "a plugin that flushes through its own server" {
  has_plugin eval
  [ -z "$SHIM_TEST_ROOT" ] ||
    skip "the plugin's script needs the host's nbdsh"
  serve eval thread_model='echo serialize_requests' get_size='echo 4096' \
    can_write='exit 0' can_flush='exit 0' pwrite='cat >/dev/null' \
    flush='exit 0' pread='
      if mkdir once 2>/dev/null; then
        nbdsh -n -c "h = nbd.NBD(); h.connect_unix (\"'"$sock"'\")" \
          -c "h.pwrite (bytes (512), 0); h.flush ()" >&2 || exit
      fi
      head -c $3 /dev/zero'
  client <<'EOT'
conn().pread(512, 0)
EOT
  [ -d once ]
  stop_server
}

# An open takes a copy, and is held while others write and flush.
held_open ()
{
  start "$@" opencopy=1
  client <<'EOT'
h = [conn() for i in range(2)]
control("block-open 2")
new = Call(conn)
wait_log("2 open")
h[0].pwrite(b"new", 0)
h[1].flush()
control()
expect(bytes(new.join().pread(3, 0)), b"new")
EOT
  ends_well
}

@test "a write and flush beside an open that takes a copy" {
  held_open
}
@test "a write and flush beside an open, level fast" {
  held_open MCSHIM_TRACK_DIRTY=fast
}
@test "a write and flush beside an open, level off" {
  held_open MCSHIM_TRACK_DIRTY=off model=requests
}

# Two connections write, each a block of which the other has a copy; the flush
# renews copies.
two_writers ()
{
  start "$@" refresh=1 opencopy=1
  client <<'EOT'
h = [conn() for i in range(3)]
h[0].pwrite(b"one", 0)
h[1].pwrite(b"two", 8192)
h[2].flush()
for i in range(3):
    expect(bytes(h[i].pread(3, 0)), b"one")
    expect(bytes(h[i].pread(3, 8192)), b"two")
EOT
  ends_well
}

@test "two writers of a plugin that refreshes, level fast" {
  two_writers MCSHIM_TRACK_DIRTY=fast MCSHIM_FLUSH_THREADS=1
}
@test "two writers of a plugin that refreshes, level off" {
  two_writers MCSHIM_TRACK_DIRTY=off MCSHIM_FLUSH_THREADS=1
}

# The last connection to an export name has written and leaves.
reconnect ()
{
  start MCSHIM_EXPORTNAME=true MCSHIM_MODE="$1"
  client <<'EOT'
h = conn("a")
h.pwrite(b"new", 0)
close(h, 0)
conn("a").flush()
expect(flushes(), ["1"])
EOT
  ends_well
}

@test "without replication, a flush after the writer is gone" {
  reconnect plugin
}
@test "mode disable, a flush after the writer is gone" {
  reconnect disable
}
@test "mode unsafe, a flush after the writer is gone" {
  reconnect unsafe
}
