#!/usr/bin/env bash
# SLURM: one task a GPU; goes on by itself after a time limit or a lost machine.
#
#   sbatch --nodes 2 --time 24:00:00 slurm.sh align_image --hardware 16x80gb model=… out=…
#
# Two minutes before the limit SLURM sends USR1; the run saves, leaves, and is queued again.
#SBATCH --job-name=onellm
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export MASTER_ADDR MASTER_PORT

status=0
# Each task's own numbers are known in it alone, so the inner shell reads them.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID"
    exec python -m onellm.train.launch "$@"
' onellm "$@" || status="$?"

if [[ "$status" -eq 143 ]]; then # stopped by the signal, and saved
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
