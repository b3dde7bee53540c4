#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on a worker of a TPU; copied there with the checkout. Needs no other file.
#
#   worker.sh install             installs the package and its dependencies into .venv
#   worker.sh mount BUCKET        mounts a Cloud Storage bucket at /mnt/BUCKET
#   worker.sh copy gs://BUCKET/…  copies files to this machine's disk, into /mnt/data
#   worker.sh start ARGUMENTS…    starts noisytwins_jax.main, detached; output goes to .run/log
#   worker.sh state               prints a line "worker <host> <state>": idle, running, ended <status> <time>, stopped or lost
#   worker.sh stop [SECONDS]      sends SIGTERM, so that the run saves; SIGKILL after 600 s
#   worker.sh log                 follows .run/log
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
APT=(sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600) # a new machine runs updates of its own

fail() {
  printf 'Error: %s\n' "$*" >&2
  exit 2
}

alive() {
  local pid
  pid=$(cat .run/pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null && grep -qa noisytwins_jax "/proc/$pid/cmdline" 2>/dev/null
}

state() {
  if alive; then
    printf 'running'
    return
  fi
  if [[ -e .run/pid && ! -e .run/status ]]; then sleep 1; fi # it may be ending right now
  if [[ ! -e .run/pid ]]; then
    printf 'idle'
  elif [[ -e .run/stopped ]]; then
    printf 'stopped'
  elif [[ -e .run/status ]]; then
    printf 'ended %s' "$(cat .run/status)"
  else
    printf 'lost' # no status was written: the machine failed, or all processes were killed
  fi
}

install() { # uv installs a Python if the machine's own is too old for the package
  python3 -m venv .uv 2>/dev/null || { "${APT[@]}" update && "${APT[@]}" install -y python3-venv && python3 -m venv .uv; }
  .uv/bin/python -m pip install --quiet --upgrade uv
  .uv/bin/uv venv --quiet --allow-existing --python='>=3.11,<3.14' .venv
  .uv/bin/uv pip install --quiet --python=.venv '.[tpu]'
}

mount_bucket() {
  local bucket=$1 list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc repository
  if mountpoint -q "/mnt/$bucket"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    repository=https://packages.cloud.google.com/apt
    curl -fsS "$repository/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    printf 'deb [signed-by=%s] %s gcsfuse-%s main\n' "$key" "$repository" "$(lsb_release -cs)" | sudo tee "$list" >/dev/null
    "${APT[@]}" update
    "${APT[@]}" install -y gcsfuse
  fi
  sudo mkdir -p "/mnt/$bucket"
  sudo chown "$(id -u)" "/mnt/$bucket"
  # Complete checkpoints are renamed as directories, and every worker must see immediately what another has written.
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 "$bucket" "/mnt/$bucket"
}

copy() {
  sudo mkdir -p /mnt/data
  sudo chown "$(id -u)" /mnt/data
  gcloud storage rsync --recursive "$1" /mnt/data
}

start() {
  local python=${PYTHON:-.venv/bin/python}
  if alive; then fail "A run is already in progress on this worker (process $(cat .run/pid)); stop it first."; fi
  [[ -x $python ]] || fail "The package is not installed on this worker; install it first."
  mkdir -p .run
  rm -f .run/pid .run/status .run/stopped
  printf '\n=== %s: %s\n' "$(date)" "$*" >>.run/log
  # shellcheck disable=SC2016  # expanded by the inner shell
  PYTHONUNBUFFERED=1 setsid nohup bash -c '
    "$@" &
    echo $! >.run/pid
    wait $! && status=0 || status=$?
    echo "$status $(date +%s)" >.run/new && mv .run/new .run/status
  ' noisytwins "$python" -m noisytwins_jax.main "$@" >>.run/log 2>&1 </dev/null &
  for _ in $(seq 50); do
    if [[ -s .run/pid ]]; then break; fi
    sleep 0.1
  done
}

stop() {
  local seconds=${1:-600}
  mkdir -p .run
  if alive; then
    if [[ ! ${1:-} ]]; then touch .run/stopped; fi # only watch gives seconds, to restart
    kill -TERM "$(cat .run/pid)"
    for _ in $(seq "$seconds"); do
      if ! alive; then break; fi
      sleep 1
    done
    if alive; then kill -KILL "$(cat .run/pid)"; fi
  fi
}

verb=${1:-}
shift || true
case $verb in
  install) install ;;
  mount) mount_bucket "$1" ;;
  copy) copy "$1" ;;
  start) start "$@" ;;
  state) ;;
  stop) stop "$@" ;;
  log) exec tail -n 100 -F .run/log ;;
  *) fail "There is no verb '$verb'; they are install, mount, copy, start, state, stop and log." ;;
esac
printf 'worker %s %s\n' "$(hostname)" "$(state)"
