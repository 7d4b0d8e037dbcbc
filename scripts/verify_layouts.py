"""Does each layout that fourbit writes load in the tool it is for? On the small model that is part of fourbit, in seconds.

    python scripts/verify_layouts.py [--fourbit target/release/fourbit] [--work FOLDER]

For each method `fourbit quantize` writes a folder, the method's own tool or transformers loads it, and the logits of a text are
compared with those of `fourbit evaluate` on the same folder. GGUF files are decoded by the package `gguf` and continue prompts in
llama.cpp with the tokens that fourbit chooses (see verify_gguf.py). A tool that is not installed is named and left out;
`scripts/requirements.txt` has those that install in a minute, GPTQ and AWQ folders need `pip install gptqmodel optimum`, whose
build takes long. A figure outside its bound ends the script with status 1.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# aqlm's kernel for processors lets its threads add to one vector at once, and loses sums where there is more than one.
os.environ["NUMBA_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODEL = os.path.join(ROOT, "assets", "embedded")
IDS = [3 + 7 * i % 900 for i in range(48)]
CALIBRATION = ["--calibration", os.path.join(MODEL, "train.jsonl"), "--calibration-samples", "8", "--calibration-length", "64"]
# name, words of `fourbit quantize`, what must be installed, bound on the largest difference over the largest logit. Tools that
# compute in halves, or round activations at another place, get a wider one; static scales of whole ranges are so coarse for this
# model's down_proj that a single tie which falls the other way shows.
LAYOUTS = [
    ("bf16", ["--scheme", "bf16"], [], 1e-4),
    ("bitsandbytes nf4", ["--scheme", "nf4", "--double-quant"], ["bitsandbytes"], 1e-3),
    ("bitsandbytes fp4", ["--scheme", "fp4"], ["bitsandbytes"], 1e-3),
    ("bitsandbytes LLM.int8()", ["--method", "llm-int8"], ["bitsandbytes"], 5e-2),
    ("compressed-tensors int4", ["--scheme", "int4-g64", "--symmetric"], ["compressed_tensors"], 1e-3),
    ("compressed-tensors int8", ["--scheme", "int8-channel-sym-f32"], ["compressed_tensors"], 1e-3),
    ("compressed-tensors W8A8", ["--method", "smoothquant", *CALIBRATION], ["compressed_tensors"], 5e-2),
    ("compressed-tensors W8A8, static", ["--method", "smoothquant", "--activations", "a8-percentile", *CALIBRATION], ["compressed_tensors"], 5e-2),
    ("AQLM", ["--method", "aqlm", *CALIBRATION], ["aqlm", "numba"], 1e-3),
    ("GPTQ", ["--method", "gptq", *CALIBRATION], ["gptqmodel", "optimum"], 2e-2),
    ("AWQ", ["--method", "awq", *CALIBRATION], ["gptqmodel"], 2e-2),
]
GGUF = "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs".split()
failures = []


def fourbit(binary, *words):
    done = subprocess.run([binary, *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"fourbit {' '.join(words)} ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(name, value, bound, detail=""):
    ok = value <= bound
    print(f"{'ok  ' if ok else 'FAIL'}  {name}: {value:.3g} (bound {bound:g}) {detail}", flush=True)
    if not ok:
        failures.append(name)


def our_logits(binary, folder, work):
    ids, out = os.path.join(work, "ids.json"), os.path.join(work, "logits.safetensors")
    with open(ids, "w") as file:
        json.dump(IDS, file)
    words = ["--input-ids", ids, "--max-seq-length", str(len(IDS)), "--logits", out, "--quantization", "none"]
    fourbit(binary, "evaluate", "--model", folder, *words)
    return load_file(out)["logits"]


def their_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False  # its kernel is bf16 whatever the layer asks
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].float()


def check_folder(binary, work, name, words, bound):
    folder = os.path.join(work, "folder")
    shutil.rmtree(folder, ignore_errors=True)
    fourbit(binary, "quantize", MODEL, *words, "--output", folder)
    mine, theirs = our_logits(binary, folder, work), their_logits(folder)
    difference = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    report(name, difference, bound, f"same first choice {same:.1%}")


def check_hqq(binary, work):
    """Layer by layer with the hqq package: transformers opens such folders but leaves the weights random."""
    from hqq.core.quantize import HQQLinear

    folder = os.path.join(work, "hqq")
    fourbit(binary, "quantize", MODEL, "--method", "hqq", "--output", folder)
    floats = os.path.join(work, "hqq-floats")
    fourbit(binary, "quantize", folder, "--scheme", "f32", "--output", floats)
    tensors, want = load_file(os.path.join(folder, "model.safetensors")), load_file(os.path.join(floats, "model.safetensors"))
    worst = 0.0
    names = sorted(name[: -len(".W_q")] for name in tensors if name.endswith(".W_q"))
    for name in names:
        parts = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu", initialize=False)
        layer.load_state_dict(parts)
        expected = want[name + ".weight"]
        worst = max(worst, ((layer.dequantize().float() - expected).abs().max() / expected.abs().max()).item())
    report("HQQ (hqq)", worst, 1e-3, f"{len(names)} layers")


def check_gguf(binary, work):
    import gguf
    from verify_gguf import TIE, TIE_OF_FLOATS, divergence, in_rotary_order, transformers_name

    with open(os.path.join(MODEL, "config.json")) as file:
        config = json.load(file)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for words in [["--method", "gptq", "--scheme", "q4_0", *CALIBRATION], *(["--scheme", scheme] for scheme in GGUF)]:
        path, floats = os.path.join(work, "model.gguf"), os.path.join(work, "gguf-floats")
        done = fourbit(binary, "quantize", MODEL, *words, "--output", path)
        shutil.rmtree(floats, ignore_errors=True)
        fourbit(binary, "quantize", path, "--scheme", "f32", "--output", floats)
        want = load_file(os.path.join(floats, "model.safetensors"))
        count = worst = 0
        for tensor in gguf.GGUFReader(path).tensors:
            parts = tensor.name.split(".")
            if len(parts) != 4 or "norm" in parts[2]:
                continue
            values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            expected = want[transformers_name(tensor.name)]
            if parts[2] in heads:
                expected = torch.from_numpy(in_rotary_order(expected.numpy(), heads[parts[2]]).copy())
            worst = max(worst, ((values - expected).abs().max() / expected.abs().max()).item())
            count += 1
        report(f"GGUF {done['recipe']} (gguf)", worst, 1e-6, f"{count} weights")
        if importlib.util.find_spec("xllamacpp") is None:
            print("skip  greedy tokens in llama.cpp: xllamacpp not installed", flush=True)
            continue
        copy = os.path.join(work, "f32.gguf")
        fourbit(binary, "quantize", path, "--scheme", "f32", "--output", copy)
        for path, bound in ((path, TIE), (copy, TIE_OF_FLOATS)):
            report(f"GGUF {done['recipe']} (llama.cpp, greedy)", divergence(path, binary), bound, "nats where tokens differ")


def check_all(binary, work):
    for name, words, packages, bound in LAYOUTS:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skip  {name}: {', '.join(missing)} not installed", flush=True)
            continue
        check_folder(binary, work, name, words, bound)
    for name, package, check in (("HQQ", "hqq", check_hqq), ("GGUF", "gguf", check_gguf)):
        if importlib.util.find_spec(package) is None:
            print(f"skip  {name}: {package} not installed", flush=True)
            continue
        check(binary, work)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fourbit", default=os.path.join(ROOT, "target/release/fourbit"))
    parser.add_argument("--work", help="folder for what is written [default: one that is removed]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or temporary
        os.makedirs(work, exist_ok=True)
        failed = check_all(arguments.fourbit, work)
    sys.exit("outside the bounds: " + ", ".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
