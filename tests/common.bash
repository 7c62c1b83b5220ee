# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# What the test files share: one way to start and stop a server, and one to
# talk to it.
#
# The environment can name another library (MCSHIM_SO), libraries to preload
# before it (MCSHIM_TEST_PRELOAD, such as a sanitizer's runtime), a command to
# run the server under (MCSHIM_TEST_WRAPPER, such as valgrind) and a root whose
# nbdkit is to be used (MCSHIM_TEST_ROOT).  They are read here and unset: the
# library under test refuses knobs that it does not know.

# shellcheck shell=bash disable=SC2034,SC2154 # the test files use and set them

bats_require_minimum_version 1.5.0
# What bats_load_library would load: it and they start eighteen processes, half
# of the time of a short test.
for directory in ${BATS_LIB_PATH//:/ }; do
  for file in "$directory"/bats-{support,assert}/src/*.bash; do
    # shellcheck disable=SC1090 # not ours
    [ ! -e "$file" ] || . "$file"
  done
done
# Reading this, which is empty, for a while is a sleep without a process.
never=$BATS_RUN_TMPDIR/never
[ -p "$never" ] || mkfifo "$never"

# If a test fails: which file it is in, and the output of "run".
BATS_TEST_NAME_PREFIX=${BATS_TEST_FILENAME##*/}
BATS_TEST_NAME_PREFIX="${BATS_TEST_NAME_PREFIX%.bats}: "
BATS_PRINT_OUTPUT_ON_FAILURE=1

shim_so=${MCSHIM_SO:-${SHIM_SO:-${BATS_TEST_DIRNAME%/*}/libmcshim.so}}
test_preload=${MCSHIM_TEST_PRELOAD:-${SHIM_TEST_PRELOAD:-}}
test_wrapper=${MCSHIM_TEST_WRAPPER:-${SHIM_TEST_WRAPPER:-}}
export SHIM_SO=$shim_so SHIM_TEST_PRELOAD=$test_preload
export SHIM_TEST_WRAPPER=$test_wrapper
export SHIM_TEST_ROOT=${MCSHIM_TEST_ROOT:-${SHIM_TEST_ROOT:-}}

source=${BATS_TEST_DIRNAME%/*}
launcher=$source/scripts/mcshim
checker=$source/mcshim-checker
plugins=$BATS_TEST_DIRNAME/plugins
# A library of another architecture has its own plugins beside it, and is
# preloaded only into the server, by compat/nbdkit.
foreign=
if [ -d "${shim_so%/*}/plugins" ]; then
  plugins=${shim_so%/*}/plugins
  foreign=SHIM_TEST_
fi
wbcache=$plugins/wbcache.so

# Is the nbdkit under test built with musl (tests/musl)?
on_musl () { [ -n "$foreign" ] && [ ! -d "$SHIM_TEST_ROOT/usr" ]; }

# nbdsh and nbdkit's python plugin are built for the system's python3; another
# one may be before it on PATH.
export PATH=/usr/bin:$PATH
[ -z "$SHIM_TEST_ROOT" ] || PATH=$BATS_TEST_DIRNAME/compat:$PATH
unset LD_PRELOAD ODD NEXT_LOG DLSYM_LOG
unset "${!MCSHIM_@}"

common_setup ()
{
  cd "$BATS_TEST_TMPDIR" || return
  # A test that hangs loses what it waits for, and fails.  bats' own timeout
  # leaves a sleep behind when a test ends at once.
  { read -rt 600 _ <>"$never" || { : > hung; pkill -n -P $$; }; } 3>&- &
  watchdog=$!
  disown
  sock=$BATS_TEST_TMPDIR/sock
  log=$BATS_TEST_TMPDIR/log
  summary=$BATS_TEST_TMPDIR/summary
  control=$BATS_TEST_TMPDIR/control
  server_err=$BATS_TEST_TMPDIR/server.err
  stats=$BATS_TEST_TMPDIR/stats
  export sock log control uri="nbd+unix:///?socket=$sock"
  : > "$log"
  : > "$server_err"
  # A daemon has no stderr for a sanitizer's reports.  The sanitizer of
  # undefined behaviour still writes there, but ends the server.
  local variable
  [ -z "$test_preload" ] ||
    for variable in TSAN_OPTIONS ASAN_OPTIONS; do
      export $variable="${!variable-}:log_path=$BATS_TEST_TMPDIR/report"
    done
}

common_teardown ()
{
  kill "$watchdog" 2>/dev/null || :
  # Before a server is killed: bash says so on its stderr.
  [ -n "${BATS_TEST_COMPLETED-}" ] ||
    show "$server_err" "$log" "$summary" "$stats" "$control"
  # Nothing may be left behind, even if the test failed.
  : > "$control"
  local dir
  for dir in "$BATS_TEST_TMPDIR"/server.??????; do
    if [ -s "$dir/pid" ] && [ ! -e "$dir/status" ]; then
      kill -9 "$(<"$dir/pid")"
      wait_until test -e "$dir/status"
    fi
  done
  # A sanitizer's report fails any test.
  [ -z "$test_preload" ] ||
    ! grep -sh . "$BATS_TEST_TMPDIR"/report.* || return
  [ ! -s "$server_err" ] ||
    ! grep 'Sanitizer: \|runtime error: ' "$server_err" || return
  [ ! -e "$BATS_TEST_TMPDIR/hung" ] || fail "it hung"
}

setup () { common_setup; }
teardown () { common_teardown; }

# wait_until COMMAND...: there is no other way to wait for another process's
# file, so it looks often, and gives up only when something is clearly wrong.
# bats notes each command, which takes longer than most of these do.  So it is
# told not to while this waits.
wait_until ()
{
  local status=0
  set +T
  look_until "$@" || status=1
  set -T
  return $status
}

look_until ()
{
  local tries
  for ((tries = 0; tries < 3000; tries++)); do
    if "$@"; then return 0; fi
    read -rt 0.01 _ <>"$never" || :
  done
  echo "still waiting for: $*"
  return 1
}

wait_log () { wait_until grep -qx -- "$1" "$log"; }

# show FILE...: prints the last lines of those that exist, once.
show ()
{
  local file
  for file; do
    [ -n "${shown[$file]-}" ] || [ ! -s "$file" ] ||
      tail -n 40 "$file" | sed "s|^|${file##*/}: |"
    shown[$file]=1
  done
}
declare -gA shown           # "load" is a function

# looks STATUS OPTIONS REGEX FILE: fails, and shows the file, unless grep has
# that exit status.
looks ()
{
  local status=0
  grep "$2" -e "$3" "$4" >/dev/null || status=$?
  local found=("is not in" "is in")
  [ $status -eq "$1" ] || { show "$4"; fail "'$3' ${found[$1]} ${4##*/}"; }
}

# has REGEX FILE and lacks REGEX FILE: whether a line matches; has_line: does a
# whole line?
has () { looks 0 -q "$1" "$2"; }
lacks () { looks 1 -q "$1" "$2"; }
has_line () { looks 0 -qx "$1" "$2"; }

# normal FILE: it has only lines that tell the mode.
normal () { looks 1 -qv '^mcshim [0-9.]*: [a-z0-9]*: [a-z]*[:;,] .*$' "$1"; }

# value NAME: from the statistics, NAME without mcshim_; the sum if there are
# labels.  counts NAME VALUE: is it that?
value ()
{
  awk -v name="mcshim_$1" '
    { sample = $1; sub(/\{.*/, "", sample) }
    sample == name { sum += $NF; found = 1 }
    END { if (found) printf(sum == int(sum) ? "%.0f\n" : "%.9f\n", sum) }' "$stats"
}
counts () { [ "$(value "$1")" = "$2" ]; }

# counted NAME VALUE...: fails unless the statistics have these.
counted ()
{
  while [ $# -gt 0 ]; do
    counts "$1" "$2" || { show "$stats"; fail "$1: must be $2"; }
    shift 2
  done
}

# none KEY...: each is 0 in the plugin's summary.
none ()
{
  local key
  for key; do
    has_line "$key: 0" "$summary"
  done
}

# under_shim [MCSHIM_X=VALUE...] COMMAND...: with the library preloaded, and
# PRELOAD_BEFORE and PRELOAD_AFTER around it.  Only this preloads the library.
under_shim ()
{
  local vars=() entries=${test_preload:+$test_preload:}
  if [ ! -f "$shim_so" ]; then
    # ld.so only warns about a missing library, and goes on without it.
    echo "$shim_so is missing"
    return 1
  fi
  while [[ $1 =~ ^[A-Z_]+= ]]; do
    vars+=("$1")
    shift
  done
  entries+=${PRELOAD_BEFORE:+$PRELOAD_BEFORE:}$shim_so
  entries+=${PRELOAD_AFTER:+:$PRELOAD_AFTER}
  # shellcheck disable=SC2086 # the wrapper is words
  env "${vars[@]}" "${foreign}LD_PRELOAD=$entries" $test_wrapper "$@"
}

no_shim () { env "$@"; }

# gone PID: there is no such process.
gone () { ! kill -0 "$1" 2>/dev/null; }

# For --run: prints true or false.  An old nbdinfo has no --can.
# shellcheck disable=SC2016 # for the server's shell
flag='nbdinfo "$uri" 2>&1 | sed -n "s/.*can_multi_conn: //p"'

# needs PROGRAM...: or the test is skipped.
needs ()
{
  local program
  for program; do
    command -v "$program" >/dev/null || skip "there is no $program"
  done
}

# has_plugin NAME: or the test is skipped.  The cc plugin also needs a
# compiler.
has_plugin ()
{
  nbdkit --dump-plugin "$1" >/dev/null 2>&1 ||
    skip "nbdkit's $1 plugin is not installed"
  if [ "$1" = cc ]; then
    { test -z "$foreign" && nbdkit -U - null --run 'command -v gcc' >/dev/null; } ||
      skip "there is no compiler for this nbdkit"
  fi
}

# has_filter NAME: or the test is skipped.
has_filter ()
{
  nbdkit --dump-plugin --filter="$1" null >/dev/null 2>&1 ||
    skip "this nbdkit has no $1 filter"
}

has_tls ()
{
  nbdkit --dump-config | grep -qx tls=yes || skip "this nbdkit has no TLS"
}

# With the thread sanitizer's runtime, even without the library, a shell
# crashes, and a program that has printed an errno hangs in its exit handlers.
not_under_tsan ()
{
  [[ $test_preload != *tsan* ]] ||
    skip "not possible with the thread sanitizer's runtime"
}

# serve NBDKIT-ARGUMENT...: a server on $sock, ready when this returns; $log
# and $control are empty then.  MCSHIM_X=VALUE, anywhere, is a variable for it.
# Its stderr goes to $server_err, its pid and exit status to $server/pid and
# $server/status.
# SERVE_WITH=no_shim starts it without the library, and SERVE_ON="WORDS" has it
# listen elsewhere.
serve ()
{
  local vars=() words=() word with=${SERVE_WITH:-under_shim}
  for word; do
    if [[ $word = MCSHIM_* ]]; then vars+=("$word"); else words+=("$word"); fi
  done
  server=$(mktemp -d "$BATS_TEST_TMPDIR/server.XXXXXX") || return
  : | tee "$log" "$control"
  [ ! -e "$sock" ] || rm "$sock"
  local on=(-U "$sock")
  [ -z "${SERVE_ON-}" ] || read -ra on <<<"$SERVE_ON"
  {
    # bats would end this shell at a failure.
    local status=0
    "$with" "${vars[@]}" nbdkit -f "${on[@]}" -P "$server/pid" "${words[@]}" ||
      status=$?
    echo $status > "$server/status"
  } </dev/null >>"$server_err" 2>&1 3>&- &
  wait_until server_started || return
  if [ -e "$server/status" ]; then
    echo "the server did not start"
    return 1
  fi
  export server_pid
  server_pid=$(<"$server/pid")
}

server_started () { [ -s "$server/pid" ] || [ -e "$server/status" ]; }

# Stops the server, unless it has ended; fails if it does not end well.
stop_server ()
{
  [ -s "$server/status" ] || kill -TERM "$(<"$server/pid")" 2>/dev/null || :
  if ! wait_until test -s "$server/status"; then
    kill -ABRT "$(<"$server/pid")"
    return 1
  fi
  [ "$(<"$server/status")" -eq 0 ] || {
    echo "the server's exit status was $(<"$server/status")"
    return 1
  }
}

# all_see FLAG: each connection has that flag, and all see what one writes and
# another flushes.
all_see ()
{
  client <<EOT
h = [conn() for i in range(4)]
expect([c.can_multi_conn() for c in h], [$1] * 4)
all_see(h)
EOT
}

# disk [METHOD=CODE...]: makes a disk of zeroes that can be read, written to and
# flushed, with these methods besides or instead; empty ones are left out.  The
# array "disk" has them for the eval plugin, the file "script" for the sh
# plugin.
disk ()
{
  local method
  local -A code=([get_size]='echo 1M' [pread]='head -c "$3" /dev/zero'
    [can_write]='exit 0' [pwrite]='cat >/dev/null'
    [can_flush]='exit 0' [flush]='exit 0')
  for method; do
    code[${method%%=*}]=${method#*=}
  done
  disk=()
  {
    printf '%s\n' '#!/bin/sh' 'case $1 in'
    for method in "${!code[@]}"; do
      [ -n "${code[$method]}" ] || continue
      disk+=("$method=${code[$method]}")
      printf '%s) %s ;;\n' "$method" "${code[$method]}"
    done
    printf '%s\n' '*) exit 2 ;;' 'esac'
  } > script
  chmod +x script
}
no_flush=(can_flush= flush=)
no_write=(can_write= pwrite= "${no_flush[@]}")

# file_disk SIZE [METHOD=CODE...]: the same of the file "image", which it makes.
file_disk ()
{
  truncate -s "$1" image
  local at="'$PWD/image' status=none"
  disk get_size="stat -Lc %s '$PWD/image'" \
    pread="dd if=$at iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
    pwrite="dd of=$at oflag=seek_bytes conv=notrunc seek=\$4" "${@:2}"
}

# program FILE LINE...: a shell script.
program ()
{
  printf '%s\n' '#!/bin/sh' "${@:2}" > "$1"
  chmod +x "$1"
}

# ask_setup: for tests of launcher options that start their own server, and
# must leave no files behind.  The answer is in the file "told".
ask_setup ()
{
  mcshim=$launcher
  common_setup
  mkdir asked
  export TMPDIR=$BATS_TEST_TMPDIR/asked
}

# answers STATUS ARGUMENT...: the launcher ends with that status, and leaves its
# answer in the file "told", and nothing else.
answers ()
{
  local status=0
  timeout 280 "$mcshim" --json "${@:2}" > told || status=$?
  [ $status -eq "$1" ] || fail "the status is $status: $(<told)"
  python3 -m json.tool < told > /dev/null
  nothing_left
}

# complains STATUS TEXT ARGUMENT...: the launcher ends with that status, says
# that, and leaves nothing.
complains ()
{
  run "-$1" "$mcshim" "${@:3}"
  assert_output --partial "$2"
  nothing_left
}

# tools NAME...: a directory "only" with these.
tools ()
{
  local tool
  rm -rf only
  mkdir only
  for tool; do
    ln -s "$(command -v "$tool")" only/
  done
}

# narrow: no line of what was just run is wider than 80 columns, but for the
# command to type.
narrow ()
{
  refute grep -n '^.\{81\}' <(grep -v '^[^ ]*mcshim nbdkit -\|^nbdkit -' <<<"$output")
}

told () { jq -c "$1" told; }

# --probe, --try and --verify have left nothing in the directory "asked", their
# TMPDIR, which is in the command lines of server and clients.
nothing_left ()
{
  wait_until nothing_runs
  assert_equal "$(ls -A asked)" ""
}

nothing_runs () { ! pgrep -f "$TMPDIR/tmp[.]" >/dev/null; }

# in_terminal COMMAND...: runs it in a terminal, and types what the file "type"
# says: each line is a pattern to wait for, a tab, and what to type.  Prints
# what was seen; the status is the command's.
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

# client [COMMAND...]: runs the Python script on stdin, under COMMAND if given,
# with the helpers of clients/script.py.
client () { "$@" python3 "$BATS_TEST_DIRNAME/clients/script.py"; }

# on_stdio PLUGIN [PARAMETER]: a server for one client, on standard input and
# output, has the flag, and works.
on_stdio ()
{
  words=$* client under_shim <<'EOT'
h = nbd.NBD()
h.connect_command(["nbdkit", "-s"] + os.environ["words"].split())
assert h.can_multi_conn()
h.pwrite(b"next", 0)
h.flush()
assert h.pread(4, 0) == b"next"
h.shutdown()
EOT
}

# session [ARGUMENT...]: runs the client's script on stdin, between the start
# of a server and its end.  A file may have its own way of each step.
session () { start "$@"; ask; ends_well; }
start () { serve "$@"; }
ask () { client; }
ends_well () { stop_server; }
