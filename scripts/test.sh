#!/usr/bin/env bash
# The second command: installs what is missing and runs all tests. With arguments: `cargo test --release` with them, once.
#
# Without: the whole suite, then what a few shaders cost on a GPU (scripts/shader-cost.sh), then the kernels again without subgroups, then
# on SwiftShader, a second software driver.
# REQUIRE_GPU=1 makes a missing adapter a failure. FOURBIT_SMOLLM2 names the real model's GGUF file for the tests that
# take one, FOURBIT_TEMPLATES the folder of trl's chat templates, FOURBIT_TOKENIZERS that of real tokenizers; they are fetched where
# these are not set.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(scripts/setup.sh)
eval "$environment"
# The headers for the layer of tests/faults, which lets calls of the driver fail.
[[ $(uname -s) != Linux ]] || scripts/setup.sh package libvulkan-dev || echo "test: no Vulkan headers: faults are not tested" >&2

if [[ -z ${FOURBIT_SMOLLM2:-} ]]; then
  if model=$(scripts/models.sh); then export FOURBIT_SMOLLM2=$model; else
    echo "test: SmolLM2 could not be fetched: its tests are skipped" >&2
  fi
fi
if [[ -z ${FOURBIT_TEMPLATES:-} ]]; then
  if templates=$(scripts/templates.sh); then export FOURBIT_TEMPLATES=$templates; else
    echo "test: trl's chat templates could not be fetched: their tests are skipped" >&2
  fi
fi
if [[ -z ${FOURBIT_TOKENIZERS:-} ]]; then
  if tokenizers=$(scripts/tokenizers.sh); then export FOURBIT_TOKENIZERS=$tokenizers; else
    echo "test: the real tokenizers could not be fetched: their tests are skipped" >&2
  fi
fi
if (($#)); then exec cargo test --release "$@"; fi

echo "test: the whole suite" >&2
cargo test --release
echo "test: the examples for learners" >&2
for example in quickstart datatypes affine nf4 lora_math qlora_memory adapters; do
  cargo run --release --quiet --example "$example" >&2
done
echo "test: what shaders cost" >&2
scripts/shader-cost.sh --check
echo "test: the kernels without subgroups" >&2
FOURBIT_SUBGROUPS=0 cargo test --release --test kernels
if second=$([[ $(uname -s) == Linux ]] && scripts/setup.sh swiftshader) && [[ -n $second ]]; then
  echo "test: the kernels on SwiftShader" >&2
  eval "$second"
  unset VK_DRIVER_FILES # the loader prefers it
  REQUIRE_GPU=1 cargo test --release --test kernels
else
  echo "test: skipped SwiftShader: it comes from Debian's package chromium-common, which could not be fetched here" >&2
fi
