#!/usr/bin/env bats
# Several handles of the plugin behind one connection: MCSHIM_HANDLES and
# MCSHIM_STRIPE.

load common

# start [MCSHIM_X=VALUE...] [NBDKIT-OPTION...] [PARAMETER...]: four handles, and
# stripes of 4096 bytes.
start ()
{
  local knobs=() options=()
  while [[ ${1-} = MCSHIM_* ]]; do
    knobs+=("$1")
    shift
  done
  while [[ ${1-} = -* ]]; do
    options+=("$1")
    shift
  done
  : > "$control"
  : > "$log"
  serve MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K MCSHIM_STATS_FILE="$stats" \
    "${knobs[@]}" "${options[@]}" "$wbcache" model=requests log="$log" \
    control="$control" summary="$summary" "$@"
}

ends_well ()
{
  stop_server
  none overlaps after_close foreign_thread
}

# What every client needs: the Nth stripe, the handles that got a callback, and
# requests on one connection that wait for nobody.
more=$(cat <<'EOT'
def stripe(n):
    return n * 4096

def handles(point):
    """The handles that have come to that point, in order."""
    with open(log) as f:
        return [int(l.split()[0]) for l in f if l.endswith(" %s\n" % point)]

def forget():
    os.truncate(log, 0)

def letters(n):
    return bytes(65 + i % 26 for i in range(n))

def read(h, offset, count=3):
    return h.aio_pread(nbd.Buffer(count), offset)

def write(h, offset, data=b"new"):
    return h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
EOT
)

ask () { client < <(echo "$more"; cat); }

# Which handle ###############################################################

@test "a range has its handle, and each is opened when first needed" {
  start
  ask <<'EOT'
h = conn()
expect(handles("open"), [0])
for i in (0, 1, 2, 1, 5, 4, 3):
    h.pwrite(b"x", stripe(i) + i)
expect(handles("write"), [0, 1, 2, 1, 1, 0, 3])
expect(handles("open"), [0, 1, 2, 3])
for i in range(8):
    h.pread(4096, stripe(i))
expect(handles("read"), [0, 1, 2, 3] * 2)
EOT
  ends_well
}

@test "the first range to be used has the first handle, whichever it is" {
  start
  ask <<'EOT'
h = conn()
for i in (6, 3, 2, 7, 0):
    h.pwrite(b"x", stripe(i))
expect(handles("write"), [0, 1, 0, 1, 2])
expect(handles("open"), [0, 1, 2])
EOT
  ends_well
}

@test "one handle, if not told otherwise: one request at a time, and no more opens" {
  start MCSHIM_HANDLES=
  ask <<'EOT'
h = conn()
control("block-read @0")
first = read(h, 0)
wait_log("0 read")
second = read(h, stripe(1))
expect(held(h, second), True)
control()
finish(h, first)
finish(h, second)
expect(handles("open"), [0])
EOT
  ends_well
  counted handles_most_at_once 1
}

@test "requests on other handles go on beside one that hangs, in every direction" {
  start
  ask <<'EOT'
h = conn()
control("block-write @0", "block-read @4096", "block-zero @8192")
hung = [write(h, 0), read(h, stripe(1)), h.aio_zero(512, stripe(2))]
wait_log("0 write")
finish(h, write(h, stripe(3)))
finish(h, read(h, stripe(3)))
waits = read(h, 512)            # The plugin takes one request at a time.
expect(held(h, waits), True)
control()
for cookie in hung + [waits]:
    finish(h, cookie)
EOT
  ends_well
}

@test "a request that crosses is split, and each handle has its part" {
  start
  ask <<'EOT'
h = conn()
h.pwrite(letters(10000), 2048)
expect(handles("write"), [0, 1, 2])
expect(bytes(h.pread(12048, 0)), bytes(2048) + letters(10000))
expect(handles("read"), [0, 1, 2])
h.zero(4096, 4096 + 100)
expect(handles("zero"), [1, 2])
h.trim(200, 8192 - 100)
expect(handles("trim"), [1, 2])
forget()
h.cache(3 * 4096, 1)
expect(handles("cache"), [0, 1, 2, 3])

old = letters(10000)
new = bytes(2048) + old[:2148] + bytes(4096) + old[6244:]
expect(bytes(h.pread(12048, 0)), new)
h.flush()
expect(bytes(conn().pread(12048, 0)), new)
EOT
  ends_well
}

@test "overlapping writes, one after the other, leave the last one" {
  for model in requests parallel; do
    start model=$model
    ask <<'EOT'
h = conn()
disk = bytearray(5 * 4096)
for i in range(60):
    offset = i * 1201 % (4 * 4096)
    data = bytes([i + 1]) * (1 + i * 2003 % 4096)
    disk[offset:offset + len(data)] = data
    h.pwrite(data, offset)
    expect(bytes(h.pread(len(data), offset)), data)
    if i % 7 == 0:
        h.flush()
expect(bytes(h.pread(len(disk), 0)), bytes(disk))
h.flush()
expect(bytes(conn().pread(len(disk), 0)), bytes(disk))
EOT
    ends_well
  done
}

@test "the extents of each range are its handle's, and are joined" {
  for mapcache in 0 1; do
    start mapcache=$mapcache
    ask <<'EOT'
h = conn()

def extents(count, offset, flags=0):
    found = []
    def fill(context, at, entries, error):
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(count, offset, fill, flags)
    return found

hole = nbd.STATE_HOLE | nbd.STATE_ZERO
expect(extents(8 * 4096, 0), [(8 * 4096, hole)])
h.pwrite(letters(512), stripe(1))       # The other handles don't see it.
h.pwrite(letters(4096), stripe(2) - 512)
wanted = [(4096, hole), (512, 0), (3072, hole), (4096, 0),
          (5 * 4096 + 512, hole)]
expect(extents(8 * 4096, 0), wanted)
expect(extents(8 * 4096, 0, nbd.CMD_FLAG_REQ_ONE), wanted[:1])
expect(extents(8 * 4096, 4096, nbd.CMD_FLAG_REQ_ONE), wanted[1:2])
expect(extents(100, stripe(2) - 50), [(100, 0)])
# An answer may be short: it is not one call for each of very many ranges.
forget()
expect(extents(512 << 10, stripe(4)), [(64 * 4096, hole)])
expect(len(handles("extents")), 64)
EOT
    ends_well
  done
}

# Connections that only read #################################################

# only_reads SCRIPT-OPTION...: in the ways in which a connection may be so.
only_reads ()
{
  start -r "$@"
  ask <<'EOT'
h = conn()
for i in range(6):
    h.pread(4096, stripe(i))
expect(handles("read"), [0] * 6)        # It is idle each time.
expect(handles("open"), [0])

control("block-read @0", "block-read @1", "block-read @2", "block-read @3")
hung = [read(h, i) for i in range(4)]
for i in range(4):
    wait_log("%d read" % i, 7 if i == 0 else 1)
expect(handles("open"), [0, 1, 2, 3])
more = [read(h, 10000), read(h, 20000)]
if os.environ["waits"]:
    expect(held(h, more[0]), True)
    expect(held(h, more[1]), True)
    control("block-read @0", "block-read @1", "block-read @3")
    finish(h, hung[2])
    finish(h, more[0])
    finish(h, more[1])
    expect(handles("read")[-2:], [2, 2])
else:
    finish(h, more[0])
    finish(h, more[1])
control()
for cookie in hung:
    h.aio_command_completed(cookie) or finish(h, cookie)
expect(handles("open"), [0, 1, 2, 3])
EOT
  ends_well
}

@test "only reading: any idle handle, and a wait when all are busy" {
  export waits=yes
  only_reads
}

@test "only reading, parallel: a busy one where none is idle" {
  export waits=
  only_reads model=parallel
}

@test "only reading: a request that crosses ranges is one call" {
  start -r
  ask <<'EOT'
h = conn()
h.pread(10 * 4096, 100)
h.cache(10 * 4096, 100)
h.block_status(10 * 4096, 100, lambda *args: None)
expect([len(handles(p)) for p in ("read", "cache", "extents")], [1, 1, 1])
EOT
  ends_well
}

# The last ###################################################################
