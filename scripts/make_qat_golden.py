#!/usr/bin/env python3
"""Writes tests/golden/qat.safetensors: torch's learnable fake quantization with the gradients of numbers and steps.

    python scripts/make_qat_golden.py      needs torch and safetensors; runs on CPU

For each case `{bits}/per_{tensor,channel}`: scale, zero_point, fake, grad_x, grad_scale, factor [1], all f32.
Codes are 0..2^bits - 1, those of 8 bits -128..127.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(7)
x = torch.randn(12, 32, generator=generator) * 0.7 + 0.2
x[0, :4], x[5] = torch.tensor([9.0, -9.0, 4.0, -4.0]), 0
upstream = torch.randn(12, 32, generator=generator)
tensors = {"x": x, "upstream": upstream}

for bits in (2, 3, 4, 8):
    low = -128 if bits == 8 else 0
    high = low + 2**bits - 1
    peak = 2 ** (bits - 1) - 1
    for per in ("tensor", "channel"):
        ranges = x.abs().max() if per == "tensor" else x.abs().amax(1)
        # Half of the range, so that numbers are clamped at both ends; a row of zeros has a step of its own.
        scale = (0.5 * ranges / (peak + 0.5)).clamp(min=1e-3).reshape(-1)
        # Off the middle by one in every second channel.
        zero = torch.full_like(scale, low + 2 ** (bits - 1)) - (torch.arange(len(scale)) % 2).float()
        xs, ss, zs = (t.clone().requires_grad_() for t in (x, scale, zero))
        block = x.numel() if per == "tensor" else x.shape[1]
        factor = 1.0 if bits == 8 else (block * peak) ** -0.5
        if per == "tensor":
            y = torch._fake_quantize_learnable_per_tensor_affine(xs, ss, zs, low, high, factor)
        else:
            y = torch._fake_quantize_learnable_per_channel_affine(xs, ss, zs, 0, low, high, factor)
        (y * upstream).sum().backward()
        values = {"scale": scale, "zero_point": zero, "fake": y.detach(), "grad_x": xs.grad, "grad_scale": ss.grad,
                  "factor": torch.tensor([factor])}
        tensors.update({f"{bits}/per_{per}/{name}": value.contiguous() for name, value in values.items()})

path = Path(__file__).resolve().parent.parent / "tests/golden/qat.safetensors"
save_file(tensors, path)
print(f"{path}: {path.stat().st_size} bytes, torch {torch.__version__}")
