#!/usr/bin/env bash
# The 64-pixel face model on one GPU: a rehearsal of half a minute, then MINUTES of training, in OUT at the end (and every
# 90 seconds on the way) the best model in half precision, as a tar in pieces of 15 MB, with its log and its samples.
#
#   recipes/gpu.sh FACES.zip RUN OUT [MINUTES]             on a GPU
#   DEVICE=cpu recipes/gpu.sh FACES.zip RUN OUT 0.5        everything small, on a CPU
#   cat OUT/model.tar.* | tar -x                           gives the diffusers folder model/
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 run=$2 out=$3 minutes=${4:-6.5}
device=${DEVICE:-cuda} python=${PYTHON:-python3} features=${FEATURES:-efficientnet}
export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$run" "$out"

common=(--split train/ --size 64 --patch 2 --predict v --min-snr 20 --scale-shift --dropout 0.1 --attention 8
        --features "$features" --device "$device")
small=(--channels 32,64 --batch 16 --average 0.03,0.1 --keep 24 --save-every 10)
large=(--channels 96,160,256 --layers 2 --batch 256 --peak-rate 8e-4 --average 0.03,0.08,0.15 --keep 500
       --save-every 1000)
[ "$device" = cpu ] && large=("${small[@]}")

train() {  # FOLDER OPTION...
    "$python" recipes/train_ddpm.py "$data" "$run/$1" "${common[@]}" "${@:2}"
}

pack() {  # FOLDER: the diffusers folder there as model.tar.aa, model.tar.ab, ... in OUT
    local part="$run/packed"
    rm -rf "$part" && mkdir -p "$part/model"
    cp -r "$1/." "$part/model/" || return 0
    tar -C "$part" -cf - model | split -b 15m - "$part/model.tar." || return 0
    rm -f "$out"/model.tar.*
    mv "$part"/model.tar.* "$out/"
}

echo "rehearsal"
rm -rf "$run/rehearsal"
train rehearsal "${small[@]}" --steps 20

echo "training"
( while sleep 90; do pack "$run/faces/averages/0.08" >/dev/null 2>&1 || true; done ) &
packing=$!
trap 'kill "$packing" 2>/dev/null || true' EXIT
compile=(); [ "$device" = cuda ] && compile=(--compile)
train faces "${large[@]}" "${compile[@]}" --minutes "$minutes" 2>&1 | tee "$out/train.log"

kill "$packing" 2>/dev/null || true
wait "$packing" 2>/dev/null || true
cp "$run"/faces/choice.json "$run"/faces/samples-*.png "$out/"
pack "$run/faces/model"
ls -l "$out"
