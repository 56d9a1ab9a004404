#!/usr/bin/env bash
# What the launch scripts share. Sourced, never run by itself.

dry_run=
child=
# Set by a trap that came back while `run` waited.
has_heard=
# Seconds after which `run` gives a command up; nothing for no limit.
bound=

# One line on standard error, with the time.
say() { printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2; }

# Ends with exit code 2: a bad flag or argument.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# For `--help`: the text at the head of the script, and exit code 0.
show_help() {
  awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$1"
  exit 0
}

# Refuses a flag that a script does not know: unknown_flag SCRIPT WORD.
unknown_flag() {
  case $2 in
    --max_hours | --max_cost | --price) die "$2: it needs a value, as in $2=8" ;;
    *) die "$2: unknown flag; $1 --help lists them" ;;
  esac
}

# The arguments as one line that a shell reads back as they are.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# Runs a command, or prints it under --dry_run. In the background, so that a signal is heard while it works. One that
# takes longer than `bound` is ended; its code is 124.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    return
  fi
  "$@" </dev/null &
  child=$!
  local code=0
  if [ -n "$bound" ] && ! ends_in "$bound"; then
    kill "$child" 2>/dev/null || true
    ends_in 2 || kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    child=
    return 124
  fi
  wait "$child" || code=$?
  # A signal with a trap ends the wait, and not the command.
  if [ -n "$has_heard" ]; then
    has_heard='' code=0
    wait "$child" || code=$?
  fi
  child=
  return "$code"
}

# Whether what `run` started ends within so many seconds.
ends_in() {
  local deadline=$((SECONDS + $1))
  while kill -0 "$child" 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
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

# ---- budgets

max_hours='' max_cost='' price='' clock=''

# Reads a flag of the budget; false for any other.
budget_flag() {
  case $1 in
    --max_hours=*) max_hours=${1#*=} ;;
    --max_cost=*) max_cost=${1#*=} ;;
    --price=*) price=${1#*=} ;;
    *) return 1 ;;
  esac
  check_amount "${1%%=*}" "${1#*=}"
}

# Refuses what is no amount above 0: check_amount FLAG VALUE.
check_amount() {
  if ! [[ $2 =~ ^[0-9]*\.?[0-9]+$ ]] || [ "$(calculate "$2 > 0 && $2 <= 1e6")" -ne 1 ]; then
    die "$1=$2: give a number above 0, as in $1=8 or $1=0.5"
  fi
}

# Prints the value of an expression of awk.
calculate() { awk "BEGIN { printf \"%.10g\", ($1) }"; }

# Prints an amount of money.
money() { LC_ALL=C awk "BEGIN { printf \"%.2f\", ($1) }"; }

# Prints whole seconds, at least 1, of an expression in hours.
seconds_of() { awk "BEGIN { s = ($1) * 3600; printf \"%d\", s < 1 ? 1 : s }"; }

# Sends this script SIGUSR1 after so many seconds; a second call takes the place of the first. Ends with the script.
set_clock() {
  local deadline=$((SECONDS + $1))
  stop_clock
  (
    trap - EXIT TERM INT USR1
    while [ "$SECONDS" -lt "$deadline" ]; do
      kill -0 $$ 2>/dev/null || exit 0
      sleep "$((deadline - SECONDS < 5 ? 1 : 5))"
    done
    kill -USR1 $$
  ) </dev/null >/dev/null 2>&1 &
  clock=$!
}

stop_clock() {
  if [ -n "$clock" ]; then
    kill "$clock" 2>/dev/null || true
    wait "$clock" 2>/dev/null || true
  fi
  clock=
}

# Prints the list price of a chip of this name for an hour; nothing where there is none.
list_price() { plan --prices 2>/dev/null | awk -v chip="$1" '$1 == chip { print $2 }'; }

# launch.plan, with the Python of the repository if it has one.
plan() {
  local root python=python
  root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
  if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
  (cd "$root" && JAX_PLATFORMS=cpu "$python" -m launch.plan "$@")
}

# Sets `price`, if no flag did, to the list price of the chips of a Cloud TPU type, and `chips` to their number.
find_price() {
  local number=${1##*-} name
  chips='' name=$(tpu_flags "$1")
  [[ $number =~ ^[1-9][0-9]*$ ]] || return 0
  case $1 in
    v5litepod-* | v5e-* | v6e-*) chips=$number ;;
    # These count cores, two per chip.
    v[2345]*-*) chips=$((number / 2)) name=${name:-${1%%-*}} ;;
  esac
  if [ -z "$price" ] && [ -z "$dry_run" ]; then price=$(list_price "$name" || true); fi
}

# Says what TYPE costs and what the limits allow, and what launch.plan thinks of the command; asks whether to go on.
# Refuses where nobody can answer: confirm NAME TYPE YES COMMAND...
confirm() {
  local name=$1 type=$2 yes=$3 word text answer each=''
  local -a config=()
  shift 3
  if [ -n "$price" ] && [ -n "$chips" ]; then
    each=$(calculate "$price * $chips")
    say "$name: $type, $chips chips at $price an hour each: $(money "$each") an hour (spot costs less)"
  else
    say "$name: $type, at a price that is not known (--price)"
  fi
  if [ -n "$max_hours" ]; then
    say "$name: --max_hours=$max_hours${each:+, which is $(money "$each * $max_hours") at most}"
  fi
  if [ -n "$max_cost" ]; then
    say "$name: --max_cost=$max_cost, which is $(calculate "int(100 * $max_cost / $each) / 100") hours of it"
  fi
  if [ -z "$max_hours$max_cost" ]; then say "$name: without a limit (--max_hours, --max_cost)"; fi
  for word in "$@"; do
    case $word in --config=* | --config.*) config+=("$word") ;; esac
  done
  if [ "${#config[@]}" -gt 0 ]; then
    if text=$(plan "${config[@]}" "--topology=$type" --nocompile --brief --price_per_chip_hour="${price:-0}" 2>&1); then
      say "plan: $(tail -n 1 <<<"$text")"
    else
      say "no plan of the command: $(tail -n 1 <<<"$text")"
    fi
  fi
  if [ -n "$yes" ]; then return; fi
  if [ ! -t 0 ]; then die "$name: nobody is there to confirm this; give --yes"; fi
  read -r -p "Create it? [y/N] " answer || true
  case $answer in
    y | Y | yes) ;;
    *) die "$name: not confirmed, nothing was created" ;;
  esac
}

# ---- flags of the compilers

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
