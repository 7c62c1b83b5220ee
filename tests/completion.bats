#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# Completion of the launcher's command line, in bash and in zsh.

load common

export PATH=$source/scripts:$PATH

# completes WORD... = COMPLETION...: what bash offers for the last WORD; the
# words as bash splits them, where "=" stands alone as "+".
completes ()
{
  local words=()
  while [ "$1" != = ]; do
    words+=("${1/#+/=}")
    shift
  done
  shift
  run -0 bash --norc -c '
    . "$0"
    compopt () { :; }           # there is no completion going on
    _command_offset () { COMPREPLY=("command at $1"); }
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _mcshim mcshim
    printf "%s\n" "${COMPREPLY[@]}"' \
    "$source/completion/mcshim.bash" "${words[@]}"
  assert_equal "${output//$'\n'/ }" "$*"
}

@test "bash: it is registered" {
  run -0 bash --norc -c '. "$0"; complete -p mcshim' \
    "$source/completion/mcshim.bash"
  assert_output "complete -F _mcshim mcshim"
}

@test "bash: every option of --help" {
  local options
  mapfile -t options < <(mcshim --help | grep -oE '^  --[a-z-]+=?' |
                           sed 's/^  //')
  completes mcshim --mod = --mode=
  completes mcshim --vers = --version
  completes mcshim --flush = --flush-on-close= --flush-threads=
  for option in "${options[@]}"; do
    completes mcshim "${option%=}" = "$option"
  done
}

@test "bash: values" {
  completes mcshim --mode + = auto emulate plugin disable unsafe
  completes mcshim --mode + em = emulate
  completes mcshim --mode em = emulate
  completes mcshim --exportname --track-dirty + fast --mode + u = unsafe
  completes mcshim --track-dirty "" = connection fast off
  completes mcshim --exportname + t = true
  completes mcshim --flush-on-close + f = false
  completes mcshim --flush-threads + a = auto
  mkdir "a dir"
  completes mcshim --stats + ./a = "./a dir"
}

@test "bash: the command, as without mcshim" {
  completes mcshim "" = "command at 1"
  completes mcshim nbd = "command at 1"
  completes mcshim --mode + auto nbd = "command at 4"
  completes mcshim --mode auto nbdkit -U - = "command at 3"
  completes mcshim --exportname nbdkit --mod = "command at 2"
  completes mcshim -- --mod = "command at 2"
}

@test "zsh" {
  needs zsh
  run -0 zsh -n "$source/completion/_mcshim"
  cat > script <<'EOT'
zmodload zsh/zpty
TERM=dumb zpty z zsh -f -i
zpty -w z "fpath=($1 \$fpath); autoload -U compinit; compinit -u -D"
while IFS=: read -r typed wanted; do
  # Complete, and have the line printed.
  zpty -n -w z "$typed"$'\t\x01echo LINE\n'
  zpty -r -m z out $'*\nLINE*\n*'
  got=${${out##*$'\n'LINE}%%[[:space:]]#}
  got=${got%%$'\r'*}
  [[ "$got" == "$wanted" ]] || { print -r "$typed: got '$got'"; exit 1 }
done
zpty -d z
EOT
  timeout 100 zsh -f script "$source/completion" <<'EOT'
mcshim --mod:mcshim --mode
mcshim --mode=em:mcshim --mode=emulate
mcshim --mode em:mcshim --mode emulate
mcshim --track-dirty=f:mcshim --track-dirty=fast
mcshim --exportname=t:mcshim --exportname=true
mcshim --flush-on-close=f:mcshim --flush-on-close=false
mcshim --flush-threads=a:mcshim --flush-threads=auto
mcshim --stats=/etc/passw:mcshim --stats=/etc/passwd
mcshim --mode=auto nbdki:mcshim --mode=auto nbdkit
mcshim nbdkit /etc/passw:mcshim nbdkit /etc/passwd
EOT
}

@test "make install puts them where the shells look, and uninstall takes them" {
  make -s -C "$source" install DESTDIR="$PWD/root" PREFIX=/usr
  for file in bash-completion/completions/mcshim zsh/site-functions/_mcshim \
              man/man1/mcshim.1 man/man7/libmcshim.7; do
    [ -s "root/usr/share/$file" ]
  done
  make -s -C "$source" uninstall DESTDIR="$PWD/root" PREFIX=/usr
  run -0 find root ! -type d
  assert_output ""
  # Nor directories, but for those that anything would use.
  assert_equal "$(find root/usr/share | sort | paste -sd' ')" \
    "root/usr/share root/usr/share/man"
}
