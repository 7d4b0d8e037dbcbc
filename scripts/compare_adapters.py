#!/usr/bin/env python3
"""Writes the table of docs/adapters.md: each kind of fine-tuning for as many steps over the same rows of the same model.

    python scripts/compare_adapters.py --model "$(scripts/models.sh)" [--steps 30] [--fourbit target/release/fourbit]

Learns four of five rows of assets/embedded/train.jsonl in batches of four and measures the loss of the answers of the others. Times are those
of the processor: what a software driver computes is in them. Needs nothing but Python.
"""
import argparse
import json
import pathlib
import resource
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/adapters.md"
BEGIN, END = "<!-- table: scripts/compare_adapters.py -->\n", "<!-- end of the table -->\n"
QUANTIZED = ["--quantization", "nf4", "--double-quant"]
KINDS = [
    ("LoRA, r 16", [*QUANTIZED, "--lora-r", "16"], "5e-4"),
    ("DoRA, r 16", [*QUANTIZED, "--lora-r", "16", "--use-dora"], "5e-4"),
    ("AdaLoRA, 12 to 8", [*QUANTIZED, "--peft-type", "adalora"], "5e-3"),
    ("IA3", [*QUANTIZED, "--peft-type", "ia3"], "1e-2"),
    ("prompt of 20 tokens", [*QUANTIZED, "--peft-type", "prompt_tuning", "--prompt-tuning-init", "sample_vocab"], "3e-2"),
    ("all weights of 2 layers", ["--full", "--last-layers", "2"], "5e-5"),
    ("all weights", ["--full"], "5e-5"),
]


def run(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--fourbit", default=str(ROOT / "target/release/fourbit"))
    args = parser.parse_args()
    rows = (ROOT / "assets/embedded/train.jsonl").read_text().splitlines(keepends=True)
    lines = ["| kind | learning rate | trained | held-out loss | memory | processor time a step |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        learned, held = folder / "learned.jsonl", folder / "held.jsonl"
        learned.write_text("".join(row for i, row in enumerate(rows) if i % 5))
        held.write_text("".join(row for i, row in enumerate(rows) if i % 5 == 0))
        measure = lambda more: run([args.fourbit, "evaluate", "--data", str(held), "--json", *more])[0]["loss"]
        before = measure(["--model", args.model, *QUANTIZED])
        lines.append(f"| none, in NF4 | | | {before:.4f} | | |")
        for name, options, rate in KINDS:
            output = folder / name.replace(" ", "-").replace(",", "")
            is_full = "--full" in options
            shared = ["--model", args.model, "--data", str(learned), "--learning-rate", rate, "--batch-size", "4", "--save-steps", "0", "--json"]
            command = [args.fourbit, "finetune", *shared, "--output", str(output), *options]
            done, seconds = run([*command, "--max-steps", str(args.steps)])
            evaluated = ["--model", str(output), "--quantization", "none"] if is_full else ["--model", args.model, "--adapter", str(output), *QUANTIZED]
            loss = measure(evaluated)
            trained = done["trainable_parameters"]
            lines.append(f"| {name} | {rate} | {trained:,} | {loss:.4f} | {done['peak_bytes'] / 2**20:.0f} MiB | {seconds / args.steps:.1f} s |")
            print(lines[-1], flush=True)
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    PAGE.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + tail)


if __name__ == "__main__":
    main()
