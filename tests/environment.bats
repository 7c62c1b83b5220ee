#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What the server's children inherit: no shim, and the rest of LD_PRELOAD as
# it was.

load common

# child LD_PRELOAD-VALUE: prints what --run sees of it.
child ()
{
  env LD_PRELOAD="$1" nbdkit -U - "$wbcache" --run 'echo "${LD_PRELOAD-unset}"'
}

setup ()
{
  common_setup
  [ -z "$test_preload" ] ||
    skip "LD_PRELOAD holds a checker's runtime besides"
  a=$plugins/next.so
  b=$plugins/dlsymmer.so
}

# The columns: LD_PRELOAD, and what a child sees.
@test "--run: LD_PRELOAD without the shim" {
  ln -s "$shim_so" other.so
  mkdir like
  cp "$a" like/libmcshim.so
  local preload wanted
  while IFS='|' read -r preload wanted; do
    run -0 --separate-stderr child "$preload"
    assert_output "$wanted"
  done <<END
$shim_so|unset
$a:$shim_so|$a
$shim_so:$a|$a
$a:$shim_so:$b|$a:$b
$a $shim_so|$a
$shim_so $a|$a
$a $shim_so $b|$a $b
$shim_so:$PWD/like/libmcshim.so|$PWD/like/libmcshim.so
$PWD/other.so:$a|$a
./other.so:$a|$a
END
  # More than one separator, and none of the others lost.
  run -0 --separate-stderr child ":$a  $shim_so::$b:"
  assert_equal "$(tr -s ': ' '\n' <<<"$output" | grep . | paste -sd,)" "$a,$b"
}

@test "--run: the shim by its name, found on LD_LIBRARY_PATH" {
  LD_LIBRARY_PATH=$(dirname "$shim_so") run -0 --separate-stderr child "$(basename "$shim_so")"
  assert_output unset
}

@test "--run: the shim by a name that the loader expands" {
  # What $LIB is differs between distributions.
  local dir name
  for dir in lib lib64 "lib/$(cc -print-multiarch)"; do
    mkdir -p "$dir" "other/$dir"
    cp "$shim_so" "$dir/x86.so"
    cp "$a" "other/$dir/x86.so"
  done
  # shellcheck disable=SC2016 # the loader's variables
  for name in '$LIB/x86.so' '${LIB}/x86.so' '$LIB//x86.so'; do
    run -0 --separate-stderr child "$PWD/$name:$PWD/other/$name"
    assert_output "$PWD/other/$name"
  done
}

@test "--run: LD_PRELOAD twice in the environment" {
  [ -z "$SHIM_TEST_ROOT" ] || skip "a shell starts this nbdkit"
  local exec='import ctypes, os, shutil, sys
words = lambda *a: (ctypes.c_char_p * (len(a) + 1))(*a, None)
ctypes.CDLL(None).execve(
    shutil.which("nbdkit").encode(),
    words(b"nbdkit", b"-U", b"-", *[os.fsencode(a) for a in sys.argv[3:]]),
    words(b"PATH=" + os.environb[b"PATH"],
          *[b"LD_PRELOAD=" + os.fsencode(a) for a in sys.argv[1:3]]))'
  # shellcheck disable=SC2016 # for the server's shell
  local seen='tr "\0" "\n" < /proc/$$/environ | grep LD_PRELOAD'
  run -0 --separate-stderr python3 -c "$exec" "$shim_so" "$shim_so:$a" "$wbcache" --run "$seen"
  assert_output "LD_PRELOAD=$a"
  run -0 --separate-stderr python3 -c "$exec" "$a:$shim_so" "$shim_so" "$wbcache" --run "$seen"
  assert_output "LD_PRELOAD=$a"
}

@test "--run: the knobs stay, since a child may start nbdkit by itself" {
  run -0 --separate-stderr under_shim MCSHIM_MODE=emulate nbdkit -U - "$wbcache" \
    --run 'echo $MCSHIM_MODE'
  assert_output emulate
}

@test "the sh plugin's scripts" {
  disk
  sed -i '2i echo "$1 ${LD_PRELOAD-unset}" >> calls' script
  PRELOAD_AFTER=$a session sh ./script <<'EOT'
h = conn()
h.pread(512, 0)
h.pwrite(b"next", 0)
h.flush()
EOT
  for method in load open get_size pread pwrite flush; do
    has "^$method " calls
  done
  refute grep -v " $a\$" calls
}

# executed_again WHEN: the plugin executes the server again from that callback.
executed_again ()
{
  run -0 under_shim MCSHIM_STATS_FILE="$stats" MCSHIM_HANDLES=4 MCSHIM_MODE=unsafe \
    nbdkit -U - "$plugins/reexec.so" when="$1" \
      --run "$flag; "'echo "child: ${LD_PRELOAD-unset} $LD_LIBRARY_PATH"'
  assert_line true
  assert_line "child: unset /tmp"
  assert_equal "$(grep -c ': reexec: unsafe.*, handles 4$' <<<"$output")" 1
  assert_equal "$(grep -c 'warning: MCSHIM_MODE=unsafe' <<<"$output")" 1
  has '^mcshim_reads_total [1-9]' "$stats"
}
@test "executed again from config_complete" { executed_again config_complete; }
@test "executed again from get_ready" { executed_again get_ready; }

@test "executed again from dump_plugin" {
  run -0 under_shim nbdkit "$plugins/reexec.so" when=dump_plugin --dump-plugin
  assert_line reexec_again=1
  assert_equal "$(grep -c ^mcshim_version= <<<"$output")" 1
}

@test "a program that is no nbdkit hands the preload on untouched" {
  local value="$a:$shim_so $b"
  run -0 env LD_PRELOAD="$value" sh -c 'echo "$LD_PRELOAD"'
  assert_output "$value"
}

@test "a program that starts nbdkit: the shim works in there" {
  local command='nbdkit -U - "$1" --run "$2"'
  run -0 --separate-stderr under_shim sh -c "$command" sh "$wbcache" "$flag"
  assert_output true
  run -0 no_shim sh -c "$command" sh "$wbcache" "$flag"
  assert_output false
}
