#!/usr/bin/env bash
# Compares fourbit with transformers, PEFT and bitsandbytes on SmolLM2-135M, and with transformers and llama.cpp on Gemma 3 270M: sets
# up what is missing (Python packages, the models, a driver), builds, and runs scripts/verify.py with the arguments given; without any,
# scripts/verify_kills.py, verify_rows.py, verify_long.py, verify_options.py, verify_families.py, verify_gemma.py, verify_layouts.py,
# verify_meaning.py and the checks of tests/golden/templates.json and tokenizers.json too. About two and a half hours on two cores, and
# 3 GB of packages, kept in $FOURBIT_VENV (~/.cache/fourbit-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}
venv=${FOURBIT_VENV:-$cache/fourbit-venv}
environment=$(scripts/setup.sh)
eval "$environment"

if ! cmp -s scripts/requirements.txt "$venv/requirements.txt"; then
  echo "verify: installing Python packages into $venv" >&2
  python3 -c 'import ensurepip' 2>/dev/null || scripts/setup.sh package python3 python3-venv
  [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -r scripts/requirements.txt >&2
  cp scripts/requirements.txt "$venv/"
fi
gguf=$(scripts/models.sh)
model=${gguf%/*}/SmolLM2-135M-Instruct
if [[ ! -e $model/config.json ]]; then
  "$venv/bin/python" scripts/gguf2hf.py "$gguf" "$model.part"
  rm -rf "$model" && mv "$model.part" "$model"
fi
# As tests do, with naga's writers: naga, wgpu and fourbit are then compiled once for both.
cargo build --release --bin fourbit --features naga/spv-out,naga/msl-out,naga/hlsl-out
if (($# == 0)); then
  "$venv/bin/python" scripts/verify_kills.py
  "$venv/bin/python" scripts/verify_rows.py
  "$venv/bin/python" scripts/verify_long.py
  "$venv/bin/python" scripts/verify_options.py
  "$venv/bin/python" scripts/verify_families.py
  "$venv/bin/python" scripts/verify_gemma.py
  "$venv/bin/python" scripts/verify_layouts.py
  "$venv/bin/python" scripts/verify_meaning.py
  "$venv/bin/python" scripts/make_template_golden.py --check "$(scripts/templates.sh)"
  "$venv/bin/python" scripts/make_tokenizer_golden.py --check "$(scripts/tokenizers.sh)"
fi
exec "$venv/bin/python" scripts/verify.py --model "$model" "$@"
