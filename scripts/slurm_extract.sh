#!/usr/bin/env bash
# An extraction as an array job: one task does one share of the questions, all write one store.
# Copy it, set the lines marked "yours", and give the options of graphhalu extract after its name:
#
#   sbatch slurm_extract.sh --model llama2-7b --dataset triviaqa --num-samples 100000 \
#       --out /shared/traces/llama2-7b_triviaqa.zarr
#
# A task that is killed, requeued or sent again goes on where it stopped. All tasks need the same
# options; --out must be a folder that all nodes share, or an object store (s3://…).
#
#SBATCH --job-name=graphhalu
#SBATCH --array=1-10%4               # yours: 1 to the number of shares below, and how many at once
#SBATCH --gres=gpu:1                 # yours: what one task needs
#SBATCH --cpus-per-task=4            # yours
#SBATCH --mem=48G                    # yours: the model and two parts of 512 MiB
#SBATCH --time=12:00:00              # yours
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=graphhalu-%A_%a.log
set -euo pipefail

shares=10 # yours; not read from the array, so that --array=3,7 does just these two again

# yours: how graphhalu comes to the path, for instance
# source /shared/graphhalu/.venv/bin/activate

: "${SLURM_ARRAY_TASK_ID:?send this with sbatch; it is a task of an array job}"
# equal threads in all tasks: sums of several threads round differently
exec graphhalu extract "$@" --threads "${SLURM_CPUS_PER_TASK:-4}" \
    --shard "$SLURM_ARRAY_TASK_ID/$shares"
