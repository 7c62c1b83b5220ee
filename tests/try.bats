#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --try: what it measures and says, and that it leaves nothing behind.

load common

setup () { ask_setup; }

# try OPTION... nbdkit ARGUMENT...
try () { answers 0 --try "$@"; }

# written: counts requests that change something
written () { grep -c ' write$\| zero$\| trim$\| flush$' "$log" || true; }

# nbdcopy is tests/clients/paced.py, as fast as the file "figures" says,
# by the clock that date prints: a run takes one second of it.  What would wait
# longer waits for the file "over", which that client makes.  So the machine's
# clock does not matter.
paced=$BATS_TEST_DIRNAME/clients/paced.py
disk=("$wbcache" size=1G)
# pace [FIGURES]
pace ()
{
  mkdir -p bin
  echo "${1-}" > figures
  echo 1000000000000000000 > clock
  ln -sf "$paced" bin/nbdcopy
  program bin/date 'exec cat clock'
  program bin/sleep 'case $1 in 0.*) exec /bin/sleep "$1" ;; esac' \
    'until test -e over; do /bin/sleep 0.2; done'
  PATH=$PWD/bin:$PATH
}

# The steps of a round are: without the shim, with it over one connection, with
# it over the others.  Every other round goes the other way.
@test "several connections are faster" {
  pace "8 8 32  36 12 8  8 8 32"
  try --connections=4 nbdkit "${disk[@]}" log="$log"
  assert_equal "$(told '[.operation, .client, .mode]')" \
    '["read","nbdcopy","auto"]'
  assert_equal "$(told .bytes)" 536870912
  assert_equal "$(told '.servers[] | [.name, .shim, .multi_conn]' |
    paste -sd' ')" '["today",false,false] ["mcshim, auto",true,true]'
  assert_equal "$(told '.results[] | [.name, .used, .bytes_per_second / 1048576,
    .gain]' | paste -sd' ')" '["today",1,8,1] ["mcshim, auto",1,8,1]'\
' ["mcshim, auto",4,32,4]'
  assert_equal "$(told '.results[2].rounds | map(. / 1048576)')" "[32,36,32]"
  assert_equal "$(told '[.rounds, .finished, .advice, .why]')" \
    '[3,true,"use auto with -r","4 connections read 4.0 times as fast"]'
  assert_equal "$(written)" 0
}

@test "the table" {
  pace "8 8 32  36 12 8  8 8 32"
  run -0 --separate-stderr "$mcshim" --try --seconds=100 --connections=4 \
    nbdkit -r "${disk[@]}"
  assert_line --index 0 \
    "Reading 512 MiB, read-only (-r), for about 300 seconds:"
  assert_line --index 1 "3 steps in 3 rounds, 100 seconds each"
  assert_line --index 2 --regexp \
    '^ +connections  MiB/s   rounds       gain$'
  assert_line --index 3 --regexp \
    '^today +1 \* +8\.00 +8\.00-8\.00 +#{4}$'
  assert_line --index 4 --regexp \
    '^mcshim, auto +1 +8\.00 +8\.00-12\.0 +1\.00 +#{4}$'
  assert_line --index 5 --regexp '^ +4 +32\.0 +32\.0-36\.0 +4\.00 +#{15}$'
  assert_line --partial "* the multi-conn flag is off"
  assert_equal "${lines[-1]}" "use auto: 4 connections read 4.0 times as fast"
  assert_equal "$stderr" ""
}

@test "a server that was not typed with -r: the advice says what was measured" {
  pace "8 8 32  36 12 8  8 8 32"
  run -0 "$mcshim" --try --vary=track-dirty=connection,fast --connections=1 \
    nbdkit "${disk[@]}"
  assert_line --regexp '^track-dirty=connection +1 '
  assert_line --partial "use --track-dirty=fast with -r: "
  assert_line --partial "(without -r it may be otherwise; "
  narrow
}

# A server that is killed when a copy's time is over, and a client that then
# aborts.
@test "what a shell says about its children is not printed" {
  local shell
  pace
  rm bin/nbdcopy                # A link to the tests' own.
  program bin/nbdcopy 'read -r figure rest < figures' "$paced && exit" \
    'test $figure != 1 || kill -ABRT $$' 'exit 1'
  for shell in sh bash; do
    echo "8 8 1  1 8 8  8 8 1" > figures
    run -0 --separate-stderr $shell "$mcshim" --try --connections=2 nbdkit \
      "${disk[@]}"
    assert_line --partial "no gain: "
    assert_equal "$stderr" ""
  done
}

# concludes ADVICE WHY FIGURES OPTION...
concludes ()
{
  pace "$3"
  try "${@:4}" nbdkit "${disk[@]}"
  assert_equal "$(told .advice)" "\"$1\""
  [[ $(told .why) == *"$2"* ]] || fail "$(told .why)"
}

@test "no verdict: the rounds, or one connection with the shim, differ as much" {
  concludes "no verdict" "the rounds differ as much" \
    "8 8 20  24 8 20  8 8 24" --connections=4
  concludes "no verdict" "the rounds differ as much" \
    "8 8 24  24 28 8  8 8 24" --connections=4
}

@test "no gain" {
  concludes "no gain" "no faster than one" "8 8 8  8 8 8  8 8 8" \
    --connections=2
}

@test "nothing is measured where nothing can be gained" {
  concludes "too small" "128 MiB at a time" "" --size=128M --connections=2
  disk=(memory 1G)
  concludes "not needed" "without the shim" ""
  disk=("$wbcache" size=1G model=connections)
  concludes "cannot help" "the flag stays off" ""
  disk=("$wbcache" size=1G model=all)
  concludes "no gain" "one request at a time" ""
  assert_equal "$(told .results)" "[]"
  # A line of the plugin that is like nbdkit's.
  disk=(eval get_size='echo 1G' pread='head -c "$3" /dev/zero'
    thread_model='echo serialize_all_requests'
    get_ready='echo nbdkit: debug: using thread model: parallel >&2')
  concludes "no gain" "one request at a time" ""
  run -0 "$mcshim" --try nbdkit "${disk[@]}"
  assert_output "no gain: one request at a time"
}

@test "as many connections as nbdcopy uses, not as it was told" {
  pace "8 8 8 9  9 8 8 8  8 8 8 9"
  try --size=300M --connections=2,8,64 nbdkit "${disk[@]}"
  assert_equal "$(told '[.results[] | .asked]')" "[1,1,2,3]"
  assert_equal "$(told '[.results[] | .used]')" "[1,1,2,3]"
}

@test "a copy that takes longer than its time is cut" {
  pace "8 8 1  1 8 8  8 8 1"
  try --connections=2 nbdkit "${disk[@]}"
  assert_equal "$(told '.results[2].rounds | map(. / 1048576)')" '[1,1,1]'
  assert_equal "$(told .advice)" '"no gain"'
}

@test "a plugin that hangs while it is read" {
  echo "block-read *" > "$control"
  complains 1 "hangs in pread: no answer in 8 seconds" --try --seconds=2 \
    nbdkit "$wbcache" size=1G log="$log" control="$control"
  # nbdinfo reads with a second connection, nbdcopy with the first.
  pace
  echo "block-read 0" > control
  ln -sf "$(PATH=/usr/bin command -v nbdcopy)" bin/nbdcopy
  "$mcshim" --try nbdkit "${disk[@]}" log="$log" control="$PWD/control" \
    > told 2>&1 &
  wait_until grep -q '^0 read$' "$log"
  touch over
  wait $! && fail "it went on"
  grep "nothing was read in time: the plugin hangs" told
  nothing_left
}

@test "--vary: each value of a knob" {
  pace "8 8 32 8 64  64 8 36 8 8  8 8 32 8 60"
  try --vary=track-dirty=connection,fast --connections=1,4 nbdkit \
    "${disk[@]}"
  assert_equal "$(told '.results[] | [.name, .used, .gain]' | paste -sd' ')" \
    '["today",1,1] ["track-dirty=connection",1,1]'\
' ["track-dirty=connection",4,4] ["track-dirty=fast",1,1]'\
' ["track-dirty=fast",4,8]'
  assert_equal "$(told '[.advice, .why]')" '["use --track-dirty=fast with -r",'\
'"4 connections read 8.0 times as fast as today, and 4.0 times with '\
'track-dirty=connection"]'
}

@test "--handles with several values: each of them, over one connection" {
  pace "8 4 64  64 4 8  8 4 64"
  try --handles=1,16 nbdkit "$wbcache" size=1G model=requests
  assert_equal "$(told '.results[] | [.name, .used, .gain]' | paste -sd' ')" \
    '["today",1,1] ["handles=1",1,0.5] ["handles=16",1,8]'
  assert_equal "$(told '[.advice, .why]')" '["use --handles=16 with -r",'\
'"1 connection reads 8.0 times as fast as today, and 0.5 times with handles=1"]'
}

@test "--vary: no verdict if the values differ no more than the rounds" {
  concludes "no verdict" \
    "no more than the rounds do: repeat it on an idle machine" \
    "8 16 20  16 20 8  8 16 20" --vary=flush-threads=1,2 --connections=1
}

@test "--vary: what is to be compared is compared, and the first may be best" {
  disk=(memory 1G)
  concludes "use --mode=auto with -r" \
    "2.0 times as fast as today, and 1.0 times with mode=disable" \
    "8 16 8  8 16 8  8 16 8" --vary=mode=auto,disable --connections=1
}

@test "--vary: the library knows which knobs and values there are" {
  complains 1 "did you mean MCSHIM_TRACK_DIRTY?" --try --vary=track-dirt=1,2 \
    nbdkit memory 1M
  complains 1 "invalid value 'slow'" --try --vary=track-dirty=fast,slow \
    nbdkit memory 1M
}

@test "--client: another client" {
  pace "8 16  16 8  8 16"
  try --client='exec nbdcopy' nbdkit "${disk[@]}"
  assert_equal "$(told '.results[] | [.name, .asked, .used, .gain]' |
    paste -sd' ')" '["today",null,2,1] ["mcshim, auto",null,2,2]'
  assert_equal "$(told '[.client, .advice, .why]')" \
    '["exec nbdcopy","use auto with -r","the client is 2.0 times as fast"]'
}

@test "--client: it may be told how many connections, and is never cut" {
  # No round begins after the time is over.
  pace "8 8 8 32"
  try --client='exec nbdcopy' --seconds=1 --connections=1,4 nbdkit \
    "${disk[@]}"
  assert_equal "$(told '.results[] | [.name, .asked, .used, .gain]' |
    paste -sd' ')" '["today",1,1,1] ["today",4,4,1]'\
' ["mcshim, auto",1,1,1] ["mcshim, auto",4,4,4]'
  assert_equal "$(told '[.rounds, .finished, .advice]')" \
    '[1,true,"no verdict"]'
}

@test "fewer than three rounds: what to do, with --vary too" {
  concludes "no verdict" "fewer than three rounds: give it more --seconds" \
    "8 8 20" --client='exec nbdcopy' --seconds=1 --handles=1,4
  concludes "no verdict" "fewer than three rounds: give it more --seconds" \
    "8 20" --client='exec nbdcopy' --seconds=1
}

@test "--client: it fails, or has nothing to do with the server" {
  complains 1 "bad luck" --try --client='echo bad luck >&2; exit 3' nbdkit \
    "$wbcache" size=1G
  assert_output --partial "the client failed"
  complains 1 "the client neither read nor wrote" --try --client=: nbdkit \
    "$wbcache" size=1G
}

# What needs no time: a client of the tests' own.
copy='nbdcopy --no-extents "$uri" null:'

# read_of SIZE-OF-DISK [FILTER PARAMETER]: the last byte of it that is read, with
# --size=64K
read_of ()
{
  try --size=64K --seconds=1 --client="$copy" nbdkit ${2:+"--filter=$2"} \
    eval get_size="echo $1" ${3:+"$3"} thread_model='echo parallel' \
    pread='echo $(($3 + $4)) >> '"$PWD"'/ends; head -c "$3" /dev/zero'
  sort -n ends | tail -1
  rm ends
}

@test "--size: only so much is read, also below filters that cut" {
  assert_equal "$(read_of 10M)" 65536
  assert_equal "$(read_of 10K)" 10240
  # The user's own filters come below ours.
  assert_equal "$(read_of 10M offset offset=4096)" 69632
  assert_equal "$(read_of 10M truncate truncate=40K)" 40960
  assert_equal "$(read_of 10M truncate truncate=8M)" 65536
}

@test "the mode that was asked for" {
  concludes "use unsafe with -r" "2 connections" "8 8 16  16 8 8  8 8 16" \
    --mode=unsafe --connections=2
  concludes "cannot help" "the flag stays off" "" --mode=disable
}

@test "without --write the plugin is opened read-only, and holes are read" {
  run -0 "$mcshim" --try --size=4K --connections=1 --seconds=1 \
    --client='nbdcopy "$uri" null:' nbdkit eval get_size='echo 4K' \
    open="echo \"\$2\" >> $PWD/opened" pread='head -c "$3" /dev/zero' \
    pwrite='cat >/dev/null'
  assert_equal "$(sort -u opened)" true
  # nbdcopy, as it is run here, treats a hole like data.
  truncate -s 1M disk
  try --connections=1 --seconds=300 nbdkit file disk
  assert_equal "$(told '[.results[].bytes_per_second > 0] | all')" true
}

@test "--write: only where it is meant" {
  run -2 setsid -w "$mcshim" --try --write nbdkit "$wbcache" log="$log" \
    </dev/null
  assert_output --partial "--yes"
  assert_equal "$(written)" 0
  complains 2 "read-only" --try --write --yes nbdkit -r "$wbcache"
  complains 2 "read-only" --try --write --yes nbdkit eval get_size='echo 1M' \
    pread='head -c "$3" /dev/zero'
}

@test "--write --yes: as many bytes, and a flush" {
  head -c 1M /dev/urandom > disk
  cp disk before
  # In this mode only the client flushes.
  try --mode=disable --vary=track-dirty=off --write --yes --size=256K \
    --connections=1 nbdkit --filter=noparallel file disk serialize=connections
  assert_equal "$(told .operation)" '"write"'
  cmp -n 262144 disk /dev/zero
  cmp -i 262144 disk before
  try --vary=mode=disable --write --yes --connections=1 nbdkit "$wbcache" \
    size=1M log="$log"
  grep -q ' write$' "$log"
  grep -q ' flush$' "$log"
  refute grep -q ' zero$\| trim$' "$log"
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
  assert_output --partial "Writing 1 MiB and a flush:"
  assert_output --partial "round 1 of 3, mcshim, auto, connections: 1"
}

@test "^C: what there is so far, and nothing is left" {
  pace
  # Nothing ends before the ^C.
  sed -i 's/^until.*/exec tail -f clock/' bin/sleep
  echo "8 8 32  1" > figures
  printf 'round 2 of 3, mcshim\t\\x03\n' > "type"
  run -130 in_terminal "$mcshim" --try --connections=4 nbdkit "${disk[@]}"
  assert_line --regexp '^ +4 +32\.0 +4\.00 +#{15}.?$'
  assert_line --partial "Stopped in round 2 of 3."
  assert_line --partial "no verdict: there are fewer than three rounds"
  nothing_left
  echo 1 > figures
  printf 'round 1 of 3, today\t\\x03\n' > "type"
  run -130 in_terminal "$mcshim" --try --connections=4 nbdkit "${disk[@]}"
  refute_output --partial "connections  MiB/s"
  nothing_left
}

@test "messages start on a line of their own on a terminal" {
  : > "type"
  run -1 in_terminal "$mcshim" --try nbdkit memory
  assert_output --partial $'\r\e[Knbdkit: error: you must specify size='
  assert_line --regexp "^mcshim: --try: this server does not start"
}

# ended_by SIGNAL: sends it only to the launcher, while the plugin hangs
ended_by ()
{
  echo "block-read *" > "$control"
  env --default-signal=INT "$mcshim" --try nbdkit "$wbcache" size=1G \
    log="$log" control="$control" >/dev/null 2>&1 3>&- &
  local pid=$! status=0
  wait_until grep -q ' read$' "$log"
  kill "-$1" $pid
  wait $pid || status=$?
  # Without the launcher, nothing ends a server that hangs.
  test "$1" != KILL || : > "$control"
  wait_until nothing_runs
  : > "$log"
  echo $status
}

@test "signals to the launcher alone" {
  assert_equal "$(ended_by TERM)" 143
  assert_equal "$(ended_by INT)" 130
  assert_equal "$(ended_by HUP)" 129
  nothing_left
  # After this signal only the directory can remain.
  assert_equal "$(ended_by KILL)" 137
}

@test "errors" {
  local wrong
  for wrong in 0 12x 1.5M 100 99999999999999T -1; do
    complains 2 "--size: '$wrong'" --try --size=$wrong nbdkit memory 1M
  done
  for wrong in 0 1,,2 65 100 a "1," 01 '1 2'; do
    complains 2 "--connections: '$wrong'" --try --connections="$wrong" nbdkit \
      memory 1M
  done
  for wrong in mode =auto mode= "mode=auto," "mode=,auto" --mode=auto m1=1; do
    complains 2 "--vary: '$wrong'" --try --vary="$wrong" nbdkit memory 1M
  done
  for wrong in 0 x 1.5 99999; do
    complains 2 "--seconds: '$wrong'" --try --seconds="$wrong" nbdkit memory 1M
  done
  complains 2 "'memory' is not nbdkit" --try memory 1M
  complains 2 "size is 0" --try nbdkit memory 0
  complains 2 "leave out your own" --try nbdkit --filter=log memory 1M \
    logfile=/dev/null
  complains 1 "cannot open plugin" --try nbdkit nosuch
  complains 1 "needs a plugin with a working flush" --try --mode=emulate \
    nbdkit eval get_size='echo 1M' pread='head -c "$3" /dev/zero'
  complains 1 "MCSHIM_MODE" --mode=bogus --try nbdkit memory 1M
  complains 1 "bad luck" --try --client="$copy" nbdkit eval \
    get_size='echo 1M' pread='echo EIO bad luck >&2; exit 1'
}

posix="awk cat cut dd dirname date head mktemp mv nbdinfo nbdkit od printf
  readlink rm sed setsid sh sleep sort tail tr"

# With each awk that there is, a decimal comma in the locale, and a busybox.
@test "it needs no more than a POSIX shell, awk and setsid" {
  [ -z "$SHIM_TEST_ROOT" ] || skip "the nbdkit of another root needs more"
  pace
  mv bin fake
  localedef -i de_DE -f UTF-8 "$PWD/de_DE.UTF-8" || true
  local awk tool
  for awk in mawk gawk original-awk busybox; do
    command -v $awk || continue
    # shellcheck disable=SC2086 # words
    tools $posix
    ln -sf "$(command -v $awk)" only/awk
    ln -sf "$PWD"/fake/* only/
    if [ $awk = busybox ]; then
      for tool in $posix; do
        busybox "$tool" --help >/dev/null 2>&1 && [ "$tool" != date ] &&
          [ "$tool" != sleep ] || continue
        ln -sf "$(command -v busybox)" "only/$tool"
      done
    fi
    echo "8 36" > figures
    PATH=$PWD/only LOCPATH=$PWD LC_ALL=de_DE.UTF-8 "$mcshim" --try --json \
      --client='exec nbdcopy' --seconds=1 nbdkit "${disk[@]}" > told
    assert_equal "$awk: $(told '[.results[] | .gain, .bytes_per_second]')" \
      "$awk: [1,8388608,4.5,37748736]"
  done
}

@test "errors: no nbdcopy, no nbdinfo" {
  [ -z "$SHIM_TEST_ROOT" ] || skip "the nbdkit of another root needs more"
  # shellcheck disable=SC2086 # words
  tools $posix
  PATH=$PWD/only run -2 "$mcshim" --try nbdkit memory 1M
  assert_output --partial "needs nbdcopy"
  rm only/nbdinfo
  PATH=$PWD/only run -2 "$mcshim" --try nbdkit memory 1M
  assert_output --partial "needs nbdinfo"
  nothing_left
}
