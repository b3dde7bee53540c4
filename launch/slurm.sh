#!/usr/bin/env bash
# A run on a SLURM cluster. See --help.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Submits noisytwins_jax.main to SLURM, one process per GPU.

  launch/slurm.sh --nodes=N --gpus=N [options] -- --config=configs/<dataset>.py[:<method>] --workdir=<path> ...

  --nodes=N          number of machines (1)
  --gpus=N           GPUs and processes of each machine (1); 0 for one process on CPUs
  --cpus=N           CPU cores of each process (8)
  --time=TIME        time limit as of sbatch, for example 24:00:00; by default the partition's
  --partition=NAME   by default the cluster's
  --account=NAME     by default yours
  --constraint=LIST  required features of the machines
  --memory=SIZE      of each machine, for example 200G; 0 for all of it; by default the partition's
  --name=NAME        of the job (noisytwins)
  --grace=SECONDS    for saving: before the time limit, or after SIGTERM if the job is preempted (120)
  --restarts=N       maximum number of times that the job is requeued (100)
  --dry-run          prints the command without running it

--grace before its time limit the run saves, ends and is requeued; likewise when a machine fails. It resumes from the newest
checkpoint. It is not requeued when it has finished, was cancelled with scancel (it saves if it can within the cluster's
KillWait), or ended with an error that no restart fixes (status 1 or 2). The workdir must be on storage that all machines
share. Output goes to <name>-<job>.log in this directory. The interpreter is $PYTHON, else .venv/bin/python, else python3:
install the package with pip install '.[cuda]' on storage that all machines share.

Example
  launch/slurm.sh --nodes=2 --gpus=8 --time=24:00:00 -- \
    --config=configs/inat19.py:noisytwins,128 --workdir=/shared/runs/inat19
END
}

opt_nodes=1 opt_gpus=1 opt_cpus=8 opt_time='' opt_partition='' opt_account='' opt_constraint='' opt_memory=''
opt_name=noisytwins opt_grace=120 opt_restarts=100
parse_options "nodes gpus cpus time partition account constraint memory name grace restarts" "" "$@"
((${#WORDS[@]} == 0)) || fail "Unexpected word ${WORDS[0]}; the program's arguments go after --."
check_number nodes "$opt_nodes" 1
check_number gpus "$opt_gpus" 0
check_number cpus "$opt_cpus" 1
check_number grace "$opt_grace" 1
check_number restarts "$opt_restarts" 0
check_program ${REST[@]+"${REST[@]}"}
need sbatch "run this on a login node of the cluster"
python=$(find_python)

# JAX gives each task of a node the GPU of the task's number, so that every task must see all GPUs: no --gpus-per-task.
devices=(--ntasks-per-node=1)
if ((opt_gpus > 0)); then devices=("--ntasks-per-node=$opt_gpus" "--gpus-per-node=$opt_gpus"); fi

run sbatch "--job-name=$opt_name" "--nodes=$opt_nodes" "${devices[@]}" "--cpus-per-task=$opt_cpus" \
  ${opt_memory:+"--mem=$opt_memory"} ${opt_time:+"--time=$opt_time"} ${opt_partition:+"--partition=$opt_partition"} \
  ${opt_account:+"--account=$opt_account"} ${opt_constraint:+"--constraint=$opt_constraint"} \
  "--signal=TERM@$opt_grace" --requeue --open-mode=append "--output=$opt_name-%j.log" \
  "--export=ALL,NOISYTWINS_PYTHON=$python,NOISYTWINS_RESTARTS=$opt_restarts" \
  "$ROOT/launch/slurm_job.sh" "${REST[@]}"
