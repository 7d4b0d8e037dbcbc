#!/usr/bin/env python3
"""Writes tests/golden/hqq/hqq.safetensors: what the hqq package (0.2.8) makes of a few weights on the CPU in fp32.

    pip install torch safetensors hqq==0.2.8.post1
    python scripts/make_hqq_golden.py [tests/golden/hqq]

Keys: "<case>/w" f32 [rows, cols]; "<case>/b<bits>/{codes,scale,zero}": codes u8 as w, scale and zero f32 per group of 64
along the rows (axis 1). A weight is (code - zero) * scale. Zero points of 4 bits start rounded, as the package's
configuration has it.
"""
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import save_file

torch.set_num_threads(1)
OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hqq"


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


cases = {"unit": randn(1, 12, 128), "small": 0.05 * randn(2, 12, 128), "tails": 0.1 * randn(3, 12, 128) ** 3}
cases["tails"][3] = 0.37  # constant rows, zeros, an outlier
cases["tails"][5] = 0.0
cases["tails"][7, 9] = 1e4
tensors = {}
for name, w in cases.items():
    tensors[f"{name}/w"] = w
    for bits in (8, 4, 3, 2):
        codes, meta = Quantizer.quantize(
            w.clone(), nbits=bits, group_size=64, axis=1, optimize=True, round_zero=bits == 4, bitpack=False,
            compute_dtype=torch.float32, device="cpu",
        )
        tensors[f"{name}/b{bits}/codes"] = codes.reshape(w.shape).round().to(torch.uint8)
        tensors[f"{name}/b{bits}/scale"] = meta["scale"].float().flatten()
        tensors[f"{name}/b{bits}/zero"] = meta["zero"].float().flatten()
os.makedirs(OUT, exist_ok=True)
save_file({k: v.contiguous().clone() for k, v in sorted(tensors.items())}, f"{OUT}/hqq.safetensors")
