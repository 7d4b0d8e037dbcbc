#!/usr/bin/env python3
"""Writes tests/golden/adapters/combined.safetensors: the last row of logits of adapters that PEFT's add_weighted_adapter makes of several.

    python scripts/make_combine_golden.py      needs torch, transformers and peft; runs on CPU

None of them excludes modules: add_weighted_adapter takes exclude_modules of the first adapter for all, and drops what others have there.
The adapters are folders of tests/golden/adapters, on tests/golden/tiny/model in float32. A name says what was combined: TYPE:DIR=WEIGHT,...
"""
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden"
CASES = [
    ("cat", [("full-names", 1.5), ("sizes", -0.5), ("gaussian", 0.7)], None),
    ("linear", [("full-names", -0.5), ("gaussian", 0.7), ("orthogonal", 1.3)], None),
    ("svd", [("gaussian", 1.0), ("full-names", -2.0), ("orthogonal", 0.8)], 3),
]
torch.set_num_threads(1)
ids = torch.tensor([json.loads((GOLDEN / "adapters/index.json").read_text())["input_ids"]])
logits = {}
for kind, adapters, rank in CASES:
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny/model", dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, GOLDEN / "adapters" / adapters[0][0], adapter_name=adapters[0][0])
    for name, _ in adapters[1:]:
        model.load_adapter(GOLDEN / "adapters" / name, adapter_name=name)
    names, weights = zip(*adapters)
    model.add_weighted_adapter(list(names), list(weights), "both", combination_type=kind, svd_rank=rank)
    model.set_adapter("both")
    name = f"{kind}:" + ",".join(f"{n}={w}" for n, w in adapters)
    with torch.no_grad():
        logits[name] = model.eval()(ids).logits[0, -1].contiguous()
save_file(logits, GOLDEN / "adapters/combined.safetensors")
