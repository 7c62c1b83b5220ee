#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What a flush waits for, on a real server: the plugin holds requests at known
# points, and each test ends only if nothing waits for them.  The other cases
# are in tests/unit/replicate.c.

load common

start ()
{
  : > "$control"
  serve "$wbcache" log="$log" control="$control" summary="$summary" "$@"
}

ends_well ()
{
  stop_server
  has_line 'overlaps: 0' "$summary"
  has_line 'after_close: 0' "$summary"
}

# One of two connections writes and the other one flushes.
@test "hung reads on eight others" {
  start model=requests
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

# Its own handle is dirty, and takes one request at a time: the flush waits for
# the read, which waits for the flush.
@test "a plugin that waits for its own flush ends with the server" {
  has_plugin eval
  [ -z "$SHIM_TEST_ROOT" ] ||
    skip "the plugin's script needs the host's nbdsh"
  serve eval thread_model='echo serialize_requests' get_size='echo 65536' \
    can_write='exit 0' can_flush='exit 0' pwrite='cat >/dev/null' \
    flush='exit 0' pread='
      nbdsh -n -c "h = nbd.NBD(); h.connect_unix (\"'"$sock"'\")" \
        -c "open (\"there\", \"w\").close ()" -c "h.flush ()" >&2 ||
        touch failed
      head -c $3 /dev/zero'
  client <<'EOT'
h = conn()
h.pwrite(bytes(512), 8192)
h.aio_pread(nbd.Buffer(512), 0)
wait_for("the flush", lambda: os.path.exists("there"))
settle()
os.kill(int(os.environ["server_pid"]), signal.SIGTERM)
EOT
  stop_server
  [ -e failed ]
}

@test "a write and flush beside an open that takes a copy" {
  start model=requests opencopy=1
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
