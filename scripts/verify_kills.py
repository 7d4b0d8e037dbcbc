"""Kills runs of fine-tuning and quantizing at random moments and inside random renames, resumes them, and compares what they leave, byte for byte,
with a run that was never stopped.

    scripts/verify_kills.py [--kills 30] [--seed 1]

Half of the kills are SIGKILL at a random time, start-up included; half are an abort right before a random file or folder takes or
loses its name (FOURBIT_DIE_AT). A run that was resumed may be killed again. Needs the command built in target/release.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOURBIT = ROOT / "target/release/fourbit"
# The embedded model and data; fine-tuning saves every third step, quantizing each block.
QUANTIZE = ["quantize", ROOT / "assets/embedded", "--calibration", ROOT / "assets/embedded/train.jsonl", "--calibration-samples", "8"]
QUANTIZE += ["--calibration-length", "64", "--finetune-epochs", "1", "--method"]
RUNS = {
    "adapter": ["--max-steps", "14"],
    "adapter, dropout": ["--max-steps", "12", "--lora-dropout", "0.1", "--gradient-accumulation-steps", "2", "--logging-steps", "5"],
    "weights through rounding": ["--max-steps", "10", "--qat", "int4-g64", "--full"],
    "learned ranges": ["--max-steps", "8", "--qat", "int4-g64", "--qat-ranges", "learned", "--qat-activations", "static"],
    "code books of blocks": [*QUANTIZE, "aqlm", "--finetune-blocks", "3"],
    "signs of blocks": [*QUANTIZE, "quip", "--finetune-blocks", "2"],
}


def command(options, output, *more):
    if options[0] != "quantize":
        options = ["finetune", "--save-steps", "3", *options]
    return [FOURBIT, *options, "--output", output, *more]


def timeless(record):
    return {key: value for key, value in record.items() if key not in ("tokens_per_second", "peak_bytes")}


def left(output):
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir() if path.is_file()}
    if "trainer_log.jsonl" not in files:
        return {"files": files}
    # The manifest has the digest of the state, in which times are.
    del files["trainer_log.jsonl"], files["trainer_state.json"], files["fourbit_manifest.json"]
    log = [timeless(json.loads(line)) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    state = json.loads((output / "trainer_state.json").read_text())
    assert [timeless(record) for record in state.pop("log_history")] == log, "the log is the history"
    return {"files": files, "log": log, "state": state}


def start(words, seconds=None, die_at=None):
    """Runs a command, killed after so many seconds or at that rename; its status and the end of what it said."""
    environment = dict(os.environ, **({} if die_at is None else {"FOURBIT_DIE_AT": str(die_at)}))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1]
    return process.returncode, said[-500:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    randomly = random.Random(arguments.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for number, (name, options) in enumerate(RUNS.items()):
            begun = time.time()
            status, said = start(command(options, folder / "whole"))
            assert status == 0, said
            length = time.time() - begun
            wanted = left(folder / "whole")
            share = arguments.kills * (number + 1) // len(RUNS) - arguments.kills * number // len(RUNS)
            kills = runs = wrong = 0
            while kills < share:
                runs += 1
                output = folder / "killed"
                status = -1
                while status < 0:
                    how = randomly.random()
                    words = command(options, output, "--resume")
                    if kills >= share:
                        status, said = start(words)
                    elif how < 0.5:
                        status, said = start(words, seconds=randomly.uniform(0, length))
                    else:
                        status, said = start(words, die_at=randomly.randint(1, 40))
                    kills += status < 0
                if status != 0:
                    print(f"{name}: status {status}: {said}", file=sys.stderr)
                same = status == 0 and left(output) == wanted
                wrong += not same
                names = [path.name for path in [*output.iterdir(), *folder.iterdir()]]
                hidden = [name for name in names if name.startswith(".") or name.endswith(".blocks")]
                if hidden:
                    print(f"{name}: left {hidden}", file=sys.stderr)
                    wrong += same
                shutil.rmtree(output)
            shutil.rmtree(folder / "whole")
            print(f"{name}: {kills} kills in {runs} runs of {length:.1f} s, {wrong} differ", flush=True)
            failures += wrong
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
