#!/usr/bin/env bash
# Measures fourbit beside what people use today, in turns, and prints a table for each part (README.md beside this holds the last ones):
#
#   benches/compare/run.sh [--turns N] [PART...]
#
#   transformers   a QLoRA step of SmolLM2-135M by transformers, PEFT and bitsandbytes
#   llama.cpp      reading 512 tokens and generating 128, by its CPU and its Vulkan backend
#   burn           products of f32 and of 8-bit weights by burn on wgpu, on the same adapter
#   inferena       the row of github.com/kvark/inferena for SmolLM2-135M, beside PyTorch's
#
# Without a PART all, about forty minutes on two cores. What was measured goes to target/compare/PART.json as well. It installs what
# is missing: Python packages (scripts/python.sh), llama.cpp as npm's node-llama-cpp into $FOURBIT_PEERS (~/.cache/fourbit-peers); burn
# is built in target/compare (Rust 1.95).
set -euo pipefail
cd "$(dirname "$0")/../.."
here=benches/compare
llama=3.22.1 # of node-llama-cpp; llama.cpp v0.5.0
peers=${FOURBIT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-peers}
turns=5
if [[ ${1:-} == --turns ]]; then turns=$2; shift 2; fi
(($#)) || set -- transformers llama.cpp burn inferena
out=$PWD/target/compare
environment=$(scripts/setup.sh)
eval "$environment"

node_llama_cpp() {
  local folder=$peers/node-llama-cpp-$llama packages=(node-llama-cpp @node-llama-cpp/linux-x64 @node-llama-cpp/linux-x64-vulkan)
  [[ $(uname -sm) == "Linux x86_64" ]] || { echo "run.sh: llama.cpp is fetched for Linux on x86-64 alone" >&2; return 1; }
  if [[ ! -e $folder/node_modules ]]; then
    command -v npm >/dev/null || scripts/setup.sh package npm
    rm -rf "$folder.part" && mkdir -p "$folder.part"
    echo '{"private": true}' >"$folder.part/package.json"
    # Its scripts would fetch or compile more.
    npm install --prefix "$folder.part" --silent --ignore-scripts --no-audit --no-fund --omit=optional "${packages[@]/%/@$llama}" >&2
    mv "$folder.part" "$folder"
  fi
  echo "$folder"
}

# As tests do, with naga's writers: naga, wgpu and fourbit are then compiled once for both.
cargo build --release --bin fourbit --example inferena --features naga/spv-out,naga/msl-out,naga/hlsl-out
options=(--turns "$turns" --out "$out" --fourbit target/release/fourbit)
for part; do
  case $part in
  transformers | inferena)
    python=$(scripts/python.sh)
    model=$(scripts/models.sh folder)
    options+=(--python "$python" --model "$model" --inferena target/release/examples/inferena)
    ;;
  llama.cpp)
    node=$(node_llama_cpp)
    gguf=$(scripts/models.sh)
    options+=(--node "$node" --gguf "$gguf")
    ;;
  burn)
    cargo build --release --locked --manifest-path $here/burn/Cargo.toml --target-dir "$out/burn"
    options+=(--burn "$out/burn/release/compare-burn")
    ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
exec python3 $here/turns.py "${options[@]}" "$@"
