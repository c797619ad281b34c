#!/usr/bin/env bash
# All that only a GPU shows, on one GPU and its CPU cores, some two hours: steps, memory, whole runs.
# From a checkout, in an environment with torch >= 2.11, timm, lightning, PyAV and transformers:
#
#   benchmarks/gpu.sh benchmarks/results/h200
#
# Each file is written as soon as it is measured; a repeated call measures only what is missing.

set -euo pipefail
out="${1:?a folder for the results}"
cores="$(nproc)"
mkdir -p "$out"
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

measure() { # NAME, then the benchmark and its flags
  local target="$out/$1.json"
  shift
  if [[ ! -s $target ]]; then
    local own=() rest=()
    while (($#)) && [[ $1 != -- ]]; do own+=("$1"); shift; done
    rest=("$@")
    echo "== $target"
    python -m kinetics400 bench "${own[@]}" --json "$target" "${rest[@]}"
  fi
}

for precision in bf16-mixed bf16-true; do
  for size in small base large; do
    model="MCG-NJU/videomae-$size"
    for batch in 32 64 128; do
      measure "step_pretraining_${size}_${precision}_$batch" \
        step --accelerator cuda --model_name "$model" --precision "$precision" --batch_size "$batch"
    done
    measure "step_finetuning_${size}_${precision}_32" \
      step --accelerator cuda --model_name "$model" --precision "$precision" --batch_size 32 \
      --method finetuning
  done
done

# From MP4 files, with a worker for each core but two.
workers=$((cores > 3 ? cores - 2 : 1))
for size in base large; do
  common=(--model_name "MCG-NJU/videomae-$size" --accelerator cuda --precision bf16-mixed
    --n_worker "$workers")
  measure "run_pretraining_$size" run --steps 120 -- "${common[@]}" --batch_size 128
  measure "run_pretraining_${size}_repeated" \
    run --steps 120 -- "${common[@]}" --batch_size 32 --num_sample 4
  measure "run_finetuning_$size" run --method finetuning --steps 120 -- "${common[@]}" --batch_size 32
done
measure run_pretraining_base_profile \
  run --steps 30 --profile "$out/profile" -- --model_name MCG-NJU/videomae-base --accelerator cuda \
  --precision bf16-mixed --n_worker "$workers" --batch_size 128

# Whether the GPU's own video decoder would feed it better than the cores do.
if [[ ! -s $out/decode.json ]]; then
  libraries="$(python benchmarks/ffmpeg_libraries.py "$out/ffmpeg")" # torchcodec wants them
  LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    python benchmarks/gpu_decode.py "$out/decode.json"
  rm -r "$out/ffmpeg"
fi

# And the tests that a machine without a GPU skips.
python -m pytest -q tests/engine/test_synchronisation.py tests/data/test_loader.py
