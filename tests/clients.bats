#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The clients that people use, each beside connections that hold old copies of
# the whole disk.

load common

setup ()
{
  common_setup
  start parallel
}

start ()
{
  head -c 8M /dev/urandom > image
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" size=8M summary="$summary" \
    fua=native model="$1"
}

nothing_lost ()
{
  stop_server
  none overlaps after_close foreign_thread dirty_dropped_at_close
}

# copies_in COMMAND...: it writes the image; connections that were there before
# then read the image.
copies_in ()
{
  run_this="${*@Q}" client <<'EOT'
import subprocess
image = open("image", "rb").read()
h = [conn() for i in range(3)]
for c in h:
    assert c.pread(c.get_size(), 0) != image
subprocess.run(["bash", "-c", os.environ["run_this"]], check=True)
expect([c.pread(c.get_size(), 0) for c in h], [image] * 3)
EOT
}

# copies_out COMMAND...: four connections write the image, one flushes, and
# all stay; then the command reads it to the file "copy".
copies_out ()
{
  run_this="${*@Q}" client <<'EOT'
import subprocess
image = open("image", "rb").read()
h = [conn() for i in range(4)]
for c in h:
    c.pread(c.get_size(), 0)
step = 256 * 1024
for i in range(0, len(image), step):
    h[i // step % 4].pwrite(image[i:i + step], i)
h[0].flush()
subprocess.run(["bash", "-c", os.environ["run_this"]], check=True)
expect(open("copy", "rb").read(), image)
EOT
}

@test "nbdcopy" {
  local model
  for model in parallel requests all; do
    [ $model = parallel ] || start $model
    copies_in nbdcopy --connections=4 --threads=4 --flush image "$uri"
    copies_out nbdcopy --connections=4 --threads=4 "$uri" copy
    nothing_lost
    # nbdcopy's connections, and four that were there.
    counted connections_most_at_once 8
  done
}

@test "qemu-img convert" {
  needs qemu-img
  copies_in qemu-img convert -n -m 4 -W -f raw -O raw image "$uri"
  copies_out qemu-img convert -m 4 -W -f raw -O raw "$uri" copy
  nothing_lost
}

@test "qemu-io" {
  needs qemu-io
  copies_in qemu-io -f raw -c "write -s image 0 8M" -c flush "$uri"
  head -c 8M /dev/urandom > image
  copies_in qemu-io -f raw -c "write -f -s image 0 8M" "$uri"
  # It compares what it reads with one byte.
  head -c 8M /dev/zero | tr '\0' A > image
  copies_out sh -c 'qemu-io -r -f raw -c "read -P 65 0 8M" "$1" &&
    cp image copy' sh "$uri"
  nothing_lost
}

@test "fio: four jobs that write and verify" {
  needs fio
  cat > "jobs" <<EOT
[global]
ioengine=nbd
uri=$uri
bs=4k
size=2M
offset_increment=2M
numjobs=4
iodepth=8
verify=sha256
EOT
  cat jobs - > "write" <<'EOT'
[write]
rw=randwrite
fsync=16
end_fsync=1
do_verify=1
EOT
  cat jobs - > "read" <<'EOT'
[read]
rw=read
EOT
  client <<'EOT'
import subprocess
h = [conn() for i in range(3)]
for c in h:
    c.pread(c.get_size(), 0)
subprocess.run(["fio", "--output=write.out", "write"], check=True)
subprocess.run(["fio", "--output=read.out", "read"], check=True)
seen = [c.pread(c.get_size(), 0) for c in h + [conn()]]
expect(seen, [seen[0]] * 4)
EOT
  nothing_lost
}

# over_fuse COMMAND...: with the disk mounted as m/nbd.
over_fuse ()
{
  rm -f mounted
  nbdfuse -P mounted m "$uri" 3>&- &
  wait_until test -s mounted
  "$@"
  fusermount3 -u m
  wait $!
}

teardown ()
{
  if mountpoint -q m; then fusermount3 -uz m; fi
  common_teardown
}

@test "nbdfuse" {
  needs nbdfuse fusermount3
  # Not a file of that name, which opening would make.
  { [ -c /dev/fuse ] && (: <> /dev/fuse) 2>/dev/null; } ||
    skip "no FUSE: /dev/fuse can't be opened"
  mkdir m
  over_fuse copies_in dd if=image of=m/nbd bs=1M conv=notrunc,fsync status=none
  over_fuse copies_out dd if=m/nbd of=copy bs=1M status=none
  nothing_lost
  # nbdfuse's connections, and four that were there.
  counted connections_most_at_once 8
}
