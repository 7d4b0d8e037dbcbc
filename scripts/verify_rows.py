#!/usr/bin/env python3
"""Memory of `fourbit plan` and `fourbit finetune` on a data set of any size: they stream rows, and keep an index.

    python3 scripts/verify_rows.py [--bytes 1e9] [--kind ids|text] [--fourbit target/release/fourbit] [--most 300]

Writes rows for the model that is part of fourbit beside the temporary files, runs both, and prints their time and the most memory
that each was resident with. Fails beyond --most MB.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--bytes", type=float, default=1e9)
parser.add_argument("--kind", choices=["ids", "text"], default="ids")
parser.add_argument("--fourbit", default="target/release/fourbit")
parser.add_argument("--most", type=float, default=300, help="MB")
args = parser.parse_args()

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
chats = open(os.path.join(root, "assets", "embedded", "train.jsonl"), encoding="utf-8").read().splitlines()
rng = random.Random(0)


def row():
    if args.kind == "text":
        return rng.choice(chats) + "\n"
    ids = [rng.randrange(1024) for _ in range(64)]
    return json.dumps({"input_ids": ids, "labels": ids}) + "\n"


with tempfile.TemporaryDirectory() as folder:
    data = os.path.join(folder, "rows.jsonl")
    block = "".join(row() for _ in range(20_000))
    rows, size = 0, 0
    with open(data, "w", encoding="utf-8") as file:
        while size < args.bytes:
            size += file.write(block)
            rows += 20_000
    failed = False
    for command in (["plan"], ["finetune", "--max-steps", "2", "--output", os.path.join(folder, "out")]):
        begin = time.time()
        process = subprocess.Popen([args.fourbit, *command, "--data", data], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        print(f"{command[0]}: {size / 1e6:.0f} MB, {rows} rows of {args.kind}: {peak:.0f} MB, {time.time() - begin:.0f} s")
        failed |= status != 0 or peak > args.most
    sys.exit(failed)
