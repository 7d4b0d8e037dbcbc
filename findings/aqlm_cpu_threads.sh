#!/usr/bin/env bash
# aqlm's product on the processor gives another answer each time it runs on more than one thread.
#
# One would guess: `pip install aqlm[cpu]` makes models of two code books of 256 vectors (2x8) run on processors, with the same
# logits however many threads there are; what rounding does in another order would be in the seventh digit.
# What is real: the numba kernel of 1.1.7 spreads the input groups over threads with `prange`, and every thread adds to the same
# elements of the output. numba makes a private copy for sums into scalars and whole arrays, not for `out[i] += ...`, so additions
# are lost: with four threads more than half of the products are off, by up to half of the largest number. One thread is right.
# Nothing warns; transformers runs AQLM models on processors through this kernel, with as many threads as numba finds.
#
# Seen 2026-11-28: aqlm 1.1.7, numba 0.66.0, torch 2.15.0, Python 3.11: 1 thread 0 of 400 products wrong, 2 threads 38, 4 threads 226.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 numpy==2.4.6 numba==0.66.0 scipy==1.17.1 \
  transformers==5.23.0 accelerate==1.15.0 aqlm==1.1.7

cat >"$place/product.py" <<'PY'
import importlib.metadata, sys
import numba, torch
from aqlm.inference_kernels.numba_kernel import numba_gemm_lut

torch.manual_seed(0)
inputs, outputs, runs = 1024, 256, 400
codebooks = torch.randn(2, 256, 1, 8)
codes = torch.randint(-128, 128, (inputs // 8, outputs, 2), dtype=torch.int8)  # [input group, output, code book]
scales, x = torch.ones(outputs, 1, 1, 1), torch.randn(1, inputs)
index = codes.view(torch.uint8).long()
weight = (codebooks[0, index[..., 0], 0] + codebooks[1, index[..., 1], 0]).permute(1, 0, 2).reshape(outputs, inputs)
right = x @ weight.T
print("aqlm", importlib.metadata.version("aqlm"), "numba", numba.__version__)
wrong = {}
for threads in (1, 4):
    numba.set_num_threads(threads)
    products = (numba_gemm_lut(x, codes, codebooks, scales, None) for _ in range(runs))
    off = [((y - right).abs().max() / right.abs().max()).item() for y in products]
    wrong[threads] = sum(o > 1e-4 for o in off)
    print(f"{threads} threads: {wrong[threads]} of {runs} products wrong, the worst by {max(off):.1e} of the largest number")
sys.exit(not (wrong[1] == 0 and wrong[4] > 0))
PY
NUMBA_NUM_THREADS=4 "$place/venv/bin/python" -W ignore "$place/product.py" || { echo "this changed"; exit 1; }
