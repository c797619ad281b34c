#!/usr/bin/env bash
# All that only a GPU shows, on one GPU and its CPU cores: steps, memory, whole runs. An hour or two,
# most of it torch's compiler; what matters most comes first, for those who have minutes.
# From a checkout, in an environment with torch >= 2.11, timm, lightning, PyAV, transformers (the one
# it is compared with) and pytest:
#
#   benchmarks/gpu.sh benchmarks/results/h200
#
# Each file is written as soon as it is measured; a repeated call measures only what is missing. What
# fails is named at the end, and the rest is measured nevertheless.

set -euo pipefail
out="${1:?a folder for the results}"
cores="$(nproc)"
workers=$((cores > 3 ? cores - 2 : 1)) # all cores but two
mkdir -p "$out"
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=()

measure() { # NAME, then the benchmark and its flags
  local name="$1" target="$out/$1.json"
  shift
  if [[ ! -s $target ]]; then
    local own=() rest=()
    while (($#)) && [[ $1 != -- ]]; do own+=("$1"); shift; done
    rest=("$@")
    echo "== $target"
    python -m kinetics400 bench "${own[@]}" --json "$target" "${rest[@]}" || failed+=("$name")
  fi
}

large_batch() { # NAME of a result: three quarters of the largest that fits, as others' weights do, too
  [[ -s $out/$1.json ]] || return 0
  python -c 'import json, sys; found = json.load(open(sys.argv[1])).get("largest_batch") or {}; print((found.get("ours") or 0) * 3 // 4 or "")' "$out/$1.json"
}

steps() { # METHOD SIZE PRECISION BATCH
  local flags=(step --accelerator cuda --model_name "MCG-NJU/videomae-$2" --precision "$3"
    --method "$1")
  measure "step_$1_$2_$3_$4" "${flags[@]}" --batch_size "$4"
}

more_steps() { # the same, at other batch sizes, eager only: METHOD SIZE PRECISION FIRST BATCH...
  local method="$1" size="$2" precision="$3" batch
  local first="step_$1_$2_$3_$4"
  shift 4
  for batch in "$@" $(large_batch "$first"); do
    measure "step_${method}_${size}_${precision}_${batch}_eager" step --accelerator cuda --quick \
      --model_name "MCG-NJU/videomae-$size" --precision "$precision" --method "$method" \
      --batch_size "$batch"
  done
}

runs() { # SIZE: from MP4 files
  local common=(--model_name "MCG-NJU/videomae-$1" --accelerator cuda --precision bf16-mixed
    --n_worker "$workers")
  measure "run_pretraining_$1" run --steps 120 -- "${common[@]}" --batch_size 128 --n_epoch 400
  measure "run_pretraining_${1}_repeated" \
    run --steps 120 -- "${common[@]}" --batch_size 32 --num_sample 4 --n_epoch 400
  measure "run_finetuning_$1" run --method finetuning --steps 120 -- "${common[@]}" --batch_size 32
}

profiles() { # what takes the time, augmentation included
  local common=(--model_name MCG-NJU/videomae-base --accelerator cuda --precision bf16-mixed
    --n_worker "$workers")
  measure run_pretraining_base_profile \
    run --steps 30 --profile "$out/profile" -- "${common[@]}" --batch_size 128
  measure run_finetuning_base_profile \
    run --method finetuning --steps 30 --profile "$out/profile_finetuning" -- "${common[@]}" \
    --batch_size 32
}

steps pretraining base bf16-mixed 64
runs base
steps finetuning base bf16-mixed 32
profiles
steps pretraining large bf16-mixed 64
runs large
steps finetuning large bf16-mixed 16
more_steps pretraining base bf16-mixed 64 32 128
more_steps finetuning base bf16-mixed 32
more_steps pretraining large bf16-mixed 64 32
more_steps finetuning large bf16-mixed 16
steps pretraining base bf16-true 64
steps pretraining small bf16-mixed 64

# Whether the GPU's own video decoder would feed it better than the cores do.
if [[ ! -s $out/decode.json ]]; then
  libraries="$(python benchmarks/ffmpeg_libraries.py "$out/ffmpeg")" # torchcodec wants them
  LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    python benchmarks/gpu_decode.py "$out/decode.json" || failed+=(decode)
  rm -r "$out/ffmpeg"
fi

# And the tests that a machine without a GPU skips.
python -m pytest -q tests/engine/test_synchronisation.py tests/data/test_loader.py \
  || failed+=(tests)

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
