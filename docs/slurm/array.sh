#!/bin/bash
# One cache by the tasks of a SLURM array, without Ray: each task is a process with a GPU of its own
# that takes the pieces nobody has. Tasks may start late, die, or be preempted and requeued.
#
#   sbatch docs/slurm/array.sh --teacher r50 --data imagenet/train --views 50 --out r50.zarr
#
#SBATCH --job-name=kdcache
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --output=kdcache-%A_%a.log
set -euo pipefail

kdcache extract --workers "${SLURM_CPUS_PER_TASK:-1}" "$@" &
work=$!

# Two minutes before the time is up: end, and queue this task again. What is done is kept.
# Preemption needs nothing: SIGTERM ends the process, and --requeue brings the task back.
requeue() {
    kill -TERM "$work" 2>/dev/null || true
    wait "$work" || true
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    exit 0
}
trap requeue USR1

wait "$work"
