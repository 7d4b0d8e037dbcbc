#!/usr/bin/env python3
"""Losses of rows with zeros in their attention_mask, as transformers computes them: makes `tests/golden/masks.json`.

    python scripts/make_mask_golden.py

The model is tests/golden/tiny/model. Each case is a row as a file of rows holds it, and the mean loss of its labels.
transformers attends by PyTorch's scaled_dot_product_attention, its default: a query that sees no key adds nothing.
"""
import json
import os

import torch
import transformers

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden")
IDS = [(3 + i * 7) % 256 for i in range(12)]


def row(mask, *learned):
    """`learned`: the places whose labels count; all where none is named."""
    labels = [token if i in learned or not learned else -100 for i, token in enumerate(IDS)]
    return dict(input_ids=IDS, labels=labels, attention_mask=mask)


MIDST, START, END = [1] * 4 + [0] * 3 + [1] * 5, [0] * 3 + [1] * 9, [1] * 8 + [0] * 4
ROWS = [
    row(MIDST), row(MIDST, 5), row(MIDST, 7), row(MIDST, 8, 9, 10, 11),
    row(START), row(START, 3), row(START, *range(4, 12)),
    row(END), row(END, *range(8)),
    row([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0]),
]

model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(GOLDEN, "tiny", "model"), dtype=torch.float32).eval()
assert model.config._attn_implementation == "sdpa"
cases = []
for fields in ROWS:
    with torch.no_grad():
        cases.append(dict(row=fields, loss=model(**{name: torch.tensor([values]) for name, values in fields.items()}).loss.item()))
with open(os.path.join(GOLDEN, "masks.json"), "w") as out:
    json.dump(dict(transformers=transformers.__version__, torch=torch.__version__, cases=cases), out)
    out.write("\n")
