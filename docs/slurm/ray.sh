#!/bin/bash
# One cache by a Ray cluster on the nodes of a SLURM job: an actor to each GPU, the progress of all
# of them in one log. It begins with the first node, and goes on without one that fails.
#
#   sbatch docs/slurm/ray.sh --teacher r50 --data imagenet/train --views 50 --out r50.zarr
#
#SBATCH --job-name=kdcache-ray
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=128
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120
#SBATCH --output=kdcache-ray-%j.log
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0

# awk reads to the end; `head` would not, and the shell takes that for a failure of scontrol.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# Starts Ray on every node, and what comes after `--` on the first one alone; when that ends, Ray
# is stopped everywhere.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --no-kill \
    ray symmetric-run --address "$address:6379" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- kdcache extract --on ray "$@" &
work=$!

# Two minutes before the time is up: end, and queue the job again. What is done is kept.
requeue() {
    kill -TERM "$work" 2>/dev/null || true
    wait "$work" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1

wait "$work"
