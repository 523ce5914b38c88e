#!/usr/bin/env python3
"""Writes kernels/testdata/quant/*.bin: blocks of each format and their values.

The oracle is the Python package `gguf` (0.19.0), whose gguf.quants decodes and,
for the formats with a published rounding, encodes with numpy in f32.

Each file: u32 columns to decode, u32 columns to encode (0 for formats whose
encoding is a search), blocks, their values as f32, values as f32, their blocks.
Run from the repository root: python3 tools/goldens/make_quant_goldens.py
"""
import pathlib
import struct

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type

OUT = pathlib.Path("kernels/testdata/quant")

# Offsets of the f16 scales in a block.
SCALES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "iq4_nl": [0], "mxfp4": [], "q2_k": [80, 82], "q3_k": [108],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_xs": [0],
}
ENCODED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
# Largest, smallest normal, subnormals, zeros, infinities, NaN.
EXTREMES = [0x7BFF, 0xFBFF, 0x0400, 0x0001, 0x83FF, 0x0000, 0x8000, 0x7C00,
            0xFC00, 0x7E00]


def type_of(name):
    return getattr(Type, name.upper() if name[0] != "m" else "MXFP4")


def blocks_of(name, rng):
    size, num_bytes = GGML_QUANT_SIZES[type_of(name)]
    count = 40 if size == 32 else 14
    blocks = rng.integers(0, 256, (count, num_bytes), dtype=np.uint8)
    offsets = SCALES[name]
    for i in range(count):
        for at in offsets:
            scale = np.float16(rng.normal() * 0.01)
            blocks[i, at:at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
        if offsets and i < len(EXTREMES):
            at = offsets[i % len(offsets)]
            blocks[i, at:at + 2] = np.frombuffer(
                struct.pack("<H", EXTREMES[i]), np.uint8)
    if name == "mxfp4":
        blocks[:8, 0] = [0, 1, 2, 3, 127, 128, 254, 255]
    return blocks


def values_to_encode(rng):
    rows = [rng.normal(size=32) * 0.02 for _ in range(20)]
    rows += [rng.laplace(size=32) * s for s in (1e-6, 1e-3, 1.0, 100.0)]
    rows.append(np.zeros(32))
    rows.append(np.full(32, 0.25))
    rows.append(np.full(32, -0.25))
    rows.append(np.arange(32) - 16.0)          # Ties.
    rows.append((np.arange(32) - 15.5) / 2.0)
    rows.append(np.abs(rng.normal(size=32)))
    rows.append(np.concatenate([[127.0], np.arange(31) + 0.5]))
    rows.append(np.concatenate([[-127.0], -np.arange(31) - 0.5]))
    return np.concatenate(rows).astype(np.float32)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in SCALES:
        rng = np.random.default_rng(sum(map(ord, name)))
        blocks = blocks_of(name, rng)
        with np.errstate(all="ignore"):
            values = quants.dequantize(blocks, type_of(name)).astype(np.float32)
        x = values_to_encode(rng) if name in ENCODED else np.zeros(0, np.float32)
        encoded = (quants.quantize(x.reshape(1, -1), type_of(name)).tobytes()
                   if x.size else b"")
        with open(OUT / f"{name}.bin", "wb") as f:
            f.write(struct.pack("<II", values.size, x.size))
            f.write(blocks.tobytes())
            f.write(values.tobytes())
            f.write(x.tobytes())
            f.write(encoded)


main()
