#!/usr/bin/env bats
# A client that floods the server with opens, flushes and disconnects: others
# are served meanwhile, and neither threads nor memory pile up.

load common

# flood [MCSHIM_X=VALUE...] NBDKIT-ARGUMENT...: four times, and compare.
flood ()
{
  [ -z "$test_wrapper$test_preload" ] ||
    skip "a checker has threads and memory of its own"
  # All of it in one heap, which keeps what was given back, to be used again.
  export MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=1000000000
  serve "$@" --log=null
  pid=$(<"$server/pid") client <<'EOT'
import re, socket

proc = "/proc/%s/" % os.environ["pid"]

def threads():
    return len(os.listdir(proc + "task"))

def memory():
    """What the heap has of it."""
    with open(proc + "smaps") as f:
        text = f.read()
    return int(re.search(r"\[heap\]$.*?^Rss: *(\d+)", text, re.M | re.S)[1])

class Served(threading.Thread):
    """A well-behaved client."""
    def __init__(self):
        super().__init__(daemon=True)
        self.rounds, self.stop, self.error = 0, False, None
        self.start()
    def run(self):
        try:
            h = [conn("served"), conn("served")]
            while not self.stop:
                data = b"%06d" % self.rounds
                h[0].pwrite(data, 4096)
                h[0].flush()
                expect(bytes(h[1].pread(6, 4096)), data)
                self.rounds += 1
            for c in h:
                c.shutdown()
        except BaseException as e:
            self.error = e

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
    # nbdkit itself (1.32) aborts if a client goes that has several replies
    # to get from several threads: there take them, and leave one.
    if "parallel" in os.environ:
        for c in h:
            while c.aio_in_flight():
                c.poll(-1)
            c.aio_pwrite(data, 0)

def flood(number):
    served, n = Served(), 0
    while n < 16 or (served.rounds < 20 and not served.error):
        burst(number * 1000 + n)
        n += 1
    served.stop = True
    served.join(60)
    if served.error:
        raise served.error
    assert not served.is_alive(), "another client is not served any more"
    # The server's own end with their connections; ours, 15, may stay.
    wait_for("threads to end", lambda: threads() <= idle + 16)

idle, used = threads(), [memory()]
for number in range(4):
    flood(number)
    used.append(memory())
grown = [b - a for a, b in zip(used, used[1:])]
# The first one sets the size.  A leak would show in each of the others;
# wbcache.so itself keeps a little of each handle.
print("threads:", idle, threads(), "memory in KiB:", used[0], "+", grown)
assert min(grown[1:]) <= grown[0] / 24
EOT
  stop_server
}

@test "a plugin whose flush takes its time" {
  parallel=1 flood "$wbcache" size=64k flushdelay=1000
}

@test "a group for each of many export names" {
  parallel=1 flood MCSHIM_EXPORTNAME=true MCSHIM_MODE=emulate memory 64k
}

@test "a group for each of many export names, with unflushed writes" {
  parallel=1 flood MCSHIM_EXPORTNAME=true MCSHIM_MODE=auto memory 64k
}

@test "requests serialized" {
  flood "$wbcache" size=64k model=requests
}

@test "one at a time, API version 1" {
  flood "$plugins/api1.so"
}
