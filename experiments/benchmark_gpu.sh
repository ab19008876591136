#!/usr/bin/env bash
# Everything that this repository asks of a borrowed GPU, in 10 minutes on one 80 GB card, on synthetic batches and without
# tensorflow:
#
#     bash experiments/benchmark_gpu.sh [OUT]                             # everything lands in OUT (runs/gpu)
#     SIZE=tiny DEVICE=cpu DTYPE=float32 bash experiments/benchmark_gpu.sh    # the same script where there is none
#
# A part that fails or takes too long does not stop the next; it exits with the number of those.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu} SIZE=${SIZE:-3b} DEVICE=${DEVICE:-cuda} DTYPE=${DTYPE:-bfloat16} PYTHON=${PYTHON:-python3}
# 64 frames a step for the released model: what fills a card; the small ones take their default.
BATCH=${BATCH:-$([ "$SIZE" = 3b ] && echo 8)}
REMAT=${REMAT:-$([ "$SIZE" = 3b ] && echo full || echo none)}
LAYERS=${LAYERS:-$([ "$SIZE" = 3b ] && echo scan || echo unroll)}
mkdir -p "$OUT"
failed=0
[ "$DEVICE" = cuda ] && nvidia-smi --query-gpu=name,memory.total,power.limit --format=csv,noheader | tee "$OUT/gpu.txt"

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
train=("${run[@]}" train --size "$SIZE" --device "$DEVICE" --dtype "$DTYPE" --remat "$REMAT" --layers "$LAYERS"
    ${BATCH:+--batch "$BATCH"})
part train 240 "${train[@]}" --repeats 2 --steps 5 --json "$OUT/train.json"
part train_language 120 "${train[@]}" --step language --repeats 1 --steps 5 --json "$OUT/train_language.json"
# float32 needs more memory than the released model leaves: the small one says whether bfloat16 trains alike.
part losses 90 "${run[@]}" train --size "$([ "$SIZE" = 3b ] && echo 100m || echo "$SIZE")" --device "$DEVICE" \
    --dtype bfloat16 --losses float32 --repeats 1 --json "$OUT/losses.json"
part inference 200 "${run[@]}" inference --size "$SIZE" --device "$DEVICE" --dtype "$DTYPE" --frames 30 \
    --lines jax,eager,compile,int8,float8,pt2 --json "$OUT/inference.json"
exit "$failed"
