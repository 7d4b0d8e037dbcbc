#!/usr/bin/env bash
# transformers 5 opens a folder that transformers 4 quantized with HQQ, and answers with random weights.
#
# One would guess: a folder whose config.json says `quant_method: hqq`, written by `save_pretrained` of transformers 4.57.1 and
# read back there bit for bit, either loads in transformers 5.23.0 with the same package hqq installed, or is refused.
# What is real: `from_pretrained` of 5.23.0 returns a model. All seven linear layers of each block are plain `Linear`s with newly
# drawn numbers (two loads differ); the HQQ tensors are listed as UNEXPECTED and the weights as MISSING in a report on stderr, as
# for a new classification head. Quantizing with HqqConfig, by contrast, is refused by name.
#
# Seen 2026-11-28: transformers 4.57.1 and 5.23.0, hqq 0.2.8.post1, torch 2.15.0, Python 3.11, on a processor.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
pip() { "$place/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip torch==2.15.0 numpy==2.4.6 transformers==5.23.0 hqq==0.2.8.post1 accelerate==1.15.0 safetensors==0.8.0 requests==2.32.5
pip --no-deps --target "$place/four" transformers==4.57.1 tokenizers==0.22.1 huggingface_hub==0.36.0

cat >"$place/write.py" <<'PY'
import sys, torch, transformers
from transformers import AutoModelForCausalLM, HqqConfig, LlamaConfig, LlamaForCausalLM
place = sys.argv[1]
torch.manual_seed(0)
shape = dict(vocab_size=160, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(f"{place}/float")
load = lambda path, **more: AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32, **more).eval()
logits = lambda model: model(torch.arange(20)[None]).logits.detach()
model = load(f"{place}/float", quantization_config=HqqConfig(nbits=8, group_size=64))
model.save_pretrained(f"{place}/hqq")
torch.save(logits(model), f"{place}/logits.pt")
again = (logits(load(f"{place}/hqq")) - logits(model)).abs().max().item()
print(f"transformers {transformers.__version__}: written, and read back with a difference of {again}")
sys.exit(again != 0)
PY
cat >"$place/read.py" <<'PY'
import sys, torch, transformers
from transformers import AutoModelForCausalLM
place = sys.argv[1]
right = torch.load(f"{place}/logits.pt")
def once():
    model = AutoModelForCausalLM.from_pretrained(f"{place}/hqq", device_map="cpu", dtype=torch.float32).eval()
    return model(torch.arange(20)[None]).logits.detach(), type(model.model.layers[0].self_attn.q_proj)
(first, kind), (second, _) = once(), once()
off = [((logits - right).abs().max() / right.abs().max()).item() for logits in (first, second)]
print(f"transformers {transformers.__version__}: loads; q_proj is {kind.__module__}.{kind.__name__}")
print(f"logits off by {off[0]:.2f} and {off[1]:.2f} of the largest in two loads, which differ: {not torch.equal(first, second)}")
sys.exit(not (kind is torch.nn.Linear and min(off) > 0.1 and not torch.equal(first, second)))
PY
PYTHONPATH="$place/four" "$place/venv/bin/python" "$place/write.py" "$place" 2>/dev/null
"$place/venv/bin/python" "$place/read.py" "$place" 2>/dev/null || { echo "this changed"; exit 1; }
