#!/usr/bin/env bash
# A run on TPUs of a GKE cluster, through xpk (pip install xpk): starts the workload, waits for its end, deletes it.
#
#   launch/gke_xpk.sh NAME CLUSTER ZONE TYPE IMAGE [flags] -- COMMAND...
#   launch/gke_xpk.sh flan my-cluster us-west4-a v5litepod-16 gcr.io/PROJECT/mossa_jax:1 --build -- \
#       python -m launch.run --config=configs/llama2_7b_flan2021.py --workdir=gs://BUCKET/flan --processes=0
#
#   --build            builds IMAGE from launch/Dockerfile and pushes it first
#   --spot             capacity that may be taken away
#   --keep             does not delete the workload at the end
#   --retry=K          restarts at most (10)
#   --poll=SECONDS     between a wait that failed and the next one (30)
#   --project=ID       where gcloud's own setting is another
#   --env_file=FILE    instead of launch/xla_flags/<TYPE>.env; a line `HF_TOKEN` alone takes its value from here
#   --max_hours=H      hours from the request, the wait for room in the cluster included (no limit)
#   --max_cost=M       money, counted likewise: the nodes of a cluster may cost something while nothing runs (no limit)
#   --price=P          of one chip for one hour; without it the list price on demand (launch.plan --prices)
#   --yes              does not ask before the workload is created; needed where there is no terminal
#   --dry_run          prints what would be run, a command a line, and runs nothing
#   --help             prints this text
#
# Two minutes before a limit (or a quarter of it if that is less) the workload is deleted, with --keep as well: the run
# gets SIGTERM and two minutes to save; exit code 75. A delete that hangs or fails is tried again, ten times; then this
# script says what is left and ends with 1. A limit counts for this call of the script, which has to live, and says
# nothing about nodes that stay in the cluster.
#
# Kubernetes restarts on exit codes 7 and 75, and on what xpk always restarts: 42 and 127 to 255 (ends by signals, as an
# eviction). Exit code: 0 when the workload succeeded, 125 when it failed (xpk's own). Any other is that of a
# command that failed; so does the wait at times (a lost connection, expired credentials, xpk's own time limit): it is
# tried again, 40 times at most, and then the workload is left alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

words=() command=() build='' spot='' keep='' retry=10 poll=30 project='' env_file='' held='' ended=''
yes='' patience=${MOSSA_PATIENCE:-300}
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=1 ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --retry=*) retry=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --env_file=*) env_file=${1#*=} ;;
    --yes) yes=1 ;;
    --dry_run) dry_run=1 ;;
    --help) show_help "$here/gke_xpk.sh" ;;
    --)
      shift
      command=("$@")
      break
      ;;
    -*) budget_flag "$1" || unknown_flag gke_xpk.sh "$1" ;;
    *) words+=("$1") ;;
  esac
  shift
done
if [ "${#words[@]}" -ne 5 ] || [ "${#command[@]}" -eq 0 ]; then
  die "usage: gke_xpk.sh NAME CLUSTER ZONE TYPE IMAGE [flags] -- COMMAND..."
fi
check_count --retry "$retry"
check_count --poll "$poll"
name=${words[0]} cluster=${words[1]} zone=${words[2]} type=${words[3]} image=${words[4]}
flags=$(tpu_flags "$type")
if [ -z "$env_file" ]; then
  [ -n "$flags" ] || die "TYPE=$type: not one of v5litepod-*, v5p-*, v6e-*; give --env_file as well"
  env_file=$here/xla_flags/$flags.env
fi
[ -r "$env_file" ] || die "--env_file=$env_file: no such file"
find_price "$type"
if [ -n "$max_cost" ] && { [ -z "$chips" ] || [ -z "$price$dry_run" ]; }; then
  die "--max_cost=$max_cost: no list price is known of TYPE=$type; give --price of a chip for an hour, or --max_hours"
fi

at=("--cluster=$cluster" "--zone=$zone")
if [ -n "$project" ]; then at+=("--project=$project"); fi
more=()
if [ -n "$spot" ]; then more=(--spot); fi

# Deletes the workload. What hangs is given up, what fails is tried again.
delete() {
  local try
  for ((try = 1; try <= 10; try++)); do
    bound=$patience
    if run xpk workload delete "--workload=$name" "${at[@]}" --force; then
      bound='' held=''
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

# Sets the clock for the limit that comes first.
watch_budget() {
  local seconds='' more early
  if [ -n "$dry_run" ]; then return; fi
  if [ -n "$max_hours" ]; then seconds=$(seconds_of "$max_hours"); fi
  if [ -n "$max_cost" ]; then
    more=$(seconds_of "$max_cost / ($price * $chips)")
    if [ -z "$seconds" ] || [ "$more" -lt "$seconds" ]; then seconds=$more; fi
  fi
  if [ -n "$seconds" ]; then
    early=$((seconds / 4 < 120 ? seconds / 4 : 120))
    set_clock "$((seconds - early))"
  fi
}

# For `trap`, when a limit is near.
# shellcheck disable=SC2317,SC2329  # called by trap
out_of_budget() {
  trap '' USR1
  set +e
  if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi
  say "$name:${max_hours:+ --max_hours=$max_hours}${max_cost:+ --max_cost=$max_cost} is nearly reached: it is deleted"
  delete || exit 1
  exit 75
}

# shellcheck disable=SC2317,SC2329  # called by trap
last_words() {
  stop_clock
  if [ -n "$held" ] && [ -z "$dry_run" ]; then
    say "$name is still there. Delete it: $(quoted xpk workload delete "--workload=$name" "${at[@]}" --force)"
    if [ -z "$ended" ]; then
      say "Or wait for its end: $(quoted xpk workload list "--wait-for-job-completion=$name" "${at[@]}")"
    fi
  fi
}
trap last_words EXIT
trap 'interrupted 143' TERM
trap 'interrupted 130' INT
if [ -z "$dry_run" ]; then confirm "$name" "$type" "$yes" "${command[@]}"; fi

if [ -n "$build" ]; then
  run docker build "--file=$here/Dockerfile" --build-arg=HARDWARE=tpu "--tag=$image" "${here%/*}"
  run docker push "$image"
fi
held=1
trap out_of_budget USR1
watch_budget
run xpk workload create "--workload=$name" "${at[@]}" "--tpu-type=$type" "--docker-image=$image" \
  "--command=$(quoted "${command[@]}")" "--env-file=$env_file" "--max-restarts=$retry" --restart-on-exit-codes=7,75 \
  --termination-grace-period-seconds=120 ${more[@]+"${more[@]}"}
# Only 0 and 125 tell of the workload; with any other code the wait itself failed, and the workload may be well.
for ((try = 1; ; try++)); do
  code=0
  run xpk workload list "--wait-for-job-completion=$name" "${at[@]}" || code=$?
  if [ "$code" -eq 0 ] || [ "$code" -eq 125 ]; then break; fi
  say "the wait for $name failed with $code, $try of 40"
  if [ "$try" -ge 40 ]; then exit "$code"; fi
  run sleep "$poll"
done
ended=1
if [ -z "$keep" ]; then stop_clock; fi
if [ -z "$keep" ]; then
  delete || exit 1
fi
exit "$code"
