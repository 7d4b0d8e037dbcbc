"""What transformers computes from configurations that are easily read otherwise: makes `tests/golden/reading`.

    python scripts/make_reading_golden.py

One small file of weights serves all cases: a case is a config.json, which of the tensors the model has and under which names, and
the logits of the last of 40 tokens. Cases of GGUF files name metadata beside the configuration that means the same.
`tests/reading.rs` builds the same folders and files. Versions of transformers and PyTorch stand in the result.
"""

import json
import os
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden", "reading")
HIDDEN, INNER, LAYERS, HEADS, KV, VOCAB = 32, 48, 4, 4, 2, 160
DIM = HIDDEN // HEADS
QKV, ALL = ["q_proj", "k_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "self_attn.q_proj": (HEADS * DIM, HIDDEN), "self_attn.k_proj": (KV * DIM, HIDDEN), "self_attn.v_proj": (KV * DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * DIM), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
}
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
DIVISORS = [1.0, 1.5, 3.25, 6.0]


def weights():
    rng, tensors = np.random.default_rng(7), {}
    add = lambda name, shape, scale, mean=0.0: tensors.__setitem__(name, torch.tensor((mean + scale * rng.standard_normal(shape)).astype(np.float16)))
    add("model.embed_tokens.weight", (VOCAB, HIDDEN), 1.0)
    add("lm_head.weight", (VOCAB, HIDDEN), 0.4)
    add("model.norm.weight", (HIDDEN,), 0.2, 1.0)
    for layer in range(LAYERS):
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            add(f"model.layers.{layer}.{norm}.weight", (HIDDEN,), 0.2, 1.0)
        for module, shape in SHAPES.items():
            add(f"model.layers.{layer}.{module}.weight", shape, 0.35)
            add(f"model.layers.{layer}.{module}.bias", (shape[0],), 0.3)
    return tensors


def config(family, **changes):
    base = dict(model_type=family, architectures=[family.capitalize() + "ForCausalLM"], hidden_size=HIDDEN, intermediate_size=INNER,
                num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV, vocab_size=VOCAB,
                max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False)
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def folder(name, config, biases=(), head="own", bare=False):
    return dict(name=name, config=config, biases=list(biases), head=head, bare=bare)


def file(name, metadata, config, biases=(), divisors=None, parts=1):
    """metadata: [key, "text" or "number", value], behind the architecture's name."""
    return dict(name=name, config=config, biases=list(biases), head="own", bare=False,
                gguf=dict(metadata=metadata, divisors=divisors, parts=parts))


def linear(factor):
    return config("llama", rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=factor))


def longrope(divisors):
    return config("llama", rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, short_factor=divisors, long_factor=divisors, attention_factor=1.0, factor=1.0))


def cases():
    number = lambda key, value: [key, "number", value]
    text = lambda key, value: [key, "text", value]
    qwen = lambda **changes: config("qwen2", sliding_window=8, **changes)
    return [
        folder("every bias", config("llama", attention_bias=True, mlp_bias=True), ALL),
        folder("a Llama ignores a window", config("llama", sliding_window=8, layer_types=["sliding_attention"] * LAYERS)),
        folder("rope_scaling wins over rope_parameters", config("llama", rope_scaling=dict(rope_type="linear", factor=4.0), rope_parameters=dict(rope_type="default", rope_theta=500.0), rope_theta=200.0)),
        folder("an empty rope_scaling is none", config("llama", rope_scaling={}, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0))),
        folder("rope_theta inside rope_scaling wins", config("llama", rope_scaling=dict(type="linear", factor=2.0, rope_theta=300.0), rope_theta=200.0)),
        folder("rope_theta inside rope_parameters wins", config("llama", rope_parameters=dict(rope_type="default", rope_theta=300.0), rope_theta=200.0)),
        folder("llama3 from the longest sequence", config("llama", rope_parameters=dict(rope_type="llama3", rope_theta=100.0, **LLAMA3))),
        folder("llama3 from a length beside it", config("llama", original_max_position_embeddings=32, rope_scaling=dict(rope_type="llama3", original_max_position_embeddings=64, **LLAMA3), rope_theta=100.0)),
        folder("divisors", longrope(DIVISORS)),
        folder("Mistral's window", config("mistral", sliding_window=8)),
        folder("Mistral without the key", config("mistral")),
        folder("Mistral's window is null", config("mistral", sliding_window=None)),
        folder("Mistral has no biases", config("mistral", attention_bias=True, sliding_window=8)),
        # transformers loads it as Ministral, whose configuration does not fill in the width of a head.
        folder("Mistral's window by layer_types", config("mistral", head_dim=DIM, sliding_window=8, layer_types=["full_attention", "sliding_attention"] * 2)),
        folder("Qwen2 does not use its window", qwen(max_window_layers=0), QKV),
        folder("Qwen2's window in the upper blocks", qwen(use_sliding_window=True, max_window_layers=2), QKV),
        folder("Qwen2's window by layer_types", qwen(use_sliding_window=True, max_window_layers=4, layer_types=["sliding_attention", "full_attention"] * 2), QKV),
        folder("Qwen2's window without max_window_layers", qwen(use_sliding_window=True), QKV),
        folder("no epsilon, an explicit null width of heads", config("llama", rms_norm_eps=..., head_dim=None)),
        folder("tied, with another head", config("llama", tie_word_embeddings=True)),
        folder("tied, the head alone", config("llama", tie_word_embeddings=True), head="alone"),
        folder("tied, the same head twice", config("llama", tie_word_embeddings=True), head="same"),
        folder("names without model.", config("llama", tie_word_embeddings=True), head="none", bare=True),
        file("GGUF, every bias", [], config("llama", attention_bias=True, mlp_bias=True), ALL),
        file("GGUF, rope.scale_linear", [number("rope.scale_linear", 4.0)], linear(4.0)),
        file("GGUF, a factor without a type", [number("rope.scaling.factor", 4.0)], linear(4.0)),
        file("GGUF, a linear factor", [text("rope.scaling.type", "linear"), number("rope.scaling.factor", 4.0)], linear(4.0)),
        file("GGUF, the factor 0", [text("rope.scaling.type", "linear"), number("rope.scaling.factor", 0.0)], config("llama")),
        file("GGUF, the factor 0 before the older key", [number("rope.scaling.factor", 0.0), number("rope.scale_linear", 4.0)], config("llama")),
        file("GGUF, a factor of no scaling", [text("rope.scaling.type", "none"), number("rope.scaling.factor", 4.0)], config("llama")),
        file("GGUF, divisors", [], longrope(DIVISORS), divisors=DIVISORS),
        file("GGUF, divisors and a factor", [number("rope.scaling.factor", 2.0)], longrope([2 * d for d in DIVISORS]), divisors=DIVISORS),
        file("GGUF in two files", [], config("llama"), parts=2),
        file("GGUF in three files, with biases", [], config("llama", attention_bias=True, mlp_bias=True), ALL, parts=3),
    ]


def selected(tensors, case):
    kept = {n: t for n, t in tensors.items() if not n.endswith(".bias") or n.split(".")[-2] in case["biases"]}
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if case["head"] == "none":
        del kept[head]
    elif case["head"] == "alone":
        del kept[embedding]
    elif case["head"] == "same":
        kept[head] = kept[embedding].clone()
    return {n.removeprefix("model.") if case["bare"] else n: t.contiguous() for n, t in kept.items()}


def logits(tensors, case, ids):
    with tempfile.TemporaryDirectory() as path:
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(case["config"], f)
        save_file(selected(tensors, case), os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].tolist()


def main():
    os.makedirs(OUT, exist_ok=True)
    tensors = weights()
    save_file(tensors, os.path.join(OUT, "weights.safetensors"))
    ids = np.random.default_rng(1).integers(0, VOCAB, 40).tolist()
    made = []
    for case in cases():
        made.append({**case, "logits": [round(v, 5) for v in logits(tensors, case, ids)]})
    versions = dict(transformers=transformers.__version__, torch=torch.__version__)
    with open(os.path.join(OUT, "golden.json"), "w") as f:
        head = json.dumps(dict(versions=versions, ids=ids))[:-1]
        f.write(head + ', "cases": [\n' + ",\n".join(json.dumps(case) for case in made) + "\n]}\n")
    rows = {tuple(case["logits"]) for case in made}
    print(f"{len(made)} cases, {len(rows)} different rows of logits")


if __name__ == "__main__":
    main()
