#!/usr/bin/env python3
"""Writes tests/golden/rope.json: the frequencies and attention factors that transformers computes for configurations of every rope type,
for the tests of src/arch/rope.rs.

    pip install -r scripts/requirements.txt
    python scripts/make_rope_golden.py

A case is a configuration of Llama, the length of a text, and what the class has after a forward pass over that many positions:
`inv_freq` and `attention_factor`. Where a share of the heads turns, the class is Phi-3's, which is made for that.
"""
import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/rope.json"
SIZES = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}


def divisors(count, least, step):
    return [least + step * i for i in range(count)]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "short_factor": divisors(8, 1.0, 0.25), "long_factor": divisors(8, 1.5, 2.0), "original_max_position_embeddings": 24}
# Beside the sizes: what a case changes, and the lengths of its texts.
NEW = [
    ({"rope_type": "default"}, [8]),
    ({"rope_type": "default", "rope_theta": 500.0}, [8]),
    ({"rope_type": "linear", "factor": 2.5}, [8]),
    ({"rope_type": "dynamic", "factor": 2.0}, [8, 63, 64, 65, 100, 128]),
    ({"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e6, "original_max_position_embeddings": 16}, [20, 64, 65, 500]),
    (LLAMA3, [8]),
    ({**LLAMA3, "rope_theta": 1e6, "low_freq_factor": 2.0, "high_freq_factor": 3.0}, [8]),
    ({key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}, [8]),
    (YARN, [8, 40]),
    ({**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 4096, "factor": 32.0}, [8]),
    ({**YARN, "original_max_position_embeddings": 4096, "truncate": False}, [8]),
    ({**YARN, "original_max_position_embeddings": 4096, "truncate": None}, [8]),
    ({**YARN, "original_max_position_embeddings": 4096, "beta_fast": 64, "beta_slow": 4.5}, [8]),
    ({**YARN, "original_max_position_embeddings": 4096, "beta_fast": 2, "beta_slow": 2, "truncate": False}, [8]),
    ({**YARN, "beta_fast": None, "beta_slow": 0}, [8]),
    ({**YARN, "attention_factor": 1.25}, [8]),
    ({**YARN, "attention_factor": None, "mscale": 0.7}, [8]),
    ({**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}, [8]),
    ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.0}, [8]),
    ({**YARN, "factor": None}, [8]),
    ({**YARN, "factor": 0.5}, [8]),
    ({"rope_type": "yarn", "factor": 4.0}, [8]),
    (LONG, [8, 23, 24, 25, 64]),
    ({**LONG, "attention_factor": 1.19}, [24, 25]),
    ({**LONG, "factor": 16.0, "rope_theta": 1e6}, [24, 25]),
    ({**LONG, "factor": 0.5}, [25]),
    ({key: value for key, value in LONG.items() if key != "original_max_position_embeddings"}, [64, 65]),
]
PARTIAL = [
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, [8]),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}, [8]),
    ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.75}, [64, 90]),
    ({**LLAMA3, "partial_rotary_factor": 0.5}, [8]),
    ({**YARN, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.5}, [8]),
    ({**LONG, "short_factor": divisors(6, 1.0, 0.25), "long_factor": divisors(6, 1.5, 2.0), "partial_rotary_factor": 0.8}, [24, 25]),
]


def cases():
    for rope, lengths in NEW + PARTIAL:
        share = rope.get("partial_rotary_factor")
        yield {"rope_parameters": {"rope_theta": 10000.0, **rope}}, lengths, share
        # The older spelling: base and share stand beside it, the kind is a `type`.
        old = {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta", "partial_rotary_factor")}
        beside = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        yield {"rope_scaling": {"type": rope["rope_type"], **old}, "rope_theta": 10000.0, **beside}, lengths, share
    # Phi-3's way: tokens of the pretraining beside the object count before those inside.
    yield {"rope_scaling": LONG, "original_max_position_embeddings": 32}, [32, 33], None
    yield {"rope_scaling": YARN, "original_max_position_embeddings": 2048}, [8], None
    yield {"rope_theta": 300.0, "partial_rotary_factor": 0.5}, [8], 0.5


def main():
    golden = []
    for own, lengths, share in cases():
        for length in lengths:
            read = json.loads(json.dumps({**SIZES, **own}))
            config = transformers.LlamaConfig.from_dict(json.loads(json.dumps(read)))
            rotary = (LlamaRotaryEmbedding if share is None else Phi3RotaryEmbedding)(config)
            rotary(torch.zeros(1), torch.arange(length)[None])
            frequencies = [float(f) for f in rotary.inv_freq]
            golden.append(
                {"config": read, "partial": share is not None, "length": length, "inv_freq": frequencies, "attention_factor": float(rotary.attention_scaling)}
            )
    lines = ",\n".join(json.dumps(case) for case in golden)
    OUT.write_text(f"[\n{lines}\n]\n")
    print(len(golden), "cases")


main()
