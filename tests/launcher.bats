#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# mcshim's own command line: what it takes, and how it says what is wrong.

load common

# complains MESSAGE ARGUMENT...: MESSAGE is the first line, the exit status is 2,
# and nothing is started.
complains ()
{
  run -2 "$launcher" "${@:2}"
  assert_line --index 0 "mcshim: $1"
  refute_line started
}

@test "-h is --help" {
  run -0 "$launcher" --help
  local help=$output
  run -0 "$launcher" -h
  assert_output "$help"
  assert_line --index 0 --partial "usage: mcshim "
}

@test "--json and --seconds without what they are for" {
  complains "--json needs --probe, --try or --verify" --json echo started
  complains "--seconds needs --probe, --try or --verify" --seconds=2 echo started
}

@test "--probe, --try, --verify, --top and --status: one at a time" {
  local one other
  for one in --probe --try --verify --top=x --status; do
    for other in --probe --try --verify --top=x --status; do
      [ "$one" != "$other" ] || continue
      complains "${other%=*}: only one of --probe, --try, --verify, --top and --status" \
        "$one" "$other" echo started
    done
  done
  complains "--top starts no command: must be alone" --top=x echo started
}

@test "--exportname no nbdkit explains itself" {
  local word
  for word in no No 0 false off yes; do
    complains "--exportname: '$word' is taken as the command: must be --exportname=$word" \
      --exportname "$word" echo started
  done
}

@test "what is wrong is one line of text, whatever was typed" {
  complains 'unknown option --a?[31m?b' $'--a\033[31m\nb' echo started
  mkdir $'d\a'
  complains "--top: 'd?' is a directory: must be the file that a server was given with --stats" \
    --top=$'d\a'
  assert_equal "${#lines[@]}" 1
}

# nbdkit itself does not tell which of its options take a value.
@test "--probe and the library know the same options of nbdkit's with a value" {
  cd "$source"
  options () { sed -n "$@" | grep -o -- '--[a-z-]*\|DegiPptuU' | sort; }
  local library
  library=$(options '/define WITH_VALUE/p; /words\[\] = {/,/};/p' interpose/*.c)
  assert_equal "$(options '/ --debug|/,/)$/p' scripts/mcshim-captive)" "$library"
  [ "$library" ]
}

@test "a path with a space or a colon: said before anything is built" {
  local dir
  for dir in "a b" "a:b"; do
    mkdir "$dir"
    cp "$source/Makefile" "$dir"
    run -2 env -u MAKEFLAGS make -C "$dir" all
    assert_output --partial "/$dir: LD_PRELOAD cannot name a path with a space or colon: move this directory"
    assert_equal "$(ls "$dir")" Makefile
  done
}
