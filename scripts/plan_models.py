"""Writes docs/models.md: what fine-tuning takes of a device's memory, by `fourbit plan`, for the shapes of models that people tune.

    python scripts/plan_models.py [--fourbit target/release/fourbit]

Only the shapes are real (`fourbit plan --shape`). Needs nothing but Python.
"""
import argparse
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = {
    "Llama 3.2 1B": "llama-3.2-1b",
    "Llama 3.2 3B": "llama-3.2-3b",
    "Qwen3 0.6B": "qwen3-0.6b",
    "Qwen3 1.7B": "qwen3-1.7b",
    "Qwen3 4B": "qwen3-4b",
    "Qwen3 8B": "qwen3-8b",
    "Gemma 2B": "gemma-2b",
    "Gemma 3 1B": "gemma-3-1b",
    "Gemma 3 4B, its text": "gemma-3-4b",
    "Phi-4-mini": "phi-4-mini",
    "Llama 2 7B": "llama-2-7b",
    "Mistral 7B": "mistral-7b",
    "Llama 3.1 8B": "llama-3.1-8b",
    "Llama 3.1 70B": "llama-3.1-70b",
}
RANKS, LENGTHS, CARDS = [8, 16, 64], [512, 2048, 4096], [4, 8, 16, 24]


def plan(fourbit, shape, rank, length):
    command = [fourbit, "plan", "--shape", shape, "--quantization", "nf4", "--double-quant", "--gradient-checkpointing", "--batch-size", "1", "--lora-r", str(rank), "--max-seq-length", str(length), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode and "expected an activation of at most" in done.stderr:
        return None  # this device binds less at once
    done.check_returncode()
    return json.loads(done.stdout)


def peak_of(planned):
    return planned and planned["peak_bytes"]


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
    for name, shape in MODELS.items():
        peaks = [peak_of(plan(fourbit, shape, rank, length)) for rank in RANKS for length in LENGTHS]
        longest = []
        for card in CARDS:
            most, beyond = "-", ""
            for length in (256, 512, 1024, 2048, 4096):
                peak = peak_of(plan(fourbit, shape, 16, length))
                if peak is None or peak > 0.9 * card * 2**30:
                    beyond = " or more" if peak is None else ""
                    break
                most = str(length)
            else:
                beyond = " or more"
            longest.append(most + beyond)
        count = plan(fourbit, shape, 8, 256)["parameters"]
        lines.append(f"| {name} | {count / 1e9:.2f} G | " + " | ".join(f"{peak / 2**30:.1f}" if peak else "…" for peak in peaks) + " | " + " | ".join(longest) + " |")
        print(lines[-1], flush=True)
    (ROOT / "docs/models.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
