#!/usr/bin/env bats
# The ways in which a server can be reached.  The other files use a Unix
# socket.

load common

# replicates URI: to four connections.
replicates ()
{
  uri=$1 client <<'EOT'
h = [nbd.NBD() for i in range(4)]
for c in h:
    c.set_uri_allow_local_file(True)
    c.connect_uri(os.environ["uri"])
expect([c.can_multi_conn() for c in h], [True] * 4)
expect(bytes(h[0].pread(4, 0)), bytes(4))
h[1].pwrite(b"next", 0)
h[2].flush()
expect([bytes(c.pread(4, 0)) for c in h], [b"next"] * 4)
EOT
}

free_port ()
{
  python3 -c '
import socket
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

ended () { ! kill -0 "$(<"$server/pid")" 2>/dev/null; }

@test "a Unix socket" {
  serve "$wbcache"
  replicates "$uri"
}

@test "a TCP port" {
  # Somebody else may take the port first.
  local port tries
  for tries in 1 2 3; do
    port=$(free_port)
    ! SERVE_ON="-i 127.0.0.1 -p $port" serve "$wbcache" || break
  done
  replicates "nbd://127.0.0.1:$port"
}

@test "TLS with a pre-shared key" {
  echo alice:0123456789abcdef0123456789abcdef > keys
  serve --tls=require --tls-psk="$PWD/keys" "$wbcache"
  run -1 nbdinfo "$uri"
  replicates "nbds+unix://alice@/?socket=$sock&tls-psk-file=$PWD/keys"
}

@test "socket activation, as systemd does it" {
  # libnbd makes the socket and starts the server, which inherits it.
  run -0 under_shim nbdinfo [ nbdkit "$wbcache" ]
  assert_line --regexp 'can_multi_conn: true'
  run -0 no_shim nbdinfo [ nbdkit "$wbcache" ]
  assert_line --regexp 'can_multi_conn: false'
}

@test "standard input and output" {
  run -0 under_shim nbdsh -c '
h.connect_command(["nbdkit", "-s", "'"$wbcache"'", "log='"$log"'"])
assert h.can_multi_conn()
h.pwrite(b"next", 0)
h.flush()'
  assert_equal "$(grep -c flush "$log")" 1
}

@test "--exit-with-parent" {
  server=$(mktemp -d "$BATS_TEST_TMPDIR/server.XXXXXX")
  # shellcheck disable=SC2016 # for the inner shell
  under_shim sh -c 'echo $$ > parent
    nbdkit -f --exit-with-parent -U "$1" -P "$2/pid" "$3" & wait' \
    sh "$sock" "$server" "$wbcache" 3>&- 2>>"$server_err" &
  wait_until test -s "$server/pid"
  replicates "$uri"
  kill -9 "$(<parent)"
  wait_until ended
  touch "$server/status"
}
