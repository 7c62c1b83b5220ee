#!/usr/bin/env bats
# mcshim --try: what it measures and says, and that it leaves nothing behind.

load common

mcshim=$BATS_TEST_DIRNAME/../scripts/mcshim

setup ()
{
  common_setup
  mkdir asked
  export TMPDIR=$BATS_TEST_TMPDIR/asked
}

# try OPTION... nbdkit ARGUMENT...: leaves the answer in the file "told".
try ()
{
  timeout 120 "$mcshim" --try --json "$@" > told
  python3 -m json.tool < told > /dev/null
  nothing_left
}

told () { jq -c "$1" told; }

# The directory stands in the command lines of server and clients.
nothing_left ()
{
  wait_until nothing_runs
  assert_equal "$(ls -A asked)" ""
}

nothing_runs () { ! pgrep -f "$TMPDIR/tmp[.]" >/dev/null; }

# written: a count of requests that change something
written () { grep -c ' write$\| zero$\| trim$\| flush$' "$log" || true; }

# Two milliseconds a read, one at a time on each connection, whatever the
# machine does besides.  nbdcopy gives a connection 128 MiB at a time; beyond
# the plugin's own end the filter makes zeros.
slow=(--filter=delay --filter=truncate "$wbcache" model=requests
  truncate=256M rdelay=2ms)

@test "several connections are faster, and without the shim there is one" {
  try --connections=1,2 nbdkit "${slow[@]}" log="$log"
  assert_equal "$(told .operation)" '"read"'
  assert_equal "$(told .bytes)" 268435456
  assert_equal "$(told '.today | [.multi_conn, (.results[] | .used)]')" \
    "[false,1,1]"
  assert_equal "$(told '.mcshim | [.multi_conn, (.results[] | .used)]')" \
    '[true,1,2]'
  assert_equal "$(told .mcshim.mode)" '"auto"'
  assert_equal "$(told '.mcshim.results | .[1].gain > .[0].gain')" true
  assert_equal "$(told '.today.results | .[0].bytes_per_second ==
    .[1].bytes_per_second')" true
  assert_equal "$(told .advice)" '"use auto"'
  assert_equal "$(written)" 0
}

@test "the table" {
  run -0 --separate-stderr "$mcshim" --try --connections=1,4 --size=192M \
    nbdkit "${slow[@]}"
  assert_line --regexp '^Reading 192 MiB, read-only'
  assert_line --regexp '^today +1 \* +[0-9]+ +#+$'
  assert_line --regexp '^mcshim, auto +1 +[0-9]+ +[0-9.]+ +#+$'
  assert_line --regexp '^ +4 \(2\) +[0-9]+ +[0-9.]+ +#{30}$'
  assert_line --partial "* the multi-conn flag is off"
  assert_line --partial "nbdcopy gives a connection 128 MiB"
  assert_line --regexp '^use auto: 4 connections read [0-9.]+ times as fast$'
  assert_equal "$stderr" ""
}

@test "advice: not needed" {
  try --size=64K --connections=2 nbdkit memory 1M
  assert_equal "$(told .advice)" '"not needed"'
  assert_equal "$(told '.today | .multi_conn, .results[0].used')" \
    $'true\n1'
}

@test "advice: cannot help" {
  try --size=64K --connections=2 nbdkit "$wbcache" model=connections
  assert_equal "$(told .advice)" '"cannot help"'
  assert_equal "$(told .mcshim.results[0].used)" 1
}

@test "advice: no gain" {
  try --size=1M --connections=1,2 nbdkit "${slow[@]}"
  assert_equal "$(told .advice)" '"no gain"'
  # One request at a time in all: the second connection has to wait.
  try --connections=2 nbdkit --filter=noparallel "${slow[@]}" \
    serialize=all-requests
  assert_equal "$(told .advice)" '"no gain"'
  [[ $(told .why) == *"no faster than one"* ]]
}

@test "the mode that was asked for" {
  try --mode=unsafe --size=64K --connections=1 nbdkit "$wbcache"
  assert_equal "$(told '[.mcshim | .mode, .multi_conn]')" '["unsafe",true]'
  try --mode=disable --size=64K --connections=1 nbdkit "$wbcache"
  assert_equal "$(told .mcshim.multi_conn)" false
}

# read_of SIZE-OF-DISK [FILTER PARAMETER]: the furthest byte that is read of
# it, with --size=64K
read_of ()
{
  try --size=64K --connections=2 nbdkit ${2:+"--filter=$2"} \
    eval get_size="echo $1" ${3:+"$3"} \
    pread='echo $(($3 + $4)) >> '"$PWD"'/ends; head -c "$3" /dev/zero'
  sort -n ends | tail -1
  rm ends
}

@test "--size: only so much is read, also below filters that cut" {
  assert_equal "$(read_of 10M)" 65536
  assert_equal "$(read_of 10K)" 10240
  # The user's own come below ours.
  assert_equal "$(read_of 10M offset offset=4096)" 69632
  assert_equal "$(read_of 10M truncate truncate=40K)" 40960
  assert_equal "$(read_of 10M truncate truncate=8M)" 65536
}

@test "--size: a filter of the same name keeps its parameter" {
  try --size=64K --connections=1 nbdkit --filter=log --filter=truncate \
    memory 10M truncate=8M logfile="$PWD/log"
  assert_equal "$(grep -c ' Connect .*size=0x800000 ' "$log")" \
    "$(grep -c ' Connect ' "$log")"
}

@test "holes are read too" {
  truncate -s 1M disk
  try --size=1M --connections=1 nbdkit --filter=log file disk \
    logfile="$PWD/log"
  # The server reads the last quarter, which is a hole as all else.
  grep -q ' Read .*offset=0xc0000 ' "$log"
}

@test "without --write the plugin is opened read-only" {
  try --size=4K --connections=1 nbdkit eval get_size='echo 4K' \
    open="echo \"\$2\" >> $PWD/opened" pread='head -c "$3" /dev/zero' \
    pwrite='cat >/dev/null'
  assert_equal "$(sort -u opened)" true
}

@test "--write: only where it is meant" {
  run -2 setsid -w "$mcshim" --try --write nbdkit "$wbcache" log="$log" \
    </dev/null
  assert_output --partial "--yes"
  assert_equal "$(written)" 0
  run -2 "$mcshim" --try --write --yes nbdkit -r "$wbcache"
  assert_output --partial "read-only"
  run -2 "$mcshim" --try --write --yes nbdkit eval get_size='echo 1M' \
    pread='head -c "$3" /dev/zero'
  assert_output --partial "read-only"
  nothing_left
}

@test "--write --yes: as many bytes, and a flush" {
  head -c 1M /dev/urandom > disk
  cp disk before
  try --write --yes --size=256K --connections=1,2 nbdkit file disk
  assert_equal "$(told .operation)" '"write"'
  cmp -n 262144 disk /dev/zero
  cmp -i 262144 disk before
  # In this mode there is no flush but the client's.
  try --mode=disable --write --yes --connections=2 nbdkit "$wbcache" size=1M \
    log="$log"
  grep -q ' write$' "$log"
  grep -q ' flush$' "$log"
  refute grep -q ' zero$\| trim$' "$log"
}

# in_terminal COMMAND...: runs it in one, types what the file "type" has line
# by line: a pattern to wait for, a tab, and what to type.  Prints what was
# seen; the status is the command's.
in_terminal ()
{
  timeout 90 python3 -c '
import os, pty, re, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
steps = [l.rstrip("\n").split("\t") for l in open("type")]
while True:
    try:
        data = os.read(fd, 4096)
    except OSError:
        data = b""
    if not data:
        break
    seen += data
    while steps and re.search(steps[0][0].encode(), seen):
        typed = steps.pop(0)[1].encode().decode("unicode_escape")
        os.write(fd, typed.encode())
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
' "$@"
}

@test "--write asks, and takes only yes" {
  printf 'go on: \tno\\n\n' > "type"
  run -2 in_terminal "$mcshim" --try --write --connections=1 nbdkit \
    "$wbcache" size=1M log="$log"
  assert_output --partial "overwrites 1048576 bytes"
  assert_output --partial "nothing was written"
  assert_equal "$(written)" 0
  nothing_left
  printf 'go on: \tyes\\n\n' > "type"
  run -0 in_terminal "$mcshim" --try --write --connections=1 nbdkit \
    "$wbcache" size=1M log="$log"
  assert_output --partial "Writing 1 MiB"
  assert_output --partial "round 3 of 3, mcshim, connections: 1"
}

@test "^C: nothing is left" {
  printf 'round 1 of 3, mcshim, connections: 4\t\\x03\n' > "type"
  run -130 in_terminal "$mcshim" --try --connections=1,4 --size=4M nbdkit \
    "${slow[@]}"
  nothing_left
}

# ended_by SIGNAL: to the launcher alone, while the plugin hangs
ended_by ()
{
  echo "block-read *" > "$control"
  env --default-signal=INT "$mcshim" --try nbdkit "$wbcache" log="$log" \
    control="$control" >/dev/null 2>&1 3>&- &
  local pid=$! status=0
  wait_until grep -q ' read$' "$log"
  kill "-$1" $pid
  wait $pid || status=$?
  # Without the launcher, nobody ends a server that hangs.
  test "$1" != KILL || : > "$control"
  : > "$log"
  wait_until nothing_runs
  echo $status
}

@test "signals to the launcher alone" {
  assert_equal "$(ended_by TERM)" 143
  assert_equal "$(ended_by INT)" 130
  assert_equal "$(ended_by HUP)" 129
  nothing_left
  # From this one only the directory can stay.
  assert_equal "$(ended_by KILL)" 137
}

@test "errors" {
  local size connections
  for size in 0 12x 1.5M 100 99999999999999T -1; do
    run -2 "$mcshim" --try --size=$size nbdkit memory 1M
    assert_output --partial "--size: '$size'"
  done
  for connections in 0 1,,2 65 100 a '1,' 01 '1 2'; do
    run -2 "$mcshim" --try --connections="$connections" nbdkit memory 1M
    assert_output --partial "--connections: '$connections'"
  done
  run -2 "$mcshim" --try memory 1M
  assert_output --partial "'memory' is not nbdkit"
  run -2 "$mcshim" --try nbdkit memory 0
  assert_output --partial "size is 0"
  run -1 "$mcshim" --try nbdkit nosuch
  assert_output --partial "cannot open plugin"
  run -1 "$mcshim" --try --mode=emulate nbdkit eval get_size='echo 1M' \
    pread='head -c "$3" /dev/zero'
  assert_output --partial "needs a plugin with a working flush"
  run -1 "$mcshim" --mode=bogus --try nbdkit memory 1M
  assert_output --partial "MCSHIM_MODE"
  run -1 "$mcshim" --try --size=64K nbdkit eval get_size='echo 1M' \
    pread='echo EIO bad luck >&2; exit 1'
  assert_output --partial "bad luck"
  nothing_left
}

@test "errors: no nbdcopy, no nbdinfo" {
  [ -z "$SHIM_TEST_ROOT" ] || skip "the nbdkit of another root needs more"
  mkdir only
  local tool
  for tool in awk cat dirname dd grep mktemp nbdinfo nbdkit od printf \
    readlink rm sed sh sleep tail tr true; do
    ln -s "$(command -v $tool)" only/
  done
  PATH=$PWD/only run -2 "$mcshim" --try nbdkit memory 1M
  assert_output --partial "needs nbdcopy"
  rm only/nbdinfo
  PATH=$PWD/only run -2 "$mcshim" --try nbdkit memory 1M
  assert_output --partial "needs nbdinfo"
  nothing_left
}
