#!/usr/bin/env bash
# Compares fourbit with transformers, PEFT and bitsandbytes on SmolLM2-135M, and with transformers and llama.cpp on Gemma 3 270M: sets
# up what is missing (Python packages, the models, a driver), builds, and runs scripts/verify.py with the arguments given; without any,
# scripts/verify_kills.py, verify_rows.py, verify_long.py, verify_options.py, verify_families.py, verify_gemma.py, verify_layouts.py,
# verify_meaning.py and the checks of tests/golden/templates.json and tokenizers.json too. About two and a half hours on two cores, and
# 3 GB of packages, kept in $FOURBIT_VENV (~/.cache/fourbit-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(scripts/setup.sh)
eval "$environment"

python=$(scripts/python.sh)
model=$(scripts/models.sh folder)
# As tests do, with naga's writers: naga, wgpu and fourbit are then compiled once for both.
cargo build --release --bin fourbit --features naga/spv-out,naga/msl-out,naga/hlsl-out
if (($# == 0)); then
  "$python" scripts/verify_kills.py
  "$python" scripts/verify_rows.py
  "$python" scripts/verify_long.py
  "$python" scripts/verify_options.py
  "$python" scripts/verify_families.py
  "$python" scripts/verify_gemma.py
  "$python" scripts/verify_layouts.py
  "$python" scripts/verify_meaning.py
  "$python" scripts/make_template_golden.py --check "$(scripts/templates.sh)"
  "$python" scripts/make_tokenizer_golden.py --check "$(scripts/tokenizers.sh)"
fi
exec "$python" scripts/verify.py --model "$model" "$@"
