"""Takes many steps on the embedded model and watches what grows: resident memory, threads, open files, what is on the disk, and the
processor's time per step.

    scripts/verify_long.py [--steps 10000]

Threads and files of the last tenth of the run may not exceed those of its second tenth, each by its median, and memory by no more
than 1 KiB for each step between: the records, which trainer_state.json lists. Time is printed and not judged. Needs the command built in
target/release, and Linux.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOURBIT = os.environ.get("FOURBIT", ROOT / "target/release/fourbit")
TICK = os.sysconf("SC_CLK_TCK")


def sample(pid, log):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return {
        "step": log.read_bytes().count(b"\n") if log.exists() else 0,
        "kib": int(fields["VmRSS"].split()[0]),
        "threads": int(fields["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "seconds": (int(stat[11]) + int(stat[12])) / TICK,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "out"
        words = [FOURBIT, "finetune", "--output", output, "--max-steps", str(steps), "--max-seq-length", "32", "--batch-size", "1"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples = []
        while process.poll() is None:
            try:
                samples.append(sample(process.pid, output / "trainer_log.jsonl"))
            except (FileNotFoundError, ProcessLookupError, KeyError):
                break
            time.sleep(1)
        assert process.wait() == 0, process.returncode
        written = {path.name: path.stat().st_size for path in output.iterdir() if path.is_file()}
        tenth = steps // 10
        worst = {}
        for number in range(10):
            within = [s for s in samples if number * tenth <= s["step"] < (number + 1) * tenth]
            first, last = within[0], within[-1]
            most = {key: int(statistics.median(s[key] for s in within)) for key in ("kib", "threads", "files")}
            each = (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
            print(
                f"steps {number * tenth}-{(number + 1) * tenth}: {most['kib']} KiB, {most['threads']} threads, {most['files']} files, "
                f"{1000 * each:.1f} ms of the processor a step",
                flush=True,
            )
            worst[number] = most
        print(json.dumps(written))
        early, late = worst[1], worst[9]
        grown = [key for key in ("threads", "files") if late[key] > early[key]]
        grown += ["kib"] * (late["kib"] > early["kib"] + 8 * tenth)
        sys.exit(f"grown: {grown}" if grown else 0)


if __name__ == "__main__":
    main()
