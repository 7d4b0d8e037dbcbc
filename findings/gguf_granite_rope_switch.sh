#!/usr/bin/env bash
# One GGUF key means nothing in a Llama file and turns all positions off in a Granite file.
#
# One would guess: `rope.scaling.finetuned` notes whether a model was tuned after its rotary scaling was set, a remark about its past;
# without a `rope.scaling.type` there is nothing that it could concern, and in every family it is the same remark.
# What is real: llama.cpp reads it that way for Llama: `false` changes no bit. For Granite it is the switch of the rotary embedding
# itself: with `false` queries and keys are not rotated at all, and the model sees its text as a bag of tokens under a causal mask. The
# file loads, and no warning tells of it. Who rewrites the metadata of a Granite file by rules that hold for Llama files breaks it.
# A reader has to refuse `false` there, or leave the rotation out, as fourbit's src/arch/families/granite.rs does the former.
#
# Seen 2026-11-29: xllamacpp 2026.10.11549 (llama.cpp of October 2026), gguf 0.19.0, Python 3.11: log-probabilities 5.6 apart.
# Needs python3 with venv, and 200 MB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check gguf==0.19.0 xllamacpp==2026.10.11549 numpy

cat >"$place/model.py" <<'PY'
import importlib.metadata, json, subprocess, sys
import gguf, numpy as np

WORDS, HIDDEN, INNER, HEADS, BLOCKS = 96, 32, 48, 4, 2


def write(path, family, finetuned):
    """A tiny model of random weights; both families have the same tensors."""
    writer = gguf.GGUFWriter(path, family)
    sizes = {"context_length": 128, "embedding_length": HIDDEN, "block_count": BLOCKS, "feed_forward_length": INNER}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS}
    for key, size in sizes.items():
        writer.add_uint32(f"{family}.{key}", size)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)
    if family == "granite":
        writer.add_float32("granite.logit_scale", 1.0)
    if finetuned is not None:
        writer.add_bool(f"{family}.rope.scaling.finetuned", finetuned)
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
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}.weight", HIDDEN, HIDDEN)
        for name, shape in {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}.items():
            add(f"blk.{block}.{name}.weight", *shape)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def answer(path, ids):
    """Log-probabilities of the next token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 128, 0, 1
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    told = server.handle_completions({"prompt": ids, "max_tokens": 1, "temperature": 0.0, "n_probs": WORDS})
    told = json.loads(told) if isinstance(told, str) else told
    top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [entry["logprob"] for entry in sorted(top, key=lambda entry: entry["id"])]


if len(sys.argv) == 4:  # in a process of its own
    print("answer", json.dumps(answer(sys.argv[2], json.loads(sys.argv[3]))))
    sys.exit()


def of(family, finetuned, ids):
    path = f"{sys.argv[1]}/{family}-{finetuned}.gguf"
    write(path, family, finetuned)
    run = [sys.executable, __file__, sys.argv[1], path, json.dumps(ids)]
    lines = subprocess.run(run, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return np.array(json.loads(next(line for line in lines if line.startswith("answer ")).removeprefix("answer ")))


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("gguf", "xllamacpp")))
ids = [5, 40, 7, 61, 13, 22, 80, 3, 50, 9]
off = {}
for family in ("llama", "granite"):
    missing, yes, no = (of(family, value, ids) for value in (None, True, False))
    off[family] = np.abs(no - missing).max()
    print(f"{family}: true is {np.abs(yes - missing).max():.2g} from a missing key, false is {off[family]:.2g}")
sys.exit(not (off["llama"] == 0 and off["granite"] > 1e-2))
PY
"$place/venv/bin/python" -W ignore "$place/model.py" "$place" || { echo "this changed"; exit 1; }
