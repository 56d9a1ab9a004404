#!/usr/bin/env bash
# A pod on this machine: N processes of one JAX run, each with D virtual CPU devices.
#
#   launch/local_pod.sh N [flags] -- COMMAND...
#   launch/local_pod.sh 2 --devices=2 -- python -m launch.run --config=demo --workdir=runs/pod
#
#   --devices=D        virtual devices of each process (1)
#   --logs=DIR         folder of the processes' output (runs/local_pod)
#   --port=P           of process 0 (one that is free)
#   --retry=K          starts again so often at most (0)
#   --grace=S          seconds from SIGTERM to SIGKILL (60)
#   --max_hours=H      asks all processes to stop after so many hours, restarts included, and starts no more (no limit)
#   --dry_run          prints the commands, one per line, and runs none
#   --help             prints this text
#
# COMMAND gets --processes, --coordinator and --process, as every `python -m launch.*` knows them. Output goes to
# DIR/process-<i>.log (runs/local_pod). Ends with 0 when all did; else with the code of the process that failed first,
# after the others were stopped (SIGTERM, and SIGKILL S seconds later, 60); 75 gives way to what another process says
# by itself, and the end of one that was killed (128 and more) to the 7 of those that miss it. SIGTERM and SIGINT are
# passed on to all. On 7 and 75 the same is started again, K times at most (0), unless the stop came from outside.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

count='' devices=1 logs=runs/local_pod port='' retry=0 grace=60 stop=''
pids=() command=()

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --devices=*) devices=${1#*=} ;;
      --logs=*) logs=${1#*=} ;;
      --port=*) port=${1#*=} ;;
      --retry=*) retry=${1#*=} ;;
      --grace=*) grace=${1#*=} ;;
      --max_hours=*)
        max_hours=${1#*=}
        check_amount --max_hours "$max_hours"
        ;;
      --dry_run) dry_run=1 ;;
      --help) show_help "$here/local_pod.sh" ;;
      --)
        shift
        command=("$@")
        break
        ;;
      -*) unknown_flag local_pod.sh "$1" ;;
      *)
        [ -z "$count" ] || die "$1: a second number of processes; the command comes behind --"
        count=$1
        ;;
    esac
    shift
  done
  if [ -z "$count" ] || [ "${#command[@]}" -eq 0 ]; then die "usage: local_pod.sh N [--devices=D] ... -- COMMAND..."; fi
  check_count N "$count"
  check_count --devices "$devices"
  check_count --retry "$retry"
  check_count --grace "$grace"
  if [ "$count" -lt 1 ] || [ "$devices" -lt 1 ]; then die "N=$count, --devices=$devices: at least one of each"; fi
}

# A port on which nobody answers.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Starts all processes.
start() {
  local index at=${port:-$(free_port)}
  pids=()
  for ((index = 0; index < count; index++)); do
    "${command[@]}" "--processes=$count" "--coordinator=127.0.0.1:$at" "--process=$index" \
      </dev/null >>"$logs/process-$index.log" 2>&1 &
    pids[index]=$!
  done
}

# Sends a signal to the processes that are left.
tell() {
  local index
  for index in "${!pids[@]}"; do kill "-$1" "${pids[index]}" 2>/dev/null || true; done
}

# Waits for all processes; sets `code` and `decided`, the process whose code it is.
watch() {
  local index ended told='' deadline=''
  code=0 decided=0
  while [ "${#pids[@]}" -gt 0 ]; do
    for index in "${!pids[@]}"; do
      if kill -0 "${pids[index]}" 2>/dev/null; then continue; fi
      ended=0
      wait "${pids[index]}" || ended=$?
      unset "pids[index]"
      if [ "$ended" -eq 0 ]; then continue; fi
      say "process $index ended with $ended"
      # Behind a failure nothing counts any more; behind a 75 all but the ends that our own signals made.
      if [ "$code" -eq 0 ] || { [ "$code" -eq 75 ] && [ "$ended" -ne 137 ] && [ "$ended" -ne 143 ]; } ||
        { [ "$code" -ge 128 ] && [ "$ended" -eq 7 ]; }; then
        code=$ended decided=$index
      fi
    done
    if [ -z "$told" ] && { [ -n "$stop" ] || [ "$code" -ne 0 ]; }; then
      tell TERM
      told=1 deadline=$((SECONDS + grace))
    elif [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
      tell KILL
    fi
    sleep 0.1
  done
}

parse "$@"
export JAX_PLATFORMS=cpu
load_flags "$here/xla_flags/cpu.env"
export XLA_FLAGS="$XLA_FLAGS --xla_force_host_platform_device_count=$devices"
if [ -n "$dry_run" ]; then
  for ((index = 0; index < count; index++)); do
    run env "JAX_PLATFORMS=$JAX_PLATFORMS" "XLA_FLAGS=$XLA_FLAGS" "${command[@]}" "--processes=$count" \
      "--coordinator=127.0.0.1:${port:-PORT}" "--process=$index"
  done
  exit
fi

mkdir -p "$logs"
for ((index = 0; index < count; index++)); do : >"$logs/process-$index.log"; done
trap 'stop=1' TERM INT
trap 'tell KILL; stop_clock' EXIT
trap 'stop=1; say "--max_hours=$max_hours reached: all processes are asked to stop"' USR1
if [ -n "$max_hours" ]; then set_clock "$(seconds_of "$max_hours")"; fi
for ((attempt = 0; ; attempt++)); do
  start
  watch
  if [ -n "$stop" ] || ! try_again "$code" || [ "$attempt" -ge "$retry" ]; then break; fi
  say "exit code $code: started again, $((attempt + 1)) of $retry"
done
tail -n 20 "$logs/process-$decided.log"
exit "$code"
