#!/usr/bin/env python3
"""Writes tests/golden/gguf/blocks.safetensors: GGUF blocks, and what the package `gguf` makes of them.

    pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    python scripts/make_gguf_golden.py [tests/golden/gguf [LIBRARY.so]]

Deterministic: fixed seeds, no timestamps. The library is llama.cpp's (libggml-base.so, or xllamacpp.abi3.so of the package
xllamacpp 2026.10.11549: both gave the same file); without it the errors of its encoder are taken over from the old file.

    <type>/bytes    blocks of random bits (the f16 scales are finite), u8 [blocks, bytes of a block]
    <type>/values   gguf.quants.dequantize of them, f32 [blocks, elements of a block]
    encode/x        rows to be encoded, f32 [rows, 256]
    <type>/encoded  gguf.quants.quantize of them, for the types that the package can write
    <type>/rmse     root of the mean squared error that llama.cpp's encoder leaves on hashed_rows(), f32 [1]
"""
import ctypes
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/gguf"
LIBRARY = sys.argv[2] if len(sys.argv) > 2 else None
# Where the f16 scales of a block lie.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
}
ENCODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def random_blocks(name, seed):
    """Every bit of codes and integers is random; scales are f16 of many magnitudes, both signs, subnormals and zeros."""
    rng = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[Type[name]]
    count = 96 if elements == 32 else 20
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = (rng.choice([-1.0, 1.0], count) * 2.0 ** rng.uniform(-20, 6, count)).astype(np.float16)
        scales[0], scales[1], scales[2] = 0.0, np.float16(6e-8), np.float16(65504)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def rows():
    """Rows of 256 that are easy to get wrong."""
    rng = np.random.default_rng(7)
    x = rng.normal(0, 0.05, (24, 256)).astype(np.float32)
    x[0] = 0.0
    x[1] = -0.0
    x[2] = 0.7
    x[3] = -0.7
    x[4, ::37] = 1e4
    x[5, 128] = -1e4
    x[6] *= 1e-20
    x[7] *= 1e-5
    x[8] = np.abs(x[8])
    x[9] = -np.abs(x[9])
    x[10] = np.arange(256) * 0.5 - 64  # many ties
    x[11] = np.tile(np.linspace(-1, 1, 32, dtype=np.float32), 8)
    x[12, :128] = 0.0
    x[13] *= 2.0 ** (np.arange(256) // 16 - 8.0)
    x[14] = rng.choice([-1.0, 1.0], 256)
    x[15, 1:] = 0.0
    x[16] += 5.0
    x[17] -= 5.0
    x[18] = rng.standard_t(2, 256) * 0.02
    return x.astype(np.float32)


def hashed_rows():
    """128 rows of 256, about normal: sums of the four bytes of a hashed counter, exact in f32 and easy to make again."""
    i = np.arange(128 * 256, dtype=np.uint32)
    i = (i ^ (i >> 16)) * np.uint32(0x45D9F3B)
    i = (i ^ (i >> 16)) * np.uint32(0x45D9F3B)
    i ^= i >> 16
    return ((i.view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.int32) - 510) / 4096).astype(np.float32).reshape(-1, 256)


def rmse_of_llama_cpp(library, name):
    """The encoder that llama_model_quantize calls for each row, without an importance matrix."""
    x = hashed_rows()
    elements, size = gguf.GGML_QUANT_SIZES[Type[name]]
    blocks = np.zeros((x.size // elements, size), dtype=np.uint8)
    longs = [ctypes.c_int64(v) for v in (0, x.shape[0], x.shape[1])]
    library.ggml_quantize_chunk(int(Type[name]), x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), *longs, None)
    error = gguf.quants.dequantize(blocks, Type[name]).astype(np.float64).ravel() - x.ravel()
    return np.sqrt(np.mean(error**2, keepdims=True)).astype(np.float32)


def main():
    tensors = {"encode/x": rows()}
    for seed, name in enumerate(SCALES):
        blocks = random_blocks(name, seed)
        tensors[f"{name}/bytes"] = blocks
        tensors[f"{name}/values"] = gguf.quants.dequantize(blocks, Type[name])
    for name in ENCODED:
        tensors[f"{name}/encoded"] = gguf.quants.quantize(tensors["encode/x"], Type[name])
    library = LIBRARY and ctypes.CDLL(LIBRARY)
    old = {} if library else load_file(f"{OUT}/blocks.safetensors")
    for name in SCALES:
        key = f"{name}/rmse"
        tensors[key] = rmse_of_llama_cpp(library, name) if library else old[key]
    os.makedirs(OUT, exist_ok=True)
    path = f"{OUT}/blocks.safetensors"
    save_file(dict(sorted(tensors.items())), path)
    os.chmod(path, 0o644)


main()
