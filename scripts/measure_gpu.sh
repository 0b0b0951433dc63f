#!/usr/bin/env bash
# Tests the kernels on the first GPU, then measures all rows of docs/benchmarks/gpu.md:
#   bash scripts/measure_gpu.sh [OUT]
# Benchmarks whose JSON is in OUT are complete and are not measured again; an interrupted one resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${1:-out/gpu}

layer() {
  local name=$1
  shift
  [ -e "$out/$name/layer.json" ] || python -m ultrafastbert benchmark layer --device cuda --output_dir "$out/$name" "$@"
}

python -m pytest -q -o addopts= tests/ops/test_blocked_on_gpu.py  # before anything is measured

wide=(--sizes '[1x11,1x12,1x13,1x14,1x15]' --tokens '[65536]' --depths '[]')
one=(--sizes '[1x11]' --depths '[]')

layer forward "${wide[@]}"                   # A
layer backward "${wide[@]}" --backward true  # B
[ -e "$out/training/training.json" ] ||      # C
  python -m ultrafastbert benchmark training --device cuda --output_dir "$out/training"

layer one-path "${one[@]}" --tokens '[65536]' --one_path true
layer one-path-backward "${one[@]}" --tokens '[65536]' --one_path true --backward true
layer graphs "${one[@]}" --tokens '[1,16,256,4096]' --compile_mode reduce-overhead
layer sizes
layer sizes-backward --backward true
