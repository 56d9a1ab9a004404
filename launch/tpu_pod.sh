#!/usr/bin/env bash
# A run on a Cloud TPU slice: asks for it as a queued resource, waits, installs the repository on all workers, runs
# COMMAND on each, shows the log of worker 0, starts again on exit codes 7 and 75 and after a preemption, deletes it.
#
#   launch/tpu_pod.sh NAME ZONE TYPE [flags] -- COMMAND...
#   launch/tpu_pod.sh flan us-west4-a v5litepod-16 --spot -- \
#       python -m launch.run --config=configs/llama2_7b_flan2021.py --workdir=gs://BUCKET/flan --processes=0
#
#   --spot             capacity that may be taken away; the slice is then asked for again
#   --keep             does not delete the slice at the end
#   --attach           goes on with a run that is going there: nothing is created, copied or started
#   --retry=K          starts again so often at most (10)
#   --project=ID       where gcloud's own setting is another
#   --runtime=VERSION  software of the TPU VM; chosen by TYPE
#   --hf_token_file=F  copied to the place on the workers where huggingface_hub looks; needed for gated models
#   --poll=SECONDS     between looks at the queue, and tries after a failure (30)
#   --dry_run          prints what would be run when all goes well, a command a line, and runs nothing
#
# The workdir must be one that all workers reach (gs://...). The run on the workers does not depend on this script: one
# that is killed says what is still there and how to go on or delete it; so does one that ends with 1, since gcloud
# failed on every look. Workers that cannot be prepared or started count as a lost peer. Exit code: that of the run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

words=() command=() spot='' keep='' attach='' retry=10 project='' runtime='' token='' poll=30 held=''
looks=20 mine='' unprepared=''

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --spot) spot=1 ;;
      --keep) keep=1 ;;
      --attach) attach=1 ;;
      --retry=*) retry=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --hf_token_file=*) token=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --dry_run) dry_run=1 ;;
      --)
        shift
        command=("$@")
        break
        ;;
      -*) die "$1: unknown flag; the head of launch/tpu_pod.sh lists them" ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  if [ "${#words[@]}" -ne 3 ] || [ "${#command[@]}" -eq 0 ]; then
    die "usage: tpu_pod.sh NAME ZONE TYPE [flags] -- COMMAND..."
  fi
  check_count --retry "$retry"
  check_count --poll "$poll"
  name=${words[0]} zone=${words[1]} type=${words[2]}
  if [ -z "$runtime" ]; then
    case $type in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
      *) die "TYPE=$type: no TPU known here; give --runtime as well" ;;
    esac
  fi
  if [ -n "$token" ] && [ ! -r "$token" ]; then die "--hf_token_file=$token: no such file"; fi
}

queued() { run gcloud compute tpus queued-resources "$1" "$name" "${place[@]}" "${@:2}"; }

# The same for somebody to type.
by_hand() { quoted gcloud compute tpus queued-resources "$1" "$name" "${place[@]}" "${@:2}"; }

vm() { run gcloud compute tpus tpu-vm "$1" "${@:2}" "${place[@]}" --quiet; }

on_all() { vm ssh "$name" --worker=all "--command=$1" "${@:2}"; }

worker() { quoted bash mossa_jax/launch/on_worker.sh "$@"; }

create() {
  local more=()
  if [ -n "$spot" ]; then more=(--spot); fi
  held=1 mine=1
  queued create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" ${more[@]+"${more[@]}"}
}

delete() {
  queued delete --force --quiet
  held=
}

look() { queued describe '--format=value(state.state)'; }

# Sets `now`, the queued resource's state; ABSENT only where gcloud says that there is none. A look that fails for any
# other reason says nothing about the slice: it is repeated, and in the end the slice is left alone.
state() {
  local try
  for ((try = 1; ; try++)); do
    if look >"$scratch/state" 2>"$why"; then
      now=$(<"$scratch/state")
      return
    fi
    if grep -Eq 'NOT_FOUND|[Rr]esource.* (was not|could not be) found' "$why"; then
      now=ABSENT
      return
    fi
    say "$name: no word of its state ($try of $looks): $(grep -m 1 ERROR "$why" || head -n 1 "$why")"
    if [ "$try" -ge "$looks" ]; then exit 1; fi
    run sleep "$poll"
  done
}

# Comes back when the slice is there.
wait_until_active() {
  local before=
  if [ -n "$dry_run" ]; then
    look
    create
    look
    return
  fi
  while :; do
    state
    if [ "$now" != "$before" ]; then say "$name: $now"; fi
    before=$now
    case $now in
      ACTIVE)
        held=1
        return
        ;;
      ABSENT) create ;;
      SUSPENDED) delete ;;
      FAILED)
        held=1
        say "$name: the request failed; why: $(by_hand describe)"
        exit 1
        ;;
    esac
    run sleep "$poll"
  done
}

pack() {
  run tar --create --gzip "--file=$scratch/mossa_jax.tgz" "--directory=${here%/*}" --exclude=./.git --exclude=./.venv \
    --exclude=./runs --exclude=./build '--exclude=./.*cache' '--exclude=*.egg-info' --exclude=__pycache__ .
}

# The repository and its Python environment on all workers. Called where errors do not end the script.
prepare() {
  local unpack='tar --extract --gzip --file=mossa_jax.tgz --directory=mossa_jax'
  vm scp "$scratch/mossa_jax.tgz" "$name:mossa_jax.tgz" --worker=all || return
  on_all "mkdir -p mossa_jax .cache/huggingface && $unpack && $(worker setup tpu)" || return
  if [ -n "$token" ]; then vm scp "$token" "$name:.cache/huggingface/token" --worker=all; fi
}

# Called where errors do not end the script.
start() {
  local flags code=0
  flags=$(tpu_flags "$type")
  on_all "$(worker start ${flags:+"--flags=$flags"} -- "${command[@]}")" 2>"$why" || code=$?
  if [ -z "$dry_run" ]; then cat "$why" >&2; fi
  # On a slice that was there before us it is somebody's: neither waited for nor deleted.
  if [ "$code" -ne 0 ] && [ -z "$mine" ] && grep -q 'a run is going here' "$why"; then exit "$code"; fi
  if [ "$code" -eq 0 ]; then mine=1; fi
  return "$code"
}

# After a failed prepare or start, the slice may have been taken away: its state says so only a little later.
settle() {
  local try
  for ((try = 0; try < 4; try++)); do
    run sleep "$poll"
    state
    if [ "$now" != ACTIVE ]; then return; fi
  done
}

# Shows worker 0's log to its end; a connection that breaks is taken up again while the slice is there.
follow() {
  until vm ssh "$name" --worker=0 "--command=$(worker follow)"; do
    state
    if [ "$now" != ACTIVE ]; then return; fi
    say "$name: the connection to worker 0 broke; again in $poll s"
    run sleep "$poll"
  done
}

# How much an exit code says of what happened. One by a signal (128 and more) is that of a worker that was killed: it
# counts less than the 7 of those that lost it.
weight() {
  case $1 in
    0) echo 0 ;;
    75) echo 1 ;;
    7) echo 3 ;;
    *) if [ "$1" -ge 128 ]; then echo 2; else echo 4; fi ;;
  esac
}

# Sets `code` from what all workers say: 0 when all did; else the first failure of those that say most, by `weight`.
# A worker that says nothing, or a slice that is no longer there, is a lost peer.
collect() {
  local file said
  rm -f "$scratch"/*.log
  code=0
  on_all "$(worker code 120)" "--output-directory=$scratch" || code=7
  if [ -n "$dry_run" ]; then return; fi
  for file in "$scratch"/*.log; do
    said=$(sed -n 's/^code \([0-9][0-9]*\)$/\1/p' "$file" 2>/dev/null || true)
    said=${said:-7}
    if [ "$(weight "$said")" -gt "$(weight "$code")" ]; then code=$said; fi
  done
  state
  if [ "$now" != ACTIVE ]; then code=7; fi
}

# What is left behind, for a human.
# shellcheck disable=SC2317,SC2329  # called by trap
last_words() {
  rm -rf "$scratch"
  if [ -n "$held" ] && [ -z "$dry_run" ]; then
    say "$name is still there and costs money. Delete it: $(by_hand delete --force)"
    say "Or go on: $(quoted "$0" "$name" "$zone" "$type" ${project:+"--project=$project"} --attach -- "${command[@]}")"
  fi
}

parse "$@"
place=("--zone=$zone")
if [ -n "$project" ]; then place+=("--project=$project"); fi
if [ -n "$dry_run" ]; then scratch=/tmp/mossa_jax-$name why=/dev/null; else scratch=$(mktemp -d) why=''; fi
why=${why:-$scratch/why}
trap last_words EXIT
trap 'interrupted 143' TERM
trap 'interrupted 130' INT

for ((attempt = 0; ; attempt++)); do
  unprepared=
  if [ -z "$attach" ]; then
    wait_until_active
    pack
    if ! prepare; then
      unprepared=1
    elif ! start; then
      unprepared=1
      # Some workers may have started: they are stopped, but only where nobody else can have a run.
      if [ -n "$mine" ]; then collect; fi
    fi
  else
    held=1 mine=1 attach=
  fi
  if [ -z "$unprepared" ]; then
    follow
    collect
  else
    say "$name: its workers could not be prepared or started"
    settle
    code=7
  fi
  if ! try_again "$code" || [ "$attempt" -ge "$retry" ]; then break; fi
  say "exit code $code: the same command again, $((attempt + 1)) of $retry"
done
# A slice that was there before us may be in use where we never came through to it.
if [ -z "$keep" ] && { [ -z "$unprepared" ] || [ -n "$mine" ]; }; then delete; fi
exit "$code"
