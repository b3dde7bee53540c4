#!/usr/bin/env bash
# The job that slurm.sh submits: the program on every task, and the job queued again when it can go on.
#
# Standing alone: SLURM runs a copy of it. NOISYTWINS_RESTARTS says how often it may be queued again.
set -euo pipefail

status=0
srun --label --kill-on-bad-exit=1 "$NOISYTWINS_PYTHON" -m noisytwins_jax.main "$@" --coordinator=auto || status=$?
case $status in
  0 | 1 | 2) exit "$status" ;; # finished, or a mistake that no restart mends
esac
# 143: the time was up or the job had to make room, and the run has saved; others: a machine was lost.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true)
if [[ $state != RUNNING ]]; then
  echo "The run ended with status $status; the job is ${state:-gone}: cancelled, or SLURM itself queues it again." >&2
elif ((${SLURM_RESTART_COUNT:-0} >= NOISYTWINS_RESTARTS)); then
  echo "The run ended with status $status, after $SLURM_RESTART_COUNT restarts; it is not queued again." >&2
else
  echo "The run ended with status $status; the job is queued again and goes on from the newest checkpoint." >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
