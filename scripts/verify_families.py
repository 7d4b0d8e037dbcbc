"""Writes a model of each family of tests/golden/families to GGUF and compares what llama.cpp makes of the file with fourbit
(scripts/verify_gguf.py): weights, and greedy tokens. Then fourbit trains an adapter of it, and PEFT's logits with that are compared.

    python scripts/verify_families.py [FAMILY ...]

Weights are random, the tokenizer is the embedded model's. Needs the command built in target/release, and the packages of verify_gguf.py.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOURBIT, ASSETS = ROOT / "target/release/fourbit", ROOT / "assets/embedded"


def longrope(original):
    factors = {"short_factor": [1.0, 1.2, 2.0], "long_factor": [1.5, 3.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "original_max_position_embeddings": original, **factors}
    return {"pad_token_id": 0, "original_max_position_embeddings": original, "rope_parameters": rope}


# Heads that are wider than the hidden size has room for where the class has a field for it; five blocks, the fourth of its own kind.
FAMILIES = {
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"pad_token_id": 0}),
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
    # Half of a head turns, all texts as short ones or all as long ones: llama.cpp goes by the context of the run, 256 tokens.
    "phi3": ("Phi3", longrope(300)),
    "phi3-long": ("Phi3", longrope(4)),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "attn_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "sliding_window_pattern": 3}),
}


def check_adapter(folder):
    """An adapter that fourbit trained changes the model for PEFT as it does here."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n} and", "completion": f" {n + 1}"}) + "\n" for n in range(8)))
    ids = torch.arange(7, 40)
    (folder / "ids.json").write_text(json.dumps(ids.tolist()))
    model, adapter, out = folder / "model", folder / "adapter", folder / "logits.safetensors"
    train = ["--data", folder / "rows.jsonl", "--output", adapter, "--max-steps", "3", "--learning-rate", "0.05", "--max-seq-length", "32"]
    subprocess.run([FOURBIT, "finetune", "--model", model, "--quantization", "none", *train], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = ["--quantization", "none", "--input-ids", folder / "ids.json", "--logits", out]

    def ours(*more):
        subprocess.run([FOURBIT, "evaluate", "--model", model, *more, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return next(iter(load_file(out).values()))

    base = ours()
    tuned = ours("--adapter", adapter)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(theirs, adapter).eval()(ids[None]).logits[0]
    changed, error = [float((tuned - other).abs().max() / theirs.abs().max()) for other in (base, theirs)]
    if changed < 1e-2 or error > 1e-4:
        sys.exit(f"FAIL  the adapter changes logits by {changed:.1e} of the largest, and PEFT is {error:.1e} apart")
    print(f"ok    the adapter changes logits by {changed:.1e} of the largest, and PEFT is {error:.0e} apart (bound 1e-4)")


def main():
    vocab = json.loads((ASSETS / "config.json").read_text())["vocab_size"]
    for name in sys.argv[1:] or FAMILIES:
        prefix, own = FAMILIES[name]
        sizes = dict(vocab_size=vocab, hidden_size=72, intermediate_size=96, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2)
        rope = {"rope_type": "default", "rope_theta": 1e6}
        kind = getattr(transformers, f"{prefix}ForCausalLM")
        ropes = {} if name == "gemma3" else {"rope_parameters": rope}
        limits = dict(max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
        config = kind.config_class(**{**sizes, **limits, **ropes, **own})
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                spread = 0.3 if parameter.dim() == 1 else 1.2 / parameter.shape[-1] ** 0.5
                parameter.copy_((parameter if parameter.dim() == 1 else 0.0) + spread * torch.randn(parameter.shape))
                if prefix.startswith("Gemma") and key.endswith("embed_tokens.weight"):
                    parameter *= 0.1  # else the head, which is the same, says one token again and again
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model.save_pretrained(folder / "model")
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(ASSETS / file, folder / "model" / file)
            file = folder / "model.gguf"
            subprocess.run([FOURBIT, "quantize", folder / "model", "--output", file, "--scheme", "f32"], check=True)
            script = ROOT / "scripts/verify_gguf.py"
            subprocess.run([sys.executable, script, file, folder / "model", "--fourbit", FOURBIT], check=True)
            check_adapter(folder)
        print(f"ok    {name}", flush=True)


if __name__ == "__main__":
    main()
