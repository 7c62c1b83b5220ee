#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Several handles of the plugin behind one connection: MCSHIM_HANDLES and
# MCSHIM_STRIPE.

load common

# start [MCSHIM_X=VALUE...] [NBDKIT-ARGUMENT...]: four handles, and stripes of
# 4096 bytes.
start ()
{
  serve MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K MCSHIM_STATS_FILE="$stats" \
    "$wbcache" model=requests log="$log" control="$control" \
    summary="$summary" "$@"
}

# scripted METHOD=CODE...: the same with such a disk () of the eval plugin.
scripted ()
{
  disk thread_model='echo serialize_requests' "$@"
  serve MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K eval "${disk[@]}"
}
# Its handles are numbers from 1 on.
count_opens='echo >> opens; wc -l < opens'

ends_well ()
{
  stop_server
  none overlaps after_close foreign_thread
}

# What every client needs: the Nth stripe, the handles that got a callback, and
# requests on one connection that do not wait for each other.
more=$(cat <<'EOT'
def stripe(n):
    return n * 4096

def handles(point):
    """The handles that have come to that point, in order."""
    with open(log) as f:
        return [int(l.split()[0]) for l in f if l.endswith(" %s\n" % point)]

def forget():
    os.truncate(log, 0)

def opens(n):
    """Has the eval plugin opened so many?"""
    with open("opens") as f:
        return len(f.readlines()) == n

def letters(n):
    return bytes(65 + i % 26 for i in range(n))

def opened(h, *lines):
    """Has the connection use all handles that can be opened; LINES are for the
    plugin's control file."""
    control("block-read @0", *lines)
    before = len(handles("read"))
    first = read(h, 0)
    wait_for("a read", lambda: len(handles("read")) > before)
    second = read(h, 512)
    settle()
    control(*lines)
    finish(h, first)
    finish(h, second)
    settle()
    return h

def ready():
    """Such a connection; the log begins after it."""
    h = opened(conn())
    forget()
    return h

def filled():
    """A connection that has written to each of four handles."""
    h = opened(conn())
    for i in range(4):
        h.pwrite(b"old", stripe(i))
    return h

def read(h, offset, count=3):
    return h.aio_pread(nbd.Buffer(count), offset)

def write(h, offset, data=b"new"):
    return h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)
EOT
)

ask () { client < <(echo "$more"; cat); }

# Which handle ###############################################################

@test "one request at a time needs one handle; then each range has its own" {
  session <<'EOT'
h = conn()
for i in range(8):
    h.pwrite(letters(4096), stripe(i))
expect(handles("write"), [0] * 8)
expect(handles("open"), [0])
opened(h)
expect(handles("open"), [0, 1, 2, 3])
# What the first one held, which others serve now.
expect(handles("flush"), [0])
for i in range(7):
    expect(bytes(h.pread(4096, stripe(i))), letters(4096))
forget()
for i in (0, 1, 2, 1, 5, 4, 3):
    h.pwrite(b"x", stripe(i) + i)
expect(handles("write"), [0, 1, 2, 1, 1, 0, 3])
for i in range(8):
    h.pread(4096, stripe(i))
expect(handles("read"), [0, 1, 2, 3] * 2)
EOT
}

@test "one handle, if not told otherwise: one request at a time, and no more opens" {
  session MCSHIM_HANDLES= <<'EOT'
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
  counted handles_most_at_once 1
}

@test "requests on other handles go on beside one that hangs, in every direction" {
  session <<'EOT'
h = ready()
control("block-write @0", "block-read @4096", "block-zero @8192")
hung = [write(h, 0)]
wait_log("0 write")
hung += [read(h, stripe(1)), h.aio_zero(512, stripe(2))]
finish(h, write(h, stripe(3)))
finish(h, read(h, stripe(3)))
waits = read(h, 512)            # The plugin takes one request at a time.
expect(held(h, waits), True)
control()
for cookie in hung + [waits]:
    finish(h, cookie)
EOT
}

@test "a request that crosses is cut, and each handle has its part" {
  session <<'EOT'
h = ready()
h.pwrite(letters(10000), 2048)
expect(sorted(handles("write")), [0, 1, 2])
expect(bytes(h.pread(12048, 0)), bytes(2048) + letters(10000))
expect(sorted(handles("read")), [0, 1, 2])
h.zero(4096, 4096 + 100)
expect(sorted(handles("zero")), [1, 2])
h.trim(200, 8192 - 100)
expect(sorted(handles("trim")), [1, 2])
forget()
h.cache(3 * 4096, 1)
expect(sorted(handles("cache")), [0, 1, 2, 3])

old = letters(10000)
new = bytes(2048) + old[:2148] + bytes(4096) + old[6244:]
expect(bytes(h.pread(12048, 0)), new)
h.flush()
expect(bytes(conn().pread(12048, 0)), new)
EOT
}

@test "extents are asked once, of a handle that sees what the others hold" {
  for mapcache in 0 1; do
    session mapcache=$mapcache <<'EOT'
h = opened(conn())

def extents(count, offset, flags=0):
    found = []
    def fill(context, at, entries, error):
        found.extend(zip(entries[::2], entries[1::2]))
    h.block_status(count, offset, fill, flags)
    return found

hole = nbd.STATE_HOLE | nbd.STATE_ZERO
expect(extents(8 * 4096, 0), [(8 * 4096, hole)])
h.pwrite(letters(512), stripe(1))       # Another handle doesn't see it yet.
h.pwrite(letters(4096), stripe(2) - 512)
wanted = [(4096, hole), (512, 0), (3072, hole), (4096, 0),
          (5 * 4096 + 512, hole)]
expect(extents(8 * 4096, 0), wanted)
expect(extents(8 * 4096, 0, nbd.CMD_FLAG_REQ_ONE), wanted[:1])
expect(extents(8 * 4096, 4096, nbd.CMD_FLAG_REQ_ONE), wanted[1:2])
expect(extents(100, stripe(2) - 50), [(100, 0)])
forget()
expect(extents(512 << 10, stripe(4)), [(512 << 10, hole)])
expect(len(handles("extents")), 1)
expect(handles("flush"), [])
# An extent may go on beyond the request, into what another handle holds.
h.pwrite(b"new", stripe(1))
forget()
expect(extents(512, 0), [(512, hole)])
expect(1 in handles("flush"), True)
EOT
  done
}

@test "extents do not wait for a handle that is busy" {
  session <<'EOT'
h = ready()
control("block-read @0")
hung = read(h, 0)
wait_log("0 read")
h.block_status(4096, 0, lambda *args: 0)
control()
finish(h, hung)
h.block_status(4096, 0, lambda *args: 0)
expect(handles("extents"), [1, 0])
EOT
}

# Connections that only read #################################################

@test "only reading: any idle handle, and a wait when all are busy" {
  session -r <<'EOT'
h = conn()
for i in range(6):
    h.pread(4096, stripe(i))
expect(handles("read"), [0] * 6)        # It is idle each time.
expect(handles("open"), [0])
opened(h)
expect(handles("open"), [0, 1, 2, 3])
forget()

control("block-read @0", "block-read @1", "block-read @2", "block-read @3")
hung = []
for i in range(4):
    hung.append(read(h, i))
    wait_log("%d read" % i)
more = read(h, 10000)
expect(held(h, more), True)
control("block-read @0", "block-read @1", "block-read @3")
finish(h, hung.pop(2))
finish(h, more)
expect(handles("read")[-1:], [2])
control()
for cookie in hung:
    finish(h, cookie)
EOT
}

@test "only reading: a request that crosses ranges is one call, a longer one is cut" {
  session -r <<'EOT'
h = ready()
h.pread(4096, 100)
h.cache(4096, 100)
h.block_status(10 * 4096, 100, lambda *args: None)
expect([len(handles(p)) for p in ("read", "cache", "extents")], [1, 1, 1])
h.pread(4097, 100)
h.cache(10 * 4096, 100)         # Perhaps that is faster.
h.cache(10 * 4096, 100)
expect([len(handles(p)) for p in ("read", "cache", "extents")], [3, 13, 1])
EOT
}

@test "only reading: two handles, where pieces take no less than the whole" {
  session -r <<'EOT'
h = conn()
begin = time.monotonic()
h.pread(6 * 4096, 0)
whole = time.monotonic() - begin
settle()
for i in range(2):
    control("block-read @%d" % stripe(2))
    cookie = read(h, 0, 6 * 4096)
    wait_for("pieces", lambda: len(handles("read")) == 4 + 3 * i)
    time.sleep(whole)
    control()
    finish(h, cookie)
for i in range(2):
    h.pread(6 * 4096, 0)
settle()
expect(handles("open"), [0, 1])
expect(len(handles("read")), 1 + 2 * 3 + 2)
EOT
}

@test "only reading, since the plugin says so" {
  scripted can_write='exit 3' \
    open="echo open >> '$log'; echo h" pread="echo read >> '$log'
      head -c \$3 /dev/zero"
  client <<<'h = conn(); h.pread(4096, 100); expect(logged("read"), 1)'
}

# Pieces at the same time ####################################################

@test "the pieces of a request run at the same time, one on each handle" {
  for options in "" -r; do
    session $options <<'EOT'
h = ready()
control("block-read *", "block-write *")
cookie = read(h, 100, 6 * 4096)
settle()
expect(sorted(handles("read")), [0, 1, 2, 3])
expect(held(h, cookie), True)
control()
finish(h, cookie)
expect(len(handles("read")), 7)
if not h.is_read_only():
    control("block-write *")
    cookie = write(h, 100, letters(6 * 4096))
    settle()
    expect(sorted(handles("write")), [0, 1, 2, 3])
    control()
    finish(h, cookie)
    expect(bytes(h.pread(6 * 4096, 100)), letters(6 * 4096))
EOT
  done
}

# A handle then tells what others have served.  While not all are in use, pieces
# are longer.
@test "a long read where all is flushed is one call or pieces: what is faster" {
  session <<'EOT'
for nr, pieces, fails in (4, 6, ()), (2, 3, ("fail-open 6 EIO",)):
    h = conn()
    opened(h, *fails)
    calls = set()
    for i in range(6):
        h.pwrite(bytes([i, nr]) * 3, stripe(i))
        forget()
        expect(bytes(h.pread(6, stripe(i))), bytes([i, nr]) * 3)
        data = h.pread(6 * 4096, 0)
        expect(len(handles("read")), 7)
        h.flush()
        forget()
        expect(h.pread(6 * 4096, 0), data)
        if len(handles("read")) > 1:
            expect(len(set(handles("read"))), nr)
        calls.add(len(handles("read")))
    expect(calls, {1, pieces})
EOT
}

# Another connection's write has this one's flushed, so all is clean; but that
# is no flush of the handle that has read before.
@test "a piece of one stripe, too, is for a handle that sees what others hold" {
  session prefers=512 <<'EOT'
h, other = opened(conn(), "fail-open 2 EIO"), conn()
h.pwrite(b"old", stripe(2))
h.flush()
h.pread(3 * 4096, 0)
forget()
h.pwrite(b"new", stripe(2))
expect(handles("write"), [0])
other.pwrite(letters(512), stripe(2))
expect(handles("flush"), [0])
read = bytes(h.pread(3 * 4096, 0))
expect(sorted(set(handles("read"))), [0, 1])
expect(read[2 * 4096:][:3], b"new")
EOT
}

@test "pieces that are quick run one after the other, and get help if they are not" {
  session <<'EOT'
h = ready()
h.pwrite(letters(6 * 4096), 0)
control("block-write @0")
begin = time.monotonic()
cookie = write(h, 0, letters(6 * 4096))
time.sleep(0.3)                 # The third one is in the plugin before that.
control()
finish(h, cookie)
quick = time.monotonic() - begin
# It says nothing of other kinds of request.
control("block-zero *")
cookie = h.aio_zero(6 * 4096, 0)
settle()
expect(sorted(handles("zero")), [0, 1, 2, 3])
forget()
control("block-write @0")
finish(h, cookie)
cookie = write(h, 0, letters(6 * 4096))
wait_log("0 write")
begin = time.monotonic()
while time.monotonic() < begin + quick:
    settle()
expect(handles("write"), [0])
control(*("block-write @%d" % stripe(i) for i in range(1, 6)))
settle()
expect(sorted(handles("write")), [0, 0, 1, 2, 3])
control()
finish(h, cookie)
expect(len(handles("write")), 6)
expect(bytes(h.pread(6 * 4096, 0)), letters(6 * 4096))
EOT
}

@test "of the pieces that fail the first one in order tells why" {
  for options in "" -r; do
    session strayerror=1 $options <<'EOT'
h = ready()
control("block-read @4096", "fail-read @4096 EPERM", "fail-read @8192 ENOSPC")
cookie = read(h, 0, 5 * 4096)
settle()
# Where it only reads, a piece that failed is tried on the first one, unless that
# has served it.
expect(len(handles("read")) in ([5, 6] if h.is_read_only() else [5]), True)
control("fail-read @4096 EPERM")
fails(errno.EPERM, finish, h, cookie)
control()
h.pread(6 * 4096, 0)
EOT
  done
}

# Or, if it only reads, in one call.
@test "one after the other, where no other thread may call the plugin" {
  for options in "" -r; do
    session MCSHIM_FLUSH_THREADS=1 $options <<'EOT'
h = conn()
for i in range(3):              # The thread of a request opens one.
    opened(h)
forget()
control("block-read @0")
cookie = read(h, 0, 5 * 4096)
settle()
expect(handles("read"), [0])
control()
finish(h, cookie)
expect(handles("read"), [0])    # It need not be cut.
if not h.is_read_only():
    control("block-write @0")
    cookie = write(h, 0, letters(5 * 4096))
    settle()
    expect(handles("write"), [0])
    control()
    finish(h, cookie)
    expect(handles("write"), [0, 1, 2, 3, 0])
    forget()
    expect(bytes(h.pread(5 * 4096, 0)), letters(5 * 4096))
    expect(handles("read"), [0, 1, 2, 3, 0])
EOT
  done
}

@test "the client is killed while pieces run" {
  session <<'EOT'
pid = os.fork()
if pid == 0:
    h = opened(conn())
    control("block-write *")
    write(h, 0, letters(8 * 4096))
    settle()
    os.kill(os.getpid(), signal.SIGKILL)
expect(os.waitpid(pid, 0)[1], signal.SIGKILL)
settle()
expect(handles("close"), [])
control()
wait_log("0 close")
expect(sorted(handles("close")), [0, 1, 2, 3])
expect(bytes(conn().pread(8 * 4096, 0)), letters(8 * 4096))
EOT
  none dirty_dropped_at_close
}

# Flushes ####################################################################

# flushes_of MODE WANTED...: the handles that two connections' flushes go to.
flushes_of ()
{
  own=$2 later=$3 session MCSHIM_MODE="$1" "${@:4}" <<'EOT'
a, b = conn(), conn()
opened(a)
opened(b)
for i in range(2):
    a.pwrite(b"aaa", stripe(i))         # Handles 0 and 2,
    b.pwrite(b"bbb", stripe(4 + i))     # 1 and 5.
a.pread(3, stripe(2))                   # 3: it may hold an old copy.
forget()
a.flush()
expect(" ".join(map(str, sorted(handles("flush")))), os.environ["own"])
forget()
b.flush()
expect(" ".join(map(str, sorted(handles("flush")))), os.environ["later"])
EOT
}

@test "in every mode a flush covers the group's handles" {
  local mode
  for mode in auto emulate plugin disable unsafe; do
    flushes_of $mode "0 1 2 3 5" ""
  done
}

@test "where the plugin has multi-conn it is passed on" {
  flushes_of auto 0 1 multiconn=1
  flushes_of plugin 0 "" multiconn=1
}

# A flush of any handle covers what all have written.  Whoever has written sees
# that before.
@test "where the plugin has multi-conn: its own writes while another one flushes" {
  scripted can_multi_conn='exit 0' open="$count_opens" can_extents='exit 0' \
    pwrite='cat > wrote.$2' \
    extents="test -e flushed || test -e wrote.\$2 || no=hole,zero
      echo 0 1M \$no" \
    flush="echo \$2 flush >> '$log'; while test -e block; do sleep .02; done
      ls wrote.* > flushed"
  ask <<'EOT'
h = conn()
wait_beside("all handles", lambda: opens(4), h)
settle()
other, found = conn(), []

def status():
    return h.aio_block_status(8192, stripe(2), lambda context, offset, entries,
                              error: found.append(entries[1]))

finish(h, status())
h.pwrite(b"x", stripe(3))
open("block", "w").close()
flushing = other.aio_flush()
settle()
cookie = status()
settle()
os.unlink("block")
finish(other, flushing)
finish(h, cookie)
expect(found, [nbd.STATE_HOLE | nbd.STATE_ZERO, 0])
EOT
}

# No flush tells the others where a handle has data.
@test "without a flush, but with extents: one handle, if it can write" {
  local no
  for no in '' 3; do
    rm -f opens
    scripted can_flush='exit 3' can_extents='exit 0' extents='echo "0 1M"' \
      open="$count_opens" can_write="exit ${no:-0}"
    ask <<'EOT'
h = conn()
for i in range(9):
    for cookie in [read(h, stripe(j)) for j in range(8)]:
        finish(h, cookie)
EOT
    stop_server
    assert_equal "$(wc -l < opens)" "$([ $no ] && echo 4 || echo 1)"
  done
}

@test "a flush, a FUA write: what another connection sees" {
  for fua in none emulate native; do
    session MCSHIM_MODE=emulate fua=$fua <<'EOT'
a, b = conn(), conn()
opened(a)
opened(b)
b.pread(6 * 4096, 0)
a.pwrite(letters(10000), 100)
a.flush()
expect(bytes(b.pread(10000, 100)), letters(10000))
if a.can_fua():
    a.pwrite(letters(5000)[::-1], 4000, nbd.CMD_FLAG_FUA)
    expect(bytes(b.pread(5000, 4000)), letters(5000)[::-1])
    a.zero(5000, 4000, nbd.CMD_FLAG_FUA)
    expect(bytes(b.pread(5000, 4000)), bytes(5000))
EOT
  done
}

# Each part has the plugin's own FUA; an emulated one covers the connection.
@test "plugin, disable: what another connection sees of a FUA write" {
  local mode fua
  while IFS='|' read -r mode fua flushed; do
    flushed=$flushed session MCSHIM_MODE="$mode" fua="$fua" <<'EOT'
a, b = conn(), conn()
opened(a)
a.pwrite(letters(10000), 100, nbd.CMD_FLAG_FUA)
expect(str(sorted(handles("flush"))), os.environ["flushed"])
expect(bytes(b.pread(10000, 100)), letters(10000))
EOT
  done <<'END'
plugin|native|[]
disable|emulate|[0, 2, 3]
END
}

# It may hold what it has written, and no flush takes it away.
@test "without a flush, stripes stay with the handle that wrote" {
  disk thread_model='echo serialize_requests' can_flush='exit 3' \
    open="$count_opens" \
    pread="echo \$2 read >> '$log'; head -c \$3 /dev/zero"
  serve MCSHIM_HANDLES=2 MCSHIM_STRIPE=4K eval "${disk[@]}"
  ask <<'EOT'
h = conn()
h.pwrite(b"x", 4096)
wait_beside("the other one", lambda: opens(2), h)
for i in range(60):
    h.pread(8192, 0)
expect(set(handles("read")), {1})
EOT
  stop_server
}

# The server calls it all the same.
@test "a flush that can_flush denies, for a FUA write: its own connection's" {
  local mode
  for mode in auto plugin; do
    rm -f opens
    MCSHIM_MODE=$mode scripted can_flush='exit 3' can_fua='echo emulate' \
      open="$count_opens" \
      pread="echo \$2 read >> '$log'; head -c \$3 /dev/zero" \
      flush="echo \$2 flush >> '$log'"
    ask <<'EOT'
h, other = conn(), conn()

wait_beside("all handles", lambda: set(handles("read")) == {1, 3, 4, 5}, h)
other.pwrite(b"x", 0)
h.pwrite(b"x", 0)
h.pwrite(b"x", 4096, nbd.CMD_FLAG_FUA)
expect(sorted(handles("flush")), [1, 3, 4, 5])
EOT
    stop_server
  done

  # Where the other connection can be flushed, too.
  disk "can_flush=[ \$2 = 1 ] || exit 3" can_fua='echo emulate' \
    open="$count_opens" flush="echo \$2 flush >> '$log'"
  rm -f opens
  serve eval "${disk[@]}"
  ask <<'EOT'
other, h = conn(), conn()
h.pwrite(b"x", 0, nbd.CMD_FLAG_FUA)
expect(handles("flush"), [2])
EOT
}

# Zero and trim of many stripes ##############################################

# long_zero [MCSHIM_X=VALUE...] [PARAMETER...]
long_zero ()
{
  session "$@" <<'EOT'
h, other = conn(), conn()
other.pread(64, stripe(3))
opened(h)
h.pwrite(letters(40 * 4096), 0)
forget()
h.zero(16 * 4096, 100)          # Four for each handle: in pieces.
expect([len(handles("zero")), len(set(handles("zero")))], [17, 4])
for what, request in (("zero", h.zero), ("trim", h.trim)):
    h.pwrite(letters(40 * 4096), 0)
    h.pread(40 * 4096, 0)
    forget()
    request(30 * 4096 + 1, 100)
    expect(handles(what), [0])
    new = letters(100) + bytes(30 * 4096 + 1) + letters(40 * 4096)[30 * 4096 + 101:]
    expect(bytes(h.pread(40 * 4096, 0)), new)
    h.pwrite(b"x" * 5000, 50)
    h.flush()
    new = new[:50] + b"x" * 5000 + new[5050:]
    expect(bytes(h.pread(40 * 4096, 0)), new)
    expect(bytes(conn().pread(40 * 4096, 0)), new)
EOT
}

@test "a long zero or trim is one call, and in order" {
  long_zero
  long_zero model=parallel
  long_zero MCSHIM_MODE=disable
}

@test "a long zero or trim: copies that are renewed, and taken at open" {
  long_zero MCSHIM_TRACK_DIRTY=fast refresh=1 opencopy=1
  long_zero MCSHIM_TRACK_DIRTY=off MCSHIM_MODE=plugin refresh=1 opencopy=1
}

@test "a long zero fails with the flush before it, the next request with that after it" {
  session <<'EOT'
h = filled()
control("fail-flush-once 1 ENOSPC")
fails(errno.ENOSPC, h.zero, 20 * 4096, 0)
expect(handles("zero"), [])
h.zero(20 * 4096, 0)
forget()
h.zero(20 * 4096, 0)
expect([handles("zero"), handles("flush")], [[0], []])
control("fail-flush 0 EPERM")
# Nothing is let in before that flush succeeds.
fails(errno.EPERM, h.pwrite, b"new", stripe(1))
fails(errno.EPERM, h.pread, 3, stripe(1))
fails(errno.EPERM, h.flush)
control()
h.flush()
expect(bytes(h.pread(20 * 4096, 0)), bytes(20 * 4096))
EOT
}

@test "a long zero does not fail for another connection's flush" {
  session <<'EOT'
h = filled()
other = conn()
other.pwrite(b"held", stripe(30))
control("fail-flush 4 EPERM")
h.zero(20 * 4096, 0)
expect(bytes(h.pread(3, 0)), bytes(3))
fails(errno.EPERM, h.flush)
control()
h.flush()
expect(bytes(h.pread(4, stripe(30))), b"held")
EOT
}

@test "a long zero that fails is flushed all the same, and its own error told" {
  session <<'EOT'
h = filled()
control("fail-zero-once 0 ENOSPC")
fails(errno.ENOSPC, h.zero, 20 * 4096, 0)
expect(bytes(h.pread(3, 0)), b"old")
EOT
}

@test "without a flush a long zero is in pieces" {
  scripted can_zero='exit 0' zero="echo zero >> '$log'" "${no_flush[@]}" \
    pread="echo read >> '$log'; head -c \$3 /dev/zero"
  client <<'EOT'
h = conn()

def pieces():
    os.truncate(log, 0)
    h.pread(20 * 4096, 0)
    return logged("read")

wait_beside("more handles", lambda: pieces() == 20, h)
h.zero(20 * 4096, 0)
expect(logged("zero"), 20)
EOT
}

# Errors #####################################################################

@test "a part that fails fails the request, and the others are done" {
  session <<'EOT'
h = opened(conn())
for point, request in (("write", lambda: h.pwrite(letters(16384), 0)),
                       ("read", lambda: h.pread(16384, 0)),
                       ("zero", lambda: h.zero(16384, 0)),
                       ("trim", lambda: h.trim(16384, 0)),
                       ("cache", lambda: h.cache(16384, 0))):
    forget()
    control("fail-%s 2 ENOSPC" % point)
    fails(errno.ENOSPC, request)
    expect(sorted(handles(point)), [0, 1, 2, 3])
    control()
    request()
EOT
}

@test "a part that fails has its own error, not what another has left" {
  session strayerror=1 <<'EOT'
h = opened(conn())
control("fail-write 0 ENOSPC", "fail-write 1 ENOSPC")
fails(errno.ENOSPC, h.pwrite, b"x", 0)
fails(errno.ENOSPC, h.pwrite, b"x", stripe(1))
h.pwrite(letters(8192), stripe(2))
control("fail-write 3 ENOSPC", "fail-extents 2 ENOSPC")
fails(errno.ENOSPC, h.pwrite, letters(8192), stripe(2))
fails(errno.ENOSPC, h.block_status, 512, stripe(2), lambda *a: None)
EOT
}

@test "a block_size that fails is for the client that asks" {
  # The sh plugin of an old server does not ask for it; eval would not start.
  disk thread_model='echo serialize_requests' block_size='echo EIO >&2; exit 1'
  serve MCSHIM_HANDLES=4 sh ./script
  client <<'EOT'
h = nbd.NBD()
h.set_request_block_size(False)
h.connect_unix(sock)
expect(h.get_size(), 1 << 20)
EOT
}

# Close ######################################################################

@test "close flushes and closes all of them" {
  for mode in emulate plugin disable unsafe; do
    session MCSHIM_MODE=$mode <<'EOT'
h, other = conn(), conn()
opened(h)
for i in range(4):
    h.pwrite(b"new", stripe(i))
close(h, 0)
expect(sorted(handles("flush")), [0, 2, 3, 4])
expect(sorted(handles("close")), [0, 2, 3, 4])
expect([bytes(other.pread(3, stripe(i))) for i in range(4)], [b"new"] * 4)
close(other, 1)
EOT
    none dirty_dropped_at_close
  done
}

@test "a flush at close that fails is said, and the next one fails once" {
  for mode in emulate disable; do
    session MCSHIM_MODE=$mode <<'EOT'
h = opened(conn())
for i in range(3):
    h.pwrite(b"new", stripe(i))
control("fail-flush 1 ENOSPC")
close(h, 0)
expect(sorted(handles("flush")), [0, 1, 2])
h = conn()
fails(errno.ENOSPC, h.flush)
h.flush()
EOT
    has 'the flush of a closing connection failed, its last writes are lost: No space' "$server_err"
    : > "$server_err"
  done
}

@test "the server ends with handles open and requests inside" {
  session <<'EOT'
h = [conn() for i in range(3)]
for c in h:
    c.pwrite(letters(20000), 0)
control("block-read @0")
cookie = read(h[0], 0)
wait_log("0 read")
os.kill(int(os.environ["server_pid"]), signal.SIGTERM)
control()
EOT
}

# Handles that can't be opened ###############################################

# gave_up N REASON: that is in the log.
gave_up () { has "mcshim: a connection goes on with $1 of up to 4 handles: $2" "$server_err"; }

@test "a handle that can't be opened is given up, and that is said once" {
  for model in requests parallel; do
    : > "$server_err"
    session model=$model <<'EOT'
h = opened(conn(), "fail-open 2 EIO")
h.pwrite(letters(10 * 4096), 0)
expect(handles("open"), [0, 1, 2])
expect(bytes(h.pread(10 * 4096, 0)), letters(10 * 4096))
h.flush()
expect(sorted(handles("flush")), [0, 1])
expect(bytes(conn().pread(10 * 4096, 0)), letters(10 * 4096))
EOT
    counted handle_opens_failed_total 1
    gave_up 2 "another could not be opened"
    assert_equal "$(grep -c 'mcshim:' "$server_err")" 1
  done
}

@test "nor is the error of an open the error of a request" {
  # No other thread opens it.
  session MCSHIM_FLUSH_THREADS=1 <<'EOT'
h = conn()
control("block-read @0", "fail-open 1 ENOSPC", "fail-write 0")
first = read(h, 0)
wait_log("0 read")
second = write(h, stripe(1))
expect(held(h, second), True)
expect(handles("open"), [0, 1])
control("fail-write 0")
finish(h, first)
fails(errno.EIO, finish, h, second)
EOT
}

@test "a handle of another size is closed, and given up" {
  session smaller=2 <<'EOT'
h = opened(conn())
h.pwrite(letters(10 * 4096), 0)
expect(handles("open"), [0, 1, 2])
expect(handles("close"), [2])
expect(bytes(h.pread(10 * 4096, 0)), letters(10 * 4096))
h.flush()
EOT
  gave_up 2 "get_size is 1048064, but 1048576 for the first one"
}

@test "one that answers otherwise, too" {
  scripted open="$count_opens" can_trim='test $2 = 1 || exit 3' trim=true
  client <<'EOT'
wait_beside("it", lambda: "goes on" in open("server.err").read(), conn())
EOT
  gave_up 1 "can_trim is 0, but 1 for the first one"
}

@test "beside an open that hangs requests use the handles that are there" {
  session <<'EOT'
h = conn()
h.pread(3, 0)
control("block-open 3")
h.pread(2 * 4096, 0)            # This asks for more.
wait_log("3 open")
finish(h, write(h, stripe(2)))
h.flush()
other = conn()
expect(bytes(other.pread(3, stripe(2))), b"new")
control()
settle()
forget()
for i in range(4):
    h.pread(4096, stripe(i))
expect(handles("read"), [0, 1, 2, 3])
EOT
}

@test "a read that fails with a further handle is tried on the first one" {
  for model in requests parallel; do
    : > "$server_err"
    session -r model=$model <<'EOT'
h = ready()
control("block-read @0", "fail-read 1 EIO", "fail-read 2 EIO")
hung = read(h, 0)
wait_log("0 read")
second = read(h, 512)
wait_log("1 read")
settle()
control("fail-read 1 EIO", "fail-read 2 EIO")
finish(h, hung)
finish(h, second)
expect(handles("read"), [0, 1, 0])
for i in range(4):
    h.pread(5 * 4096, 0)        # These are left alone now.
expect([handles("read").count(i) <= 1 for i in range(1, 3)], [True] * 2)
# With the first one, too.
control("fail-read * EPERM")
fails(errno.EPERM, h.pread, 4096, 0)
EOT
    gave_up 3 "a read failed with one, and not with the first"
    counted reads_total 9       # as many as the client has asked for
    assert_equal "$(grep -c 'mcshim: a conn' "$server_err")" 1
  done
}

# What a plugin is like, and what it is told #################################

@test "a plugin that serializes all requests has one handle, and -v says so" {
  for model in all connections; do
    session -v model=$model <<'EOT'
h = conn()
h.pwrite(letters(20000), 0)
expect(bytes(h.pread(20000, 0)), letters(20000))
expect(handles("open"), [0])
EOT
    has 'debug: mcshim: handles of a connection: 1: MCSHIM_HANDLES has no effect' "$server_err"
    : > "$server_err"
  done
}

@test "-v: how many there are" {
  session -v <<<'h = conn(); h.pread(9000, 0); settle()'
  has 'debug: mcshim: handles of a connection: 4$' "$server_err"
  assert_equal "$(grep -c 'mcshim: the connection has opened another handle' "$server_err")" 3
}

@test "--dump-plugin: the plugin's own thread model, and how many handles" {
  run -0 under_shim MCSHIM_HANDLES=4 nbdkit --dump-plugin "$wbcache" model=requests
  assert_line mcshim_handles=4
  assert_line thread_model=serialize_requests
  run -0 under_shim MCSHIM_HANDLES=4 nbdkit --dump-plugin "$wbcache" model=all
  assert_line mcshim_handles=1
  run -0 under_shim nbdkit --dump-plugin "$wbcache"
  refute_line --regexp mcshim_handles
}

@test "the statistics" {
  session <<'EOT'
h = [opened(conn()), opened(conn())]
for c in h:
    c.pwrite(letters(3 * 4096), 0)
close(h[0], 0)
h[1].pread(3 * 4096, 0)
tick()
with open("stats") as f:
    now = f.read()
for line in ("mcshim_connections 1\n", "mcshim_handles 4\n"):
    expect(line in now, True)
# A server that ends may leave a connection open.
close(h[1], 1)
EOT
  counted connections 0 connections_opened_total 2 connections_most_at_once 2 \
    handles 0 handles_most_at_once 8 handle_opens_failed_total 0 \
    writes_total 2 reads_total 5 pieces_total 9
}

@test "API version 1" {
  serve MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K "$plugins/api1-requests.so" log="$log"
  ask <<'EOT'
h, other = conn(), conn()
other.pread(32768, 0)
h.pread(32768, 0)
settle()
forget()
h.pwrite(letters(20000), 100)
expect(bytes(h.pread(20000, 100)), letters(20000))
expect(len(set(handles("write"))), 4)
h.zero(8192, 4096)
h.trim(4096, 100)
new = letters(20000)
new = bytes(4096) + bytes(8192 - 100) + new[12188:]
expect(bytes(h.pread(20000, 100)), new)
h.flush()
expect(bytes(other.pread(20000, 100)), new)
forget()
expect(len(handles("zero")), 0)
h.zero(32768, 0)
expect([len(handles("zero")), len(set(handles("zero")))], [8, 4])
expect(bytes(h.pread(32768, 0)), bytes(32768))
EOT
  stop_server
}

@test "a further handle is opened as the first was" {
  scripted can_write='exit 0' open="echo \$2 \$3 >> '$log'; echo h"
  client <<<'wait_beside("all", lambda: logged("false a") == 4, conn("a"))'
  stop_server
  serve MCSHIM_HANDLES=4 -r eval "${disk[@]}"
  client <<<'wait_beside("all", lambda: logged("true a") == 4, conn("a"))'
}

@test "the stripe is no smaller than the blocks that the plugin prefers" {
  under_shim nbdkit --dump-plugin eval | grep -qx has_block_size=1 ||
    skip "this nbdkit has no block sizes"
  scripted block_size='echo 1 16K 1M' \
    pwrite="echo \$3 \$4 >> '$log'; cat > /dev/null"
  client <<'EOT'
h = conn()

def calls():
    os.truncate(log, 0)
    h.pwrite(bytes(40000), 0)
    with open(log) as f:
        return sorted(f.read().split())

wait_beside("more handles", lambda: calls() ==
            sorted("16384 0 16384 16384 7232 32768".split()), h)
EOT
}
