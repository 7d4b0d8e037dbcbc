#!/usr/bin/env python3
"""Writes tests/golden/families: what transformers and PEFT answer for a tiny model of each family, for tests/families.rs.

    pip install -r scripts/requirements.txt
    python scripts/make_family_golden.py [FAMILY ...]

Weights are random, rounded to bf16 and computed with in fp32 on the CPU; sizes are such that quantizers take them and that no two are
alike. Each folder holds the model, and in golden.safetensors:

    input_ids, attention_mask, labels   two rows of 24, the second padded on the right; longer than the window
    logits          of the model alone, and tuned_logits with the adapter [2, 24, vocab]; of no meaning where the mask is 0
    loss            with the adapter
    param/…, grad/… the adapter's values and the loss's gradients, by PEFT's names
    prompt, greedy  ids, and the 12 that follow greedily from them
"""
import os
import pathlib
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT keeps target_modules in a set
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable] + sys.argv)
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/families"

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    # The fourth block sees no positions, and has the window.
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 7, "tie_word_embeddings": True}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {}),
    # Nothing that is a whole number when its root is taken.
    "gemma": ("Gemma", {"hidden_size": 96, "intermediate_size": 128}),
    # Three quarters of a head turns, and in longer texts otherwise.
    "phi3": (
        "Phi3",
        {
            "hidden_size": 96,
            "sliding_window": 7,
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 20,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.05, 1.2, 1.3, 1.5, 2.0],
                "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
            },
        },
    ),
    # Caps low enough to be felt.
    "gemma2": (
        "Gemma2",
        {
            "hidden_size": 96,
            "intermediate_size": 128,
            "sliding_window": 7,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "hidden_size": 96,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 16,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 7}),
    # The class has no width of heads of its own.
    "qwen2": ("Qwen2", {"hidden_size": 96, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    # Texts on both sides of the length at which their rotations change.
    "longrope": (
        "Llama",
        {
            "hidden_size": 96,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "short_factor": [1.0, 1.05, 1.2, 1.3, 1.5, 2.0, 2.5, 3.0],
                "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0],
                "original_max_position_embeddings": 20,
            },
        },
    ),
    "dynamic": (
        "Llama",
        {
            "hidden_size": 96,
            "max_position_embeddings": 19,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
        },
    ),
    "yarn": (
        "Llama",
        {
            "hidden_size": 96,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.3,
            },
        },
    ),
}
# Rotations depend on the length of what is read together: rows are read alone, and continued without a cache, whose keys would keep
# the rotations of a shorter text.
BY_LENGTH = ("longrope", "dynamic", "phi3")

# So small that a tied head does not say the same token again and again.
EMBEDDINGS = {"gemma": 0.1, "gemma2": 0.1, "gemma3": 0.1}


def randomly(seed):
    return torch.Generator().manual_seed(seed)


def model_of(name):
    prefix, options = FAMILIES[name]
    kind = getattr(transformers, f"{prefix}ForCausalLM")
    config = kind.config_class(**{**SIZES, **options})
    config._attn_implementation = "eager"
    model = kind(config).eval()
    generator = randomly(len(name))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            # Norms near what they begin with, biases small, so that each of them matters.
            spread = 0.3 if parameter.dim() == 1 else 1.2 / parameter.shape[-1] ** 0.5
            begin = parameter if parameter.dim() == 1 else 0.0
            if key.endswith("embed_tokens.weight"):
                spread *= EMBEDDINGS.get(name, 1.0)
            value = begin + spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(value.to(torch.bfloat16).float())
    return model


def logits_of(name, model, ids, mask):
    with torch.no_grad():
        if name not in BY_LENGTH:
            return model(input_ids=ids, attention_mask=mask).logits
        rows = [model(input_ids=row[None, : int(seen.sum())]).logits[0] for row, seen in zip(ids, mask)]
        return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, ids.shape[1] - len(row))) for row in rows])


def write(name):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(name)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in sorted(model.state_dict().items())}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.to_json_file(folder / "config.json")
    ids = torch.randint(3, SIZES["vocab_size"], (2, 24), generator=randomly(1))
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    ids[1, 17:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    golden = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    golden["logits"] = logits_of(name, model, ids, mask)
    with torch.no_grad():
        prompt = ids[:1, :11]
        cached = name not in BY_LENGTH
        followed = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=cached)
    golden["prompt"], golden["greedy"] = prompt[0], followed[0, prompt.shape[1] :]
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    generator = randomly(2)
    with torch.no_grad():
        for key, parameter in sorted(tuned.named_parameters()):
            if "lora_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    answer = tuned(input_ids=ids, attention_mask=mask, labels=labels)
    answer.loss.backward()
    golden["tuned_logits"], golden["loss"] = logits_of(name, tuned, ids, mask), answer.loss.detach().reshape(1)
    for key, parameter in tuned.named_parameters():
        if "lora_" in key:
            plain = key.replace(".default", "")
            golden[f"param/{plain}"], golden[f"grad/{plain}"] = parameter.detach(), parameter.grad
    save_file({key: value.contiguous().clone() for key, value in sorted(golden.items())}, folder / "golden.safetensors")
    print(name, float(answer.loss), golden["greedy"].tolist())


for family in sys.argv[1:] or FAMILIES:
    write(family)
