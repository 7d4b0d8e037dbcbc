#!/usr/bin/env python3
"""How many tokens of calibration GPTQ needs to lose less than rounding to nearest: a table for docs/calibration.md.

    python scripts/gguf2hf.py "$(scripts/models.sh)" smollm2
    python scripts/calibration_size.py --fourbit target/release/fourbit --model smollm2 \\
        --shown guanaco-llama2-1k.parquet --other vim-manual.txt --blocks 4

Of the model the first blocks are taken. Samples of 256 tokens are shown to the method; every fourth one is held back
(`--keep-better`), and is of the same kind of text in the one run and of another in the other. What is printed is the error of
GPTQ's outputs on those, over that of rounding, for the layers of each width: the geometric mean, the worst, and how many of the
layers lose more than by rounding.
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

LENGTH = 256


def cut(model, blocks, out):
    os.makedirs(out)
    tensors = load_file(os.path.join(model, "model.safetensors"))
    kept = {n: t for n, t in tensors.items() if ".layers." not in n or int(n.split(".")[2]) < blocks}
    save_file(kept, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    config["num_hidden_layers"] = blocks
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file)
    for name in os.listdir(model):
        if "token" in name:
            shutil.copy(os.path.join(model, name), out)


def text(path):
    if path.endswith(".parquet"):
        import pyarrow.parquet
        return "\n".join(pyarrow.parquet.read_table(path)["text"].to_pylist()[:300])
    with open(path) as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["fourbit", "model", "shown", "other"]:
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--scheme", default="int3-g64")
    parser.add_argument("--samples", default="4,8,12,16,24,32")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def samples(path):
        ids = tokenizer(text(path), add_special_tokens=False).input_ids
        return [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]

    counts = [int(count) for count in args.samples.split(",")]
    own, other = samples(args.shown), samples(args.other)
    most = max(counts)
    with open(os.path.join(args.model, "config.json")) as file:
        config = json.load(file)
    width = lambda layer: config["intermediate_size"] if "down_proj" in layer else config["hidden_size"]
    with tempfile.TemporaryDirectory() as folder:
        model, rows, out = (os.path.join(folder, name) for name in ["model", "rows.jsonl", "out"])
        cut(args.model, args.blocks, model)
        print("| held back | tokens | columns | tokens per column | mean | worst | lose more |\n|---|---|---|---|---|---|---|")
        for name, held in [("the same kind", own[most:]), ("another kind", other * (1 + most // len(other)))]:
            shown, held = iter(own), iter(held)
            with open(rows, "w") as file:
                for i in range(most):
                    ids = next(held if i % 4 == 3 else shown)
                    file.write(json.dumps(dict(input_ids=ids, labels=ids)) + "\n")
            for count in counts:
                command = [args.fourbit, "quantize", model, "--method", "gptq", "--scheme", args.scheme, "--keep-better", "--json",
                           "--calibration", rows, "--calibration-samples", str(count), "--calibration-length", str(LENGTH), "--output", out]
                told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                shutil.rmtree(out)
                ratios = {}
                for layer in told["held_back"]:
                    ratios.setdefault(width(layer["layer"]), []).append(layer["method"] / layer["rounding"])
                tokens = count * LENGTH * 3 // 4
                for columns, of in sorted(ratios.items()):
                    mean = math.exp(sum(map(math.log, of)) / len(of))
                    more = f"{sum(ratio > 1 for ratio in of)} of {len(of)}"
                    print(f"| {name} | {tokens} | {columns} | {tokens / columns:.1f} | {mean:.2f} | {max(of):.2f} | {more} |", flush=True)


main()
