#!/usr/bin/env bash
# Tests one stage of the GPU path on a machine with an NVIDIA GPU, and writes the measurements into $OUT:
#
#     bash benchmarks/on_gpu.sh runtime|train|onnxruntime|tensorrt|tensorrt-rtx
#
# runtime        the stream runtime on CUDA: the tests marked gpu, and nvJPEG against Pillow
# train          training in BF16, for each of $DESCRIPTORS
# onnxruntime    FP32 and TF32 engines on ONNX Runtime's CUDA provider, against torch
# tensorrt       FP32, TF32, FP16 and INT8 plans of TensorRT, against torch, and trtexec if it is on the PATH
# tensorrt-rtx   FP16 and INT8 plans of TensorRT-RTX, built without a GPU, against torch
#
# PICTURES, WEIGHTS    labelled pictures, and ImageNet weights of $BACKBONE
# BACKBONE, SIZE       the model                                            (default resnet50 and 224)
# DESCRIPTORS, EPOCHS  the models of the stage train, and their epochs      (default "SG" and 20)
# SECONDS_EACH         seconds of timing for each batch size                (default 20)
# OUT, WORK            folders for JSON, charts and logs, and for models    (default build/on_gpu and build/on_gpu_work)
#
# A stage first does all work that needs no GPU. If it lacks a GPU, a library or pictures, it says so in one sentence and
# ends with status 0.
set -euo pipefail
cd "$(dirname "$0")/.."

STAGE=${1:-}
PICTURES=${PICTURES:-/tmp/pictures}
WEIGHTS=${WEIGHTS:-/tmp/weights/resnet50_imagenet_fp16.pth}
BACKBONE=${BACKBONE:-resnet50}
SIZE=${SIZE:-224}
DESCRIPTORS=${DESCRIPTORS:-SG}
EPOCHS=${EPOCHS:-20}
SECONDS_EACH=${SECONDS_EACH:-20}
OUT=${OUT:-build/on_gpu}
WORK=${WORK:-build/on_gpu_work}
if [ -x .venv/bin/python ]; then PYTHON=${PYTHON:-$PWD/.venv/bin/python}; fi
PYTHON=${PYTHON:-python3}

# The machine may have our dependencies but not our packages: links give our folders the names of the packages.
mkdir -p build/names "$OUT" "$WORK"
for pair in cgd_deploy:cgd_deploy cgd_train:train cgd_export:export; do
    ln -sfn "$PWD/${pair#*:}" "build/names/${pair%%:*}"
done
export PYTHONPATH="$PWD/build/names${PYTHONPATH:+:$PYTHONPATH}"

cgd() { "$PYTHON" -m cgd_deploy "$@"; }
lacks() { echo "on_gpu $STAGE: $1"; exit 0; }

need_files() {
    for path in "$@"; do
        if [ ! -e "$path" ]; then lacks "$path is not there; set PICTURES and WEIGHTS."; fi
    done
}

need_module() {
    "$PYTHON" -c "import $1" 2> "$OUT/$STAGE.import.txt" || lacks "the library $1 cannot be imported: $(tail -n 1 "$OUT/$STAGE.import.txt")"
}

need_gpu() {
    "$PYTHON" -c 'from cgd_deploy.runtime.cuda.driver import find_device; print(find_device())' 2> "$OUT/$STAGE.gpu.txt" \
        || lacks "$(tail -n 1 "$OUT/$STAGE.gpu.txt" | sed 's/^[a-zA-Z_.]*: //')"
    cgd doctor --json > "$OUT/doctor.json" || true
    nvidia-smi > "$OUT/nvidia-smi.txt" || true
}

# Makes the model of the other stages, once: the trained model, or else ImageNet weights with random heads. Sets $ONNX
# and $CHECKPOINT.
prepare_model() {
    need_files "$PICTURES" "$WEIGHTS"
    CHECKPOINT=$WORK/SG/best.pt ONNX=$WORK/model.onnx
    if [ ! -e "$CHECKPOINT" ]; then CHECKPOINT=$WORK/ckpt.pt; fi
    if [ ! -e "$CHECKPOINT" ]; then
        cgd import "$WEIGHTS" --backbone "$BACKBONE" --descriptors SG --size "$SIZE" --data "$PICTURES" -o "$CHECKPOINT"
    fi
    if [ ! "$ONNX" -nt "$CHECKPOINT" ]; then cgd export "$CHECKPOINT" -o "$ONNX"; fi
}

build() { cgd build-engine "$ONNX" "--$1" --backend "$2" --max-batch 128 -o "$WORK/$2-$1.cgd" "${@:3}"; }

# Tries to load these plans with the library itself, without our check of the GPU.
loads() {
    "$PYTHON" - "$@" << 'END'
import sys

from cgd_deploy.runtime.backends import BACKENDS
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.errors import CgdError

for path in sys.argv[1:]:
    file = read_engine(path)
    try:
        BACKENDS[file.manifest.backend]["cuda"](file.payload).close()
        print(f"{path}: loads")
    except CgdError as error:
        print(f"{path}: {error}")
END
}

measure() {
    "$PYTHON" benchmarks/gpu.py "$CHECKPOINT" "$@" -o "$OUT/$STAGE.json" --data "$PICTURES" --batch 1 8 32 128 \
        --streams 1 2 4 --seconds "$SECONDS_EACH"
}

case "$STAGE" in
runtime)
    need_gpu
    "$PYTHON" -m pytest tests/runtime/test_gpu.py -m gpu -rs --junitxml="$OUT/runtime.xml"
    need_module nvidia.nvimgcodec
    "$PYTHON" benchmarks/decoders.py --seconds "$SECONDS_EACH" -o "$OUT/decoders.json"
    ;;
train)
    need_files "$PICTURES" "$WEIGHTS"
    need_gpu
    for descriptors in $DESCRIPTORS; do
        cgd train --data "$PICTURES" --weights "$WEIGHTS" --backbone "$BACKBONE" --size "$SIZE" --descriptors "$descriptors" \
            --amp bf16 --epochs "$EPOCHS" -o "$WORK/$descriptors"
        cp "$WORK/$descriptors/metrics.jsonl" "$OUT/train-$descriptors.jsonl"
    done
    tail -n 1 "$OUT"/train-*.jsonl
    ;;
onnxruntime)
    prepare_model
    for precision in fp32 tf32; do build "$precision" onnxruntime; done
    need_gpu
    measure "$WORK"/onnxruntime-{fp32,tf32}.cgd
    ;;
tensorrt)
    need_module tensorrt
    prepare_model
    need_gpu
    for precision in fp32 tf32 fp16 int8; do build "$precision" tensorrt; done
    measure "$WORK"/tensorrt-{fp32,tf32,fp16,int8}.cgd
    ;;
tensorrt-rtx)
    need_module tensorrt_rtx_bindings
    prepare_model
    for precision in fp16 int8; do build "$precision" tensorrt-rtx; done
    need_gpu
    loads "$WORK"/tensorrt-rtx-{fp16,int8}.cgd | tee "$OUT/$STAGE.loads.txt"
    measure "$WORK"/tensorrt-rtx-{fp16,int8}.cgd
    ;;
*)
    echo "usage: bash benchmarks/on_gpu.sh runtime|train|onnxruntime|tensorrt|tensorrt-rtx" >&2
    exit 2
    ;;
esac
