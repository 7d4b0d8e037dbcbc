"""Runs the kernels' tests, self-tests, every bench and steps of three shapes on this machine's GPU, and writes one JSON file.

    python3 run.py [--quick] [--only PART ...] [--output results.json]

Made by scripts/gpu.sh, and needs nothing but Python 3 and a Vulkan driver. The file is written after each part, so that it is there
whatever fails; a part that fails does not stop the next one.
"""
import argparse
import ctypes.util
import glob
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
FOURBIT, KERNELS = HERE / "fourbit", HERE / "kernels"
# Shapes of which a step is measured, and whether activations are computed again in its backward pass.
STEPS = {"smollm2-135m": False, "llama-3.2-1b": False, "llama-2-7b": True}
FAMILIES = ["product", "adapter", "attention", "layers", "loss", "optimizer", "quantize", "rounding", "method"]
# The filters of a rehearsal.
QUICK = {"product": "product/y/nf4-g64/256", "layers": "layers/norm/"}
# Where drivers of machines for computing are, which a loader does not look at by itself.
DRIVERS = ["/usr/local/nvidia/share/vulkan/icd.d/*.json", "/usr/share/vulkan/icd.d/nvidia*.json", "/etc/vulkan/icd.d/nvidia*.json"]
TAIL = 4000


def environment(work):
    """With the folder's loader where the system has none, and with a driver's manifest where nobody has one."""
    env = {**os.environ, "REQUIRE_GPU": "1"}
    notes = []
    if not ctypes.util.find_library("vulkan"):
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, [str(HERE / "loader"), env.get("LD_LIBRARY_PATH")]))
        notes.append("the bundle's Vulkan loader is used: the system has none")
    chosen = any(name in env for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"))
    usual = glob.glob("/usr/share/vulkan/icd.d/*.json") + glob.glob("/etc/vulkan/icd.d/*.json")
    if not chosen and not any("nvidia" in path for path in usual):
        found = [path for pattern in DRIVERS for path in glob.glob(pattern)]
        library = ctypes.util.find_library("GLX_nvidia") or ctypes.util.find_library("EGL_nvidia")
        if found:
            env["VK_DRIVER_FILES"] = found[0]
            notes.append(f"the driver's manifest is {found[0]}")
        elif library:
            manifest = pathlib.Path(work) / "nvidia_icd.json"
            manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": {"library_path": library, "api_version": "1.3.0"}}))
            env["VK_DRIVER_FILES"] = str(manifest)
            notes.append(f"{library} has no manifest: one is made")
    return env, notes


def run(command, env, seconds):
    """What a part gives: its status, how long it took, the ends of its texts."""
    start = time.time()
    try:
        done = subprocess.run([str(word) for word in command], env=env, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=seconds)
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        text = lambda stream: (stream or b"").decode(errors="replace") if not isinstance(stream, str) else stream
        status, out, err = f"no end after {seconds} s", text(late.stdout), text(late.stderr)
    except OSError as error:
        status, out, err = str(error), "", ""
    return {"status": status, "seconds": round(time.time() - start, 1), "stderr": err[-TAIL:]}, out


def json_of(command, env, seconds):
    part, out = run(command, env, seconds)
    try:
        part["result"] = json.loads(out)
    except ValueError:
        part["stdout"] = out[-TAIL:]
    return part


def kernels(env, quick):
    """The kernels' tests, each kernel against f64 or a specification on the host."""
    part, out = run([KERNELS, *(["norm", "random", "roofline"] if quick else [])], env, 3600)
    part["passed"] = len(re.findall(r"^test .* ok$", out, re.M))
    part["failed"] = re.findall(r"^test (.*) \.\.\. FAILED$", out, re.M)
    if part["failed"]:
        part["stdout"] = out[-5 * TAIL:]
    return part


def finetune(env, quick):
    """The embedded model learns the embedded rows: the losses are those of every other device within rounding."""
    with tempfile.TemporaryDirectory() as work:
        output = os.path.join(work, "adapter")
        part = json_of([FOURBIT, "finetune", "--output", output, "--max-steps", "3" if quick else "40", "--json"], env, 1800)
        log = os.path.join(output, "trainer_state.json")
        if os.path.exists(log):
            part["log"] = json.loads(pathlib.Path(log).read_text())["log_history"]
    return part


def report(env):
    """What `fourbit devices --report` says, self-tests included."""
    part, out = run([FOURBIT, "devices", "--report"], env, 900)
    return {**part, "stdout": out[-5 * TAIL:]}


def lora_step(env, shape, tokens, checkpointing):
    """A step of LoRA in bf16 by torch and peft, of the same shape."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": "left out", "missing": missing}
    return json_of([sys.executable, HERE / "lora_step.py", shape, tokens, *(["--checkpointing"] if checkpointing else [])], env, 1800)


def parts(env, quick):
    """Names, and what runs each."""
    rounds, tokens = ("1", "64") if quick else ("5", "512")
    bench = [FOURBIT, "bench", "--json", "--repeat", rounds]
    small = ["--shape", "smollm2-135m"] if quick else []
    yield "devices", lambda: json_of([FOURBIT, "devices", "--json"], env, 300)
    yield "report", lambda: report(env)
    yield "kernels", lambda: kernels(env, quick)
    yield "finetune", lambda: finetune(env, quick)
    yield "limits", lambda: json_of([*bench, "limits"], env, 600)
    for family in QUICK if quick else FAMILIES:
        words = [QUICK[family] if quick else f"{family}/", *small]
        yield f"bench {family}", lambda words=words: json_of([*bench, *words], env, 3600)
    for shape, checkpointing in STEPS.items():
        if quick and shape != "smollm2-135m":
            continue
        words = ["model/", "--shape", shape, "--max-seq-length", tokens, "--double-quant", *(["--gradient-checkpointing"] if checkpointing else [])]
        yield f"model {shape}", lambda words=words: json_of([*bench, *words], env, 3600)
        yield f"torch {shape}", lambda shape=shape, checkpointing=checkpointing: lora_step(env, shape, tokens, checkpointing)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts of names of parts")
    parser.add_argument("--output", default=HERE / "results.json", type=pathlib.Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        env, notes = environment(work)
        system = {"system": platform.platform(), "cores": os.cpu_count(), "notes": notes}
        results = {"schema": 1, "commit": (HERE / "commit").read_text().strip(), **system, "quick": asked.quick, "parts": {}}
        failed = []
        for name, part in parts(env, asked.quick):
            if asked.only and not any(word in name for word in asked.only):
                continue
            print(f"{name} ...", end=" ", flush=True)
            try:
                results["parts"][name] = part()
            except Exception as error:  # whatever it is, the others run
                results["parts"][name] = {"status": repr(error)}
            status = results["parts"][name]["status"]
            print("ok" if status == 0 else status, flush=True)
            failed += [name] if status not in (0, "left out") else []
            whole = asked.output.with_suffix(".part")
            whole.write_text(json.dumps(results, indent=1))
            os.replace(whole, asked.output)
    print(f"{asked.output}: {len(results['parts'])} parts" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
