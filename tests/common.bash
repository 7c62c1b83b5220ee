# What the test files share: one way to start and stop a server, and one to
# talk to it.
#
# The environment can name another library (MCSHIM_SO), libraries to preload
# before it (MCSHIM_TEST_PRELOAD, a sanitizer's runtime say), a command to
# run the server under (MCSHIM_TEST_WRAPPER, valgrind say) and a root whose
# nbdkit is to be used (MCSHIM_TEST_ROOT).  They are taken over here and unset:
# the library under test refuses knobs it does not know.

# shellcheck shell=bash disable=SC2034,SC2154 # the test files use and set them

bats_require_minimum_version 1.5.0
bats_load_library bats-support
bats_load_library bats-assert

shim_so=${MCSHIM_SO:-${SHIM_SO:-$(cd "$BATS_TEST_DIRNAME/.." && pwd)/libmcshim.so}}
test_preload=${MCSHIM_TEST_PRELOAD:-${SHIM_TEST_PRELOAD:-}}
test_wrapper=${MCSHIM_TEST_WRAPPER:-${SHIM_TEST_WRAPPER:-}}
export SHIM_SO=$shim_so SHIM_TEST_PRELOAD=$test_preload
export SHIM_TEST_WRAPPER=$test_wrapper
export SHIM_TEST_ROOT=${MCSHIM_TEST_ROOT:-${SHIM_TEST_ROOT:-}}

plugins=$BATS_TEST_DIRNAME/plugins
# A library of another architecture has plugins of its own beside it, and is
# preloaded inside qemu only.
in_qemu=
if [ -d "${shim_so%/*}/plugins" ]; then
  plugins=${shim_so%/*}/plugins
  in_qemu=QEMU_SET_ENV=
fi
wbcache=$plugins/wbcache.so

# The python3 that nbdsh and nbdkit's python plugin are built for is the
# system's; another one may be before it.
export PATH=/usr/bin:$PATH
[ -z "$SHIM_TEST_ROOT" ] || PATH=$BATS_TEST_DIRNAME/compat:$PATH
unset LD_PRELOAD ODD NEXT_LOG DLSYM_LOG
while read -r variable; do
  unset "$variable"
done < <(compgen -e MCSHIM_)

common_setup ()
{
  cd "$BATS_TEST_TMPDIR" || return
  sock=$BATS_TEST_TMPDIR/sock
  log=$BATS_TEST_TMPDIR/log
  summary=$BATS_TEST_TMPDIR/summary
  control=$BATS_TEST_TMPDIR/control
  server_err=$BATS_TEST_TMPDIR/server.err
  stats=$BATS_TEST_TMPDIR/stats
  export sock log control uri="nbd+unix:///?socket=$sock"
  : > "$log"
  : > "$server_err"
  # A daemon has no stderr for a sanitizer's reports.  The one of undefined
  # behaviour writes there all the same, but ends the server.
  local variable
  [ -z "$test_preload" ] ||
    for variable in TSAN_OPTIONS ASAN_OPTIONS; do
      export $variable="${!variable-}:log_path=$BATS_TEST_TMPDIR/report"
    done
}

common_teardown ()
{
  # Nothing may be left behind, whatever state a failed test left it in.
  : > "$control"
  local dir
  for dir in "$BATS_TEST_TMPDIR"/server.??????; do
    if [ -s "$dir/pid" ] && [ ! -e "$dir/status" ]; then
      kill -9 "$(<"$dir/pid")"
      wait_until test -e "$dir/status"
    fi
  done
  # bats shows this only if the test failed.
  sed 's/^/server: /' "$server_err"
  # Whatever the test looked at, a sanitizer's report fails it.
  ! grep -s . "$BATS_TEST_TMPDIR"/report.* || return
  ! grep -q 'Sanitizer: \|runtime error: ' "$server_err"
}

setup () { common_setup; }
teardown () { common_teardown; }

# wait_until COMMAND...: there is no other way to wait for another process's
# file, so look often, and give up only when something is clearly wrong.
wait_until ()
{
  local tries
  for ((tries = 0; tries < 1500; tries++)); do
    if "$@"; then return 0; fi
    sleep 0.02
  done
  echo "still waiting for: $*"
  return 1
}

wait_log () { wait_until grep -qx -- "$1" "$log"; }

# under_shim [MCSHIM_X=VALUE...] COMMAND...: with the library preloaded, and
# PRELOAD_BEFORE and PRELOAD_AFTER around it.  The only place that does so.
under_shim ()
{
  local entries="$shim_so" vars=()
  if [ ! -f "$shim_so" ]; then
    # ld.so only warns of a missing library, and goes on without it.
    echo "$shim_so is missing"
    return 1
  fi
  while [[ $1 =~ ^[A-Z_]+= ]]; do
    vars+=("$1")
    shift
  done
  entries="${PRELOAD_BEFORE:+$PRELOAD_BEFORE:}$entries"
  entries="${test_preload:+$test_preload:}$entries"
  entries="$entries${PRELOAD_AFTER:+:$PRELOAD_AFTER}"
  # shellcheck disable=SC2086 # the wrapper is words
  env "${vars[@]}" "${in_qemu}LD_PRELOAD=$entries" $test_wrapper "$@"
}

no_shim () { env "$@"; }

# For --run: prints true or false.  An old nbdinfo has no --can.
# shellcheck disable=SC2016 # for the server's shell
flag='nbdinfo "$uri" 2>&1 | sed -n "s/.*can_multi_conn: //p"'

# has_plugin NAME: or the test is skipped.  The cc plugin is no use without a
# compiler beside it.
has_plugin ()
{
  nbdkit --dump-plugin "$1" >/dev/null 2>&1 ||
    skip "nbdkit's $1 plugin is not installed"
  if [ "$1" = cc ]; then
    [ -z "$in_qemu" ] && nbdkit -U - null --run 'command -v gcc' >/dev/null ||
      skip "there is no compiler for this nbdkit"
  fi
}

# New in nbdkit 1.26.
has_multi_conn_filter ()
{
  nbdkit --dump-plugin --filter=multi-conn null >/dev/null 2>&1 ||
    skip "this nbdkit has no multi-conn filter"
}

# With the thread sanitizer's runtime a shell crashes, and a program that has
# printed an errno hangs in its exit handlers; the library has no part in it.
not_under_tsan ()
{
  [[ $test_preload != *tsan* ]] ||
    skip "not possible with the thread sanitizer's runtime"
}

# serve [MCSHIM_X=VALUE...] NBDKIT-ARGUMENT...: a server on $sock, ready when
# this returns.  Its stderr goes to $server_err, and its pid and exit status
# to $server/pid and $server/status.  SERVE_WITH=no_shim starts it without
# the library, and SERVE_ON="WORDS" has it listen elsewhere.
serve ()
{
  local vars=() with=${SERVE_WITH:-under_shim}
  while [[ $1 =~ ^[A-Z_]+= ]]; do
    vars+=("$1")
    shift
  done
  server=$(mktemp -d "$BATS_TEST_TMPDIR/server.XXXXXX") || return
  rm -f "$sock"
  local on=(-U "$sock")
  [ -z "${SERVE_ON-}" ] || read -ra on <<<"$SERVE_ON"
  {
    # bats would end this shell at a failure.
    local status=0
    "$with" "${vars[@]}" nbdkit -f "${on[@]}" -P "$server/pid" "$@" ||
      status=$?
    echo $status > "$server/status"
  } </dev/null >>"$server_err" 2>&1 3>&- &
  wait_until server_started || return
  if [ -e "$server/status" ]; then
    echo "the server did not start"
    return 1
  fi
}

server_started () { [ -s "$server/pid" ] || [ -e "$server/status" ]; }

# Stops the server; fails if it does not end well.
stop_server ()
{
  kill -TERM "$(<"$server/pid")" || return
  if ! wait_until test -s "$server/status"; then
    kill -ABRT "$(<"$server/pid")"
    return 1
  fi
  [ "$(<"$server/status")" -eq 0 ] || {
    echo "the server's exit status was $(<"$server/status")"
    return 1
  }
}

# client: runs the Python script on stdin in nbdsh, with these helpers:
# conn () connects, wait_log (LINE) waits for a line of the plugin's log,
# control (LINE...) replaces the plugin's control file, fails (ERRNO, FN,
# ARGS...) asserts that a request fails so, close (H, N) disconnects and waits
# until the plugin's handle N is closed, and cut (N) does so with a client
# that has written "cut" at 0 and is killed.
client ()
{
  timeout 90 nbdsh -n -c "$client_prelude" -c - </dev/stdin
}

client_prelude=$(cat <<'EOT'
import errno, os, signal, sys, threading, time

sock = os.environ["sock"]
log = os.environ["log"]

def conn(export=None):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.set_strict_mode(0)
    if export is not None:
        h.set_export_name(export)
    h.connect_unix(sock)
    return h

def wait_for(what, test):
    for i in range(15000):
        if test():
            return
        time.sleep(0.002)
    sys.exit("still waiting for " + what)

def logged(line):
    with open(log) as f:
        return f.read().split("\n").count(line)

def wait_log(line, times=1):
    wait_for(line, lambda: logged(line) >= times)

def control(*lines):
    path = os.environ["control"]
    with open(path + ".new", "w") as f:
        f.write("".join(l + "\n" for l in lines))
    os.rename(path + ".new", path)

def close(h, number):
    h.shutdown()
    wait_log("%d close" % number)

def cut(number):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        h = conn()
        h.pwrite(b"cut", 0)
        os.write(w, b"x")
        signal.pause()
    expect(os.read(r, 1), b"x")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_log("%d close" % number)

def fails(err, fn, *args):
    try:
        fn(*args)
    except nbd.Error as e:
        assert e.errnum == err, "failed with %s" % e
    else:
        sys.exit("did not fail")

def flushes():
    with open(log) as f:
        return [l.split()[0] for l in f if l.endswith(" flush\n")]

def expect(got, wanted):
    if got != wanted:
        sys.exit("got %r, expected %r" % (got, wanted))

def finish(h, cookie):
    """Wait for one of a connection's requests; others may be held up."""
    while not h.aio_command_completed(cookie):
        h.poll(-1)

class Call(threading.Thread):
    """A request on a thread of its own, which has the connection for itself
    till then (see finish for another way); join () returns its result, and
    wait (SECONDS) lets one that is not held up by then return."""
    def __init__(self, fn, *args):
        super().__init__(daemon=True)
        self.fn, self.args, self.error = fn, args, None
        self.start()
    def run(self):
        try:
            self.result = self.fn(*self.args)
        except nbd.Error as e:
            self.error = e
    def wait(self, seconds):
        super().join(seconds)
    def join(self):
        super().join(30)
        if self.is_alive():
            sys.exit("a request has no reply")
        if self.error:
            raise self.error
        return self.result
EOT
)
