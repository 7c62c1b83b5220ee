#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Other preloaded libraries, and other programs that look up plugin_init.

load common

# Of next.so and dlsymmer.so.
export NEXT_LOG=next.log DLSYM_LOG=dlsym.log

host_programs ()
{
  [ -z "$foreign" ] || skip "the host's programs are of another architecture or C library"
}

needs_dlsymmer ()
{
  [ -e "$plugins/dlsymmer.so" ] || skip "musl has no dlvsym for it"
}

# Not with --run, whose shell would get the other libraries, and may use another
# C library.
multi_conn ()
{
  session "$wbcache" <<<'expect(conn().can_multi_conn(), True)'
}

# next_found PROGRAM: the file where next.so's dlsym (RTLD_NEXT) found close.
# Before glibc 2.34 that is libpthread if the program has it; musl's libc is its
# loader.
next_found ()
{
  sed -n "s|^$1 .*/||p" "$NEXT_LOG" |
    sed 's/libpthread.so.0/libc.so.6/; s/ld-musl-.*/libc.so.6/' | sort -u
}

@test "RTLD_NEXT from a library before the shim, and after it" {
  PRELOAD_BEFORE=$plugins/next.so multi_conn
  assert_equal "$(next_found nbdkit)" libc.so.6
  rm "$NEXT_LOG"
  PRELOAD_AFTER=$plugins/next.so multi_conn
  assert_equal "$(next_found nbdkit)" libc.so.6
}

@test "RTLD_NEXT in a program that is no nbdkit" {
  host_programs
  PRELOAD_AFTER=$plugins/next.so under_shim cat /dev/null
  assert_equal "$(next_found cat)" libc.so.6
}

@test "RTLD_NEXT past one more library that wraps the same function" {
  # The first next.so must find the second, and the second libc's.
  cp "$plugins/next.so" second.so
  export PRELOAD_BEFORE=$plugins/next.so PRELOAD_AFTER=$BATS_TEST_TMPDIR/second.so
  multi_conn
  run grep '^nbdkit ' <(sort -u "$NEXT_LOG")
  assert_equal "${#lines[@]}" 2
  assert_line "nbdkit $BATS_TEST_TMPDIR/second.so"
  assert_line --regexp '^nbdkit .*/(lib(c|pthread)\.so|ld-musl-)'
}

@test "another library that interposes dlsym, after the shim" {
  needs_dlsymmer
  # The shim's own look-up of the plugin goes through it.
  export PRELOAD_AFTER=$plugins/dlsymmer.so
  multi_conn
  has_line plugin_init "$DLSYM_LOG"
}

@test "another library that interposes dlsym, before the shim: it serves" {
  needs_dlsymmer
  # Such a library asks for the C library's version of dlsym, and so bypasses
  # the shim; all that can be tested is that nothing breaks.
  PRELOAD_BEFORE=$plugins/dlsymmer.so session "$wbcache" <<'EOT'
h = conn()
h.pwrite(b"next", 0)
h.flush()
expect(bytes(h.pread(4, 0)), b"next")
EOT
  has_line plugin_init "$DLSYM_LOG"
}

@test "another that interposes dlsym, and one that asks for RTLD_NEXT" {
  needs_dlsymmer
  export PRELOAD_BEFORE=$plugins/next.so PRELOAD_AFTER=$plugins/dlsymmer.so
  multi_conn
}

@test "GCC loads a plugin of its own under the preload, or says why not" {
  host_programs
  needs gcc
  echo 'int x;' > x.c
  local compile=(gcc -fplugin="$plugins/gccplugin.so" -c x.c -o x.o) plain
  run -0 no_shim "${compile[@]}"
  assert_output "gccplugin: loaded"
  run -0 under_shim "${compile[@]}"
  assert_output "gccplugin: loaded"
  export GCCPLUGIN_FAIL=1
  run ! no_shim "${compile[@]}"
  plain=$output
  run ! under_shim "${compile[@]}"
  assert_output "$plain"
}

@test "the cc plugin compiles with a GCC that loads a plugin" {
  has_plugin cc
  cat > plugin.c <<'EOT'
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <string.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t my_get_size (void *handle) { return 1024; }
static int my_pread (void *handle, void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{ memset (buf, 'x', count); return 0; }
static struct nbdkit_plugin plugin = {
  .name = "mine", .open = my_open, .get_size = my_get_size,
  .pread = my_pread,
};
NBDKIT_REGISTER_PLUGIN (plugin)
EOT
  serve cc plugin.c CC="gcc -fplugin=$plugins/gccplugin.so"
  client <<'EOT'
h = conn()
expect(bytes(h.pread(4, 0)), b"xxxx")
expect(h.can_multi_conn(), True)
EOT
  has_line 'gccplugin: loaded' "$server_err"
}

# Some of these have no malloc_usable_size of their own.
@test "another library's malloc" {
  not_under_tsan
  local name tried=
  for name in memusage.so duma.so.0 efence.so.0 jemalloc.so.2 \
      mimalloc.so.2 tcmalloc_minimal.so.4; do
    no_shim "${foreign}LD_PRELOAD=lib$name" nbdkit --version >plain 2>&1
    if grep -q 'cannot be preloaded' plain; then continue; fi
    tried+=" $name"
    PRELOAD_AFTER=lib$name session "$wbcache" control="$control" <<'EOT'
h = [conn() for i in range(2)]
h[0].pread(4, 0)
h[1].pwrite(b"next", 0)
control("fail-flush 1 ENOSPC")
fails(errno.ENOSPC, h[0].flush)
control()
h[0].flush()
expect(bytes(h[0].pread(4, 0)), b"next")
EOT
  done
  [ "$tried" ] || skip "there is no such library"
}
