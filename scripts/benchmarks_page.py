"""Writes benches/results/README.md: the results that were shared, device beside device.

    fourbit bench --share benches/results/DEVICE.json    on a device: measures everything, and names nothing of its owner
    python scripts/benchmarks_page.py

Needs nothing but Python.
"""
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent / "benches/results"
HEAD = """# Results of `fourbit bench`, device beside device

Written by `scripts/benchmarks_page.py` out of the files in this folder, each made by `fourbit bench --share FILE`. A share is what a kernel
did of the device's own limit in the same rounds, operations or memory, whichever is nearer; where the device is the processor, times are
processor time over its cores. [docs/benchmarks.md](../../docs/benchmarks.md) says what is measured and how.
"""


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows), ""]


def main():
    files = {path.stem: json.loads(path.read_text()) for path in sorted(ROOT.glob("*.json"))}
    lines = [HEAD]
    devices = [[name, f["device"]["name"], f["device"]["driver"], f"{f['device']['system']}, {f['device']['cores']} cores", f["fourbit"], f"`{f['command']}`"] for name, f in files.items()]
    lines += table(["file", "device", "driver", "system", "fourbit", "command"], devices)
    lines.append("## Limits\n")
    units = {"gflops": "GFLOP/s multiply-add", "int8_gops": "Gop/s on packed bytes", "read_gb_per_second": "GB/s read", "copy_gb_per_second": "GB/s copied", "dispatch_us": "us a dispatch", "submit_us": "us a submit with its wait"}
    rows = [[unit, *(f"{f['limits'][key]:.1f}" if f["limits"] else "" for f in files.values())] for key, unit in units.items()]
    lines += table(["", *files], rows)
    lines.append("## Models\n")
    rows = []
    for name, f in files.items():
        for model in f["models"]:
            speed = lambda part: f"{model[part]['tokens'] / model[part]['seconds']:.1f}" if model[part] else ""
            size = "x".join(map(str, model["batch"]))
            rows.append([name, model["model"], model["scheme"], size, speed("step"), f"{model['peak_bytes'] / 2**20:.0f}", speed("pp512"), speed("tg128")])
    lines += table(["file", "model", "scheme", "step", "step, tokens/s", "MiB", "pp512, tokens/s", "tg128, tokens/s"], rows)
    families = dict.fromkeys(case["family"] for f in files.values() for case in f["cases"])
    for family in families:
        lines.append(f"## {family}\n")
        cases = {name: {case["case"]: case for case in f["cases"] if case["family"] == family} for name, f in files.items()}
        names = dict.fromkeys(case for of in cases.values() for case in of)

        def cell(case):
            if case is None or case["error"]:
                return "failed" if case else ""
            share = f", {100 * case['of_limit']:.0f} %" if case["of_limit"] is not None else ""
            return f"{1e3 * case['seconds']:.3g} ms{share}"

        lines += table(["case", *files], [[name, *(cell(of.get(name)) for of in cases.values())] for name in names])
    (ROOT / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
