#!/usr/bin/env bash
# One Mistral folder, two answers: `AutoModelForCausalLM` and the class that the folder names compute different logits.
#
# One would guess: `config.json` says `"model_type": "mistral"` and `"architectures": ["MistralForCausalLM"]`, so AutoModelForCausalLM
# loads what MistralForCausalLM.from_pretrained loads; `layer_types` is either read by both or by neither.
# What is real: transformers 5.23 looks into the file before it looks up the type, and a `mistral` with `layer_types` becomes
# another family, Ministral, whose layers have windows of their own. MistralForCausalLM on the same folder drops the field in
# silence and puts one window on every layer. Neither warns, and both say they loaded every weight. A program that reads the
# folder has to do what Auto does, since that is what people call; `sliding_window` alone does not tell.
#
# Seen 2026-11-28: transformers 5.23.0, torch 2.15.0, Python 3.11: logits 0.12 apart.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0

cat >"$place/classes.py" <<'PY'
import json, pathlib, sys
import torch, transformers
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

place = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
MistralForCausalLM(MistralConfig(**shape, sliding_window=4)).save_pretrained(place / "model")
file = place / "model/config.json"
ids = torch.arange(16)[None]


def logits(auto):
    model = auto.from_pretrained(place / "model").eval()
    with torch.no_grad():
        return type(model).__name__, model(ids).logits


print("transformers", transformers.__version__)
apart = []
for extra in ({}, {"layer_types": ["full_attention", "sliding_attention"]}):
    file.write_text(json.dumps(json.loads(file.read_text()) | extra))
    (auto, a), (named, b) = logits(AutoModelForCausalLM), logits(MistralForCausalLM)
    apart.append((a - b).abs().max().item())
    print(f"{extra or 'as saved'}: Auto gives {auto}, the named class {named}; logits {apart[-1]:.2g} apart")
sys.exit(not (apart[0] == 0 and apart[1] > 1e-3))
PY
"$place/venv/bin/python" -W ignore "$place/classes.py" "$place" || { echo "this changed"; exit 1; }
