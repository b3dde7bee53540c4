#!/usr/bin/env bash
# A run of several processes on this machine. See --help.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Runs noisytwins_jax.main as several processes on this machine: on CPUs to try the behaviour of a pod, on GPUs to train.

  launch/localhost.sh [options] -- --config=configs/<dataset>.py[:<method>] --workdir=<path> ...

  --processes=N   number of processes; by default one per GPU, or 4 without GPUs
  --devices=N     simulated devices of each process, on CPUs (2)
  --platform=P    cpu or gpu; by default gpu if nvidia-smi lists any
  --port=N        port of the first process (the coordinator); by default a free one
  --program=FILE  another Python program that takes the flags --coordinator, --num_processes and --process_id
  --dry-run       prints the commands without running them

Output lines of process i begin with [i]. SIGTERM and Ctrl-C are passed on to all processes, which save and end. If a process
fails, the others are terminated too, and the script ends with its status. The interpreter is $PYTHON, else .venv/bin/python, else python3.

Examples
  launch/localhost.sh --processes=2 -- --config=configs/digits_lt.py:noisytwins,smoke --workdir=runs/processes
  launch/localhost.sh --platform=gpu --processes=8 -- --config=configs/cifar10_lt.py --workdir=runs/cifar10
END
}

opt_processes='' opt_devices=2 opt_platform='' opt_port='' opt_program=''
parse_options "processes devices platform port program" "" "$@"
((${#WORDS[@]} == 0)) || fail "Unexpected word ${WORDS[0]}; the program's arguments go after --."
gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
if [[ ! $opt_platform ]]; then
  if ((gpus > 0)); then opt_platform=gpu; else opt_platform=cpu; fi
fi
[[ $opt_platform == cpu || $opt_platform == gpu ]] || fail "--platform=$opt_platform is neither cpu nor gpu."
if [[ ! $opt_processes ]]; then
  if [[ $opt_platform == gpu ]] && ((gpus > 0)); then opt_processes=$gpus; else opt_processes=4; fi
fi
check_number processes "$opt_processes" 1
check_number devices "$opt_devices" 1
if [[ ! $opt_program ]]; then
  check_program ${REST[@]+"${REST[@]}"}
fi
python=$(find_python)
need "$python" "give PYTHON=<interpreter>"
if [[ ! $opt_port ]]; then
  command -v "$python" >/dev/null || fail "$python is not installed; give PYTHON=<interpreter>, or --port=<number>."
  opt_port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
fi
check_number port "$opt_port" 1
if [[ $opt_program ]]; then program=("$opt_program"); else program=(-m noisytwins_jax.main); fi

# set_command I: sets the array COMMAND to the command of process I.
set_command() {
  COMMAND=(env PYTHONUNBUFFERED=1)
  if [[ $opt_platform == gpu ]]; then
    COMMAND+=("CUDA_VISIBLE_DEVICES=$1")
  else
    COMMAND+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$opt_devices")
  fi
  COMMAND+=("$python" "${program[@]}" ${REST[@]+"${REST[@]}"})
  COMMAND+=("--coordinator=localhost:$opt_port" "--num_processes=$opt_processes" "--process_id=$1")
}

if [[ $opt_dry_run ]]; then
  for ((i = 0; i < opt_processes; i++)); do
    set_command "$i"
    printf '%s &\n' "$(quoted "${COMMAND[@]}")"
  done
  printf 'wait\n'
  exit 0
fi

# --- start ----------------------------------------------------------------------------------------------------------
set -m # children in groups of their own: a signal reaches them once, through `pass_on`, and Ctrl-C is not ignored
directory=$(mktemp -d)
pids=() printers=() status=0 deadline=

# shellcheck disable=SC2329  # called by traps
pass_on() {
  local pid
  for pid in "${pids[@]}"; do
    if [[ $pid ]]; then kill "-$1" "$pid" 2>/dev/null || true; fi
  done
}
# shellcheck disable=SC2329
clean_up() {
  pass_on KILL
  rm -rf "$directory"
}
trap clean_up EXIT
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((i = 0; i < opt_processes; i++)); do
  mkfifo "$directory/$i"
  (
    trap '' TERM INT
    while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$i" "$line"; done
  ) <"$directory/$i" &
  printers[i]=$!
  set_command "$i"
  "${COMMAND[@]}" >"$directory/$i" 2>&1 </dev/null &
  pids[i]=$!
done

# --- until all have ended -------------------------------------------------------------------------------------------
running=$opt_processes
while ((running)); do
  sleep 0.2 || true
  for i in "${!pids[@]}"; do
    if [[ ! ${pids[i]} ]] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    ended=0
    wait "${pids[i]}" 2>/dev/null || ended=$?
    pids[i]=''
    running=$((running - 1))
    if ((ended && !status)); then # the first failure: the other processes would wait for this one
      status=$ended deadline=$((SECONDS + 20))
      say "Process $i ended with status $ended."
      pass_on TERM
    fi
  done
  if [[ $deadline ]] && ((SECONDS > deadline)); then pass_on KILL; fi
done
for printer in "${printers[@]}"; do wait "$printer" || true; done
exit "$status"
