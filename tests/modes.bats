#!/usr/bin/env bats
# NBD_FLAG_CAN_MULTI_CONN by mode, and which connections are refused.

load common

# flag VALUE: what every connection is told.
flag ()
{
  client <<EOT
expect([conn().can_multi_conn() for i in range(2)], [$1] * 2)
EOT
}

# flags MODE NOT-ADVERTISED ADVERTISED
flags ()
{
  serve MCSHIM_MODE="$1" "$wbcache" multiconn=0
  flag "$2"
  stop_server
  serve MCSHIM_MODE="$1" "$wbcache" multiconn=1
  flag "$3"
}

# refused WORDS...: connecting fails and the server says why.
refused ()
{
  client <<'EOT'
try:
    conn()
except nbd.Error:
    pass
else:
    sys.exit("the connection was not refused")
EOT
  run grep -i 'mcshim.*flush' "$server_err"
  assert_success
  local word
  for word; do
    assert_output --partial "$word"
  done
}

@test "auto" { flags auto True True; }
@test "emulate" { flags emulate True True; }
@test "plugin" { flags plugin False True; }
@test "disable" { flags disable False False; }
@test "unsafe" { flags unsafe True True; }

@test "a plugin that serializes connections never has the flag" {
  for mode in auto emulate plugin disable unsafe; do
    for advertises in 0 1; do
      serve MCSHIM_MODE=$mode "$wbcache" model=connections \
        multiconn=$advertises
      client <<'EOT'
expect(conn().can_multi_conn(), False)
EOT
      stop_server
    done
  done
}

@test "a filter that serializes connections takes the flag away" {
  for mode in auto emulate unsafe; do
    serve MCSHIM_MODE=$mode --filter=noparallel "$wbcache" \
      serialize=connections
    client <<'EOT'
expect(conn().can_multi_conn(), False)
EOT
    stop_server
  done
}

@test "the other thread models have the flag" {
  for model in all requests parallel; do
    serve MCSHIM_MODE=emulate "$wbcache" model=$model
    flag True
    stop_server
  done
}

@test "auto is disable for a plugin that serializes connections" {
  # In emulate, one without flush would be refused.
  serve MCSHIM_MODE=auto eval get_size='echo 1M' thread_model='echo serialize_connections' \
    pread='head -c "$3" /dev/zero' pwrite='cat >/dev/null'
  client <<'EOT'
expect(conn().can_multi_conn(), False)
EOT
}

@test "auto: no flush: refused, and the plugin's handle is closed again" {
  ODD=noflush serve MCSHIM_MODE=auto "$plugins/odd.so" log="$log"
  refused "MCSHIM_MODE="
  wait_log close
}

@test "emulate: no flush: refused, with a mode that would connect" {
  ODD=noflush serve MCSHIM_MODE=emulate "$plugins/odd.so" log="$log"
  refused "MCSHIM_MODE="
  wait_log close
  assert_equal "$(grep -c close "$log")" 1
}

@test "the mode that the refusal names does connect" {
  ODD=noflush serve MCSHIM_MODE=emulate "$plugins/odd.so"
  refused
  local mode
  mode=$(sed -n 's/.*MCSHIM_MODE=\([a-z]*\).*/\1/p' "$server_err" | head -1)
  stop_server
  ODD=noflush serve MCSHIM_MODE="$mode" "$plugins/odd.so"
  client <<'EOT'
conn().pwrite(b"next", 0)
EOT
}

@test "a flush that can_flush denies counts as none" {
  serve MCSHIM_MODE=emulate eval get_size='echo 1M' can_flush='exit 3' \
    pread='head -c "$3" /dev/zero' pwrite='cat >/dev/null' flush='exit 0'
  refused "MCSHIM_MODE="
}

@test "plugin, disable and unsafe do without a flush" {
  for mode in plugin disable unsafe; do
    ODD=noflush serve MCSHIM_MODE=$mode "$plugins/odd.so"
    client <<'EOT'
h = conn()
h.pwrite(b"next", 0)
expect(bytes(h.pread(4, 0)), b"next")
EOT
    stop_server
  done
}

@test "auto: read-only and no flush: the flag, and no replication" {
  ODD=noflush serve MCSHIM_MODE=auto -r "$plugins/odd.so"
  flag True
}

@test "auto: a plugin that can't write and has no flush: the flag" {
  serve MCSHIM_MODE=auto eval get_size='echo 1M' \
    pread='head -c "$3" /dev/zero'
  flag True
}

@test "auto: can_write false and no flush: the flag" {
  serve MCSHIM_MODE=auto eval get_size='echo 1M' can_write='exit 3' \
    pread='head -c "$3" /dev/zero' pwrite='cat >/dev/null'
  flag True
}

@test "emulate: read-only and no flush: refused all the same" {
  ODD=noflush serve MCSHIM_MODE=emulate -r "$plugins/odd.so"
  refused "MCSHIM_MODE="
}

@test "the server goes on after a connection that was refused" {
  serve MCSHIM_MODE=emulate eval get_size='echo 1M' \
    can_flush="test -f $BATS_TEST_TMPDIR/can-flush || exit 3" \
    pread='head -c "$3" /dev/zero' pwrite='cat >/dev/null' flush='exit 0'
  refused
  touch can-flush
  flag True
}
