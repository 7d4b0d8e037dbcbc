#!/usr/bin/env bash
# A weighted sum of PEFT adapters loses what the first one's exclude_modules name, of all of them, without a word.
#
# One would guess: `add_weighted_adapter` of 1.0 x P and 1.0 x Q computes what P and Q compute, whichever of them is named first.
# What is real: the configuration of the sum is that of the first adapter with another rank and the union of target_modules; its exclude_modules and
# layers_to_transform stay. If P excludes q_proj and Q changes it, then the sum with P in front has no update of q_proj at all, and its
# logits are P's alone; with Q in front both layers are changed. Two orders of the same sum are two different adapters, and nothing tells.
#
# Seen 2026-11-30: peft 0.21.2, transformers 5.23.0, torch 2.15.0, Python 3.11; `combination_type` cat, linear and svd alike.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0

cat >"$place/sum.py" <<'PY'
import sys
import peft, torch, transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[1, 5, 9, 13, 2]])
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, attn_implementation="eager")
kinds = {
    "P": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], exclude_modules=["q_proj"], init_lora_weights=False),
    "Q": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False),
}


def model(order):
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    made = get_peft_model(base, kinds["P"], adapter_name="P")
    made.add_adapter("Q", kinds["Q"])
    made.add_weighted_adapter(order, [1.0, 1.0], "sum", combination_type="cat")
    return made


def logits(made, name):
    made.set_adapter(name)
    with torch.no_grad():
        return made(ids).logits


print("peft", peft.__version__, "transformers", transformers.__version__)
first = model(["P", "Q"])
changed = sorted({n.split(".")[-4] for n, _ in first.named_parameters() if "lora_A.sum" in n})
alike = (logits(first, "sum") - logits(first, "P")).abs().max().item()
print(f"P + Q changes {changed}; beside P alone its logits are {alike:.1e} apart, those of Q and P {(logits(first, 'Q') - logits(first, 'P')).abs().max():.1e}")
second = sorted({n.split(".")[-4] for n, _ in model(["Q", "P"]).named_parameters() if "lora_A.sum" in n})
print(f"Q + P changes {second}")
sys.exit(0 if changed == ["v_proj"] and alike < 1e-5 and second == ["q_proj", "v_proj"] else 1)
PY
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" sum.py 2>/dev/null || { echo "it changed"; exit 1; }
echo "as described: P + Q has no update of q_proj"
