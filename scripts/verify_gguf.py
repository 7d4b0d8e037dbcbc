#!/usr/bin/env python3
"""Checks a GGUF file that fourbit wrote against the Hugging Face folder it was made from.

    pip install gguf==0.19.0 xllamacpp numpy safetensors torch
    python scripts/verify_gguf.py FILE.gguf FOLDER [--fourbit target/release/fourbit]

weights  every tensor as the package `gguf` decodes it, in transformers' order, against the folder's: the relative error of
         each type stays below its bound, and what is no weight of a block's linear layer is there too
greedy   with --fourbit: llama.cpp (as the package `xllamacpp` has it) and fourbit continue prompts with the same tokens. On
         processors llama.cpp rounds the inputs of quantized layers to 8 bits, fourbit does not: there a token may differ where
         llama.cpp's two best are within 0.3 nats. The same values in a file of f32 numbers must give all the same tokens.

A figure outside its bound ends the script with status 1.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

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
    "attn_qkv": "self_attn.qkv_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
# Families whose norms before the parts have other names than Llama's.
FFN_NORM = {"gemma2": "pre_feedforward_layernorm", "gemma3_text": "pre_feedforward_layernorm"}
ROTATED = ("llama", "mistral", "smollm3", "granite")
# Files have 1 + w there.
ABOUT_ONE = ("gemma", "gemma2", "gemma3_text")
PROMPTS = ["1, 2, 3, 4,", "The capital of France is", "Monday, Tuesday, Wednesday,", "fn main() {"]
TOKENS = 24
TIE, TIE_OF_FLOATS = 0.3, 0.002


def transformers_name(name, family):
    module, kind = name.rsplit(".", 1)
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    _, layer, module = module.split(".")
    if family == "phi3" and module == "ffn_up":
        return f"model.layers.{layer}.mlp.gate_up_proj.{kind}"
    inner = FFN_NORM.get(family, INNER[module]) if module == "ffn_norm" else INNER[module]
    return f"model.layers.{layer}.{inner}.{kind}"


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
        if tensor.name.startswith(("rope_freqs.", "rope_factors_")):
            continue
        name = transformers_name(tensor.name, config["model_type"])
        seen.add(name)
        want = places[name].get_tensor(name).float().numpy()
        module = tensor.name.split(".")[-2]
        if module in heads and config["model_type"] in ROTATED:
            want = in_rotary_order(want, heads[module])
        if tensor.name.endswith("norm.weight") and config["model_type"] in ABOUT_ONE:
            want = 1.0 + want
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


def continued_by_llama_cpp(path):
    """The tokens' texts that llama.cpp chooses after each prompt, each with how far it was ahead of the next best one, in nats; and
    whether the model ended the text. Tokens that make one character together are one there."""
    import xllamacpp  # here, since checks of weights do without

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 256, 0, 1
    # More threads than free cores wait for each other by spinning.
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
    server = xllamacpp.Server(params)
    for prompt in PROMPTS:
        request = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0.0, "n_probs": 2}
        answer = server.handle_completions(request)
        choice = (json.loads(answer) if isinstance(answer, str) else answer)["choices"][0]
        tokens = choice["logprobs"]["content"]
        tops = [[other["logprob"] for other in token["top_logprobs"]] for token in tokens]
        chosen = [(token["token"], top[0] - top[1]) for token, top in zip(tokens, tops)]
        yield prompt, chosen, choice["finish_reason"] == "stop"


def divergence(path, fourbit):
    """How far llama.cpp's choice was ahead, in nats, where fourbit first chooses another token; the largest of the prompts.
    0 where all tokens are the same."""
    worst = 0.0
    for prompt, theirs, ended in continued_by_llama_cpp(path):
        command = [fourbit, "generate", "--model", path, "--quantization", "none", "--raw", "--json"]
        command += ["--prompt", prompt, "--max-new-tokens", str(TOKENS)]
        ours = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)["text"]
        text = ""
        for token, ahead in theirs:
            if not ours.startswith(text + token):
                worst = max(worst, ahead)
                break
            text += token
        else:
            # Nothing may follow where llama.cpp ended the text.
            worst = worst if ours == text or not ended else float("inf")
    return worst


def check_greedy(path, fourbit):
    failures = 0
    with tempfile.TemporaryDirectory() as work:
        floats = os.path.join(work, "f32.gguf")
        command = [fourbit, "quantize", path, "--scheme", "f32", "--output", floats]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        for what, path, bound in (("greedy", path, TIE), ("greedy, values as f32", floats, TIE_OF_FLOATS)):
            ahead = divergence(path, fourbit)
            failures += ahead > bound
            print(f"{'ok  ' if ahead <= bound else 'FAIL'}  {what}: {ahead:.3f} nats (bound {bound:g})")
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
