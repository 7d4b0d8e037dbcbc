#!/usr/bin/env bash
# The first command: installs what is missing, builds, and fine-tunes the embedded model on the embedded data set,
# with its answers before and after. Arguments go to `fourbit finetune`.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(scripts/setup.sh)
eval "$environment"
exec cargo run --release --bin fourbit -- finetune "$@"
