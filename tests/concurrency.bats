#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Requests that overlap, on a real server; tests/unit/replicate.c has each case,
# consistency.bats the load, and requests that hang.  The plugin holds requests at
# known points, by its control file, so that nothing here depends on speed; a
# test ends only if nothing waits for them.

load common

start () { serve "$@" log="$log" control="$control" summary="$summary"; }

ends_well ()
{
  stop_server
  none overlaps after_close
}

@test "while a connection is flushed, all else goes on" {
  local -x model
  for model in parallel requests; do
    session MCSHIM_MODE=emulate MCSHIM_BLOCK=512 "$wbcache" model=$model \
      <<'EOT'
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

# Others.  What the server takes one at a time waits with the flush.
serialized = os.environ["model"] == "requests"
close(h[4], 4)
if not serialized:
    finish(h[0], h[0].aio_pread(nbd.Buffer(512), 0))
    finish(h[0], h[0].aio_pwrite(nbd.Buffer.from_bytearray(bytearray(512)), 4096))
for i in (2, 3):
    h[i].pread(512, 0)
    h[i].pwrite(b"x" * 512, 512 * (i + 2))
    h[i].zero(512, 512 * (i + 2))
    h[i].cache(512, 0)

# The handle that is being flushed is busy, or not.
read = call(h[1].pread, 4, 0)
settle()
expect(not read.done(), serialized)
expect(held(h[0], flush), True)
control()
expect(bytes(read.result()), b"next")
finish(h[0], flush)
h[1].pwrite(b"x" * 512, 512)
expect(bytes(h[3].pread(4, 0)), b"next")
EOT
  done
}

# client_of_itself PREAD: a plugin that is a client of its own server as it
# reads; nbdsh is connected.
client_of_itself ()
{
  not_under_tsan
  has_plugin eval
  [ -z "$SHIM_TEST_ROOT" ] || skip "the plugin's script needs the host's nbdsh"
  disk thread_model='echo serialize_requests' \
    pread="nbdsh () {
             command nbdsh -n -c 'h = nbd.NBD(); h.connect_unix (\"$sock\")' \\
               \"\$@\" >&2; }
           $1; head -c \$3 /dev/zero"
  serve eval "${disk[@]}"
}

@test "a plugin that flushes through its own server" {
  client_of_itself '! mkdir once 2>/dev/null ||
    nbdsh -c "h.pwrite (bytes (512), 0); h.flush ()" || exit'
  client <<<'conn().pread(512, 0)'
  [ -d once ]
  stop_server
}

# Its own handle is dirty, and takes one request at a time: the flush waits for
# the read, which waits for the flush.
@test "a plugin that waits for its own flush ends with the server" {
  client_of_itself 'nbdsh -c "open (\"there\", \"w\").close ()" -c "h.flush ()" ||
    touch failed'
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
