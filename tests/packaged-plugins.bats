#!/usr/bin/env bats
# nbdkit's own plugins, as they are packaged; the languages have a file of
# their own.

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
  has 'mcshim.*flush' "$server_err"
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

@test "sh: what nbdinfo says, with the shim and without" {
  printf '#!/bin/sh\ncase $1 in get_size) echo 1M;; can_write|can_flush) exit 0;; flush) exit 0;; pread) head -c "$3" /dev/zero;; pwrite) cat >/dev/null;; *) exit 2;; esac\n' > script
  chmod +x script
  run -0 under_shim nbdkit -U - sh script --run "$flag"
  assert_output true
  run -0 no_shim nbdkit -U - sh script --run "$flag"
  assert_output false
}

@test "sh: a read-only script of two methods" {
  printf '#!/bin/sh\ncase $1 in get_size) echo 1M;; pread) head -c "$3" /dev/zero;; *) exit 2;; esac\n' > script
  chmod +x script
  run -0 under_shim nbdkit -U - sh script --run "$flag"
  assert_output true
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
