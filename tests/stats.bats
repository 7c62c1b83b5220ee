#!/usr/bin/env bats
# MCSHIM_STATS_FILE: what is counted, and how the file is written.

load common

value () { sed -n "s/^$1: //p" "$stats"; }

@test "every counter, in the form key: value" {
  : > "$control"
  serve MCSHIM_STATS_FILE="$stats" "$wbcache" model=requests log="$log" \
    control="$control"
  client <<'EOT'
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
  stop_server
  refute grep -qv '^[a-z_]*: [a-z0-9_]*$' "$stats"
  assert_equal "$(value mode)" auto
  assert_equal "$(value level)" connection
  assert_equal "$(value thread_model)" serialize_requests
  assert_equal "$(value connections_opened)" 4
  assert_equal "$(value connections_most_at_once)" 3
  assert_equal "$(value client_flushes)" 4
  assert_equal "$(value plugin_flushes)" "$(grep -c ' flush$' "$log")"
  assert_equal "$(value flushes_skipped_clean)" 1
  assert_equal "$(value flushes_at_close)" 1
  assert_equal "$(value failed_flushes)" 1
  assert_equal "$(value writes)" 4
  assert_equal "$(value reads)" 2
}

@test "the mode and level that were set" {
  serve MCSHIM_STATS_FILE="$stats" MCSHIM_MODE=emulate \
    MCSHIM_TRACK_DIRTY=conn "$wbcache" model=all
  stop_server
  assert_equal "$(value mode)" emulate
  assert_equal "$(value level)" connection
  assert_equal "$(value thread_model)" serialize_all_requests
}

@test "an existing file is replaced at the end, in one step" {
  echo old > "$stats"
  local inode
  inode=$(stat -c %i "$stats")
  ln "$stats" keep
  serve MCSHIM_STATS_FILE="$stats" "$wbcache"
  client <<<'conn()'
  assert_equal "$(<"$stats")" old
  stop_server
  assert_equal "$(value connections_opened)" 1
  assert_not_equal "$(stat -c %i "$stats")" "$inode"
  assert_equal "$(<keep)" old
  run ls
  refute_line --regexp '^(\.|)stats.+'
}

@test "nothing is left of the check at start" {
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  assert_equal "$(ls -A d)" ""
  stop_server
  assert_equal "$(ls -A d)" stats
}

@test "a server that fails to start for other reasons leaves no file behind" {
  mkdir d
  run -1 under_shim MCSHIM_STATS_FILE=d/stats nbdkit -U - "$wbcache" \
    size=bogus --run true
  assert_equal "$(ls -A d | grep -vx stats)" ""
}

@test "a directory that has gone by the end is an error, not a crash" {
  not_under_tsan
  mkdir d
  serve MCSHIM_STATS_FILE=d/stats "$wbcache"
  rmdir d
  stop_server
  grep -q 'MCSHIM_STATS_FILE.*d/stats' "$server_err"
}
