#!/usr/bin/env bash
# Trains on all workers of a TPU VM (a pod slice), and again after a preemption, once the slice is back. On your machine:
#
#     TPU=my-slice ZONE=us-east5-b experiments/launch/tpu_vm.sh --config=oxe_paligemma.py --workdir=/mnt/shared/runs/oxe [...]
#
# Every worker has the repository in ~/vla_jax with its .venv (`--worker=all` with `git clone` and `make venv`, then
# `pip install "libtpu==0.0.42.*"`), and a folder that all of them share (Filestore) for --workdir. Where data.root is a
# bucket, VLA_JAX_CACHE in that folder keeps one index for all.
set -uo pipefail

: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
if (($# == 0)); then
    echo "tpu_vm.sh: expected the arguments of experiments.pretrain, got none: --config=FILE.py --workdir=DIR" >&2
    exit 2
fi
restarts=${RESTARTS:-20} # at most so many times
folder=${FOLDER:-vla_jax}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

remote="cd $(printf '%q' "$folder") && JAX_COORDINATOR_ADDRESS=auto VLA_JAX_CACHE=$(printf '%q' "${VLA_JAX_CACHE:-}")"
remote+=" .venv/bin/python -u -m experiments.pretrain$(printf ' %q' "$@"); echo vla_jax_exit=\$?"

ready() {
    [[ $(gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)') == READY ]]
}

for ((attempt = 0; attempt <= restarts; attempt++)); do
    for ((minute = 0; minute < 60; minute++)); do
        ready && break
        echo "tpu_vm.sh: $TPU is not ready; looking again in a minute" >&2
        sleep 60
    done
    if ((minute == 60)); then
        echo "tpu_vm.sh: $TPU is not there for an hour: make it again, then start this again" >&2
        exit 75
    fi
    # ssh has one exit code for all workers: each writes its own.
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$remote" 2>&1 | tee "$log"
    codes=$(sed -n 's/^.*vla_jax_exit=\([0-9]*\)$/\1/p' "$log" | sort -un | tr '\n' ' ')
    [[ $codes == '0 ' ]] && exit 0
    for code in $codes; do
        case $code in
        0 | 143 | 137 | 75) ;; # asked to stop and saved; killed; another worker was lost
        *)
            echo "tpu_vm.sh: workers ended with $codes: starting again would not help, see above" >&2
            exit 1
            ;;
        esac
    done
    echo "tpu_vm.sh: workers ended with ${codes:-no word}: starting again from the last complete checkpoint" >&2
done
echo "tpu_vm.sh: given up after $restarts restarts (RESTARTS=$restarts)" >&2
exit 75
