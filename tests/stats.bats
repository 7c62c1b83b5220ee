#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# MCSHIM_STATS_FILE: what is counted, and how the file is written.

load common

# has_sample NAME VALUE: exactly that line, with labels in the name.
has_sample () { has_line "mcshim_$1 $2" "$stats"; }

# alone: there is no other file beside it.
alone () { assert_equal "$(ls -A "${stats%/*}")" "${stats##*/}"; }

@test "every counter, in Prometheus' format" {
  session MCSHIM_STATS_FILE="$stats" "$wbcache" model=requests log="$log" \
    control="$control" <<'EOT'
h = [conn() for i in range(3)]
h[0].flush()                    # Clean: skipped.
h[0].pread(512, 0)
h[0].pread(512, 0)
h[1].pwrite(b"a" * 512, 0)
h[2].flush()                    # Goes to h1 and h0.
h[1].zero(512, 0)
h[1].trim(512, 0)
control("fail-flush 1 EIO")
fails(errno.EIO, h[2].flush)
control()
h[2].flush()
h[2].pwrite(b"b" * 512, 0)
close(h[2], 2)                  # Unflushed: flushed now.
h[2] = conn()
EOT
  has_sample 'info{version="[0-9.]*",plugin="wbcache",mode="auto",level="connection",thread_model="serialize_requests"}' 1
  has_sample 'connections_opened_total{mode="emulate"}' 4
  counted connections_most_at_once 3 client_flush_seconds_count 4
  assert_equal "$(value plugin_flush_seconds_count)" \
    "$(grep -c ' flush$' "$log")"
  counted flushes_skipped_clean_total 1 flushes_at_close_total 1 \
    failed_flushes_total 1 writes_total 4 reads_total 2 running 0
  # A round for each flush except the clean one.  The first flushed two
  # connections; so did the last, since the one before it failed.
  counted rounds_total 3
  assert_equal "$(value replicas_total)" \
    "$(($(value plugin_flush_seconds_count) - 1))"
}

@test "each name has one HELP and one TYPE, before its samples" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  stop_server
  awk '
    $1 == "#" && $2 == "HELP" { if (help[$3]++ || NF < 4) exit wrong = 1; next }
    $1 == "#" && $2 == "TYPE" { if (type[$3]++ || !help[$3]) exit wrong = 1; next }
    !/^mcshim_[a-z_]*(\{[a-z_]*="[^"]*"(,[a-z_]*="[^"]*")*\})? [0-9.NaN]*$/ {
      exit wrong = 1 }
    { name = $1; sub(/\{.*/, "", name)
      base = name; sub(/_(sum|count)$/, "", base)
      if (!type[name] && !type[base]) exit wrong = 1 }
    END { if (wrong) print; exit wrong }' "$stats"
}

@test "the file is there before the first client" {
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until test -s "$stats"
  counted connections 0 running 1 process_id "$(<"$server/pid")"
  awk -v start="$(value start_time_seconds)" -v now="$(date +%s)" \
    'BEGIN { exit !(now - 600 < start && start < now + 2) }'
  stop_server
  counted running 0
}

@test "the file follows the server while it runs, and rests while it does" {
  session MCSHIM_STATS_FILE="$stats" "$wbcache" <<'EOT'
def says(line):
    with open("stats") as f:
        return "mcshim_" + line + "\n" in f
h = conn()
h.pwrite(b"a" * 512, 0)
wait_for("a write", lambda: says("writes_total 1"))
assert says("running 1") and says("connections 1")
before = os.stat("stats").st_mtime_ns
tick()
expect(os.stat("stats").st_mtime_ns, before)
h.flush()
wait_for("a flush", lambda: says("client_flush_seconds_count 1"))
EOT
  counted running 0
}

@test "a file that can't be written any more is said once, until it can" {
  not_under_tsan
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  wait_until test -s d/stats
  rm -r d
  client <<'EOT'
h = conn()
wait_for("the complaint", lambda: "d/stats" in open("server.err").read())
h.pread(512, 0)
tick()                          # It tries again.
EOT
  assert_equal "$(grep -c 'MCSHIM_STATS_FILE.*d/stats' "$server_err")" 1
  mkdir d
  wait_until test -s d/stats
  stop_server
  stats=d/stats counted connections_opened_total 1
}

@test "the mode and level that were set, and the mode of each connection" {
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_MODE=emulate \
    MCSHIM_TRACK_DIRTY=conn "$wbcache" model=all
  stop_server
  has_sample 'info{.*,mode="emulate",level="connection",thread_model="serialize_all_requests"}' 1
  session MCSHIM_STATS_FILE="$stats" "$wbcache" multiconn=1 \
    <<<'h = [conn() for i in range(2)]'
  has_sample 'connections_opened_total{mode="plugin: it has multi-conn"}' 2
}

@test "an existing file is replaced, in one step, and keeps its mode" {
  mkdir d
  stats=$PWD/d/stats
  echo old > "$stats"
  chmod 640 "$stats"
  ln "$stats" keep
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  wait_until counts running 1
  alone
  stop_server
  alone
  assert_equal "$(stat -c %a "$stats") $(<keep)" "640 old"
  # A symbolic link is replaced, not followed.
  ln -sf ../keep "$stats"
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  wait_until eval '! test -L "$stats"'
  stop_server
  assert_equal "$(<keep)" old
  # A new file can be read by all: nbdkit sets the umask itself.
  rm "$stats"
  (umask 077; serve MCSHIM_STATS_FILE=d/stats "$wbcache")
  wait_until counts running 1
  assert_equal "$(stat -c %a "$stats")" 644
}

@test "a server that fails to start for other reasons leaves no file behind" {
  mkdir d
  run -1 under_shim MCSHIM_STATS_FILE=d/stats nbdkit -U - "$wbcache" \
    size=bogus --run true
  assert_equal "$(find d -type f ! -name stats)" ""
}

# File sizes are limited to 1 KiB, less than the file has.
@test "a limit on file size does not end the server" {
  not_under_tsan
  needs prlimit
  limited () { ulimit -f 1; "$@"; }
  mkdir d
  run -1 limited under_shim MCSHIM_STATS_FILE=d/stats nbdkit -U - "$wbcache" \
    --run true
  assert_output --partial "d/stats' can't be written: File too large: "
  assert_equal "$(ls -A d)" ""
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  wait_until test -s d/stats
  prlimit --pid "$server_pid" --fsize=1024
  client <<<'conn().pread(512, 0)'
  stop_server
  has "MCSHIM_STATS_FILE: .*/d/stats: File too large" "$server_err"
  stats=d/stats alone
}

# taken: another server with this path does not start, and says why.
taken ()
{
  run -1 under_shim MCSHIM_STATS_FILE="$stats" nbdkit -U - "$wbcache" \
    --run 'echo started'
  assert_output "mcshim: MCSHIM_STATS_FILE: '$stats' belongs to a running server: must be another path for each (%p is the process ID)"
}

@test "a path is one server's, until it ends, also by SIGKILL" {
  local first
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  first=$server
  taken
  wait_until test -s "$stats"
  taken
  counted process_id "$(<"$first/pid")"
  stop_server
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until counts process_id "$(<"$server/pid")"
  taken
  kill -KILL "$(<"$server/pid")"
  wait_until test -s "$server/status"
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until counts process_id "$(<"$server/pid")"
}

@test "a directory in which the server's user may not write" {
  [ "$(id -u)" -eq 0 ] || skip "needs root to change to another user"
  not_under_tsan
  run under_shim MCSHIM_STATS_FILE="$stats" nbdkit -u nobody -U - "$wbcache" \
    --run true
  assert_output --partial "MCSHIM_STATS_FILE: $stats: Permission denied"
  refute [ -s "$stats" ]
}

@test "%p in the path is the process ID: a file for each server" {
  local first
  mkdir d
  serve MCSHIM_STATS_FILE="d/a-%p-%p.prom" "$wbcache"
  first=$(<"$server/pid")
  serve MCSHIM_STATS_FILE="d/a-%p-%p.prom" "$wbcache"
  wait_until test -s "d/a-$first-$first.prom"
  wait_until test -s "d/a-$server_pid-$server_pid.prom"
  assert_equal "$(find d -type f | wc -l)" 2
}

@test "%p in the name of the current directory stays" {
  mkdir d-%p
  cd d-%p
  serve MCSHIM_STATS_FILE=a-%p "$wbcache"
  stop_server
  stats=$PWD/a-$server_pid counted running 0
}

# A file that a thread of the library's opened meanwhile would take the place of
# /dev/null, and the server would end.
@test "the file is left alone while the server reopens its standard input" {
  PRELOAD_AFTER=$plugins/slowstdin.so serve MCSHIM_STATS_FILE="$stats" \
    "$wbcache"
  wait_until counts running 1
}

@test "a file system that hangs does not hold up the server's end" {
  local end
  HANG=$PWD/hang PRELOAD_AFTER=$plugins/hang.so \
    serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  wait_until counts running 1
  touch hang
  client <<<'conn().pread(512, 0)'
  kill -TERM "$(<"$server/pid")"
  end=$((SECONDS + 30))
  wait_until test -s "$server/status"
  [ $SECONDS -lt $end ]
  assert_equal "$(<"$server/status")" 0
  has "MCSHIM_STATS_FILE: $stats: the file system does not answer" \
    "$server_err"
}

@test "a plugin with a decimal comma" {
  has_plugin python
  needs localedef
  localedef -i de_DE -f UTF-8 "$PWD/de_DE.UTF-8" || skip "no German locale here"
  cat > plugin.py <<'EOT'
import locale
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
assert locale.localeconv()["decimal_point"] == ","
def open(readonly): return 1
def get_size(h): return 512
def pread(h, buf, offset, flags): buf[:] = bytearray(len(buf))
API_VERSION = 2
EOT
  LOCPATH=$PWD session MCSHIM_STATS_FILE="$stats" -r python plugin.py \
    <<<'conn().pread(512, 0)'
  refute grep '[0-9],[0-9]' "$stats"
  has_sample uptime_seconds '[0-9]*\.[0-9]\{9\}'
}

@test "a path with control characters: not in messages" {
  not_under_tsan
  local odd=$'no\033[31mwhere\n/stats'
  run -1 under_shim MCSHIM_STATS_FILE="$odd" nbdkit -U - "$wbcache" --run true
  assert_output "mcshim: MCSHIM_STATS_FILE: '$PWD/no?[31mwhere?/stats' can't be written: No such file or directory: must be the path of a file, in a directory that exists"
  mkdir $'d\a'
  serve MCSHIM_STATS_FILE=$'d\a/stats' "$wbcache"
  wait_until test -s $'d\a/stats'
  rm -r $'d\a'
  stop_server
  has 'd?/stats: No such file' "$server_err"
  lacks $'\a' "$server_err"
}
