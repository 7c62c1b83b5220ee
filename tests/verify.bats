#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim --verify: it recognizes each kind of plugin.

load common

setup () { ask_setup; }

# verify STATUS OPTION... nbdkit ARGUMENT...: each part of it gets the least
# time possible, a second.
verify () { answers "$1" --verify --yes --seconds=1 "${@:2}"; }

# concludes ADVICE WHY COMMAND: the last two are patterns
concludes ()
{
  assert_equal "$(told .advice)" "\"$1\""
  [[ $(told .why) == \"$2\" ]] || fail "$(told .why)"
  [[ $(told .command) == \"$3\" ]] || fail "$(told .command)"
}

# kept: whether each line of the table is kept, in order
kept () { told '[.results[] | .kept]'; }

# finding NAME: the finding in a word, and its story without the offsets
finding ()
{
  jq -r --arg name "$1" '.results[] | select(.name == $name) |
    .finding, .story[]' told | sed 's/ at [0-9]*//; s/ to [0-9]*//' | paste -sd,
}

@test "wbcache: kept with the shim, not alone" {
  verify 0 nbdkit "$wbcache"
  assert_equal "$(kept)" "[false,true,true,true,true]"
  assert_equal "$(finding alone)" \
    "flush,connection 1 wrote A,connection 2 flushed,connection 2 read zeroes"
  assert_equal "$(told '[.results[1].multi_conn, .finished]')" "[true,true]"
  [ "$(told '.results[1].requests')" -gt 100 ]
  concludes "use auto" \
    "kept with replicated flushes; also with several --handles" \
    "*mcshim nbdkit $wbcache"
}

@test "memory: kept alone, and the flag is set" {
  verify 0 nbdkit memory 1M
  assert_equal "$(kept)" "[true,true,true,true,true]"
  concludes "not needed" "the flag is set and kept without the shim" \
    "nbdkit memory 1M"
}

@test "kept alone, but without the flag" {
  file_disk 64K
  verify 0 nbdkit eval "${disk[@]}"
  concludes "use auto" "kept with replicated flushes*" "*mcshim nbdkit eval *"
}

@test "tmpdisk: each connection has data of its own" {
  has_plugin tmpdisk
  needs mkfs.ext4
  verify 3 nbdkit tmpdisk 1M
  assert_equal "$(kept)" "[false,null]"
  [[ $(finding alone) == "apart,"* ]] || fail "$(finding alone)"
  concludes "cannot help" "each connection has data of its own" \
    "nbdkit tmpdisk 1M"
  SERVE_WITH=no_shim serve tmpdisk 1M
  run -1 "$checker" --connections=1 --operations=9 "$uri"
  assert_line "found: lost"
}

@test "whole blocks are written back" {
  verify 3 nbdkit "$wbcache" together=16
  assert_equal "$(kept)" "[false,false,false,false,false]"
  [[ $(finding connection) =~ ^neighbour,"connection 1 wrote A,\
connection 2 wrote B,connection 1 flushed,connection 1 read " ]] ||
    fail "$(finding connection)"
  concludes "cannot help" "it writes back more than was written*--block*" "*"
}

@test "whole blocks of a size that the user tells" {
  verify 0 --block=8K nbdkit "$wbcache" together=16
  assert_equal "$(kept)" "[false,true,true,true,true]"
  concludes "use auto" "kept with replicated flushes; also *" \
    "*mcshim --block=8K nbdkit $wbcache together=16"
}

@test "a flush that returns too early" {
  verify 3 nbdkit "$wbcache" lateflush=1000000
  assert_equal "$(finding connection)" \
    "late,connection 1 wrote A,connection 1 flushed,connection 1 read zeroes"
  assert_equal "$(told .advice)" '"cannot help"'
}

@test "only some levels keep it" {
  verify 0 --track-dirty=off nbdkit "$wbcache" refresh=1 opencopy=1
  assert_equal "$(kept)" "[false,false,true,true,true]"
  concludes "use auto, track-dirty=fast" \
    "kept with replicated flushes; also with several --handles" \
    "*mcshim --track-dirty=fast nbdkit $wbcache refresh=1 opencopy=1"
}

@test "a plugin that sets the flag and does not keep it" {
  verify 0 nbdkit "$wbcache" multiconn=1
  assert_equal "$(kept)" "[false,true,true,true,true]"
  concludes "use emulate" "kept with replicated flushes; also *" \
    "*mcshim --mode=emulate nbdkit $wbcache multiconn=1"
}

@test "what is written is gone" {
  verify 3 nbdkit null 1M
  assert_equal "$(finding alone)" \
    "own,connection 1 wrote A,connection 1 read zeroes"
  assert_equal "$(told .at_risk)" '["alone","connection","fast","off","4 handles"]'
  concludes "cannot help" "a connection does not see what it has written itself" \
    "nbdkit null 1M"
}

@test "extents that hide data" {
  not_under_tsan
  file_disk 64K can_extents='exit 0' extents='echo $4 $3 hole,zero'
  verify 3 nbdkit eval "${disk[@]}"
  [[ $(finding alone) =~ ^extents,.*was\ told\ of\ zeroes$ ]] ||
    fail "$(finding alone)"
}

@test "--crash: a file outlives the server, and so far only the range is used" {
  truncate -s 2M image
  verify 0 --crash --range=512K,1M nbdkit file image
  assert_equal "$(kept)" "[true,true,true,true,true]"
  assert_equal "$(told '[.offset, .bytes]')" "[524288,1048576]"
  cmp -n 512K image /dev/zero
  cmp -i 1536K:0 -n 512K image /dev/zero
  run -1 cmp -i 512K:0 -n 1M image /dev/zero
}

@test "--crash: memory does not" {
  verify 3 --crash nbdkit memory 1M
  assert_equal "$(kept)" "[false,false,false,false,false]"
  [[ $(finding alone) =~ ^"crash,connection "[1-4]" wrote A".*",the server was \
killed and started again,a new connection read zeroes"$ ]] ||
    fail "$(finding alone)"
  concludes "cannot help" "what was flushed has not outlived the server" \
    "nbdkit memory 1M"
}

# cached: makes cached.py, a disk behind a cache for each connection.
#   through      it is only read from
#   trimdrops    a trim forgets what was written since the last flush
#   all          a flush is one of all connections, in order of opening
#   long, many   of a write, or of all before a flush, only some are dirty
#   nozero       zeroes are not written
#   once         a block that was trimmed is not written again
cached ()
{
  has_plugin python
  cat > cached.py <<'EOT'
API_VERSION = 2
BLOCK = 512
disk = bytearray(4 * 1024 * 1024)
handles = []
way = ""

def config(key, value):
    global way
    way = value

def open(readonly):
    handles.append({"blocks": {}, "dirty": {}, "trimmed": set()})
    return handles[-1]

def get_size(h):
    return len(disk)

def can_fua(h):
    return 0

def can_trim(h):
    return True

def can_zero(h):
    return way == "nozero"

def zero(h, count, offset, flags):
    pass

def get(h, b):
    if b not in h["blocks"]:
        h["blocks"][b] = bytes(disk[b * BLOCK:(b + 1) * BLOCK])
    return h["blocks"][b]

def pread(h, buf, offset, flags):
    for i in range(len(buf) // BLOCK):
        buf[i * BLOCK:(i + 1) * BLOCK] = get(h, offset // BLOCK + i)

def pwrite(h, buf, offset, flags):
    for i in range(len(buf) // BLOCK):
        b = offset // BLOCK + i
        if b in h["trimmed"]:
            continue
        h["blocks"][b] = bytes(buf[i * BLOCK:(i + 1) * BLOCK])
        if way == "through":
            disk[b * BLOCK:(b + 1) * BLOCK] = h["blocks"][b]
        elif not (way == "long" and i >= 128) and \
                not (way == "many" and len(h["dirty"]) >= 100):
            h["dirty"][b] = True

def trim(h, count, offset, flags):
    for b in range(offset // BLOCK, (offset + count) // BLOCK):
        if way == "once":
            h["trimmed"].add(b)
        if way == "trimdrops":
            h["blocks"].pop(b, None)
            h["dirty"].pop(b, None)

def flush(h, flags):
    for h in handles if way == "all" else [h]:
        for b in h["dirty"]:
            disk[b * BLOCK:(b + 1) * BLOCK] = h["blocks"][b]
        h["blocks"].clear()
        h["dirty"].clear()

def close(h):
    flush(h, 0)
EOT
}

# finds PATTERN WAY CHECKER-OPTION...: the checker does, in such a disk.
finds ()
{
  cached
  SERVE_WITH=no_shim serve python cached.py way="$2"
  run -1 "$checker" "${@:3}" "$uri"
  assert_line --regexp "^found: ($1)$"
  stop_server
}

@test "of two writes, each answered, the older wins" {
  finds order all --sequences
  finds order all --seconds=1
}

@test "of a long write only the beginning is flushed" {
  finds long long --sequences --seconds=1 --connections=1
}

# Once it holds so many that no flush empties it, one write is lost, too.
@test "of many writes only the first are flushed" {
  finds "many|long|flush" many --sequences --seconds=1 --connections=1
}

# happens_again [MCSHIM_X=VALUE...] NBDKIT-ARGUMENT...: the checker's story, when
# it is played on a new server, ends with what it says was read.  Connection
# FIRST is opened first.
happens_again ()
{
  serve "$@"
  run -1 "$checker" --sequences --seed=5 "$uri"
  grep '^step: ' <<< "$output" > steps
  stop_server
  session "$@" <<'EOT'
import re

def data(what, count):
    return bytes(count) if what == "zeroes" else what.encode() * count

h = {n: conn() for n in dict.fromkeys(os.environ["FIRST"] + "1234")}
for line in open("steps"):
    who, what, at, to, piece, fua = re.fullmatch(
        r"step: connection (\d+) (.*?)(?: at (\d+))?(?: to (\d+))?"
        r"(?:, (\d+) bytes at a time)?( with FUA)?\n", line).groups()
    at = int(at or 0)
    to = int(to or at + 512)
    piece = int(piece or to - at)
    flags = nbd.CMD_FLAG_FUA if fua else 0
    last = None
    if what == "read":
        h[who].pread(to - at, at)
    elif what.startswith("read "):
        last = bytes(h[who].pread(512, at))
        expect(last, data(what[5:], 512))
    elif what.startswith("wrote "):
        for i in range(at, to, piece):
            h[who].pwrite(data(what[6:], piece), i, flags)
    elif what == "zeroed":
        h[who].zero(to - at, at, flags)
    elif what == "trimmed":
        h[who].trim(to - at, at, flags)
    elif what == "flushed":
        h[who].flush()
    else:
        expect(what, "a step of these stories")
expect(last is not None, True)
EOT
}

@test "the story is true: it happens again" {
  local -x FIRST=1
  cached
  SERVE_WITH=no_shim happens_again "$wbcache"
  happens_again "$wbcache" model=requests lateflush=100000000
  FIRST=2 SERVE_WITH=no_shim happens_again python cached.py way=all
  SERVE_WITH=no_shim happens_again python cached.py way=many
  happens_again "$wbcache" refresh=1 opencopy=1
}

@test "the story of a zero says so" {
  finds own nozero --own-order --mixed --seconds=2
  assert_line --regexp '^step: connection [0-9]+ zeroed at [0-9]+$'
  refute_line --partial " wrote A"
}

@test "the story of a trim does not leave it out" {
  finds own once --own-order --seconds=2
  assert_output --regexp 'step: connection ([0-9]+) trimmed at [0-9]+
step: connection [0-9]+ (wrote A|zeroed) at [0-9]+
.*found: own'
}

# innocent [MCSHIM_X=VALUE...] NBDKIT-ARGUMENT... [-- CHECKER-OPTION...]: is
# accused of nothing, each time with another seed.
innocent ()
{
  local with=() options
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    with+=("$1")
    shift
  done
  serve "${with[@]}"
  while read -ra options; do
    seed=$((seed + 1))
    run -0 "$checker" --seed=$seed --seconds=1 \
      "${options[@]}" "${@:2}" "$uri"
  done <<'EOT'
--sequences
--mixed --reads-first
--own-order --mixed
EOT
  stop_server
}

@test "plugins that keep it alone are not accused" {
  local -x SERVE_WITH=no_shim
  local seed=100
  cached
  file_disk 4M
  innocent memory 4M
  innocent memory 4M allocator=malloc
  innocent file image
  innocent data size=4M ""
  innocent --filter=cow memory 4M
  innocent --filter=blocksize memory 4M
  innocent --filter=fua memory 4M fuamode=force
  innocent --filter=nozero file image
  innocent eval "${disk[@]}"
  innocent sh ./script
  innocent python cached.py way=through -- --connections=1
}

@test "plugins that keep it with the library are not accused" {
  local seed=200
  cached
  innocent "$wbcache" fua=native
  innocent "$wbcache" fua=native fuaflush=1 model=requests
  innocent "$wbcache" model=all mapcache=1
  innocent "$wbcache" model=requests earlydrop=1 failflush=20 -- --allow-errors
  innocent MCSHIM_TRACK_DIRTY=fast "$wbcache" refresh=1 opencopy=1 mapcache=1
  innocent MCSHIM_TRACK_DIRTY=off "$wbcache" refresh=1 readahead=300
  innocent MCSHIM_HANDLES=4 MCSHIM_STRIPE=4096 "$wbcache" model=requests
  innocent python cached.py
  innocent python cached.py way=through
  innocent python cached.py way=trimdrops
}

@test "the same seed finds the same" {
  for n in 1 2; do
    SERVE_WITH=no_shim serve "$wbcache" together=8
    run -1 "$checker" --sequences --seed=7 "$uri"
    assert_line --index 0 "seed: 7"
    # The place on the disk depends on how often it was tried.
    sed '/^requests/d; s/ at [0-9]*//' <<< "$output" > "found.$n"
    stop_server
  done
  diff found.1 found.2
}

@test "--verify: the table, and requests that fail end nothing" {
  run -0 --separate-stderr "$mcshim" --verify --yes --seconds=1 --seed=7 \
    nbdkit "$wbcache" failflush=50
  assert_line --index 0 --partial "Overwriting the 1048576 bytes from 0 on of nbdkit"
  assert_line --partial "for about 20 seconds:"
  assert_line --regexp '^ +multi-conn flag  promise    requests$'
  assert_line --regexp '^alone +off +not kept +[0-9]+$'
  assert_line --regexp '^mcshim, connection +on +kept +[0-9]+$'
  assert_line --regexp '^alone: a flush on one connection, or FUA, does not show'
  assert_line --regexp '^    connection 1 wrote A at [0-9]+,$'
  assert_line "    connection 2 flushed,"
  assert_line --regexp '^    connection 2 read zeroes at [0-9]+$'
  assert_line "To see it again: --verify --seed=7"
  assert_line --regexp '^mcshim, 4 handles +on +kept +[0-9]+$'
  assert_line --index -2 --partial "use auto: kept with replicated flushes"
  assert_line --regexp '^[1-9][0-9]* requests failed: what they did is not judged$'
  assert_equal "${lines[-1]}" "$mcshim nbdkit $wbcache failflush=50"
  refute_output --partial unsafe
  assert_equal "$stderr" ""
}

@test "--verify: data at risk comes first" {
  run -3 "$mcshim" --verify --yes --seconds=1 nbdkit "$wbcache" together=16 \
    multiconn=1
  assert_regex "$output" "^Overwriting .*seconds:\s+DATA AT RISK \(alone\): .*\
DATA AT RISK \(connection; fast; off; 4 handles\): it writes back .*\
multi-conn flag"
  narrow
}

@test "--verify: each line makes choices of its own" {
  mkdir copy
  cp "$BATS_TEST_DIRNAME"/../{scripts/mcshim*,libmcshim.so} copy
  program copy/mcshim-checker 'test $# -gt 0 || exit 2' \
    "echo \"\$*\" >> '$PWD/runs'"
  copy/mcshim --verify --yes --seed=7 --seconds=1 nbdkit memory 1M
  run -0 sed -n 's/.*--seed=\([0-9]*\) .*--sequences.*/\1/p' runs
  assert_output "$(printf '%s\n' 71 72 73 74 75)"
}

@test "--verify: a server that fails: what was found before is told" {
  program nbdkit 'test "$MCSHIM_TRACK_DIRTY" != fast || exit 1' \
    "exec $(command -v nbdkit) \"\$@\""
  run -1 --separate-stderr "$mcshim" --verify --yes --seconds=1 ./nbdkit \
    "$wbcache" multiconn=1
  assert_line --partial "DATA AT RISK (alone)"
  assert_line --regexp '^mcshim, connection +on +kept'
  assert_line "no verdict: stopped before the end"
  assert_equal "$stderr" \
    "mcshim: --verify: mcshim, fast: this server does not start"
  nothing_left
}

@test "--verify asks, and takes only yes" {
  printf 'go on: \tno\\n\n' > "type"
  run -2 in_terminal "$mcshim" --verify nbdkit "$wbcache" log="$log"
  assert_output --partial "This overwrites the 1048576 bytes from 0 on of nbdkit"
  assert_output --partial ", for about 60 seconds. Type yes"
  assert_output --partial "nothing was written"
  lacks 'write$' "$log"
  nothing_left
}

@test "--verify: ^C gives what there is, and nothing is left" {
  printf 'mcshim, connection: single\t\\x03\n' > "type"
  run -130 in_terminal "$mcshim" --verify --yes nbdkit "$wbcache"
  assert_line --regexp '^alone +off +not kept'
  refute_line --regexp '^mcshim, connection'
  assert_line --partial "no verdict: stopped before the end"
  nothing_left
}

# refused STATUS WHY OPTION... nbdkit ARGUMENT...
refused () { complains "$1" "$2" --verify --yes "${@:3}"; }

@test "--verify: what cannot be verified" {
  refused 2 "this command line is read-only" nbdkit -r memory 1M
  refused 1 "this plugin is read-only" nbdkit pattern 1M
  disk "${no_flush[@]}"
  refused 1 "this plugin has no flush" nbdkit eval "${disk[@]}"
  refused 1 "connections are serialized" nbdkit "$wbcache" model=connections
  refused 1 "does not start" nbdkit nosuch
  refused 1 "alone: flush on connection 1: nbd_flush: flush: command failed" \
    nbdkit "$wbcache" failflush=1000
  assert_line --partial "told to fail"
}

@test "--verify: numbers that are wrong" {
  refused 2 "1024 bytes are too few: must be 32768" nbdkit memory 1024
  for range in x 1,2,3 64K ,64K 0,0; do
    refused 2 "--range: '$range': must be OFFSET,SIZE" --range=$range \
      nbdkit memory 1M
  done
  refused 2 "must lie within the 1048576 bytes" --range=1M,64K nbdkit memory 1M
  refused 2 "the offset must be a multiple of 512" --range=100,64K nbdkit memory 1M
  for seed in 0 x 12345678901; do
    refused 2 "--seed: '$seed': must be a number" --seed=$seed nbdkit memory 1M
  done
}

@test "--verify: options that belong to it" {
  for option in --range=0,1M --seed=1 --crash; do
    complains 2 "${option%%=*} needs --verify" $option nbdkit memory 1M
  done
  complains 2 "--yes needs --write or --verify" --yes nbdkit memory 1M
}

@test "--verify: the checker is installed with the rest, or missed" {
  # A copy of the source, in which make finds nothing newer.
  make -s -C "$BATS_TEST_DIRNAME/.." install DESTDIR="$PWD/root" PREFIX=/usr
  [ -x root/usr/lib/mcshim/mcshim-checker ]
  rm root/usr/lib/mcshim/mcshim-checker
  sed -i "s|^libdir=.*|libdir=$PWD/root/usr/lib|" root/usr/bin/mcshim
  run -2 root/usr/bin/mcshim --verify --yes nbdkit memory 1M
  assert_line --partial "--verify needs mcshim-checker, which make builds"
  program root/usr/lib/mcshim/mcshim-checker 'exit 127'
  run -2 root/usr/bin/mcshim --verify --yes nbdkit memory 1M
  assert_line --partial "--verify needs libnbd, for "
}
