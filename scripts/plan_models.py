"""Writes docs/models.md: what fine-tuning takes of a device's memory, by `fourbit plan`, for the shapes of models that people tune.

    python scripts/plan_models.py [--fourbit target/release/fourbit]

Only the shapes are real: the weights are files with holes, whose headers alone are read. Needs nothing but Python.
"""
import argparse
import json
import os
import pathlib
import struct
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama(hidden, intermediate, blocks, heads, head_dim):
    return dict(model_type="llama", hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=8, head_dim=head_dim, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072, rope_theta=5e5, rope_scaling=LLAMA3)


def qwen3(hidden, intermediate, blocks, heads, tied=True):
    return dict(model_type="qwen3", hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=tied, max_position_embeddings=40960)


def gemma3(hidden, intermediate, blocks, heads, kv_heads, window):
    return dict(model_type="gemma3_text", hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=256, vocab_size=262144, sliding_window=window, max_position_embeddings=32768)


MODELS = {
    "Llama 3.2 1B": llama(2048, 8192, 16, 32, 64),
    "Llama 3.2 3B": llama(3072, 8192, 28, 24, 128),
    "Qwen3 0.6B": qwen3(1024, 3072, 28, 16),
    "Qwen3 1.7B": qwen3(2048, 6144, 28, 16),
    "Qwen3 4B": qwen3(2560, 9728, 36, 32),
    "Qwen3 8B": qwen3(4096, 12288, 36, 32, tied=False),
    "Gemma 2B": dict(model_type="gemma", hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1, head_dim=256, vocab_size=256000),
    "Gemma 3 1B": gemma3(1152, 6912, 26, 4, 1, 512),
    "Gemma 3 4B, its text": gemma3(2560, 10240, 34, 8, 4, 1024),
    "Phi-4-mini": dict(model_type="phi3", hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, vocab_size=200064, tie_word_embeddings=True, max_position_embeddings=131072, original_max_position_embeddings=4096, partial_rotary_factor=0.75, rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}),
}  # fmt: skip
RANKS, LENGTHS, CARDS = [8, 16, 64], [512, 2048, 4096], [4, 8, 16, 24]


def tensors(c):
    hidden, inner, kind = c["hidden_size"], c["intermediate_size"], c["model_type"]
    head = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", [c["vocab_size"], hidden]
    yield "model.norm.weight", [hidden]
    if not c.get("tie_word_embeddings", kind.startswith("gemma")):
        yield "lm_head.weight", [c["vocab_size"], hidden]
    for block in range(c["num_hidden_layers"]):
        layers = {"self_attn.o_proj": [hidden, q], "mlp.down_proj": [hidden, inner]}
        if kind == "phi3":
            layers.update({"self_attn.qkv_proj": [q + 2 * kv, hidden], "mlp.gate_up_proj": [2 * inner, hidden]})
        else:
            layers.update({"self_attn.q_proj": [q, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden]})
            layers.update({"mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden]})
        layers.update({"input_layernorm": [hidden], "post_attention_layernorm": [hidden]})
        if kind == "gemma3_text":
            layers.update({"pre_feedforward_layernorm": [hidden], "post_feedforward_layernorm": [hidden]})
        if kind in ("gemma3_text", "qwen3"):
            layers.update({"self_attn.q_norm": [head], "self_attn.k_norm": [head]})
        for name, shape in layers.items():
            yield f"model.layers.{block}.{name}.weight", shape


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in tensors(config):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # a hole
    return end // 2


def plan(fourbit, folder, rank, length):
    command = [fourbit, "plan", "--model", folder, "--quantization", "nf4", "--double-quant", "--gradient-checkpointing", "--batch-size", "1", "--lora-r", str(rank), "--max-seq-length", str(length), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode and "expected an activation of at most" in done.stderr:
        return None  # this device binds less at once
    done.check_returncode()
    return json.loads(done.stdout)["peak_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fourbit", default=ROOT / "target/release/fourbit")
    fourbit = parser.parse_args().fourbit
    version = subprocess.run([fourbit, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    lines = [
        "# Models and memory",
        "",
        "What a QLoRA step takes of a device's memory, in GiB: weights in NF4 with double quantization, adapters on all linear layers, a",
        "batch of one, gradient checkpointing. `fourbit plan` computes it to the byte out of shapes, and what it says is what wgpu's allocator",
        "takes ([README](../README.md#figures)); a device needs some 5 % more for its driver. The last columns say how long texts may be at",
        "rank 16 on a card of so many GiB, of which 90 % are ours; \"or more\" and … where the device of this table, which binds 128 MiB at once,",
        "is too small for the activations, and not the card.",
        "",
        f"Written by `scripts/plan_models.py` with {version}. Shapes are those of the published models; their weights have not been run, but",
        "for Gemma 3's smallest.",
        "",
        "| model | weights | " + " | ".join(f"r {rank}, {length}" for rank in RANKS for length in LENGTHS) + " | " + " | ".join(f"{card} GiB" for card in CARDS) + " |",
        "|---|" + "---|" * (1 + len(RANKS) * len(LENGTHS) + len(CARDS)),
    ]
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            count = write(folder, config)
            peaks = [plan(fourbit, folder, rank, length) for rank in RANKS for length in LENGTHS]
            longest = []
            for card in CARDS:
                most, beyond = "-", ""
                for length in (256, 512, 1024, 2048, 4096):
                    peak = plan(fourbit, folder, 16, length)
                    if peak is None or peak > 0.9 * card * 2**30:
                        beyond = " or more" if peak is None else ""
                        break
                    most = str(length)
                else:
                    beyond = " or more"
                longest.append(most + beyond)
        lines.append(f"| {name} | {count / 1e9:.2f} G | " + " | ".join(f"{peak / 2**30:.1f}" if peak else "…" for peak in peaks) + " | " + " | ".join(longest) + " |")
        print(lines[-1], flush=True)
    (ROOT / "docs/models.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
