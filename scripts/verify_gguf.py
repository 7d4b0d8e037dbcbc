#!/usr/bin/env python3
"""Checks a GGUF file that fourbit wrote against the Hugging Face folder it was made from.

    pip install gguf==0.19.0 numpy safetensors torch
    python scripts/verify_gguf.py FILE.gguf FOLDER [--fourbit target/release/fourbit]

weights  every tensor as the package `gguf` decodes it, in transformers' order, against the folder's: the relative error of
         each type stays below its bound, and what is no weight of a block's linear layer is there too
greedy   where llama-cpp-python is installed and --fourbit given: both continue prompts with the same text

A figure outside its bound ends the script with status 1.
"""
import argparse
import glob
import json
import os
import subprocess
import sys

import gguf
import numpy as np
from safetensors import safe_open

# Relative errors of normal numbers are about two thirds of these.
BOUNDS = {
    "F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_0": 0.07, "Q5_1": 0.06, "Q5_K": 0.06,
    "Q4_0": 0.14, "Q4_1": 0.12, "Q4_K": 0.11, "IQ4_NL": 0.11, "IQ4_XS": 0.11, "Q3_K": 0.22, "Q2_K": 0.4,
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
PROMPTS = ["The capital of France is", "Water boils at", "1, 2, 3, 4,"]


def transformers_name(name):
    module, kind = name.rsplit(".", 1)
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    _, layer, module = module.split(".")
    return f"model.layers.{layer}.{INNER[module]}.{kind}"


def in_rotary_order(values, heads):
    """Rows of queries and keys as llama.cpp has them: the two halves of a head side by side."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def check_weights(path, folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config.get("num_key_value_heads")}
    places = {}
    for file in glob.glob(os.path.join(folder, "*.safetensors")):
        opened = safe_open(file, "pt")
        places.update({name: opened for name in opened.keys()})
    failures, worst, seen = 0, {}, set()
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = transformers_name(tensor.name)
        seen.add(name)
        want = places[name].get_tensor(name).float().numpy()
        module = tensor.name.split(".")[-2]
        if module in heads and config["model_type"] in ("llama", "mistral"):
            want = in_rotary_order(want, heads[module])
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        kind = tensor.tensor_type.name
        worst[kind] = max(worst.get(kind, 0.0), error)
        if error > BOUNDS[kind]:
            print(f"FAIL  {tensor.name} {kind}: relative error {error:.4g}")
            failures += 1
    left_out = [name for name in places if name not in seen and not name.endswith("inv_freq")]
    if left_out and not (left_out == ["lm_head.weight"] and config.get("tie_word_embeddings")):
        print(f"FAIL  not in the file: {left_out}")
        failures += 1
    for kind, error in sorted(worst.items()):
        print(f"ok    {kind}: largest relative error {error:.4g} (bound {BOUNDS[kind]:g})")
    return failures


def check_greedy(path, fourbit):
    try:
        from llama_cpp import Llama
    except ImportError:
        print("skip  greedy: llama-cpp-python is not installed")
        return 0
    model = Llama(path, n_ctx=256, verbose=False)
    failures = 0
    for prompt in PROMPTS:
        theirs = model.create_completion(prompt, max_tokens=24, temperature=0.0)["choices"][0]["text"]
        command = [fourbit, "generate", "--model", path, "--quantization", "none", "--raw", "--json"]
        command += ["--prompt", prompt, "--max-new-tokens", "24"]
        ours = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)["text"]
        same = ours.strip() == theirs.strip()
        failures += not same
        print(f"{'ok  ' if same else 'FAIL'}  greedy: {prompt!r} -> {ours!r}" + ("" if same else f", llama.cpp {theirs!r}"))
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("folder")
    parser.add_argument("--fourbit")
    arguments = parser.parse_args()
    failures = check_weights(arguments.file, arguments.folder)
    if arguments.fourbit:
        failures += check_greedy(arguments.file, arguments.fourbit)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
