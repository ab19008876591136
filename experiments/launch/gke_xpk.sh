#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through XPK (github.com/AI-Hypercomputer/xpk, which makes the image and the JobSet).
# From the repository's folder on your machine:
#
#     CLUSTER=my-cluster TPU_TYPE=v5litepod-256 NAME=oxe IMAGE=... [NUM_SLICES=2] experiments/launch/gke_xpk.sh \
#         --config=oxe_paligemma.py --workdir=/mnt/shared/runs/oxe [--config.a.b=value ...]
#
# IMAGE has Python 3.11 with requirements.txt and "libtpu==0.0.42.*" installed; the repository is put on top of it. --workdir
# is in a volume that all pods share (`xpk storage attach` mounts one). PROJECT and ZONE as in every xpk command.
set -euo pipefail

: "${CLUSTER:?the name of the cluster}" "${TPU_TYPE:?v5litepod-256, v6e-8, ...}"
: "${NAME:?of the workload}" "${IMAGE:?to start from}"
if (($# == 0)); then
    echo "gke_xpk.sh: expected the arguments of experiments.pretrain, got none: --config=FILE.py --workdir=DIR" >&2
    exit 2
fi

options=(--cluster "$CLUSTER" --workload "$NAME" --tpu-type "$TPU_TYPE" --num-slices "${NUM_SLICES:-1}")
options+=(--base-docker-image "$IMAGE" --script-dir .)
[[ -n ${PROJECT:-} ]] && options+=(--project "$PROJECT")
[[ -n ${ZONE:-} ]] && options+=(--zone "$ZONE")
# XPK starts a workload again on 42 and 127 to 255, which has 143 (asked to stop, saved) and 137 (killed); 75 says that a
# host was lost. An error of its own (1) ends it. Pods have this long after SIGTERM to finish a step and save.
options+=(--max-restarts "${RESTARTS:-20}" --restart-on-exit-codes 75 --termination-grace-period-seconds 300)

# exec: SIGTERM has to reach Python and not a shell.
exec xpk workload create "${options[@]}" \
    --command "JAX_COORDINATOR_ADDRESS=auto exec python -u -m experiments.pretrain$(printf ' %q' "$@")"
