#!/usr/bin/env bash
# Trains on the nodes of a Slurm job, one task for each GPU, and puts the job back into the queue when it was asked to
# stop or lost a node. From the repository's folder, which all nodes see:
#
#     sbatch --nodes=4 experiments/launch/slurm.sh --config=oxe_paligemma.py --workdir=/shared/runs/oxe [--config.a.b=value ...]
#
#SBATCH --job-name=vla_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# SIGTERM to the tasks this many seconds before the time is up: they save and exit with 143.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

if (($# == 0)); then
    echo "slurm.sh: expected the arguments of experiments.pretrain, got none: --config=FILE.py --workdir=DIR" >&2
    exit 2
fi
restarts=${RESTARTS:-20} # at most so many times in the queue
export JAX_COORDINATOR_ADDRESS=auto

# Hosts end by themselves, within a minute, when one of them does; until then Slurm must not cut their last words off.
srun --kill-on-bad-exit=0 --wait=120 .venv/bin/python -u -m experiments.pretrain "$@"
code=$?

# 143: asked to stop, saved. 75: a host was lost. 137: killed, as a lost host itself is. Anything else needs a person.
case $code in
143 | 137 | 75)
    if ((${SLURM_RESTART_COUNT:-0} >= restarts)); then
        echo "slurm.sh: exit $code after $restarts restarts: not queued again (RESTARTS=$restarts)" >&2
        exit "$code"
    fi
    echo "slurm.sh: exit $code: queued again; it continues from the last complete checkpoint" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
