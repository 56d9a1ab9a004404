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
#   --max_hours=H      hours from the first request, the wait in the queue included (no limit)
#   --max_cost=M       money from the moment when the slice is ACTIVE: Cloud TPU bills nothing before (no limit)
#   --price=P          of one chip for one hour; without it the list price on demand (launch.plan --prices)
#   --yes              does not ask before the slice is created; needed where there is no terminal
#   --dry_run          prints what would be run when all goes well, a command a line, and runs nothing
#   --help             prints this text
#
# Near a limit (5 minutes before, or a quarter of it if that is less) the run is asked to save and stop, and the slice is
# deleted, with --keep as well; exit code 75. A delete that hangs or fails is tried again, ten times; then this script
# says what is left and ends with 1. A limit counts for this call of the script alone. It needs this script to live: the
# queue lets a request go by itself (--valid-until-duration), but no slice. Of a slice that was there before, money
# counts from the first look.
#
# The workdir must be one that all workers reach (gs://...). The run on the workers does not depend on this script: one
# that is killed says what is still there and how to go on or delete it; so does one that ends with 1, since gcloud
# failed on every look. Workers that cannot be prepared or started count as a lost peer. Exit code: that of the run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

words=() command=() spot='' keep='' attach='' retry=10 project='' runtime='' token='' poll=30 held=''
looks=20 mine='' unprepared='' yes='' started='' active='' billed=0 limit='' patience=${MOSSA_PATIENCE:-300}

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
      --yes) yes=1 ;;
      --dry_run) dry_run=1 ;;
      --help) show_help "$here/tpu_pod.sh" ;;
      --)
        shift
        command=("$@")
        break
        ;;
      -*) budget_flag "$1" || unknown_flag tpu_pod.sh "$1" ;;
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
  if [ -z "$attach" ] || [ -n "$max_cost" ]; then find_price "$type"; fi
  if [ -n "$max_cost" ] && { [ -z "$chips" ] || [ -z "$price$dry_run" ]; }; then
    die "--max_cost=$max_cost: no list price is known of TYPE=$type; give --price of a chip for an hour, or --max_hours"
  fi
}

# ---- the budget

# Seconds that the slice may still be there, or the request wait; nothing for no limit.
left() {
  local seconds='' more
  if [ -n "$max_hours" ]; then seconds=$(($(seconds_of "$max_hours") - SECONDS)); fi
  if [ -n "$max_cost" ] && [ -n "$active" ]; then
    more=$(($(seconds_of "$max_cost / ($price * $chips)") - billed - (SECONDS - active)))
    if [ -z "$seconds" ] || [ "$more" -lt "$seconds" ]; then seconds=$more; fi
  fi
  echo "$seconds"
}

# Sets the clock for the limit that comes first; called when the slice comes or goes.
watch_budget() {
  local seconds early
  if [ -n "$dry_run" ]; then return 0; fi
  seconds=$(left)
  if [ -z "$seconds" ]; then
    stop_clock
    return 0
  fi
  early=0
  if [ -n "$active" ]; then early=$((seconds / 4 < 300 ? seconds / 4 : 300)); fi
  limit=$((SECONDS + seconds))
  set_clock "$((seconds - early > 0 ? seconds - early : 0))"
}

# The slice is there: money counts.
begin_billing() {
  if [ -z "$active" ]; then
    active=$SECONDS
    watch_budget
  fi
}

# The slice is gone: the money that it cost stays spent.
end_billing() {
  if [ -n "$active" ]; then
    billed=$((billed + SECONDS - active)) active=
    watch_budget
  fi
}

# For `trap`, when a limit is near: saves what can be saved, deletes, ends.
# shellcheck disable=SC2317,SC2329  # called by trap
out_of_budget() {
  local flags="${max_hours:+ --max_hours=$max_hours}${max_cost:+ --max_cost=$max_cost}"
  trap '' USR1
  set +e
  if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi
  code=75
  if [ -n "$started" ]; then
    say "$name:$flags is nearly reached: the run is asked to save and stop"
    bound=$((limit - SECONDS > 2 ? limit - SECONDS : 2))
    on_all "$(worker stop)"
    bound=$((limit - SECONDS > 2 ? limit - SECONDS : 2))
    rm -f "$scratch"/*.log
    on_all "$(worker code "$bound")" "--output-directory=$scratch"
    bound=
    if compgen -G "$scratch/*.log" >/dev/null; then
      code=0
      tell_code
    else
      say "$name: no word from its workers; what the run saved last is what there is"
    fi
  fi
  say "$name:$flags reached"
  if [ -z "$mine" ]; then
    held=1
    say "$name was there before this script, and is left alone"
    exit "$code"
  fi
  delete || exit 1
  exit "$code"
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
  if [ -n "$max_hours" ]; then more+=("--valid-until-duration=$(($(seconds_of "$max_hours") - SECONDS))s"); fi
  held=1 mine=1
  queued create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" ${more[@]+"${more[@]}"}
}

# Deletes the slice. What hangs is given up; what fails is tried again, until gcloud says that nothing is there. The
# clock stops only then: a limit that is reached meanwhile comes back here.
delete() {
  local try
  for ((try = 1; try <= 10; try++)); do
    bound=$patience
    if queued delete --force --quiet || is_absent; then
      bound='' held='' started=''
      end_billing
      # With its code: in a trap, `return` alone tells how the command before the trap ended.
      return 0
    fi
    bound=
    say "$name: could not be deleted, $try of 10; again in $poll s"
    run sleep "$poll"
  done
  say "$name COULD NOT BE DELETED and goes on costing money"
  return 1
}

is_absent() { ! look >"$scratch/state" 2>"$why" && says_absent; }

# Whether gcloud's last answer was that there is no such slice.
says_absent() { grep -Eq 'NOT_FOUND|[Rr]esource.* (was not|could not be) found' "$why"; }

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
    if says_absent; then
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
        begin_billing
        return
        ;;
      ABSENT)
        end_billing
        create
        ;;
      SUSPENDED)
        end_billing
        delete
        ;;
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
  started=1
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
  rm -f "$scratch"/*.log
  code=0
  on_all "$(worker code 120)" "--output-directory=$scratch" || code=7
  if [ -n "$dry_run" ]; then return; fi
  tell_code
  started=
  state
  if [ "$now" != ACTIVE ]; then code=7; fi
}

# Adds to `code` what the workers have said.
tell_code() {
  local file said
  for file in "$scratch"/*.log; do
    said=$(sed -n 's/^code \([0-9][0-9]*\)$/\1/p' "$file" 2>/dev/null || true)
    said=${said:-7}
    if [ "$(weight "$said")" -gt "$(weight "$code")" ]; then code=$said; fi
  done
}

# What is left behind, for a human.
# shellcheck disable=SC2317,SC2329  # called by trap
last_words() {
  stop_clock
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
trap out_of_budget USR1
if [ -z "$dry_run$attach" ]; then confirm "$name" "$type" "$yes" "${command[@]}"; fi
SECONDS=0
if [ -n "$attach" ]; then active=0; fi
watch_budget

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
    held=1 mine=1 started=1 attach=
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
# What is deleted now needs no clock.
if [ -z "$keep" ]; then stop_clock; fi
if [ -z "$keep" ] && { [ -z "$unprepared" ] || [ -n "$mine" ]; }; then delete || exit 1; fi
exit "$code"
