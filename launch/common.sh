#!/usr/bin/env bash
# What the launch scripts share. Sourced, never run by itself.

dry_run=
child=

# One line on standard error, with the time.
say() { printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2; }

# Ends with exit code 2: a bad flag or argument.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The arguments as one line that a shell reads back as they are.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# Runs a command, or prints it under --dry_run. In the background, so that a signal is heard while it works.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    return
  fi
  "$@" </dev/null &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=
  return "$code"
}

# For `trap`: ends with that code, and what runs in the foreground with us.
interrupted() {
  if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; fi
  exit "$1"
}

# Refuses what is no whole number: check_count FLAG VALUE.
check_count() { [[ $2 =~ ^[0-9]+$ ]] || die "$1=$2: not a whole number"; }

# Whether the same command again may go on: a lost peer, or a stop with the state saved (exit codes of mossa_jax).
try_again() { [ "$1" -eq 7 ] || [ "$1" -eq 75 ]; }

# Exports the VARIABLE=value lines of a file; of XLA_FLAGS and LIBTPU_INIT_ARGS what was set before follows and so wins.
load_flags() {
  local line name value
  [ -r "$1" ] || die "$1: no such file; launch/xla_flags has $(cd "${BASH_SOURCE[0]%/*}/xla_flags" && echo *.env)"
  while IFS= read -r line || [ -n "$line" ]; do
    [[ $line =~ ^([A-Z_]+)=(.*)$ ]] || continue
    name=${BASH_REMATCH[1]}
    value=${BASH_REMATCH[2]}
    case $name in
      XLA_FLAGS | LIBTPU_INIT_ARGS) export "$name=$value${!name:+ ${!name}}" ;;
      *) export "$name=${!name:-$value}" ;;
    esac
  done <"$1"
}

# Name of the flags file for a Cloud TPU accelerator type; nothing where there is none.
tpu_flags() {
  case $1 in
    v5litepod-* | v5e-*) echo v5e ;;
    v5p-*) echo v5p ;;
    v6e-*) echo v6e ;;
  esac
}
