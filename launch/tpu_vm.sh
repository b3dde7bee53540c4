#!/usr/bin/env bash
# A run on a Cloud TPU VM, from one host to a whole pod. See --help.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Runs noisytwins_jax.main on every worker of a Cloud TPU VM, and resumes after preemptions.

  launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [options] [-- --config=... --workdir=/mnt/BUCKET/... ...]

Verbs
  up       create, install, data, run and watch, one after the other
  create   creates the TPU and waits until it is ready; --queued waits in Google's queue for as long as it takes
  install  copies this checkout to every worker (or clones --repo) and installs it with its dependencies
  data     mounts --bucket at /mnt/BUCKET; copies --data to the disk of every worker, into /mnt/data
  run      starts the program on all workers, detached: it does not need this machine any more
  watch    checks every --poll seconds. If the TPU was preempted, creates it again, installs and runs; if a machine of the
           run failed, restarts the run. The run resumes from its newest checkpoint. Ends with the run: status 0 when it has
           finished, 1 or 2 after an error that no restart fixes. Takes the same options as up
  status   the state of the TPU and of the run on each worker
  log      follows the output of the worker --worker
  stop     SIGTERM on all workers: the run saves and ends, and watch with it
  delete   deletes the TPU

Options
  --name=NAME          of the TPU ($TPU_NAME)
  --zone=ZONE          for example us-central2-b ($TPU_ZONE)
  --project=ID         by default gcloud's
  --accelerator=TYPE   for example v4-32, v5litepod-16 or v6e-64 ($TPU_ACCELERATOR)
  --runtime=VERSION    software version of the machines; by default the one for JAX on TYPE
  --spot               cheaper, can be preempted at any time
  --queued             as a queued resource
  --bucket=NAME        Cloud Storage bucket for workdirs and data; best with a hierarchical namespace
  --data=gs://PATH     prepared data, copied to every worker
  --repo=URL           a git repository to clone instead of copying this checkout; --revision=REV of it (main)
  --worker=I           worker of the verb log (0)
  --poll=SECONDS       between two checks of watch (60)
  --restarts=N         maximum restarts by watch (100); it also gives up after three runs in a row of under ten minutes
  --dry-run            prints the commands without running them

Needs the Google Cloud CLI; with several workers also `ssh-add ~/.ssh/google_compute_engine`.

Examples
  launch/tpu_vm.sh up --name=twins --zone=us-central2-b --accelerator=v4-32 --spot --queued --bucket=my-bucket -- \
    --config=configs/inat19.py:noisytwins,128 --workdir=/mnt/my-bucket/runs/inat19
  launch/tpu_vm.sh status --name=twins --zone=us-central2-b
  launch/tpu_vm.sh delete --name=twins --zone=us-central2-b --queued
END
}

# --- options --------------------------------------------------------------------------------------------------------
opt_name=${TPU_NAME:-} opt_zone=${TPU_ZONE:-} opt_accelerator=${TPU_ACCELERATOR:-} opt_project='' opt_runtime=''
opt_spot='' opt_queued='' opt_bucket='' opt_data='' opt_repo='' opt_revision=main opt_worker=0 opt_poll=60 opt_restarts=100
parse_options "name zone project accelerator runtime bucket data repo revision worker poll restarts" "spot queued" "$@"
VERBS="up create install data run watch status log stop delete"
verb=${WORDS[0]:-}
[[ $verb ]] || fail "Give a verb: ${VERBS// /, }; see $SCRIPT --help."
[[ " $VERBS " == *" $verb "* ]] || fail "There is no verb '$verb'; they are ${VERBS// /, }."
((${#WORDS[@]} == 1)) || fail "Unexpected word ${WORDS[1]}; options start with --, and the program's own go after --."
[[ $opt_name ]] || fail "Give the TPU a name: --name=<name>, or TPU_NAME."
[[ $opt_name =~ ^[a-z][a-z0-9-]*$ ]] || fail "--name=$opt_name is not a name for a TPU: lowercase letters, digits and -."
[[ $opt_zone ]] || fail "Give --zone=<zone>, for example --zone=us-central2-b, or TPU_ZONE."
check_number worker "$opt_worker" 0
check_number poll "$opt_poll" 0
check_number restarts "$opt_restarts" 0
[[ ! $opt_data || $opt_data == gs://* ]] || fail "--data=$opt_data is not a gs:// address; upload it with gcloud storage rsync."
opt_bucket=${opt_bucket#gs://}
opt_bucket=${opt_bucket%/}
[[ $opt_bucket != */* ]] || fail "--bucket=$opt_bucket is more than a bucket's name; give --bucket=${opt_bucket%%/*}."
case $verb in
  up | create | watch)
    [[ $opt_accelerator ]] || fail "Give --accelerator=<type>, for example --accelerator=v4-32, or TPU_ACCELERATOR."
    if [[ ! $opt_runtime ]]; then
      case $opt_accelerator in
        v2-* | v3-* | v4-*) opt_runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) opt_runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) opt_runtime=v2-alpha-tpuv5 ;;
        v6e-*) opt_runtime=v2-alpha-tpuv6e ;;
        *) fail "The software of $opt_accelerator is not known here; give --runtime=<version>." ;;
      esac
    fi
    ;;
esac
case $verb in
  up | run | watch) check_program ${REST[@]+"${REST[@]}"} ;;
  *) ((${#REST[@]} == 0)) || fail "$verb takes no arguments of the program; only up, run and watch do." ;;
esac
need gcloud "install the Google Cloud CLI (https://cloud.google.com/sdk)"
WHERE=("--zone=$opt_zone" ${opt_project:+"--project=$opt_project"} --quiet)
TPU=(gcloud compute tpus tpu-vm)
QUEUE=(gcloud compute tpus queued-resources)
HOME_DIR=noisytwins_jax # directory of the checkout on the workers

# --- verbs ----------------------------------------------------------------------------------------------------------
on_workers() { # on_workers WHICH COMMAND: runs a shell command on one worker, or on all
  run "${TPU[@]}" ssh "$opt_name" "${WHERE[@]}" "--worker=$1" "--command=$2"
}
worker() { # worker WHICH VERB…: runs worker.sh there
  on_workers "$1" "$(quoted bash "$HOME_DIR/launch/worker.sh" "${@:2}")"
}

listed() { # listed FORMAT COMMAND…: prints a field of the resource with the TPU's name; empty if there is none
  run "${@:2}" list "${WHERE[@]}" "--filter=name~\"(^|/)$opt_name\$\"" "--format=value($1)"
}

create() {
  if [[ ! $opt_queued ]]; then
    run "${TPU[@]}" create "$opt_name" "${WHERE[@]}" "--accelerator-type=$opt_accelerator" "--version=$opt_runtime" \
      ${opt_spot:+--spot}
    return
  fi
  run "${QUEUE[@]}" create "$opt_name" "--node-id=$opt_name" "${WHERE[@]}" "--accelerator-type=$opt_accelerator" \
    "--runtime-version=$opt_runtime" ${opt_spot:+--spot} || return
  local state=''
  while true; do # until it is ACTIVE
    state=$(listed state.state "${QUEUE[@]}") || state=UNKNOWN
    if [[ $opt_dry_run ]]; then
      printf '# … until it says ACTIVE:\n%s\n' "$state"
      return
    fi
    say "Queued resource $opt_name: $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | '') return 1 ;;
    esac
    sleep "$opt_poll"
  done
}

delete() {
  if [[ $opt_queued ]]; then
    run "${QUEUE[@]}" delete "$opt_name" "${WHERE[@]}" --force
  else
    run "${TPU[@]}" delete "$opt_name" "${WHERE[@]}"
  fi
}

install() {
  local setup="bash $HOME_DIR/launch/worker.sh install" archive=${TMPDIR:-/tmp}/noisytwins_jax-$opt_name.tar.gz
  if [[ $opt_repo ]]; then
    on_workers all "test -d $HOME_DIR/.git || git clone $(quoted "$opt_repo") $HOME_DIR; cd $HOME_DIR && git fetch origin $(
      quoted "$opt_revision"
    ) && git checkout --detach FETCH_HEAD && cd .. && $setup"
    return
  fi
  run tar -czf "$archive" -C "$ROOT" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=./data --exclude=./build --exclude=./.run \
    --exclude=__pycache__ --exclude='*.egg-info' . || return
  run "${TPU[@]}" scp "$archive" "$opt_name:$HOME_DIR.tar.gz" "${WHERE[@]}" --worker=all || return
  on_workers all "mkdir -p $HOME_DIR && tar -xzf $HOME_DIR.tar.gz -C $HOME_DIR && $setup"
}

data() {
  if [[ $opt_bucket ]]; then worker all mount "$opt_bucket" || return; fi
  if [[ $opt_data ]]; then worker all copy "$opt_data" || return; fi
}

start() { worker all start "${REST[@]}" --coordinator=auto; }

# --- watch ----------------------------------------------------------------------------------------------------------
# verdict: prints the state of the run from the workers' lines: wait, restart, finished, stopped, unknown, or: failed STATUS HOST.
# With status 1 (an exception) only the worker that ended first counts: workers that lose their peers may raise anything.
verdict() {
  awk '
    $1 != "worker" { next }
    { workers++; count[$3]++ }
    $3 == "ended" && $4 == 2 { failed = $2 }
    $3 == "ended" && $4 != 0 && (first == "" || $5 < time) { first = $4; time = $5; host = $2 }
    END {
      if (!workers) print "unknown"
      else if (failed) print "failed 2 " failed
      else if (first == 1) print "failed 1 " host
      else if (count["stopped"]) print count["running"] ? "wait" : "stopped"
      else if (first || count["lost"] || count["idle"]) print "restart"
      else print count["running"] ? "wait" : "finished"
    }'
}

# tpu_state: prints READY, LOST (preempted), GONE (deleted), or another state while it changes.
tpu_state() {
  local state queued=''
  state=$(listed state "${TPU[@]}") || return
  if [[ $opt_queued && (! $state || $state == PREEMPTED || $state == TERMINATED) ]]; then
    queued=$(listed state.state "${QUEUE[@]}") || return
    if [[ $queued && ! $state ]]; then state=$queued; fi
  fi
  case $state in
    PREEMPTED | TERMINATED | SUSPENDED | FAILED) printf 'LOST\n' ;;
    *) printf '%s\n' "${state:-GONE}" ;;
  esac
}

recreate() { # recreate STATE: creates the TPU and starts the run on it
  if [[ $1 != GONE ]]; then delete || return; fi
  create && install && data && start
}

# watch: `missing` is set if recreating the TPU has failed at some point.
watch() {
  local state='' verdict='' before='' missing='' restarts=0 quick=0 silent=0 began=$SECONDS
  if [[ $opt_dry_run ]]; then
    printf '# Every %s s, until the run has ended:\n' "$opt_poll"
    listed state "${TPU[@]}"
    worker all state
    printf '# When a machine of the run was lost:\n'
    worker all stop 30
    data
    start
    printf '# When the TPU was preempted:\n'
    recreate LOST
    return
  fi
  while true; do
    state=$(QUIET=1 tpu_state) || state=UNKNOWN
    case $state in
      READY) if [[ $missing ]]; then verdict=unfinished; else verdict=$(QUIET=1 worker all state | verdict) || verdict=unknown; fi ;;
      LOST) verdict=lost ;;
      GONE) if [[ $missing ]]; then verdict=lost; else verdict=deleted; fi ;;
      UNKNOWN) verdict=unknown ;;
      *) verdict=changing ;;
    esac
    if [[ $verdict == unknown ]]; then silent=$((silent + 1)); else silent=0; fi
    if [[ $verdict != "$before" ]]; then say "$(date '+%F %T') $opt_name: $verdict"; fi
    before=$verdict
    case $verdict in
      finished)
        say "The run has finished. $SCRIPT delete deletes the TPU."
        return 0
        ;;
      stopped)
        say "The run was stopped and has saved; $SCRIPT run resumes it."
        return 143
        ;;
      deleted)
        say "The TPU $opt_name was deleted. $SCRIPT up creates it again, and the run resumes."
        return 1
        ;;
      unknown)
        if ((silent >= 30)); then
          say "gcloud or the workers have not answered $silent times in a row; see $SCRIPT status. The run was left alone."
          return 1
        fi
        ;;
      failed*)
        read -r _ status host <<<"$verdict"
        say "The run ended with status $status, first on $host. Last lines of every worker:"
        on_workers all "hostname; tail -n 20 $HOME_DIR/.run/log" || true
        say "Fix the error, then: install, run, watch. The TPU still exists; $SCRIPT delete deletes it."
        return "$status"
        ;;
      restart | lost | unfinished)
        if [[ $verdict == restart ]] && ((SECONDS - began < 600)); then quick=$((quick + 1)); else quick=0; fi
        if ((restarts >= opt_restarts || quick >= 3)); then
          say "The run keeps failing: $restarts restarts, $quick of the last runs under ten minutes. See $SCRIPT log."
          return 1
        fi
        restarts=$((restarts + 1))
        case $verdict in
          restart) { worker all stop 30 && data && start; } || true ;; # a mount ends with its machine; failures are found by the next check
          lost) if recreate "$state"; then missing=''; else missing=1; fi ;;
          unfinished) if install && data && start; then missing=''; fi ;;
        esac
        began=$SECONDS
        ;;
    esac
    sleep "$opt_poll"
  done
}

case $verb in
  up) create && install && data && start && watch ;;
  run) start ;;
  status)
    listed state "${TPU[@]}"
    if [[ $opt_queued ]]; then listed state.state "${QUEUE[@]}"; fi
    worker all state
    ;;
  log) worker "$opt_worker" log ;;
  stop) worker all stop ;;
  data)
    [[ $opt_bucket || $opt_data ]] || fail "Give --bucket=<name> to mount, --data=gs://<path> to copy, or both."
    data
    ;;
  *) "$verb" ;;
esac
