#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# A client that floods the server with opens, flushes and disconnects: others
# are served meanwhile, and no threads pile up.  memcheck.bats checks memory.

load common

# flood [MCSHIM_X=VALUE...] NBDKIT-ARGUMENT...
flood ()
{
  [ -z "$test_wrapper$test_preload" ] || skip "a checker has its own threads"
  session MCSHIM_FLUSH_THREADS=8 "$@" --log=null <<'EOT'
import socket

def running():
    return len(threads(int(os.environ["server_pid"])))

rounds, stop = 0, False

def well_behaved():
    global rounds
    h = [conn("served"), conn("served")]
    while not stop:
        data = b"%06d" % rounds
        h[0].pwrite(data, 4096)
        h[0].flush()
        expect(bytes(h[1].pread(6, 4096)), data)
        rounds += 1
    for c in h:
        c.shutdown()

def burst(n):
    """Half of the connections do not even negotiate, and none says
    goodbye."""
    for i in range(32):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(sock)
    h = [conn("x%d-%d" % (n, i)) for i in range(32)]
    data = nbd.Buffer.from_bytearray(bytearray(512))
    for c in h:
        c.aio_pwrite(data, 0)
    for c in h:
        for i in range(16):
            c.aio_flush()
    # nbdkit itself (1.32) aborts if a client leaves to which several threads
    # have replies to send: take all of them but one.
    if "parallel" in os.environ:
        for c in h:
            while c.aio_in_flight():
                c.poll(-1)
            c.aio_pwrite(data, 0)

idle = running()
served, n = threading.Thread(target=well_behaved, daemon=True), 0
served.start()
while n < 16 or rounds < 20:
    burst(n)
    n += 1
stop = True
served.join()
# The server's own threads end with their connections; those that help with a
# flush may stay.
wait_for("threads to end", lambda: running() <= idle + 7)
EOT
}

@test "a plugin whose flush takes its time" {
  parallel=1 flood "$wbcache" size=64k flushdelay=1000
}

@test "a group for each of many export names" {
  parallel=1 flood MCSHIM_EXPORTNAME=true MCSHIM_MODE=emulate memory 64k
}

@test "requests serialized per connection" {
  flood "$wbcache" size=64k model=requests
}

@test "one at a time, API version 1" {
  flood "$plugins/api1.so"
}
