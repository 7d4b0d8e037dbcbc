#!/usr/bin/env bash
# An adapter with two `alpha_pattern` entries that match the same module has another scale after PEFT has saved and loaded it.
#
# One would guess: which of two matching patterns wins is a property of the adapter, so that `save_pretrained` and
# `from_pretrained` give back what was trained.
# What is real: PEFT 0.21.2 takes the first pattern that matches, in the order of the dictionary that was given to LoraConfig.
# `adapter_config.json` is written with sorted keys, so that the order in the file is the alphabet's: `layers.1...` stands before
# `q_proj` there, whatever stood first in training. A module trained with alpha 16 is loaded with alpha 64: its update is four
# times as large, and nothing warns. `rank_pattern` is read the same way, but there the shapes differ and loading fails.
# Others that read the file can only follow the order in it. A user is safe with patterns of which no two match one module.
#
# Seen 2026-11-28: peft 0.21.2, transformers 5.23.0, torch 2.15.0, Python 3.11: scale 4 when trained, 16 when loaded; logits off
# by 0.05 where the largest is 0.36.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0 peft==0.21.2

cat >"$place/order.py" <<'PY'
import json, pathlib, sys
import peft, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

place = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
LlamaForCausalLM(config).save_pretrained(place / "base")
base = lambda: LlamaForCausalLM.from_pretrained(place / "base")
patterns = {"q_proj": 16, "layers.1.self_attn.q_proj": 64}
adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], alpha_pattern=patterns, init_lora_weights=False)


def look(model):
    scale = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").scaling["default"]
    with torch.no_grad():
        return scale, model.eval()(torch.arange(8)[None]).logits


trained = get_peft_model(base(), adapter)
before, right = look(trained)
trained.save_pretrained(place / "adapter")
print("peft", peft.__version__, "transformers", transformers.__version__)
print("given: ", list(patterns))
print("stored:", list(json.loads((place / "adapter/adapter_config.json").read_text())["alpha_pattern"]))
after, logits = look(PeftModel.from_pretrained(base(), place / "adapter"))
off = (logits - right).abs().max().item()
print(f"scale of layer 1's q_proj: {before} in training, {after} loaded; logits off by {off:.2g} of {right.abs().max().item():.2g}")
sys.exit(not (before == 4.0 and after == 16.0 and off > 1e-3))
PY
"$place/venv/bin/python" -W ignore "$place/order.py" "$place" || { echo "this changed"; exit 1; }
