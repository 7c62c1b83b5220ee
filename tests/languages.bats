#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# nbdkit's plugins for other languages, each with a script that keeps a
# write-back cache per connection and says nothing about multi-conn.  If its
# thread model allows it, replicas run on threads of the shim, which the
# language's runtime does not know.

load common

# consistent PLUGIN: with the script on stdin, all connections see what any
# writes and any other flushes, and do not see what is not flushed.
consistent ()
{
  has_plugin "$1"
  cat > plugin
  session "$1" plugin <<'EOT'
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [True] * 4)
all_see(h)
h[3].pwrite(b"own", 0)
expect([bytes(c.pread(3, 0)) for c in h], [bytes(3)] * 3 + [b"own"])
EOT
}

# What eight connections have written, all of them see after a flush on one.
# Scripts make that flush last until two of its replicas run, if there can be
# two.
replicated ()
{
  client <<'EOT'
h = [conn() for i in range(8)]
for i in range(8):
    h[i].pread(8 * 4096, 0)
for i in range(8):
    h[i].pwrite(bytes([65 + i]) * 4096, i * 4096)
h[0].flush()
wanted = b"".join(bytes([65 + i]) * 4096 for i in range(8))
for c in h:
    expect(bytes(c.pread(8 * 4096, 0)), wanted)
EOT
}

# python MODEL NBDKIT-ARGUMENT...: docs/disk.py.  $log gets a line for each flush: whether its
# thread has opened a connection (with -t 1 the server has no other threads),
# and how many flushes run.  With wait=1 they wait until two run.
python ()
{
  has_plugin python
  cat "$source/docs/disk.py" - > plugin.py <<'EOT'

import errno, os, threading

settings = {}
lock = threading.Lock()
servers = set()
inside = 0
two_inside, failed = threading.Event(), threading.Event()
log = os.open(os.environ["log"], os.O_WRONLY | os.O_APPEND)
one_at_a_time = {"open": open, "pread": pread, "pwrite": pwrite, "flush": flush}

def locked(callback, *args):
    with lock:
        return one_at_a_time[callback](*args)

def config(key, value):
    settings[key] = value

def thread_model():
    return getattr(nbdkit, "THREAD_MODEL_" + settings["model"])

def open(readonly):
    servers.add(threading.get_ident())
    return locked("open", readonly)

def pread(*args):
    locked("pread", *args)

def pwrite(*args):
    locked("pwrite", *args)

def flush(h, flags):
    global inside
    ours = threading.get_ident() in servers
    with lock:
        inside += 1
        os.write(log, b"%s %d\n" % (b"server" if ours else b"helper", inside))
        if inside == 2:
            two_inside.set()
    try:
        if "wait" in settings:
            two_inside.wait(30)
            two_inside.set()
        if os.path.exists(os.environ["control"] + ".fail"):
            if not ours:
                failed.set()
                nbdkit.set_error(errno.ENOSPC)
                raise RuntimeError("no space")
            failed.wait(30)
        locked("flush", h, flags)
    finally:
        with lock:
            inside -= 1
EOT
  serve python plugin.py model="$1" "${@:2}"
}

@test "python, requests in parallel or not: replicas run on helper threads" {
  local model
  for model in PARALLEL SERIALIZE_REQUESTS; do
    python $model wait=1 -t 1
    replicated
    stop_server
    has '^helper' "$log"
    has '^server' "$log"
    has_line '[a-z]* 2' "$log"
  done
}

@test "python, all requests serialized: none does, and none overlap" {
  python SERIALIZE_ALL_REQUESTS
  replicated
  stop_server
  [ -s "$log" ]
  refute grep -vx 'server 1' "$log"
}

@test "python: the error of an exception on a helper thread" {
  python PARALLEL wait=1 -t 1
  client <<'EOT'
h = [conn() for i in range(8)]
def write(x):
    for i in range(8):
        h[i].pwrite(x * 4096, i * 4096)
write(b"a")
h[0].flush()
write(b"b")
open(os.environ["control"] + ".fail", "w").close()
fails(errno.ENOSPC, h[0].flush)
os.unlink(os.environ["control"] + ".fail")
h[0].flush()
expect([bytes(c.pread(8 * 4096, 0)) for c in h], [b"b" * 4096 * 8] * 8)
EOT
  stop_server
  has 'plugin.py: flush: error: .*' "$server_err"
}

@test "python: the consistency checker, in each thread model" {
  local model
  for model in PARALLEL SERIALIZE_REQUESTS SERIALIZE_ALL_REQUESTS; do
    python $model
    "$source/mcshim-checker" --seconds=2 --churn "$uri"
    stop_server
  done
}

# caching_disk MODEL: a disk () for the sh and eval plugins, whose handles are
# directories.  A flush lasts until another one runs; then there is a file
# "two".
caching_disk ()
{
  truncate -s 64K image
  mkdir flushing
  local view='test -e "$2/cache" || cp image "$2/cache"
dd () { command dd bs=4096 conv=notrunc status=none "$@"; }'
  disk get_size='echo 64K' thread_model="echo $1" \
    open='mktemp -d handle.XXXXXX' close='rm -r "$2"' \
    pread="$view"'
dd if="$2/cache" iflag=skip_bytes,count_bytes skip="$4" count="$3"' \
    pwrite="$view"'
dd of="$2/cache" oflag=seek_bytes seek="$4"
echo "skip=$4 seek=$4 count=$3" >> "$2/dirty"' \
    flush="$view"'
: > "flushing/$2"
tries=0
until test -e go; do
  tries=$((tries + 1))
  test "$(ls flushing | wc -l)" -lt 2 || : > two
  test ! -e two && test $tries -lt 1500 || : > go
  sleep 0.02
done
test ! -e "$2/dirty" ||
  while read -r range; do
    dd if="$2/cache" iflag=skip_bytes,count_bytes of=image oflag=seek_bytes \
      $range
  done < "$2/dirty"
rm -f "$2/dirty" "$2/cache" "flushing/$2"'
}

@test "sh, parallel: replicas run beside each other" {
  caching_disk parallel
  serve sh ./script
  replicated
  [ -e two ]
}

@test "eval, requests serialized: replicas run beside each other" {
  caching_disk serialize_requests
  serve eval "${disk[@]}"
  replicated
  [ -e two ]
}

# The next runtimes take one call at a time: the thread model of their plugins
# is never more than SERIALIZE_ALL_REQUESTS, and the shim stays on the thread
# on which it is called.

@test "perl" {
  consistent perl <<'EOT'
use strict;
my $disk = "\0" x 65536;
sub open { return { } }
sub can_write { 1 }
sub can_flush { 1 }
sub get_size { return length $disk }
sub view { my $h = shift; $h->{cache} //= $disk }
sub pread { my ($h, $count, $offset) = @_;
  view ($h); return substr $h->{cache}, $offset, $count }
sub pwrite { my ($h, $buf, $offset) = @_;
  view ($h); substr ($h->{cache}, $offset, length $buf) = $buf;
  $h->{dirty} = 1; }
sub flush { my $h = shift;
  $disk = $h->{cache} if delete $h->{dirty};
  delete $h->{cache}; return 0; }
EOT
}

@test "lua" {
  consistent lua <<'EOT'
local disk = string.rep ("\0", 65536)
function open (readonly) return {} end
function get_size (h) return #disk end
function can_flush (h) return true end
local function view (h) h.cache = h.cache or disk; return h.cache end
function pread (h, count, offset)
  return view (h):sub (offset + 1, offset + count)
end
function pwrite (h, buf, offset)
  local v = view (h)
  h.cache = v:sub (1, offset) .. buf .. v:sub (offset + #buf + 1)
  h.dirty = true
end
function flush (h)
  if h.dirty then disk = h.cache end
  h.dirty, h.cache = nil, nil
end
EOT
}

@test "tcl" {
  consistent tcl <<'EOT'
set disk [string repeat "\0" 65536]
set next 0
proc plugin_open {readonly} { global next; incr next }
proc get_size {h} { global disk; string length $disk }
proc view {h} {
  global disk cache
  if {![info exists cache($h)]} { set cache($h) $disk }
}
proc pread {h count offset} {
  global cache
  view $h
  string range $cache($h) $offset [expr {$offset + $count - 1}]
}
proc pwrite {h buf offset} {
  global cache dirty
  view $h
  set last [expr {$offset + [string length $buf] - 1}]
  set cache($h) [string replace $cache($h) $offset $last $buf]
  set dirty($h) 1
}
proc plugin_flush {h} {
  global disk cache dirty
  if {[info exists dirty($h)]} { set disk $cache($h); unset dirty($h) }
  unset -nocomplain cache($h)
}
EOT
}

@test "ruby" {
  # Ruby crashes on any thread but the one that started it, with or without the
  # shim; only -s stays on that thread.
  has_plugin ruby
  cat > plugin.rb <<'EOT'
$disk = "\0".b * 65536
def open(readonly) {} end
def get_size(h) $disk.bytesize end
def view(h) h[:cache] ||= $disk.dup end
def pread(h, count, offset) view(h).byteslice(offset, count) end
def pwrite(h, buf, offset)
  view(h)[offset, buf.bytesize] = buf
  h[:dirty] = true
end
def flush(h)
  $disk = h[:cache] if h.delete :dirty
  h.delete :cache
end
EOT
  on_stdio ruby plugin.rb
}
