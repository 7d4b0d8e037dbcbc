#!/usr/bin/env bash
# The first command: installs what is missing, builds, and fine-tunes the embedded model on the embedded data set,
# with its answers before and after. Arguments go to `fourbit finetune`.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(scripts/setup.sh)
eval "$environment"
# With naga's writers, which tests need: so scripts/test.sh compiles naga, wgpu and fourbit no second time.
exec cargo run --release --bin fourbit --features naga/spv-out,naga/msl-out,naga/hlsl-out -- finetune "$@"
