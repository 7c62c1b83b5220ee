#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Plugins as they may be built: either API version, structs of any size, and
# callbacks that are not there.

load common

# works_across [VARIABLE=VALUE...] PLUGIN: h0 sees h1's write after a flush on h2.
works_across ()
{
  session MCSHIM_MODE=auto "$@" log="$log" <<'EOT'
h = [conn() for i in range(3)]
expect(h[0].can_multi_conn(), True)
h[0].pread(4, 0)
h[1].pwrite(b"next", 0)
if h[2].can_flush():
    h[2].flush()
expect(bytes(h[0].pread(4, 0)), b"next")
for c in h:
    c.shutdown()
EOT
}

@test "API versions 1 and 2" {
  works_across "$wbcache"
  works_across "$plugins/api1.so"
}

# One as old as nbdkit 1.2's; one that ends before can_multi_conn; one that is
# longer than the known one, with garbage at its end; no can_fua;
# NBDKIT_HANDLE_NOT_NEEDED; and no close.
@test "odd structs work" {
  for ODD in ancient short long nofua notneeded noclose; do
    export ODD
    works_across "$plugins/odd.so"
  done
  lacks close "$log"
  ODD=noflush works_across MCSHIM_MODE=unsafe "$plugins/odd.so"
}

@test "API version 1: every callback gets the plugin's handle" {
  session "$plugins/api1.so" log="$log" <<'EOT'
h = [conn() for i in range(3)]
h[0].pread(512, 0)
h[1].pwrite(b"a" * 512, 0)
h[1].zero(512, 512)
h[1].trim(512, 1024)
h[2].flush()
expect(sorted(flushes()), ["0", "1"])
for line in "0 read", "1 write", "1 zero", "1 trim":
    expect(logged(line), 1)
h[2].pwrite(b"b" * 512, 0, nbd.CMD_FLAG_FUA)
expect(sorted(flushes()), ["0", "1", "2"])
expect(bytes(h[0].pread(1536, 0)), b"b" * 512 + bytes(1024))
for i in range(3):
    close(h[i], i)
os.truncate(log, 0)
expect(count_flushes(), 4)
EOT
}

@test "NBDKIT_HANDLE_NOT_NEEDED: connections are told apart" {
  ODD=notneeded session "$plugins/odd.so" log="$log" <<'EOT'
h = [conn() for i in range(4)]
h[0].pread(512, 0)
h[1].pwrite(b"next", 0)
h[2].flush()
expect(logged("flush"), 2)
EOT
}

@test "an open that fails is that client's error alone" {
  session "$wbcache" log="$log" control="$control" <<'EOT'
control("fail-open 1 EIO")
a = conn()
refused()
b = conn()
a.pread(4, 0)
b.pwrite(b"next", 0)
b.flush()
expect(bytes(a.pread(4, 0)), b"next")
EOT
  lacks "1 close" "$log"
}

@test "plugin_init returns NULL, or an unknown struct: the server's own message" {
  for ODD in null future; do
    export ODD
    run -1 no_shim nbdkit -U - "$plugins/odd.so" --run true
    local plain=$output
    run -1 under_shim nbdkit -U - "$plugins/odd.so" --run true
    assert_output "$plain"
  done
}

@test "the rest of the struct goes through" {
  not_under_tsan
  local method methods=()
  for method in can_{fast_zero,zero,trim,extents} is_rotational zero trim \
    cache close preconnect {,un}load config_complete get_ready after_fork \
    cleanup; do
    methods+=("$method=exit 0")
  done
  disk list_exports="printf '%s\n' NAMES+DESCRIPTIONS one first two second" \
    default_export='echo one' open='echo "$3"' \
    export_description='echo "described $2"' block_size='echo 1 4K 1M' \
    can_cache='echo native' extents='echo 0 512K hole,zero; echo 512K 512K' \
    "${methods[@]}"
  info ()
  {
    "$@" nbdkit -U - sh script \
      --run 'nbdinfo "$uri"; nbdinfo --list "$uri"; nbdinfo --map "$uri"' 3>&- |
      grep -v -e can_multi_conn -e uri:
  }
  run --separate-stderr info no_shim
  assert_success
  assert_output --partial "described one"
  # New in nbdkit 1.30.
  ! nbdkit --dump-plugin sh | grep -qx has_block_size=1 ||
    assert_output --partial "block_size_preferred: 4096"
  local plain=$output
  run --separate-stderr info under_shim
  assert_success
  assert_output "$plain"
}
