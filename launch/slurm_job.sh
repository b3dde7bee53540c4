#!/usr/bin/env bash
# The job that slurm.sh submits: runs the program on every task and requeues the job if the run can resume.
#
# Self-contained: SLURM runs a copy of it. NOISYTWINS_RESTARTS is the maximum number of times that it is requeued.
set -euo pipefail

# srun ends with the highest status of all tasks. That of an error, 1 or 2, must be above those of the tasks killed for it.
# shellcheck disable=SC2016  # expanded by the inner shell
task='trap : TERM INT; "$@"; status=$?; exit $((status == 1 || status == 2 ? 200 + status : status))'
status=0
srun --label --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$task" task \
  "$NOISYTWINS_PYTHON" -m noisytwins_jax.main "$@" --coordinator=auto || status=$?
if ((status == 201 || status == 202)); then status=$((status - 200)); fi
restarts=${SLURM_RESTART_COUNT:-0} # unset in a first run
case $status in
  0 | 1 | 2) exit "$status" ;; # finished, or an error that no restart fixes
esac
# 143: the time limit or preemption, and the run has saved; others: a machine was lost.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true)
if [[ $state != RUNNING ]]; then
  echo "The run ended with status $status; the job is ${state:-gone}: cancelled, or SLURM itself requeues it." >&2
elif ((restarts >= NOISYTWINS_RESTARTS)); then
  echo "The run ended with status $status, after $restarts restarts; it is not requeued." >&2
else
  echo "The run ended with status $status; the job is requeued and resumes from the newest checkpoint." >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
