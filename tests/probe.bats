#!/usr/bin/env bats
# mcshim --probe: what it tells is so, and its predictions come true.

load common

mcshim=$BATS_TEST_DIRNAME/../scripts/mcshim

setup ()
{
  common_setup
  mkdir asked
  export TMPDIR=$BATS_TEST_TMPDIR/asked
  truncate -s 1M disk
  disk=(get_size='echo 1M' pread='head -c "$3" /dev/zero')
  noflush=("${disk[@]}" pwrite='cat >/dev/null')
}

# probe ARGUMENT...: leaves the answer in the file "told", and nothing else.
probe ()
{
  timeout 60 "$mcshim" --probe --json nbdkit "$@" > told
  python3 -m json.tool < told > /dev/null
  assert_equal "$(ls -A asked)" ""
}

told () { jq -c "$1" told; }

# advises ADVICE WHY ARGUMENT...
advises ()
{
  probe "${@:3}"
  assert_equal "$(told .advice)" "\"$1\""
  [[ $(told .why) == *"$2"* ]] || fail "$(told .why)"
}

# true_for ARGUMENT...: a server in each mode does what was told of that mode.
# How many connections a flush goes to shows where nothing is skipped, two can
# be open, and no filter keeps it.
true_for ()
{
  local mode seen wanted copies
  probe "$@"
  for mode in auto emulate plugin disable unsafe; do
    rm -f "$stats"
    serve MCSHIM_MODE=$mode MCSHIM_TRACK_DIRTY=off MCSHIM_STATS_FILE="$stats" \
      "$@"
    seen=$(client <<'EOT'
try:
    h = conn()
except nbd.Error:
    print("refused")
else:
    print("on" if h.can_multi_conn() else "off")
    if h.can_multi_conn() and h.can_flush():
        second = conn()
        h.flush()
EOT
    )
    stop_server
    copies=$(told .modes.$mode.replicated)
    wanted=$(told ".modes.$mode | if .refused then \"refused\"
      elif .flag then \"on\" else \"off\" end")
    assert_equal "$mode: \"$seen\"" "$mode: $wanted"
    case $seen,$(sed -n 's/^plugin_flushes: //p' "$stats") in
      on,1) assert_equal "$mode: $copies" "$mode: false" ;;
      on,2) assert_equal "$mode: $copies" "$mode: true" ;;
    esac
  done
}

@test "predictions: plugins with flush" {
  true_for memory 1M
  true_for file disk
  true_for "$wbcache"
  true_for "$wbcache" multiconn=1
  true_for -r "$wbcache"
  true_for "$plugins/api1.so"
}

@test "predictions: plugins without flush" {
  true_for eval "${noflush[@]}"
  true_for -r eval "${noflush[@]}"
  true_for eval "${disk[@]}"
  true_for eval "${noflush[@]}" can_write='exit 3'
  true_for eval "${noflush[@]}" can_flush='exit 3' flush='exit 0'
  true_for eval "${noflush[@]}" can_multi_conn='exit 0'
}

@test "predictions: a plugin in Python" {
  nbdkit --dump-plugin python >/dev/null 2>&1 ||
    skip "nbdkit's python plugin is not installed"
  cat > disk.py <<'EOT'
API_VERSION = 2
def open(readonly): return 1
def get_size(h): return 65536
def pread(h, buf, offset, flags): buf[:] = bytes(len(buf))
def pwrite(h, buf, offset, flags): pass
def flush(h, flags): pass
EOT
  true_for python ./disk.py
}

@test "predictions: connections serialized" {
  true_for "$wbcache" model=connections
  true_for eval "${noflush[@]}" thread_model='echo serialize_connections'
  true_for --filter=noparallel "$wbcache" serialize=connections
  true_for --filter=noparallel eval "${noflush[@]}" serialize=connections
  true_for --filter=noparallel memory 1M serialize=connections
}

@test "predictions: filters that leave the flag alone" {
  true_for --filter=noparallel "$wbcache"
  true_for --filter=nozero --filter=log "$wbcache" logfile=/dev/null
  true_for --filter=offset eval "${noflush[@]}" offset=512
  true_for -r --filter=offset eval "${noflush[@]}" offset=512
}

@test "predictions: filters with a flag of their own" {
  has_multi_conn_filter
  true_for --filter=multi-conn "$wbcache"
  true_for --filter=multi-conn memory 1M
  true_for --filter=multi-conn "$wbcache" multi-conn-mode=disable
  true_for --filter=multi-conn memory 1M multi-conn-mode=disable
}

@test "predictions: cow" {
  true_for --filter=cow "$wbcache"
  true_for --filter=cow memory 1M
  true_for --filter=cow eval "${noflush[@]}"
}

@test "predictions: cache" {
  true_for --filter=cache "$wbcache"
  true_for --filter=cache memory 1M cache=unsafe
  true_for --filter=cache eval "${noflush[@]}" cache=unsafe
}

@test "advice: not needed" {
  advises "not needed" "without the shim" memory 1M
}
@test "advice: use auto" { advises "use auto" replicated "$wbcache"; }
@test "advice: use auto, for readers" {
  advises "use auto" "nothing can be written" -r eval "${noflush[@]}"
}
@test "advice: use unsafe only if" {
  advises "use unsafe only if" "no flush" eval "${noflush[@]}"
}
@test "advice: cannot help a plugin that serializes connections" {
  advises "cannot help" "connections are serialized" "$wbcache" \
    model=connections
}
@test "advice: cannot help below a filter that serializes connections" {
  advises "cannot help" "by a filter" --filter=noparallel memory 1M \
    serialize=connections
  assert_equal "$(told .plugin.thread_model)" '"parallel"'
  assert_equal "$(told .server.thread_model)" '"serialize_connections"'
}
@test "advice: cannot help below a filter that takes the flag away" {
  has_multi_conn_filter
  advises "cannot help" "a filter takes the flag" --filter=multi-conn \
    "$wbcache" multi-conn-mode=disable
}
@test "advice: use auto instead of the multi-conn filter" {
  has_multi_conn_filter
  advises "use auto" "leave out the multi-conn filter" --filter=multi-conn \
    "$wbcache"
}

# imposter LINE...: an nbdkit that does this first.
imposter ()
{
  mkdir -p bin
  { echo '#!/bin/sh'
    printf '%s\n' "$@"
    echo "exec $(command -v nbdkit) \"\$@\""
  } > bin/nbdkit
  chmod +x bin/nbdkit
}

@test "advice: cannot help an nbdkit without the flag" {
  imposter 'test "$1" != --version || { echo nbdkit 1.8.4; exit; }'
  PATH=$PWD/bin:$PATH advises "cannot help" "nbdkit before 1.10" "$wbcache"
}

@test "an nbdkit that does not take the library" {
  imposter 'unset LD_PRELOAD'
  run -1 "$mcshim" --probe ./bin/nbdkit memory 1M
  assert_output --partial "does not take the library"
}

@test "the table" {
  run -0 --separate-stderr "$mcshim" --probe nbdkit -f --filter=noparallel \
    "$wbcache" fua=native
  assert_line --regexp '^nbdkit +1\.[0-9.]+, with'
  assert_line --regexp '^plugin +wbcache, API version 2$'
  assert_line --regexp '^thread model +serialize_requests, by a filter; '
  assert_line --regexp '^multi-conn +no$'
  assert_line --regexp '^FUA +yes$'
  assert_line --regexp '^read-only +no$'
  assert_line --regexp '^left out +-f$'
  assert_line --regexp '^auto +on +replicated$'
  assert_line --regexp '^disable +off +not replicated$'
  assert_line --regexp '^use auto: '
  assert_equal "$stderr" ""
  run -0 "$mcshim" --probe nbdkit eval "${noflush[@]}"
  assert_line --regexp '^emulate +refused: '
}

@test "what the server has" {
  probe "$plugins/api1.so"
  assert_equal "$(told .plugin.api_version)" 1
  probe -r file disk
  assert_equal "$(told .server.read_only)" true
  probe "$wbcache"
  assert_equal "$(told '.server | [.flush, .zero, .trim]')" "[true,true,true]"
  probe eval "${noflush[@]}"
  assert_equal "$(told '.server | [.flush, .trim]')" "[false,false]"
}

@test "nothing is written or flushed" {
  has_multi_conn_filter
  probe --filter=multi-conn "$wbcache" log="$log"
  grep -q ' open$' "$log"
  refute grep -q ' write$\| zero$\| trim$\| flush$' "$log"
}

@test "options that would listen elsewhere are left out, others stay" {
  probe -rfv -p1 -U "$PWD/no.sock" --pidfile=no.pid --run 'touch ran' \
    --tls=off -t 3 -e '' -- "$wbcache"
  assert_equal "$(told .server.left_out)" '"-f -v -p -U --pidfile --run --tls"'
  assert_equal "$(told .server.read_only)" true
  assert_equal "$(ls -d no.* ran 2>/dev/null)" ""
  probe "$wbcache" -r
  assert_equal "$(told .server.read_only)" true
}

@test "an export name, and the old protocol" {
  probe -e 'a b/?%x' eval "${disk[@]}" open="echo \"\$3\" >> $PWD/names"
  assert_equal "$(sort -u names)" "a b/?%x"
  probe -o "$wbcache"
  assert_equal "$(told .advice)" '"use auto"'
}

@test "a script on standard input" {
  probe sh - <<'EOT'
case $1 in
  get_size) echo 1M ;;
  pread) head -c "$3" /dev/zero ;;
  *) exit 2 ;;
esac
EOT
  assert_equal "$(told .plugin.name)" '"sh"'
}

@test "it needs no python, and nothing newer than a POSIX shell and awk" {
  [ -z "$SHIM_TEST_ROOT" ] || skip "the nbdkit of another root needs more"
  mkdir only
  local tool
  for tool in awk cat dirname date dd grep mktemp nbdinfo nbdkit od printf \
    readlink rm sed sh sleep tail tr true; do
    ln -s "$(command -v $tool)" only/
  done
  PATH=$PWD/only run -0 "$mcshim" --probe nbdkit "$wbcache"
  assert_line --partial "use auto"
}

# complains TEXT ARGUMENT...
complains ()
{
  run ! "$mcshim" "${@:2}"
  assert_output --partial "$1"
  assert_equal "$(ls -A asked)" ""
}

@test "errors" {
  complains "no command given" --probe
  complains "'memory' is not nbdkit" --probe memory 1M
  complains "'ls' is not nbdkit" --probe ls
  complains "needs the name of a plugin" --probe nbdkit -r
  complains "-p needs a value" --probe nbdkit -p
  complains "serves nothing" --probe nbdkit --dump-plugin memory
  complains "are for --try" --probe --size=1M nbdkit memory 1M
  complains "need --try" --json nbdkit memory 1M
  complains "takes no value" --probe=nbdkit memory
  complains "MCSHIM_FLUSH_THREADS" --flush-threads=0 --probe nbdkit memory 1M
  complains "cannot open plugin" --probe nbdkit nosuch
}

@test "what the plugin says stands there once" {
  complains "you must specify size" --probe nbdkit memory
  assert_equal "$(grep -c 'must specify' <<<"$output")" 1
  complains "bad luck" --probe nbdkit eval "${disk[@]}" \
    open='echo EIO bad luck >&2; exit 1'
  assert_equal "$(grep -c 'bad luck' <<<"$output")" 1
  assert_line --partial "takes no connection"
}

@test "installed, moved, and removed" {
  make -s -C "$BATS_TEST_DIRNAME/.." install DESTDIR="$PWD/root" \
    PREFIX=/opt/mc LIBDIR=/opt/mc/lib build="$PWD/b" lib=libmcshim.so
  run -0 "$PWD/root/opt/mc/bin/mcshim" --probe nbdkit "$wbcache"
  assert_line --partial "use auto"
  make -s -C "$BATS_TEST_DIRNAME/.." uninstall DESTDIR="$PWD/root" \
    PREFIX=/opt/mc LIBDIR=/opt/mc/lib
  assert_equal "$(find root ! -type d)" ""
}
