"""Compare fourbit with transformers, PEFT and bitsandbytes on a real model, both sides in one run.

    python scripts/verify.py --model FOLDER                 all parts (scripts/verify.sh prepares everything)
    python scripts/verify.py --model FOLDER --only adapter  some: quantize, adapter, perplexity

quantize    `fourbit quantize` writes a bitsandbytes folder that transformers loads; its logits are fourbit's
adapter     `fourbit finetune` on that folder writes an adapter that PeftModel loads onto it; its logits are fourbit's
kinds       the same of DoRA, AdaLoRA, IA3 and prompt tuning, after a few steps
perplexity  f32, NF4, NF4 with double quantization and FP4, on a text file: torch's figure and fourbit's

Everything is computed in f32 out of the same stored weights. A figure outside its bound ends the script with status 1.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore", FutureWarning)

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import TrainerState

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
LOGITS_BOUND = 1e-2  # largest difference over largest value; f32 sums in another order stay far below it
PERPLEXITY_BOUND = 0.01  # relative
PROMPT = "What is the capital of France? Answer in one sentence."

failures = []


def report(what, value, bound, ok, detail=""):
    print(f"{'ok  ' if ok else 'FAIL'}  {what}: {value:.3g} (bound {bound:g}) {detail}", flush=True)
    if not ok:
        failures.append(what)


def fourbit(arguments, *words):
    """Run the binary; the value of its JSON line."""
    command = [arguments.fourbit, *words, "--json"]
    print("     $ fourbit", " ".join(words), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"fourbit ended with status {done.returncode}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def load_4bit(folder):
    """The folder as transformers loads it, with all arithmetic in f32.

    Transformers keeps the parts that are not 4-bit in the type they are stored in, and the layers compute in the type that the
    folder names. In bf16 the logits move by 4 % of the largest: rounding that says nothing about the stored weights.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False  # its kernel is bf16 whatever the layer asks
            module.weight.quant_state.dtype = torch.float32  # else DoRA's norms are those of weights in bf16: 2e-3 of the logits
    return model.eval()


def logits_of(model, ids):
    with torch.no_grad():
        # Those of virtual tokens stand before them.
        return model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].float()


def compare_logits(what, arguments, folder, model, ids, adapter=None):
    """fourbit's logits of `ids` against the model's: largest difference over largest value."""
    ids_file, out = (os.path.join(arguments.work, name) for name in ("ids.json", "logits.safetensors"))
    with open(ids_file, "w") as file:
        json.dump(ids, file)
    words = ["evaluate", "--model", folder, "--input-ids", ids_file, "--max-seq-length", str(len(ids)), "--logits", out]
    fourbit(arguments, *words, *(["--adapter", adapter] if adapter else []))
    mine, theirs = load_file(out)["logits"], logits_of(model, ids)
    if mine.shape != theirs.shape:
        sys.exit(f"{what}: fourbit's logits have the shape {list(mine.shape)}, transformers' {list(theirs.shape)}")
    difference = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    report(what, difference, LOGITS_BOUND, difference <= LOGITS_BOUND, f"same first choice {same:.1%}")


def prompt_ids(tokenizer):
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "The capital of France is Paris."}]
    return tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]


def quantized_folder(arguments):
    folder = os.path.join(arguments.work, "nf4")
    if not os.path.exists(os.path.join(folder, "config.json")):
        fourbit(arguments, "quantize", arguments.model, "--scheme", "nf4", "--double-quant", "--output", folder)
    return folder


def part_quantize(arguments, tokenizer):
    folder = quantized_folder(arguments)
    compare_logits("quantize: logits", arguments, folder, load_4bit(folder), prompt_ids(tokenizer))


def part_kinds(arguments, tokenizer):
    """A few steps of each kind of adapter beside LoRA: PEFT loads it and gives the same logits."""
    folder, adapter = quantized_folder(arguments), os.path.join(arguments.work, "kind")
    adalora = ["--peft-type", "adalora", "--init-r", "8", "--target-r", "4", "--tfinal", "1"]
    prompt = ["--peft-type", "prompt_tuning", "--num-virtual-tokens", "8", "--prompt-tuning-init-text", "Answer the question."]
    kinds = dict(dora=["--use-dora", "--lora-r", "8"], adalora=adalora, ia3=["--peft-type", "ia3"], prompt_tuning=prompt)
    for kind, options in kinds.items():
        shutil.rmtree(adapter, ignore_errors=True)
        fourbit(
            arguments, "finetune", "--model", folder, "--data", arguments.data, "--output", adapter, "--max-steps", "4",
            "--max-seq-length", "64", "--learning-rate", "1e-2", *options,
        )  # fmt: skip
        ids, base = prompt_ids(tokenizer), load_4bit(folder)
        plain = logits_of(base, ids)
        model = PeftModel.from_pretrained(base, adapter).eval()
        moved = ((logits_of(model, ids) - plain).abs().max() / plain.abs().max()).item()
        report(f"{kind}: the adapter moves PEFT's logits, and not by less than", moved, LOGITS_BOUND, moved > LOGITS_BOUND)
        compare_logits(f"{kind}: logits", arguments, folder, model, ids, adapter)


def part_adapter(arguments, tokenizer):
    folder, adapter = quantized_folder(arguments), os.path.join(arguments.work, "adapter")
    shutil.rmtree(adapter, ignore_errors=True)
    fourbit(
        arguments, "finetune", "--model", folder, "--data", arguments.data, "--output", adapter, "--lora-r", "64",
        "--lora-alpha", "16", "--max-steps", str(arguments.steps), "--max-seq-length", "256", "--learning-rate", "2e-4",
    )  # fmt: skip
    state = TrainerState.load_from_json(os.path.join(adapter, "trainer_state.json"))
    report("adapter: steps not read by transformers", arguments.steps - state.global_step, 0, state.global_step == arguments.steps)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    third = max(1, len(losses) // 3)
    first, last = statistics.mean(losses[:third]), statistics.mean(losses[-third:])
    report("adapter: loss, mean of the last third over the first", last / first, 1, last < first, f"{first:.3f} -> {last:.3f}")
    model = PeftModel.from_pretrained(load_4bit(folder), adapter).eval()
    with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "pt") as file:
        moved = sum(file.get_tensor(key).abs().max().item() > 0 for key in file.keys() if "lora_B" in key)
    print(f"     adapter: {moved} matrices B moved away from zero")
    compare_logits("adapter: logits", arguments, folder, model, prompt_ids(tokenizer), adapter)
    enc = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**enc, max_new_tokens=24, do_sample=False)
    print("     PEFT answers:", repr(tokenizer.decode(out[0][enc["input_ids"].shape[1] :], skip_special_tokens=True)))


def perplexity(model, ids, window):
    """exp of the mean loss over predicted tokens; windows are independent, no BOS."""
    total = count = 0
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        if len(part) > 1:
            logits = logits_of(model, part)
            total += torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(part[1:]), reduction="sum").item()
            count += len(part) - 1
    return math.exp(total / count)


def part_perplexity(arguments, tokenizer):
    with open(arguments.text) as file:
        ids = tokenizer(file.read(), add_special_tokens=False).input_ids[: arguments.max_tokens]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    layers = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    stored = [layer.weight.detach().clone() for layer in layers]
    for name, scheme, double in (("f32", None, False), ("NF4", "nf4", False), ("NF4 double", "nf4", True), ("FP4", "fp4", False)):
        for layer, weight in zip(layers, stored):
            if scheme:
                packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=scheme, compress_statistics=double)
                weight = bnb.dequantize_4bit(packed, state)
            layer.weight.data.copy_(weight)
        theirs = perplexity(model, ids, arguments.window)
        words = ["evaluate", "--model", arguments.model, "--data", arguments.text, "--quantization", scheme or "none",
                 "--max-tokens", str(len(ids)), "--max-seq-length", str(arguments.window)]  # fmt: skip
        mine = fourbit(arguments, *words, *(["--double-quant"] if double else []))["perplexity"]
        off = abs(mine / theirs - 1)
        report(f"perplexity {name}", off, PERPLEXITY_BOUND, off <= PERPLEXITY_BOUND, f"fourbit {mine:.3f}, torch {theirs:.3f}")


PARTS = dict(quantize=part_quantize, adapter=part_adapter, kinds=part_kinds, perplexity=part_perplexity)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder (gguf2hf.py makes one)")
    parser.add_argument("--fourbit", default=os.path.join(ROOT, "target", "release", "fourbit"), help="the binary")
    parser.add_argument("--data", default=os.path.join(ROOT, "assets", "embedded", "train.jsonl"), help="rows to fine-tune on")
    parser.add_argument("--text", default=os.path.join(ROOT, "ARCHITECTURE.md"), help="text for perplexity")
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work", default=os.path.join(ROOT, "target", "verify"), help="where folders are written")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    os.makedirs(arguments.work, exist_ok=True)
    shutil.rmtree(os.path.join(arguments.work, "nf4"), ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    for name in arguments.only:
        PARTS[name](arguments, tokenizer)
    sys.exit("outside the bounds: " + ", ".join(failures) if failures else 0)


if __name__ == "__main__":
    main()
