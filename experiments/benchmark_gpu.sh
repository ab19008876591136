#!/usr/bin/env bash
# Everything that this repository asks of a borrowed GPU, in 10 minutes on one card of 80 GB or more, on synthetic batches and
# without tensorflow:
#
#     bash experiments/benchmark_gpu.sh [OUT]                             # everything lands in OUT (runs/gpu)
#     SIZE=tiny DEVICE=cpu DTYPE=float32 bash experiments/benchmark_gpu.sh    # the same script where there is none
#
# A part that fails or takes too long does not stop the next; it exits with the number of those.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu} SIZE=${SIZE:-3b} DEVICE=${DEVICE:-cuda} DTYPE=${DTYPE:-bfloat16} PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
failed=0 gib=0
if [ "$DEVICE" = cuda ]; then
    nvidia-smi --query-gpu=name,memory.total,power.limit --format=csv,noheader | tee "$OUT/gpu.txt"
    gib=$(($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1) / 1024))
    # The policies of a part are written down for both sides: 24 GB that memory takes sooner than a disk.
    [ "$(df --output=avail -BG /dev/shm | tail -n 1 | tr -dc 0-9)" -lt 40 ] || export TMPDIR=/dev/shm
    # torch is on the same card; jax would take no more than three quarters of it, and the released model at 8 windows did not
    # fit into those of an H200 (139 GiB).
    export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
fi
# As many windows of 8 frames as a card holds with what dots keeps of them (4.1 GiB each); the small ones take their default.
BATCH=${BATCH:-$([ "$SIZE" != 3b ] || echo $((gib > 120 ? 8 : 4)))}
REMAT=${REMAT:-$([ "$SIZE" = 3b ] && echo dots || echo none)}
LAYERS=${LAYERS:-$([ "$SIZE" = 3b ] && echo scan || echo unroll)}
MIDDLE=$([ "$SIZE" = 3b ] && echo 100m || echo "$SIZE")

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2> "$OUT/$name.err" | tee "$OUT/$name.txt"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || { failed=$((failed + 1)); tail -n 3 "$OUT/$name.err"; }
    echo "== $name: exit $status after $((SECONDS - begin)) s"
}

run=("$PYTHON" -m experiments.benchmark)
train=("${run[@]}" train --device "$DEVICE" --dtype "$DTYPE" --remat "$REMAT" --layers "$LAYERS" --size "$SIZE")
infer=("${run[@]}" inference --device "$DEVICE" --dtype "$DTYPE" --frames 30)
part train 240 "${train[@]}" ${BATCH:+--batch "$BATCH"} --repeats 3 --steps 5 --json "$OUT/train.json"
part inference 150 "${infer[@]}" --size "$SIZE" --lines jax,eager,compile --json "$OUT/inference.json"
part expert 90 "${infer[@]}" --size "$SIZE" --head expert --lines jax --json "$OUT/expert.json"
part fast 90 "${infer[@]}" --size "$SIZE" --head fast --lines jax --json "$OUT/fast.json"
# float32 needs more memory than the released model leaves: the small one says whether bfloat16 trains alike.
part losses 60 "${run[@]}" train --size "$MIDDLE" --device "$DEVICE" --dtype bfloat16 --losses float32 --repeats 1 \
    --json "$OUT/losses.json"
part bits 150 "${infer[@]}" --size "$MIDDLE" --lines jax,eager,compile,int8,float8,pt2 --json "$OUT/bits.json"
# The peer keeping its activations, which takes a smaller batch.
part train_keep 90 "${train[@]}" --keep ${BATCH:+--batch 4} --repeats 1 --steps 5 --json "$OUT/train_keep.json"
part language 90 "${train[@]}" ${BATCH:+--batch "$BATCH"} --step language --repeats 1 --steps 5 --json "$OUT/language.json"
exit "$failed"
