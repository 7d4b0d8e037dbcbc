"""Rebuild a GGUF model of the Llama family as a Hugging Face folder (bf16 safetensors, tokenizer, chat template).

    python gguf2hf.py model.gguf folder

Transformers reads the file and dequantizes it. It refuses to save a model that came from GGUF, so a plain model takes
the weights over. The q and k rows, which GGUF stores permuted, are compared with the file once more: exactly.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def unpermute(weight, heads):
    """Undo the interleaving of rotary pairs that llama.cpp writes: [heads * dim, in] -> the same shape."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(2, 1).reshape(rows, columns)


def check_rotary_rows(path, state, config):
    """q_proj and k_proj of the first and the last layer equal the file's tensors, un-permuted."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for layer in (0, config.num_hidden_layers - 1):
        for name, count in heads.items():
            stored = tensors[f"blk.{layer}.attn_{name}.weight"]
            weight = torch.from_numpy(np.array(gguf.quants.dequantize(stored.data, stored.tensor_type)))
            mine = state[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            if not torch.equal(unpermute(weight, count), mine):
                sys.exit(f"layer {layer}: {name}_proj differs from the GGUF file")


def main(path, output):
    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    check_rotary_rows(path, model.state_dict(), model.config)
    config = model.config
    for key in ("quantization_config", "_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    for round_value in (1e-5, 1e-6):  # GGUF holds the f32 neighbour of the decimal number
        if abs(config.rms_norm_eps / round_value - 1) < 1e-6:
            config.rms_norm_eps = round_value
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), strict=False)
    plain.generation_config = model.generation_config
    plain.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
