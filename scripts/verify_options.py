"""Gives every option that takes a number values at the ends of what numbers can be, and looks for commands that end by a signal, panic,
take more than 12 GB, or do not end.

    scripts/verify_options.py [COMMAND ...]

Each run has 20 seconds. Those that are asked for more work than that are named, and no fault: `--max-steps 4294967296`. Needs the command
built in target/release.
"""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOURBIT = os.environ.get("FOURBIT", ROOT / "target/release/fourbit")
MODEL, TEXT = ROOT / "tests/golden/tiny/model", ROOT / "assets/embedded/train.jsonl"
VALUES = ["0", "4294967296", "1000000000000", "18446744073709551615"]
# Work of a second that each option is added to; what it has already is replaced.
COMMANDS = {
    "plan": [],
    "finetune": ["--output", "OUT", "--max-steps", "1"],
    "evaluate": ["--data", TEXT, "--max-tokens", "32"],
    "generate": ["--prompt", "hi", "--max-new-tokens", "4"],
    "quantize": [MODEL, "--output", "OUT", "--method", "awq", "--group-size", "16", "--calibration", "ROWS", "--calibration-samples", "4"],
    "calibrate": [MODEL, "--calibration", "ROWS", "--calibration-samples", "4", "--calibration-length", "16"],
}
SECONDS, BYTES = 20, 12 << 30


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def main():
    faults = runs = 0
    for command in sys.argv[1:] or COMMANDS:
        text = subprocess.run([FOURBIT, command, "--help"], capture_output=True, text=True, check=True).stdout
        for option in re.findall(r"(--[a-z0-9-]+) <(?:N|R|A|X|T|D|P|BYTES|SECONDS)>", text):
            for value in VALUES:
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    ids = [list(range(3 + row, 23 + row)) for row in range(6)]
                    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in ids))
                    paths = {"OUT": folder / "out", "ROWS": folder / "rows.jsonl"}
                    words = [paths.get(word, word) for word in COMMANDS[command]]
                    # One option may stand in the place of another.
                    for taken in [option] + ["--max-steps"] * (option == "--num-train-epochs"):
                        if taken in words:
                            del words[words.index(taken) : words.index(taken) + 2]
                    begun = time.time()
                    try:
                        done = subprocess.run(
                            [FOURBIT, command, *words, option, value], capture_output=True, text=True, timeout=SECONDS, preexec_fn=limited
                        )
                    except subprocess.TimeoutExpired:
                        print(f"long   {command} {option} {value}", flush=True)
                        continue
                    runs += 1
                    if done.returncode < 0 or done.returncode > 2 or "panicked" in done.stderr:
                        faults += 1
                        print(f"FAULT  {command} {option} {value}: status {done.returncode} after {time.time() - begun:.1f} s: {done.stderr[-300:]}", flush=True)
    print(f"{runs} runs ended, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
