#!/usr/bin/env bash
# What tpu_pod.sh does on each worker of a pod. The run is detached: a connection that breaks does not end it.
#
#   on_worker.sh setup HARDWARE              a virtual environment in .venv of the repository, as install.sh
#   on_worker.sh start [--flags=NAME] -- COMMAND...   starts COMMAND; refuses while another one is going
#   on_worker.sh follow                      prints its log until it has ended
#   on_worker.sh code SECONDS                prints `code N` when it has ended; stops it after so many seconds
#   on_worker.sh stop                        asks it to save and end
#   on_worker.sh --help                      prints this text
#
# pid, log and exit code are kept in $MOSSA_POD (~/mossa_jax_pod). And for slurm.sbatch:
#
#   on_worker.sh rank DIR COMMAND...         runs COMMAND; its exit code is also in DIR/<rank> then
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
root=${here%/*}
state=${MOSSA_POD:-${HOME-}/mossa_jax_pod}

alive() { [ -s "$state/pid" ] && [ ! -s "$state/code" ] && kill -0 "$(<"$state/pid")" 2>/dev/null; }

# The images of TPU VMs have Python 3.10: uv brings a newer one where none is installed.
setup() {
  local python
  if [ ! -x "$root/.venv/bin/python" ]; then
    for python in python3.13 python3.12 python3.11; do
      if command -v "$python" >/dev/null && "$python" -m venv "$root/.venv"; then break; fi
      rm -rf "$root/.venv"
    done
    if [ ! -x "$root/.venv/bin/python" ]; then
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python=3.12 "$root/.venv"
    fi
  fi
  PIP_QUIET=1 PATH=$root/.venv/bin:$PATH "$here/install.sh" "$1"
}

start() {
  local flags=
  case ${1-} in --flags=*)
    flags=${1#*=}
    shift
    ;;
  esac
  if [ "${1-}" != -- ] || [ $# -lt 2 ]; then die "usage: on_worker.sh start [--flags=NAME] -- COMMAND..."; fi
  shift
  if alive; then die "a run is going here (pid $(<"$state/pid")); stop it, or follow it"; fi
  mkdir -p "$state"
  rm -f "$state/code" "$state/pid"
  if [ -n "$flags" ]; then load_flags "$here/xla_flags/$flags.env"; fi
  cd "$root"
  export PATH=$root/.venv/bin:$PATH
  # The shell around the command outlives a SIGTERM to the group, and writes down how the command ended.
  # shellcheck disable=SC2016
  setsid bash -c '
    trap : TERM
    state=$1
    shift
    code=0
    "$@" || code=$?
    echo "$code" >"$state/code.new"
    mv "$state/code.new" "$state/code"
  ' bash "$state" "$@" </dev/null >"$state/log" 2>&1 &
  echo $! >"$state/pid"
}

signal() { kill "-$1" -- "-$(<"$state/pid")" 2>/dev/null || true; }

# Waits for the end, so many seconds at most; false when it has not come.
ends_within() {
  local deadline=$((SECONDS + $1))
  while alive; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.5
  done
}

follow() {
  [ -s "$state/pid" ] || die "nothing was started here"
  tail -n +1 --sleep-interval=0.5 --pid="$(<"$state/pid")" -f "$state/log"
}

# A run that goes on when worker 0 has ended has lost its peer; so has one that left no code.
code() {
  if ! ends_within "$1"; then
    signal TERM
    ends_within "${MOSSA_GRACE:-60}" || signal KILL
  fi
  if [ -s "$state/code" ]; then echo "code $(<"$state/code")"; else echo 'code 7'; fi
}

rank() {
  local codes=$1 code=0
  shift
  # Slurm signals all processes of a task: the command does what is asked, and this shell stays to see how it ends.
  trap : TERM INT
  "$@" || code=$?
  echo "$code" >"$codes/$SLURM_PROCID" || true
  exit "$code"
}

case ${1-} in
  --help) show_help "$here/on_worker.sh" ;;
  -*) unknown_flag on_worker.sh "$1" ;;
  setup) setup "${2:?HARDWARE}" ;;
  start)
    shift
    start "$@"
    ;;
  follow) follow ;;
  code)
    check_count SECONDS "${2-}"
    code "$2"
    ;;
  stop) if alive; then signal TERM; fi ;;
  rank)
    [ $# -ge 3 ] || die "usage: on_worker.sh rank DIR COMMAND..."
    rank "${@:2}"
    ;;
  *) die "${1-}: give one of setup, start, follow, code, stop, rank" ;;
esac
