#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --probe: what it tells is right, and its predictions come true.

load common

setup ()
{
  ask_setup
  truncate -s 1M disk
  disk "${no_write[@]}" thread_model='echo parallel'
  noflush=("${disk[@]}" pwrite='cat >/dev/null')
}

probe () { answers 0 --probe nbdkit "$@"; }

# true_for "ADVICE: WHY" ARGUMENT...: that is the advice, by a pattern, and a
# server in each mode does what was told about that mode.  To how many
# connections a flush goes is visible if nothing is skipped, two can be open,
# and no filter keeps the flush.
true_for ()
{
  local mode seen wanted
  probe "${@:2}"
  # shellcheck disable=SC2053 # a pattern
  [[ $(jq -r '.advice + ": " + .why' told) == $1 ]] || fail "$(cat told)"
  set -- "${@:2}"
  for mode in auto emulate plugin disable unsafe; do
    : > "$server_err"
    serve MCSHIM_MODE=$mode MCSHIM_TRACK_DIRTY=off -v "$@"
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
        print("flushed")
EOT
    )
    stop_server
    wanted=$(told ".modes.$mode | if .refused then \"refused\"
      elif .flag then \"on\" else \"off\" end")
    assert_equal "$mode: \"${seen%%$'\n'*}\"" "$mode: $wanted"
    if grep -q 'mcshim: flush: replicas 2' "$server_err"; then
      assert_equal "$mode: $(told .modes.$mode.replicated)" "$mode: true"
    elif [[ $seen == *flushed && $* != *--filter* ]]; then
      assert_equal "$mode: $(told .modes.$mode.replicated)" "$mode: false"
    fi
  done
}

@test "predictions: plugins with flush" {
  true_for "not needed: * without the shim" memory 1M
  true_for "use auto: *replicated*" "$wbcache"
  true_for "not needed: *" "$wbcache" multiconn=1
  true_for "no gain: one request at a time" "$plugins/api1.so"
}

@test "predictions: plugins without flush" {
  true_for "use auto, read-only: *with -r*" eval "${noflush[@]}"
  [[ $(told .command) == *"mcshim nbdkit -r eval "* ]]
  true_for "use auto: nothing can be written*" -r eval "${noflush[@]}"
  true_for "use auto: nothing can be written*" eval "${disk[@]}"
  true_for "use auto: nothing can be written*" eval "${noflush[@]}" \
    can_write='exit 3'
  true_for "use auto, read-only: *" eval "${noflush[@]}" can_flush='exit 3' \
    flush='exit 0'
}

@test "predictions: requests or connections serialized" {
  true_for "no gain: one request at a time" "$wbcache" model=all
  true_for "no gain: one request at a time, by the noparallel filter" \
    --filter=noparallel "$wbcache" serialize=all-requests
  [[ $(told .command) == '"nbdkit '* ]]
  true_for "cannot help: connections are serialized" "$wbcache" \
    model=connections
  true_for "cannot help: *by the noparallel filter" --filter=noparallel \
    memory 1M serialize=connections
  assert_equal "$(told '[.plugin.thread_model, .server.thread_model]')" \
    '["parallel","serialize_connections"]'
}

@test "predictions: filters" {
  true_for "use auto: *" --filter=noparallel "$wbcache"
  true_for "use auto: *" -r --filter=offset eval "${noflush[@]}" offset=512
  true_for "not needed: *" --filter=cow "$wbcache"
  true_for "not needed: *" --filter=cache memory 1M cache=unsafe
}

@test "predictions: the multi-conn filter" {
  has_filter multi-conn
  true_for "use auto: *leave out the multi-conn filter*" --filter=multi-conn \
    "$wbcache"
  true_for "cannot help: *" --filter=multi-conn memory 1M \
    multi-conn-mode=disable
  true_for "cannot help: a filter takes the flag*" --filter=multi-conn \
    "$wbcache" multi-conn-mode=disable
}

# A library built from a changed tree, in which each mode does something else.
@test "what the modes do is seen, not known" {
  local top=$BATS_TEST_DIRNAME/..
  cp -R "$top/Makefile" "$top"/*.[ch] "$top/interpose" "$top/scripts" .
  sed -i 's/^policy_resolve (/upright (/' policy.c
  cat >> policy.c <<'EOT'
struct resolution
policy_resolve (const struct policy *p, const struct traits *t)
{
  struct resolution r = upright (p, t);

  switch (p->mode) {
  case MODE_AUTO:
    r = (struct resolution) { .verdict = UNSAFE_SET, .advertise = true };
    break;
  case MODE_EMULATE:
    r.advertise = false;
    break;
  case MODE_PLUGIN:
    r = (struct resolution) { .verdict = EMULATE, .advertise = true,
                              .replicate = true };
    break;
  case MODE_DISABLE:
    r.refusal = "closed today: come back tomorrow";
    break;
  case MODE_UNSAFE:
    r = (struct resolution) { .verdict = DISABLE_SET };
  }
  return r;
}
EOT
  make -s libmcshim.so CPPFLAGS=-Wno-missing-prototypes
  mcshim=$PWD/scripts/mcshim probe "$wbcache"
  assert_equal "$(told '.modes[] | [.settled, .flag, .replicated, .refused]' |
    paste -sd' ')" '["unsafe",true,false,null] ["emulate",false,true,null]'\
' ["emulate",true,true,null] [null,null,null,"closed today: come back '\
'tomorrow"] ["disable",false,false,null]'
}

@test "an nbdkit that does not take the library" {
  program nbdkit 'unset LD_PRELOAD' "exec $(command -v nbdkit) \"\$@\""
  complains 1 "does not take the library" --probe ./nbdkit memory 1M
}

@test "the table" {
  run -0 --separate-stderr "$mcshim" --probe nbdkit -f --filter=noparallel \
    "$wbcache" fua=native
  assert_line --regexp '^nbdkit +1\.[0-9.]+, with'
  assert_line --regexp '^plugin +wbcache, API version 2$'
  assert_line --regexp '^thread model +serialize_requests, by the noparallel filter; '
  assert_line --regexp '^multi-conn +no$'
  assert_line --regexp '^FUA +yes$'
  assert_line --regexp '^read-only +no$'
  assert_line --regexp '^left out +-f$'
  assert_line --regexp '^auto: emulate +on +replicated$'
  assert_line --regexp '^disable +off +not replicated$'
  assert_line --regexp '^use auto: '
  assert_equal "${lines[-1]}" \
    "$mcshim nbdkit -f --filter=noparallel $wbcache fua=native"
  assert_equal "$stderr" ""
  run -0 "$mcshim" --probe nbdkit eval "${noflush[@]}"
  assert_line --regexp '^emulate +refused: '
}

# serialized MORE ARGUMENT...: the row "more handles", on one line, and JSON
serialized ()
{
  run -0 "$mcshim" --probe nbdkit "${@:2}"
  narrow
  assert_equal "$(tr '\n' ' ' <<<"$output" | tr -s ' ' |
    sed 's/.* more handles \(.*\) mode multi-conn flag .*/\1/')" "$1"
}

@test "filters that serialize requests are named, and what handles then do" {
  local one="one request at a time through"
  local pieces="$one: handles serve the pieces of requests above 128K"
  local instead="; retry-request in place of retry lets all through"
  has_filter retry-request
  serialized "the retry filter lets $pieces$instead" --filter=retry \
    --filter offset "$wbcache" model=requests offset=512
  serialized "no: the retry filter lets $one$instead" --filter=retry "$wbcache"
  serialized "yes, for a client with one connection: --handles=16" \
    --filter=retry-request "$wbcache" model=requests
  serialized "the filters noparallel and retry let $pieces" \
    --filter=noparallel --filter=retry "$wbcache" model=requests \
    serialize=requests
  serialized "no: the noparallel filter lets $one" --filter=noparallel \
    --filter=retry "$wbcache" serialize=all-requests
  assert_line --partial "; the plugin's:"
  assert_line "no gain: one request at a time, by the noparallel filter"
  probe --filter=retry "$wbcache"
  assert_equal "$(told .more_handles)" false
  probe --filter=retry "$wbcache" model=requests
  assert_equal "$(told .more_handles)" true
}

@test "the xz filter serializes requests" {
  has_filter xz
  needs xz
  xz disk
  serialized "no: the xz filter lets one request at a time through" \
    --filter=xz file disk.xz
}

@test "a writable server: --verify comes first" {
  run -0 "$mcshim" --probe nbdkit "$wbcache"
  assert_equal "${lines[-3]}" \
    "first run --verify, on a copy: does this plugin lose writes?"
  run -0 "$mcshim" --probe nbdkit -r "$wbcache"
  refute_output --partial verify
  run -0 "$mcshim" --probe nbdkit memory 1M
  refute_output --partial verify
}

@test "the plugin's lines that are like nbdkit's" {
  local line="debug: using thread model: serialize_connections"
  probe eval "${disk[@]}" flush='exit 0' config_complete="echo $line >&2" \
    get_ready="echo nbdkit: $line >&2" \
    open="echo nbdkit: debug: odd: close >&2; echo debug: mcshim: odd, mode \
odd >&2"
  assert_equal "$(told .server.thread_model)" '"parallel"'
  assert_equal "$(told .advice)" '"use auto"'
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
  has_filter multi-conn
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
  tools awk cat dirname head mktemp nbdinfo nbdkit od printf readlink rm sed \
    setsid sh sleep tail tr
  PATH=$PWD/only run -0 "$mcshim" --probe nbdkit "$wbcache"
  assert_line --partial "use auto"
}

@test "errors" {
  complains 2 "no command given" --probe
  complains 2 "'memory' is not nbdkit" --probe memory 1M
  complains 2 "'ls' is not nbdkit" --probe ls
  complains 2 "needs the name of a plugin" --probe nbdkit -r
  complains 2 "-p needs a value" --probe nbdkit -p
  complains 2 "serves nothing" --probe nbdkit --dump-plugin memory
  complains 2 "--size needs --try" --probe --size=1M nbdkit memory 1M
  complains 2 "'x'" --seconds=x --probe nbdkit memory 1M
  complains 2 "takes no value" --probe=nbdkit memory
  complains 1 "MCSHIM_FLUSH_THREADS" --flush-threads=0 --probe nbdkit memory 1M
  complains 1 "cannot open plugin" --probe nbdkit nosuch
}

@test "whether one connection may have more handles" {
  local model
  for model in parallel requests all; do
    run -0 "$mcshim" --probe nbdkit "$wbcache" model=$model
    case $model in
      all) assert_line --regexp '^more handles +no$' ;;
      requests) assert_line --regexp '^more handles +yes, .*: --handles=16$' ;;
      parallel) assert_line --regexp '^more handles +of little use: ' ;;
    esac
  done
}

@test "a plugin that hangs: where, and nothing is left" {
  local callback
  for callback in config_complete get_ready open can_flush; do
    complains 1 "hangs in $callback: no answer in 2 seconds" --probe \
      --seconds=2 nbdkit eval "${disk[@]}" $callback="exec tail -f $PWD/disk"
  done
  for callback in open close; do
    echo "block-$callback *" > "$control"
    complains 1 "hangs in $callback: no answer in 2 seconds" --probe \
      --seconds=2 nbdkit "$wbcache" log="$log" control="$control"
  done
  # The constructor of a library is in no callback.
  mkfifo fifo
  cat > hangs.c <<EOT
#include <fcntl.h>
__attribute__((constructor)) static void hang (void)
{
  open ("$PWD/fifo", O_RDONLY);
}
EOT
  [ -n "$SHIM_TEST_ROOT$foreign" ] || {
    cc -shared -fPIC -o hangs.so hangs.c
    complains 1 "hangs in load" --probe --seconds=2 nbdkit ./hangs.so
  }
  refute pgrep -f "$PWD/"
}

@test "a plugin that is slow does not hang" {
  complains 1 "slow: after 2 seconds it is in " --probe --seconds=2 nbdkit \
    eval "${disk[@]}" can_write='sleep 0.4; exit 3' can_fua='sleep 0.4; echo none' \
    can_cache='sleep 0.4; echo none' can_extents='sleep 0.4; exit 3' \
    can_flush='sleep 0.4; exit 3' can_zero='sleep 0.4; exit 3' \
    is_rotational='sleep 0.4; exit 3'
}

@test "what the plugin says stands there once" {
  complains 1 "you must specify size" --probe nbdkit memory
  assert_equal "$(grep -c 'must specify' <<<"$output")" 1
  complains 1 "bad luck" --probe nbdkit eval "${disk[@]}" \
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
