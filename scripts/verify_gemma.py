"""Compares fourbit with transformers and llama.cpp on the real weights of Gemma 3 270M (`scripts/models.sh gemma3`).

    python scripts/verify_gemma.py [--only perplexity,training,tokens,rows,greedy] [--text FILE] [--fourbit target/release/fourbit]

perplexity  of the first 2048 tokens of a text in windows of 1024 without BOS, within 0.1 % of transformers on the dequantized weights.
            Both get the ids that the published tokenizer.json gives: transformers cuts runs of more than 31 blanks otherwise when it
            reads the tokenizer out of the GGUF file.
training    20 steps of QLoRA (NF4, double-quantized): the loss falls below a quarter of the first step's.
greedy      the continuations of prompts, BOS in front, are llama.cpp's, of the file and of its values as f32: see verify_gguf.py.
tokens      llama.cpp's ids of the texts of tests/golden/tokenizers.json are transformers'; the test of tests/tokenizers.rs compares
            fourbit's ids with the same hashes.
rows        a tokenizer with an entry beyond the embedding's rows (<image_soft_token>) is taken, with one note; a row of data that uses
            the entry is refused.

Needs the command built in target/release, and the packages of scripts/requirements.txt. A check that fails ends the script with status 1.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_template_golden import digest
from verify_gguf import check_greedy

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEATURES = ["--features", "naga/spv-out,naga/msl-out,naga/hlsl-out"]
TOKENS, WINDOW, STEPS = 2048, 1024, 20
IMAGE = "<image_soft_token>"
failures = 0


def check(name, ok, said):
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'}  {name}: {said}", flush=True)


def script(name, *more):
    return subprocess.run([ROOT / "scripts" / name, *more], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def fourbit(*arguments, fails=False):
    """The line of JSON that the command prints, or where it must fail, what it says; and its stderr."""
    run = subprocess.run([args.fourbit, *map(str, arguments), "--json"], capture_output=True, text=True)
    if (run.returncode != 0) != fails:
        sys.exit(f"fourbit {arguments[0]} ended with {run.returncode}:\n{run.stderr}")
    return None if fails else json.loads(run.stdout.splitlines()[-1]), run.stderr


def published():
    return pathlib.Path(script("tokenizers.sh")) / "gemma3"


def perplexity(gguf):
    ours, _ = fourbit("evaluate", "--model", gguf, "--data", args.text, "--max-tokens", TOKENS, "--max-seq-length", WINDOW)
    ids = AutoTokenizer.from_pretrained(published())(args.text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids[:TOKENS]
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    losses = []
    with torch.no_grad():
        for at in range(0, len(ids), WINDOW):
            window = torch.tensor([ids[at : at + WINDOW]])
            losses.append(model(window, labels=window).loss.item())
    theirs = math.exp(sum(losses) / len(losses))
    apart = abs(ours["perplexity"] / theirs - 1)
    check("perplexity", apart < 1e-3 and len(ids) == TOKENS, f"{ours['perplexity']:.3f}, transformers {theirs:.3f} ({apart:.2e} apart, bound 1e-3)")


def rows_of_text(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def training(gguf, work):
    words = "river stone window paper morning garden bread copper winter candle harbour meadow".split()
    pairs = ((words[n % 12], words[(n * 5 + 1) % 12]) for n in range(40))
    data = rows_of_text(work / "rows.jsonl", (f"Q: Which of {a} and {b} comes first? A: The {a}, matey, and then the {b}!" for a, b in pairs))
    _, _ = fourbit("finetune", "--model", gguf, "--data", data, "--quantization", "nf4", "--double-quant", "--max-seq-length", 32,
                   "--max-steps", STEPS, "--learning-rate", 1e-3, "--output", work / "adapter")
    log = json.loads((work / "adapter/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    first, last = losses[0], sum(losses[-4:]) / 4
    check("training", last < first / 4, f"loss {first:.3f} -> {last:.3f} (mean of the last 4 of {STEPS} steps; bound: a quarter)")


def greedy(gguf):
    global failures
    failures += check_greedy(str(gguf), args.fourbit)


def tokens(gguf):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.verbosity, params.warmup = str(gguf), 256, 0, -1, False
    server = xllamacpp.Server(params)

    def ids(text, special):
        body = json.dumps({"content": text, "add_special": special, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        return " ".join(map(str, json.load(urllib.request.urlopen(request))["tokens"]))

    golden = json.loads((ROOT / "tests/golden/tokenizers.json").read_text(encoding="utf-8"))
    compared, others = 0, []
    for text, hashes in zip(golden["texts"], golden["tokenizers"]["gemma3"]["texts"]):
        # As in tests/tokenizers.rs; and a text of no characters, one with NUL and one that begins with BOS are not the tokenizer's matter.
        if IMAGE in text or " \u2581" in text or "\u2581\u2581" in text or not text or "\0" in text or text.startswith("<bos>"):
            continue
        compared += 1
        if [digest(ids(text, True)), digest(ids(text, False))] != hashes[:2]:
            others.append(text)
    check("tokens, llama.cpp", not others and compared > 270, f"{compared} texts, {len(others)} with other ids {others[:5]}")
    check("tokens, a sign for a blank", ids(" \u2581a", True) == "2 236743 496", ids(" \u2581a", True))
    environment = {**os.environ, "FOURBIT_GEMMA3": str(gguf), "FOURBIT_TOKENIZERS": str(published().parent)}
    command = ["cargo", "test", "-q", "--release", *FEATURES, "--test", "tokenizers"]
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    check("tokens, fourbit", run.returncode == 0, "tests/tokenizers.rs")


def rows(work):
    folder = work / "model"
    config = transformers.Gemma3TextConfig(vocab_size=262144, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                           num_attention_heads=1, num_key_value_heads=1, head_dim=32, max_position_embeddings=64)
    transformers.Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published() / file, folder / file)
    run = ["finetune", "--model", folder, "--max-steps", 2, "--max-seq-length", 16, "--output", work / "out"]
    _, said = fourbit(*run, "--data", rows_of_text(work / "good.jsonl", ["one two", "three four"]))
    noted = [line for line in said.splitlines() if "262145" in line or IMAGE in line]
    check("rows, the entry is told", len(noted) == 1, noted)
    _, said = fourbit(*run, "--data", rows_of_text(work / "bad.jsonl", ["one two", f"three {IMAGE} four"]), fails=True)
    check("rows, its use is refused", "262144" in said, said.strip().splitlines()[-1])


def main():
    gguf = pathlib.Path(script("models.sh", "gemma3"))
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        checks = {"perplexity": lambda: perplexity(gguf), "training": lambda: training(gguf, work), "tokens": lambda: tokens(gguf),
                  "rows": lambda: rows(work), "greedy": lambda: greedy(gguf)}
        for name in args.only or checks:
            checks[name]()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda names: names.split(","))
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "ARCHITECTURE.md")
    parser.add_argument("--fourbit", default=str(ROOT / "target/release/fourbit"))
    args = parser.parse_args()
    main()
