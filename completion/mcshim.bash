# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 mcshim authors

# shellcheck shell=bash
# bash completion for mcshim(1).  Which options there are, and which of them
# take a value, --help says; here is what the values are.

_mcshim ()
{
  local cur=${COMP_WORDS[COMP_CWORD]} i word='' option='' words options offset
  options=$("$1" --help 2>/dev/null | sed -n 's/^  --/--/p' |
              sed 's/  .*//' | grep -oE -- '--[a-z-]+=?')
  COMPREPLY=()

  # Find the word that the cursor is in.  bash makes --mode=auto three words.
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == = ]]; then
      option=${COMP_WORDS[i - 1]}
    elif [[ $option ]]; then    # This was its value.
      option=
    elif [[ $word != -* ]]; then
      break
    elif [[ $word == -- ]]; then
      ((i++))
      break
    elif [[ $'\n'$options$'\n' == *$'\n'"$word="$'\n'* ]]; then
      option=$word
    fi
  done
  [[ $cur != = ]] || option=$word cur=

  if [[ $option ]]; then
    case $option in
      --mode) words="auto emulate plugin disable unsafe" ;;
      --track-dirty) words="connection fast off" ;;
      --exportname|--flush-on-close) words="true false" ;;
      --flush-threads) words=auto ;;
      --stats|--top)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return ;;
      *) return ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
  elif [[ $cur == -* && $i -eq $COMP_CWORD && $word != -- ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    [[ ${COMPREPLY[0]} != *= ]] || compopt -o nospace
  else
    # The command and its arguments are completed as without mcshim.
    for offset in _comp_command_offset _command_offset; do
      if declare -F $offset >/dev/null; then
        $offset "$i"
        return
      fi
    done
    ((i < COMP_CWORD)) || mapfile -t COMPREPLY < <(compgen -c -- "$cur")
  fi
}

complete -F _mcshim mcshim
