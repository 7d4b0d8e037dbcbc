#!/usr/bin/env python3
"""What bitsandbytes' LLM.int8() makes of inputs with outliers, on the CPU: makes `tests/golden/llm_int8.safetensors`.

    python scripts/make_llm_int8_golden.py

Keys: "weight" I8 [out, in] and "SCB" F32 [out], the largest magnitude of each row; "<case>/x" F32 [rows, in], numbers that halves
hold; "<case>/codes" I8 [rows, in], "<case>/absmax" F32 [rows] and "<case>/columns" I64, those with outliers, of
int8_vectorwise_quant; "<case>/y" F32 [rows, out] of int8_mixed_scaled_mm. The threshold is 6.
"""
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import bitsandbytes
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden", "llm_int8.safetensors")
ROWS, IN, OUTPUTS, THRESHOLD = 12, 48, 5, 6.0

generator = torch.Generator().manual_seed(11)
randn = lambda *shape: torch.randn(*shape, generator=generator)
weight, scb, _ = F.int8_vectorwise_quant((0.2 * randn(OUTPUTS, IN)).half())
plain = randn(ROWS, IN)
outliers = plain.clone()
# Columns with one outlier, whose other numbers are their rows' largest, and one that lies on the threshold.
outliers[2, 7], outliers[:2, 7], outliers[3:, 7] = -40.0, 5.5, 4.75
outliers[5, 20], outliers[8, 20] = 6.0, -5.99
outliers[9] = 7.5  # a row of nothing but outliers
only = torch.full((ROWS, IN), 0.0)
only[4, 3] = 1e3
one = outliers[2:3].clone()
tensors = {"weight": weight, "SCB": scb}
for name, x in dict(plain=plain, few=torch.cat([outliers[:9], outliers[10:]]), all=outliers, only=only, one=one).items():
    x = x.half()
    codes, absmax, columns = F.int8_vectorwise_quant(x.clone(), threshold=THRESHOLD)
    y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, codes, weight, absmax, scb, columns, None)
    parts = dict(x=x.float(), codes=codes, absmax=absmax, columns=columns, y=y.float())
    tensors.update({f"{name}/{key}": value.contiguous() for key, value in parts.items()})
save_file(tensors, OUT, metadata={"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__})
