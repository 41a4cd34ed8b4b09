#!/bin/bash
# sbatch slurm-array.sh slides/ -o results --genes GNAS,DDX5
#SBATCH --job-name=stpredict
#SBATCH --array=1-8
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=stpredict-%A-%a.log

# All tasks are given all slides: each is done by one of them, which holds a lease on it.
stpredict predict "$@" --threads "$SLURM_CPUS_PER_TASK" --log-json
code=$?
# 75: all is well, and other tasks are still at some slides.
[ "$code" -eq 75 ] && exit 0
exit "$code"
