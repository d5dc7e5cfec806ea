#!/usr/bin/env bash
# Pretraining on GPUs under SLURM, a process for each:
#     sbatch docs/launch/slurm.sh gpt3-1.3b --data jsonl:corpus/ --out runs/large
# The folder of the job, and with it the run, must be one that all nodes share.
#SBATCH --job-name=aludel
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
set -uo pipefail
# --kill-on-bad-exit=0: the others end by themselves, and say why.
srun --kill-on-bad-exit=0 .venv/bin/aludel pretrain "$@"
status=$?
# 1 and 2 are errors. 75: stopped and saved, or a process was lost, whose own status is higher.
case $status in 0 | 1 | 2) ;; *) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit "$status"
