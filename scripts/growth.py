"""How a training step grows: with the length of a text, apart from attention, and with the number of blocks.

    python scripts/growth.py [--fourbit target/release/fourbit] [--shape smollm2-135m] [--repeat 3]

Attention grows with the square of the length: its kernels' share of the step, by the device's clock, is left out. What is left should take
the same time for each token. Time over blocks should lie on a line. Fails where either is more than 15 % off. Needs nothing but Python.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTHS, BLOCKS, BOUND = (128, 256, 512, 1024), (6, 12, 18, 24, 30), 0.15


def step(asked, *options):
    command = [asked.fourbit, "bench", "model/step", "--shape", asked.shape, "--double-quant", "--repeat", str(asked.repeat), "--json", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout)["models"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fourbit", default=ROOT / "target/release/fourbit")
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    print("| tokens | step, s | attention's share | tokens/s | without attention |\n|---|---|---|---|---|")
    speeds = []
    for length in LENGTHS:
        model = step(asked, "--max-seq-length", str(length))
        kernels = [(kernel["kernel"], kernel["seconds"]) for kernel in model["kernels"]]
        share = sum(s for name, s in kernels if name.startswith("attention")) / sum(s for _, s in kernels)
        seconds = model["step"]["seconds"]
        speeds.append(length / (seconds * (1 - share)))
        print(f"| {length} | {seconds:.2f} | {100 * share:.1f} % | {length / seconds:.1f} | {speeds[-1]:.1f} |", flush=True)
    spread = max(speeds) / min(speeds) - 1
    print(f"\ntokens/s without attention: {100 * spread:.1f} % apart\n\n| blocks | step, s | on the line |\n|---|---|---|")
    times = [step(asked, "--max-seq-length", "128", "--blocks", str(blocks))["step"]["seconds"] for blocks in BLOCKS]
    mean_x, mean_y = sum(BLOCKS) / len(BLOCKS), sum(times) / len(times)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(BLOCKS, times)) / sum((x - mean_x) ** 2 for x in BLOCKS)
    line = [mean_y + slope * (x - mean_x) for x in BLOCKS]
    for blocks, seconds, on_line in zip(BLOCKS, times, line):
        print(f"| {blocks} | {seconds:.3f} | {on_line:.3f} |")
    off = max(abs(seconds / on_line - 1) for seconds, on_line in zip(times, line))
    print(f"\n{1e3 * slope:.1f} ms a block; at most {100 * off:.1f} % off the line")
    sys.exit(1 if max(spread, off) > BOUND else 0)


if __name__ == "__main__":
    main()
