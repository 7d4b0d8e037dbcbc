#!/usr/bin/env bash
# The size of the cache that is asked for changes what Phi-3 answers to a short prompt in llama.cpp.
#
# One would guess: `n_ctx` is how much room there is. As long as a text fits, a larger one costs memory and changes no answer; and of the
# two lists of rotary factors that a Phi-3 file holds (rope_factors_short, rope_factors_long) the length of the text chooses, as in
# transformers, whose configuration they come from.
# What is real: llama.cpp chooses once, when a context is made: the long list where the context's size is beyond
# `rope.scaling.original_context_length`, else the short one. Ten tokens in a context that is larger than the original length are rotated
# by the long list, and get other probabilities than in one that is not. Who compares two programs on one file has to give llama.cpp a
# context of the original length for short texts; who serves long ones answers short ones by the long list.
#
# Seen 2026-11-29: xllamacpp 2026.10.11549 (llama.cpp of October 2026), gguf 0.19.0, Python 3.11: log-probabilities 4.4 apart between
# contexts of 256 and 512 with the original length 256, and none between 512 and 768.
# Needs python3 with venv, and 200 MB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check gguf==0.19.0 xllamacpp==2026.10.11549 numpy

cat >"$place/model.py" <<'PY'
import importlib.metadata, json, subprocess, sys
import gguf, numpy as np

WORDS, HIDDEN, INNER, HEADS, BLOCKS, ORIGINAL = 96, 32, 48, 4, 2, 256


def write(path):
    """A tiny model of random weights, as llama.cpp's converter lays out Phi-3."""
    writer = gguf.GGUFWriter(path, "phi3")
    sizes = {"context_length": 4 * ORIGINAL, "embedding_length": HIDDEN, "block_count": BLOCKS, "feed_forward_length": INNER}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS, "rope.dimension_count": HIDDEN // HEADS}
    sizes |= {"rope.scaling.original_context_length": ORIGINAL}
    for key, size in sizes.items():
        writer.add_uint32(f"phi3.{key}", size)
    writer.add_float32("phi3.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    words = [chr(33 + i) if i < 94 else chr(0x100 + i) for i in range(WORDS - 1)] + ["!!"]
    writer.add_token_list(words)
    writer.add_token_types([1] * WORDS)
    writer.add_token_merges(["! !"])
    random = np.random.default_rng(0)

    def add(name, *shape, mean=0.0):
        writer.add_tensor(name, (mean + 0.3 * random.standard_normal(shape)).astype(np.float32))

    add("token_embd.weight", WORDS, HIDDEN)
    add("output.weight", WORDS, HIDDEN)
    add("output_norm.weight", HIDDEN, mean=1.0)
    for block in range(BLOCKS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{name}.weight", HIDDEN, mean=1.0)
        shapes = {"attn_qkv": (3 * HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_up": (2 * INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
        for name, shape in shapes.items():
            add(f"blk.{block}.{name}.weight", *shape)
    for name, factor in {"short": 1.0, "long": 4.0}.items():
        writer.add_tensor(f"rope_factors_{name}.weight", np.full(HIDDEN // HEADS // 2, factor, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def answer(path, context, ids):
    """Log-probabilities of the next token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, context, 0, 1
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    told = server.handle_completions({"prompt": ids, "max_tokens": 1, "temperature": 0.0, "n_probs": WORDS})
    told = json.loads(told) if isinstance(told, str) else told
    top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [entry["logprob"] for entry in sorted(top, key=lambda entry: entry["id"])]


if len(sys.argv) == 4:  # in a process of its own
    print("answer", json.dumps(answer(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))))
    sys.exit()


def of(path, context, ids):
    run = [sys.executable, __file__, path, str(context), json.dumps(ids)]
    lines = subprocess.run(run, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return np.array(json.loads(next(line for line in lines if line.startswith("answer ")).removeprefix("answer ")))


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("gguf", "xllamacpp")))
path = f"{sys.argv[1]}/phi3.gguf"
write(path)
ids = [5, 40, 7, 61, 13, 22, 80, 3, 50, 9]
small, large, larger = (of(path, context, ids) for context in (ORIGINAL, 2 * ORIGINAL, 3 * ORIGINAL))
beyond, further = np.abs(large - small).max(), np.abs(larger - large).max()
print(f"{len(ids)} tokens: a context of {2 * ORIGINAL} is {beyond:.2g} from one of {ORIGINAL}, one of {3 * ORIGINAL} {further:.2g} from that")
sys.exit(not (beyond > 1e-2 and further < 1e-4))
PY
"$place/venv/bin/python" -W ignore "$place/model.py" "$place" || { echo "this changed"; exit 1; }
