#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What a plugin's flush asks the server about its connection: it gets its own
# connection's answer or an error, whichever connection's client has asked for
# the flush, and whichever thread runs it.

load common

# start PLUGIN [MCSHIM_X=VALUE...] [ARGUMENT...]
start ()
{
  rm -f a b c                   # The sockets of other clients.
  serve MCSHIM_MODE=emulate "$plugins/context-$1.so" log="$log" \
    control="$control" "${@:2}"
}

setup ()
{
  common_setup
  # What it can be asked depends on it.
  minor=$(nbdkit --version | sed -n 's/^nbdkit 1\.\([0-9]*\).*/\1/p')
  export minor
}

# What every client needs: bound (NAME) connects to the export NAME from a
# socket of that name, and answers () returns what each flush was told.
more=$(cat <<'EOT'
import socket
minor = int(os.environ["minor"])

def bound(name):
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    s.connect(sock)
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_export_name(name)
    h.connect_socket(s.detach())
    return h

since = {"name": 16, "peer": 16, "tls": 22, "intern": 24, "sleep": 14}

def only(words, line):
    return " ".join(w for w in line.split()
                    if w.isdigit() or w.split("=")[0] in words)

def answers(words):
    with open(log) as f:
        return sorted(only(words, l) for l in f if "=" in l)

def expect_answers(*lines):
    """Of each line, what this server can be asked."""
    words = {w.split("=")[0] for l in lines for w in l.split()[1:]}
    words = {w for w in words if minor >= since[w]}
    expect(answers(words), [only(words, l) for l in lines] if words else [])

def reset():
    os.truncate(log, 0)
EOT
)

ask () { client < <(echo "$more"; cat); }

@test "the name of its own export, and its own strings" {
  for model in requests parallel all; do
    for threads in 1 4; do
      session name MCSHIM_FLUSH_THREADS=$threads model=$model <<'EOT'
h = [bound(n) for n in "abc"]
for i in range(2):
    h[i].pwrite(b"x", 0)
h[2].pread(1, 0)
h[2].flush()
expect_answers(*("%d name=%s tls=0 intern=1" % i for i in enumerate("abc")))
EOT
    done
  done
}

@test "the name, with filters above" {
  has_filter offset
  session name --filter=offset --filter=fua offset=0 <<'EOT'
h = [bound(n) for n in "ab"]
h[0].pwrite(b"x", 0)
h[1].flush()
expect_answers("0 name=a")
EOT
}

# start_tls [MCSHIM_X=VALUE...]: for clients with TLS, and without.
start_tls ()
{
  has_tls
  echo qemu:0123456789abcdef0123456789abcdef > psk
  start name "$@" --tls=on --tls-psk=psk
}

with_tls=$(cat <<'EOT'
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_psk_file("psk")
h.set_tls_username("qemu")
h.set_export_name("a")
h.connect_unix(sock)
plain = bound("b")
EOT
)

@test "whether its own connection has TLS" {
  start_tls
  { echo "$with_tls"; cat; } <<'EOT' | ask
h.pwrite(b"x", 0)
plain.flush()
expect_answers("0 tls=1")
reset()
plain.pwrite(b"x", 0)
h.flush()
expect_answers("1 tls=0")
EOT
}

@test "a further handle has its connection's name and TLS" {
  start_tls MCSHIM_HANDLES=2 MCSHIM_STRIPE=4K
  { echo "$with_tls"; cat; } <<'EOT' | ask
for c in h, plain:
    c.pread(8192, 0)
    settle()                    # Handle 2 is the first one's, and 3.
for i in range(4):
    (h if i < 2 else plain).pwrite(b"x", i * 4096)
plain.flush()
expect_answers("0 name=a tls=1", "1 name=b tls=0",
               "2 name=a tls=1", "3 name=b tls=0")
EOT
}

@test "a piece of a read has its connection's name, on any thread" {
  session name MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K reads=1 <<'EOT'
h = [bound(n) for n in "ab"]
h[1].pread(8192, 0)
settle()                        # Handles 1 to 4.
reset()
control("wait")
cookie = h[1].aio_pread(nbd.Buffer(16384), 0)
for i in range(1, 5):
    wait_log("%d read" % i)     # All at once, so on four threads.
control()
finish(h[1], cookie)
expect_answers(*("%d name=b tls=0 intern=1" % i for i in range(1, 5)))
EOT
}

@test "no pieces where a helper's answer would differ" {
  session peer MCSHIM_HANDLES=4 MCSHIM_STRIPE=4K reads=1 -r <<'EOT'
h = bound("a")
for i in range(2):
    h.pread(16384, 0)
    settle()
expect(logged("0 read"), 2)
expect_answers("0 name=a peer=a", "0 name=a peer=a")
EOT
}

@test "its own client, or nobody" {
  session peer MCSHIM_FLUSH_THREADS=1 <<'EOT'
h = [bound(n) for n in "ab"]
h[0].pwrite(b"x", 0)
h[0].flush()
# In its own flush everything is as without the shim.
expect_answers("0 name=a peer=a")
reset()
h[0].pwrite(b"x", 0)
h[1].flush()
expect_answers("0 name=%s peer=-" % ("a" if minor >= 26 else "-"))
EOT
}

@test "not disconnected: the client that has asked for the flush" {
  [ "$minor" -ge 34 ] || skip "this nbdkit has no nbdkit_disconnect"
  session peer MCSHIM_FLUSH_THREADS=1 <<'EOT'
h = [bound(n) for n in "ab"]
h[0].pwrite(b"x", 0)
control("disconnect 0")
h[1].flush()
control()
h[1].pread(1, 0)
h[0].pread(1, 0)

# Its own client's flush, which may end with the connection.
h[0].pwrite(b"x", 0)
control("disconnect 0")
try:
    h[0].flush()
except nbd.Error:
    pass
wait_log("0 close")
h[1].pread(1, 0)
EOT
}

@test "outside emulate all is as without the shim" {
  for plugin in peer all; do
    session $plugin MCSHIM_MODE=plugin MCSHIM_TRACK_DIRTY=off <<'EOT'
h = [bound(n) for n in "ab"]
h[0].flush()
h[1].flush()
expect_answers("0 name=a tls=0 intern=1 peer=a", "1 name=b tls=0 intern=1 peer=b")
EOT
  done
}

@test "a sleep does not end with the client that has asked for the flush" {
  for model in requests parallel; do
    for threads in 1 4; do
      session all MCSHIM_FLUSH_THREADS=$threads model=$model <<'EOT'
h = [bound(n) for n in "ab"]
for i in range(2):
    h[i].pwrite(b"x", i << 12) # blocks of their own
control("wait")
h[0].aio_flush()
wait_for("a flush", lambda: flushes())
del h[0]
control()
wait_for("both flushes", lambda: len(answers(["sleep"])) >= 2)
expect_answers("0 sleep=1", "1 sleep=1")
h[0].pread(1, 0)
wait_log("0 close")
# Nothing is owed.
h[0].flush()
EOT
      refute grep 'writes are lost' "$server_err"
    done
  done
}

@test "a flush at close sleeps" {
  for model in requests parallel all; do
    session all model=$model <<'EOT'
h = [bound(n) for n in "ab"]
h[0].pwrite(b"x", 0)
close(h[0], 0)
expect_answers("0 name=%s peer=- sleep=1" % ("a" if minor >= 26 else "-"))
h[1].flush()
EOT
    refute grep 'writes are lost' "$server_err"
  done
}

@test "strings are interned on many threads at once" {
  [ "$minor" -ge 24 ] || skip "this nbdkit interns no strings"
  for plugin in name all; do
    for model in requests parallel; do
      session $plugin MCSHIM_FLUSH_THREADS=16 model=$model interns=5000 <<'EOT'
h = [conn() for i in range(16)]
for turn in range(5):
    for c in h:
        c.pwrite(b"x", 0)
    h[0].flush()
expect(len(answers(["intern"])), 80)
expect_answers(*sorted("%d intern=1" % i for i in range(16) for turn in range(5)))
EOT
    done
  done
  # Without a context they are in one list: flushes run one after the other.
  [ "$minor" -ge 26 ] || refute grep overlap "$log"
}

@test "a function that fails is named once, when a flush has failed" {
  [ "$minor" -ge 16 ] || skip "this server has none that fails"
  for plugin in peer all; do
    : > "$server_err"
    session $plugin strict=1 <<'EOT'
h = [bound(n) for n in "ab"]
for turn in range(2):
    h[0].pwrite(b"x", 0)
    fails(errno.EIO, h[1].flush)
EOT
    run -0 sed -n 's/^mcshim: warning: a flush .*, and the context plugin uses \([a-z_]*\), which .*/\1/p' "$server_err"
    assert_equal "$output" nbdkit_peer_name
  done
}

@test "a function that may fail is not named before a flush has failed" {
  session peer <<'EOT'
h = [bound(n) for n in "ab"]
h[0].pwrite(b"x", 0)
h[1].flush()
EOT
  refute grep 'warning: ' "$server_err"
}
