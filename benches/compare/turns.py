#!/usr/bin/env python3
"""Measures fourbit beside a peer, in turns: one round of each, and again. `run.sh` prepares what is started here.

A turn's ratio is the peer's time over fourbit's, of the fastest round of each: how many times as fast fourbit is. What is told is the
median of the turns' ratios, with the least and the most, by the wall and by the processor time of all threads. Other work on the
machine touches both sides of a turn, but not alike: threads that wait for each other by spinning (OpenMP's, llama.cpp's) burn
processor time while one of them is not let run, ten times what a round takes. Hence the fastest, and hence ratios.

A peer is a process that prints {"ready": VERSIONS}, and then for each line on stdin {CASE: [[wall, processor], ...]} in seconds.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# rows x out x in
PRODUCTS = ["f32/1024x1024x1024", "f32/256x2048x2048", "f32/256x576x1536", "int8-g64/256x576x1536"]


class Peer:
    """A process that stays, so that it loads and compiles once."""

    def __init__(self, name, command, environment={}):
        self.name, self.command = name, command
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.about = self.answer()["ready"]

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self.name} ended with status {self.process.wait()}")

    def round(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    """`fourbit bench`, started anew for each turn."""

    name = "fourbit"

    def __init__(self, binary, words):
        self.command = ["fourbit", "bench", *words, "--json"]
        self.binary, self.about, self.by_processor_time = binary, "", False

    def round(self):
        done = subprocess.run([self.binary, *self.command[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stderr}fourbit bench ended with status {done.returncode}")
        result = json.loads(done.stdout)
        device = result["device"]
        self.about = f"fourbit {result['fourbit']}, wgpu {result['wgpu']}, {device['name']}, {device['driver']}"
        self.by_processor_time = device["by_processor_time"]
        found = {case["case"].removeprefix("y/"): case for case in result["cases"]}
        for model in result["models"]:
            found.update({key: model[key] for key in ("step", "pp512", "tg128") if model.get(key)})
        none = lambda times: times["processor"] or [None] * len(times["wall"])
        return {name: list(zip(times["wall"], none(times))) for name, times in found.items()}

    def end(self):
        pass


def transformers(a):
    """A QLoRA step of SmolLM2-135M: NF4 with double quantization, r 16 on all linear layers, 1x256 tokens."""
    folder = os.path.join(a.out, "nf4")
    shutil.rmtree(folder, ignore_errors=True)
    words = ["quantize", a.model, "--scheme", "nf4", "--double-quant", "--output", folder]
    subprocess.run([a.fourbit, *words], check=True, stdout=sys.stderr)
    # What is stored quantized stays so: both sides have the same bytes.
    words = ["model/step", "--model", folder, "--max-seq-length", "256", "--lora-r", "16", "--repeat", "3"]
    script = os.path.join(HERE, "qlora_step.py")
    peers = [Peer(f"PEFT in {dtype}", [a.python, script, folder, dtype, "3"]) for dtype in ("float32", "bfloat16")]
    return [Bench(a.fourbit, words), *peers]


def llama_cpp(a):
    """SmolLM2-135M in Q4_1: 512 tokens read at once, and 128 generated one after the other."""
    words = ["model/generation", "--model", a.gguf, "--quantization", "none", "--repeat", "3"]
    command = ["node", os.path.join(HERE, "llama_cpp.mjs"), a.node, a.gguf]
    peers = [Peer("llama.cpp, CPU", [*command, "cpu", "3"])]
    # ggml passes over drivers that run on the processor unless they are named.
    peers.append(Peer("llama.cpp, Vulkan", [*command, "vulkan", "1"], {"GGML_VK_VISIBLE_DEVICES": "0"}))
    return [Bench(a.fourbit, words), *peers]


def burn(a):
    """Products y = x * W: rows x out x in, weights in f32 and in 8 bits with a scale per 64 elements."""
    words = [*(f"product/y/{case}" for case in PRODUCTS), "--shape", "smollm2-135m", "--repeat", "5"]
    return [Bench(a.fourbit, words), Peer("burn", [a.burn, *PRODUCTS])]


def inferena(a):
    """The row of kvark/inferena: SmolLM2-135M in f32, tokens 0 to 127; a forward pass, one of one token, and the gradients."""
    script = os.path.join(HERE, "inferena_torch.py")
    return [Peer("fourbit", [a.inferena, a.model]), Peer("PyTorch", [a.python, script, a.model])]


PARTS = {"transformers": transformers, "llama.cpp": llama_cpp, "burn": burn, "inferena": inferena}


def fastest(rounds, which):
    """Of one turn's rounds; none where the system does not tell processor time."""
    times = [seconds[which] for seconds in rounds]
    return None if None in times else min(times)


def ratios(mine, theirs, which):
    """How many times as fast the first is, in each turn."""
    pairs = [(fastest(a, which), fastest(b, which)) for a, b in zip(mine, theirs)]
    return [b / a for a, b in pairs if a and b]


def spread(values):
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(title, sides, turns):
    """Markdown: a row for each case and peer."""
    lines = [title, "", "| case | beside | by the wall | by processor time | fourbit, least seconds | peer, least seconds |", "|---|---|---|---|---|---|"]
    first, *peers = sides
    for case in turns[0][0]:
        mine = [turn[0][case] for turn in turns]
        for number, peer in enumerate(peers, 1):
            theirs = [turn[number].get(case) for turn in turns]
            if None in theirs:
                continue
            seconds = [f"{min(fastest(r, 0) for r in rounds):.3g}" for rounds in (mine, theirs)]
            cells = [case, peer.name, spread(ratios(mine, theirs, 0)), spread(ratios(mine, theirs, 1)), *seconds]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(name, a):
    sides = PARTS[name](a)
    turns = []
    for turn in range(a.turns):
        turns.append([side.round() for side in sides])
        print(f"{name}: turn {turn + 1} of {a.turns}", file=sys.stderr, flush=True)
    for side in sides:
        side.end()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    result = {
        "part": name,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "sides": [{"name": side.name, "versions": side.about} for side in sides],
        "turns": turns,
    }
    with open(os.path.join(a.out, f"{name}.json"), "w") as file:
        json.dump(result, file)
        file.write("\n")
    print(table(f"## {name}\n\n{PARTS[name].__doc__}", sides, turns))
    print(f"\n{result['date']}, commit {commit}, {result['machine']}, {a.turns} turns.", *(f"{s.name}: {s.about}." for s in sides), "\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--turns", type=int, default=5)
    for name in ("fourbit", "inferena", "model", "gguf", "python", "node", "burn", "out"):
        parser.add_argument(f"--{name}")
    a = parser.parse_args()
    os.makedirs(a.out, exist_ok=True)
    for name in a.parts:
        measure(name, a)


if __name__ == "__main__":
    main()
