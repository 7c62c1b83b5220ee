#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# The ways to reach a server, besides a Unix socket.  around.bats has those in which another program
# starts it.

load common

# replicates URI: flushes there are replicated to four connections.
replicates ()
{
  uri=$1 client <<'EOT'
h = [nbd.NBD() for i in range(4)]
for c in h:
    c.set_uri_allow_local_file(True)
    c.connect_uri(os.environ["uri"])
expect([c.can_multi_conn() for c in h], [True] * 4)
all_see(h)
EOT
}

free_port ()
{
  python3 -c '
import socket
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

@test "a TCP port" {
  # Another program may take the port first.
  local port
  for _ in 1 2 3; do
    port=$(free_port)
    ! SERVE_ON="-i 127.0.0.1 -p $port" serve "$wbcache" || break
  done
  replicates "nbd://127.0.0.1:$port"
}

@test "TLS with a pre-shared key" {
  has_tls
  echo alice:0123456789abcdef0123456789abcdef > keys
  serve --tls=require --tls-psk="$PWD/keys" "$wbcache"
  run -1 nbdinfo "$uri"
  replicates "nbds+unix://alice@/?socket=$sock&tls-psk-file=$PWD/keys"
}
