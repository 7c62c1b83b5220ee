#!/usr/bin/env bats
# nbdkit's own plugins, as they are packaged.

load common

# consistent FLAG: the flag is FLAG, and what one connection writes and
# another flushes a third reads, on a disk of 64K or more.
consistent ()
{
  client <<EOT
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [$1] * 4)
size = h[0].get_size()
assert size >= 65536, size
for i in range(4):
    for c in h:
        c.pread(4096, 0)
    h[i].pwrite(bytes([65 + i]) * 4096, 0)
    h[(i + 1) % 4].flush()
    expect([bytes(c.pread(4096, 0)) for c in h],
           [bytes([65 + i]) * 4096] * 4)
h[0].zero(4096, 0)
h[1].flush()
expect(bytes(h[2].pread(4096, 0)), bytes(4096))
EOT
}

has_plugin ()
{
  nbdkit --dump-plugin "$1" >/dev/null 2>&1 ||
    skip "nbdkit's $1 plugin is not installed"
}

# The sh plugin's methods for a disk in the file "disk", without multi-conn.
methods ()
{
  truncate -s 64K disk
  get_size='stat -Lc %s '$PWD/disk
  pread='dd if='$PWD'/disk iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none'
  pwrite='dd of='$PWD'/disk oflag=seek_bytes conv=notrunc seek="$4" status=none'
}

@test "memory" {
  serve memory 1M
  consistent True
}

@test "data" {
  serve data data='@0x1000 "text"' size=1M
  consistent True
}

@test "file" {
  truncate -s 1M disk
  serve file disk
  consistent True
}

@test "file, in emulate" {
  truncate -s 1M disk
  serve MCSHIM_MODE=emulate file disk
  consistent True
  stop_server
  assert_equal "$(stat -c %s disk)" 1048576
}

@test "split, which has no flush: refused, unless it is read-only" {
  echo first > one
  truncate -s 64K one two
  serve split one two
  run -1 nbdinfo "$uri"
  grep -q 'mcshim.*flush' "$server_err"
  stop_server
  serve -r split one two
  client <<'EOT'
h = [conn() for i in range(2)]
expect([c.can_multi_conn() for c in h], [True] * 2)
expect(bytes(h[1].pread(5, 0)), b"first")
EOT
  stop_server
  serve MCSHIM_MODE=disable split one two
  client <<'EOT'
h = conn()
h.pwrite(b"next", 0)
expect(bytes(h.pread(4, 0)), b"next")
EOT
}

@test "sh" {
  methods
  cat > script <<EOT
#!/bin/sh
case \$1 in
  get_size) $get_size ;;
  pread) $pread ;;
  pwrite) $pwrite ;;
  can_write|can_flush|flush) exit 0 ;;
  *) exit 2 ;;
esac
EOT
  chmod +x script
  serve sh ./script
  consistent True
}

@test "sh: nbdinfo --can multi-conn, with the shim and without" {
  printf '#!/bin/sh\ncase $1 in get_size) echo 1M;; can_write|can_flush) exit 0;; flush) exit 0;; pread) head -c "$3" /dev/zero;; pwrite) cat >/dev/null;; *) exit 2;; esac\n' > script
  chmod +x script
  # shellcheck disable=SC2016 # for the server's shell
  run -0 under_shim nbdkit -U - sh script --run 'nbdinfo --can multi-conn "$uri"'
  # shellcheck disable=SC2016
  run -2 no_shim nbdkit -U - sh script --run 'nbdinfo --can multi-conn "$uri"'
}

@test "sh: a read-only script of two methods" {
  printf '#!/bin/sh\ncase $1 in get_size) echo 1M;; pread) head -c "$3" /dev/zero;; *) exit 2;; esac\n' > script
  chmod +x script
  # shellcheck disable=SC2016
  run -0 under_shim nbdkit -U - sh script --run 'nbdinfo --can multi-conn "$uri"'
}

@test "eval" {
  methods
  serve eval get_size="$get_size" pread="$pread" pwrite="$pwrite" \
    flush='exit 0'
  consistent True
}

@test "nbd, to a server that has the flag" {
  sock=$PWD/backend SERVE_WITH=no_shim serve memory 1M
  serve nbd socket="$PWD/backend"
  consistent True
}

@test "nbd, to a server that has not, with caches of its own" {
  sock=$PWD/backend SERVE_WITH=no_shim serve "$wbcache"
  serve nbd socket="$PWD/backend"
  consistent True
}

@test "cc" {
  has_plugin cc
  cat > plugin.c <<'EOT'
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <string.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
static char disk[65536];
static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t my_get_size (void *handle) { return sizeof disk; }
static int my_pread (void *handle, void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{ memcpy (buf, disk + offset, count); return 0; }
static int my_pwrite (void *handle, const void *buf, uint32_t count,
                      uint64_t offset, uint32_t flags)
{ memcpy (disk + offset, buf, count); return 0; }
static int my_flush (void *handle, uint32_t flags) { return 0; }
static struct nbdkit_plugin plugin = {
  .name = "mine", .open = my_open, .get_size = my_get_size,
  .pread = my_pread, .pwrite = my_pwrite, .flush = my_flush,
};
NBDKIT_REGISTER_PLUGIN (plugin)
EOT
  serve cc plugin.c
  consistent True
}

@test "python" {
  has_plugin python
  cat > plugin.py <<'EOT'
import nbdkit
API_VERSION = 2
disk = bytearray(65536)
def open(readonly): return {"cache": None}
def get_size(h): return len(disk)
def view(h):
    if h["cache"] is None:
        h["cache"] = bytearray(disk)
    return h["cache"]
def pread(h, buf, offset, flags):
    buf[:] = view(h)[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags):
    view(h)[offset:offset + len(buf)] = buf
    h["dirty"] = True
def flush(h, flags):
    if h.pop("dirty", False):
        disk[:] = h["cache"]
    h["cache"] = None
EOT
  serve python plugin.py
  consistent True
}

@test "perl" {
  has_plugin perl
  cat > plugin.pl <<'EOT'
use strict;
my $disk = "\0" x 65536;
sub api_version { 2 }
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
  serve perl plugin.pl
  consistent True
}
