#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# scripts/deps: what it installs, and what it says where it can't.

load common

setup ()
{
  common_setup
  deps=$source/scripts/deps
  # A machine of stand-ins: what is installed, what is available, what was
  # done.  There are no lists of packages before an update.
  mkdir bin
  local tool
  for tool in awk bash cat grep head sed sh tr uname; do
    ln -s "$(command -v $tool)" bin
  done
  stub dpkg-query 'while read -r p; do case " $* " in
      *" $p "*) echo "installed $p" ;; esac; done < "$top/installed"'
  stub apt-cache 'while read -r p; do case " $* " in
      *" $p "*) printf "$p:\n  Installed: (none)\n  Candidate: 1\n" ;; esac
    done < "$top/packages"'
  stub apt-get 'case "$*" in
      indextargets*) test ! -e "$top/lists" || echo lists ;;
      *" update") echo update >> "$top/ran"; : > "$top/lists" ;;
      *" install "*)
        while ! test "$1" = --no-install-recommends; do shift; done; shift
        echo "install $*" >> "$top/ran"
        while read -r p; do case " $* " in *" $p "*) exit 100 ;; esac
        done < "$top/broken"
        printf "%s\n" "$@" >> "$top/installed" ;;
    esac'
  stub env 'shift; exec "$@"'
  stub id 'echo 0'
  stub bats 'echo Bats 1.7.0'
  : > installed
  : > ran
  : > broken
  printf '%s\n' clang gcc libc6-dev make nbdkit-plugin-dev nbdkit libnbd-bin \
    libnbd-dev nbdkit-plugin-python pkg-config python3-libnbd > packages
}

stub () { program "bin/$1" "top=$BATS_TEST_TMPDIR" "$2"; }

deps () { env -i "PATH=$PWD/bin" ${cc:+"CC=$cc"} bin/sh "$deps" "$@" 2>&1; }

# What the tests need, and what only some of them do.
offer_tests ()
{
  printf '%s\n' bats bats-assert bats-support binutils file jq perl \
    procps zsh valgrind "$@" >> packages
}

@test "what is missing is installed, after an update" {
  echo make > installed
  run -0 deps demo
  assert_output "deps: \"demo\" needs packages that are not here: apt-get install --no-install-recommends gcc libc6-dev nbdkit-plugin-dev nbdkit libnbd-bin libnbd-dev nbdkit-plugin-python pkg-config python3-libnbd"
  assert_equal "$(<ran)" "update
install gcc libc6-dev nbdkit-plugin-dev nbdkit libnbd-bin libnbd-dev nbdkit-plugin-python pkg-config python3-libnbd"
  run -0 deps demo
  assert_output 'deps: nothing to install for "demo"'
  assert_equal "$(wc -l < ran)" 2
}

@test "nothing is missing: neither root nor an update is wanted" {
  cp packages installed
  stub id 'echo 1000'
  run -0 deps demo
  assert_output 'deps: nothing to install for "demo"'
  assert_equal "$(<ran)" ""
}

@test "what few tests use and nobody packages: a word, and no update again" {
  offer_tests
  run -0 deps check
  assert_line --regexp '^deps: tests are skipped, .*no packages of: .* nbdkit-plugin-ruby '
  refute_line --regexp 'install .*ruby'
  assert_line --regexp 'install .* valgrind zsh$'
  run -0 deps check
  assert_line 'deps: nothing to install for "check"'
  assert_equal "$(grep -c update ran)" 1
}

@test "what few tests use and can't be installed keeps nothing else out" {
  offer_tests
  echo valgrind > broken
  run -0 deps check
  assert_line "deps: tests are skipped, as this can't be installed: valgrind"
  grep -qx zsh installed
  grep -qx bats installed
}

@test "what all tests need and nobody packages" {
  offer_tests
  sed -i /bats-/d packages
  run -1 deps check
  assert_output 'deps: "check" needs these, which this system has no packages of: bats-assert bats-support'
  run -0 deps demo
}

@test "not root and no sudo: a line for who may" {
  offer_tests
  stub id 'echo 1000'
  echo make > installed
  run -1 deps demo
  assert_output "deps: not root and no sudo; as root: apt-get install --no-install-recommends gcc libc6-dev nbdkit-plugin-dev nbdkit libnbd-bin libnbd-dev nbdkit-plugin-python pkg-config python3-libnbd"
  : > lists
  grep -vx zsh packages > installed
  run -0 deps check
  assert_line "deps: tests are skipped: not root and no sudo; as root: apt-get install --no-install-recommends zsh"
  assert_equal "$(<ran)" ""
}

@test "sudo, where that is how to be root" {
  stub id 'echo 1000'
  stub sudo 'echo "sudo $1" >> "$top/ran"; exec "$@"'
  run -0 deps demo
  assert_line --partial "not here: sudo apt-get install"
  assert_equal "$(grep -c sudo ran)" 2
}

@test "CC: that compiler" {
  cc=clang
  run -0 deps demo
  assert_output --partial " clang libc6-dev "
  refute_output --partial "gcc"
  # One that is there needs no package, whatever its name.
  stub mycc ''
  cc="mycc -m32"
  run -0 deps demo
  assert_output 'deps: nothing to install for "demo"'
}

@test "an old bats" {
  offer_tests
  stub bats 'echo Bats 1.2.1'
  run -1 deps check
  assert_line "deps: Bats 1.2.1 is too old: the tests need 1.7 or newer"
}

@test "no apt-get and no dnf: what counts is what is found" {
  rm bin/apt-get
  run -1 deps demo
  assert_output "deps: no apt-get and no dnf here, and \"demo\" needs what was not found: gcc make nbdkit-plugin.h libnbd.pc nbdkit nbdsh pkg-config"
  local tool
  for tool in gcc make nbdkit nbdsh pkg-config; do stub $tool ''; done
  run -0 deps demo
  assert_output 'deps: nothing to install for "demo"'
  stub gcc 'exit 1'
  run -1 deps demo
  assert_output --regexp ': nbdkit-plugin.h$'
}

@test "sets are named, and nothing else" {
  run -2 deps tests
  assert_output --regexp '^usage: deps demo\|check'
}
