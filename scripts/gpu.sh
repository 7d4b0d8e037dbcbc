#!/usr/bin/env bash
# Makes a folder that measures and tests a GPU anywhere on Linux (x86-64): no model, no download, below 40 MiB.
#
#   scripts/gpu.sh FOLDER          makes it: the command, the kernels' tests, the Vulkan loader, two Python files
#   python3 FOLDER/run.py          there: runs everything and writes FOLDER/results.json, also where parts fail
#   python3 FOLDER/run.py --quick  the same on few cases and short steps: a rehearsal
#
# Needs what scripts/setup.sh installs here; there, Python 3 and a driver. Where torch and peft are at hand there, a LoRA step in bf16 of
# the same shapes is measured too.
set -euo pipefail
folder=${1:?usage: scripts/gpu.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
environment=$(scripts/setup.sh)
eval "$environment"
features=(--release --features "naga/spv-out,naga/msl-out,naga/hlsl-out")
cargo build "${features[@]}" --bin fourbit >&2
kernels=$(cargo test "${features[@]}" --test kernels --no-run --message-format json 2>/dev/null |
  sed -n 's/.*"name":"kernels".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
scripts/setup.sh package binutils libvulkan1 >/dev/null
strip -o "$folder/fourbit" target/release/fourbit
strip -o "$folder/kernels" "$kernels"
# The loader is small; machines for computing often have a driver and no loader.
loader=$(ldconfig -p | sed -n 's/.*libvulkan\.so\.1 .*x86-64.* => //p' | head -n 1)
mkdir -p "$folder/loader"
cp -L "$loader" "$folder/loader/libvulkan.so.1"
cp scripts/gpu/run.py scripts/gpu/lora_step.py "$folder"
cp -r assets/shapes "$folder"
git rev-parse HEAD >"$folder/commit"
size=$(du -sm "$folder" | cut -f1)
((size < 40)) || { echo "gpu.sh: $folder has $size MiB, expected below 40" >&2; exit 1; }
echo "$folder: $size MiB; there: python3 run.py"
