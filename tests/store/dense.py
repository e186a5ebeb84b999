"""Dense safetensors files of any dtypes, as others may write them, and tensors with awkward bit patterns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gossamer.store.dtypes import BITS

U8 = npt.NDArray[np.uint8]


def random_bytes(seed: int, count: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def weights(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def as_bf16(x: npt.NDArray[np.float32]) -> U8:
    return np.ascontiguousarray(x.view(np.uint16).reshape(-1)[1::2]).view(np.uint8)


def write_dense(
    path: Path,
    tensors: Mapping[str, tuple[str, Sequence[int], bytes | U8]],
    *,
    metadata: Mapping[str, str] | None = None,
    blanks: int = 0,
) -> bytes:
    """Write (dtype, shape, bytes) by name in the order given; returns the file's bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at, data = 0, b""
    for name, (dtype, shape, given) in tensors.items():
        raw = bytes(given)
        assert dtype not in BITS or len(raw) * 8 == prod(shape) * BITS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at, data = at + len(raw), data + raw
    text = json.dumps(header).encode() + b" " * blanks
    whole = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(whole)
    return whole


def awkward(dtype: str) -> bytes:
    """Zeros of both signs, infinities, NaN with payloads, denormals, extremes: all as bits."""
    bits = BITS[dtype]
    if bits < 8:
        return bytes(range(12))
    size = bits // 8
    patterns = {0, 1, 2, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) + 1, (1 << (bits - 1)) - 1}
    patterns |= {((1 << e) - 1) << f & ((1 << bits) - 1) for e in range(0, bits, 3) for f in range(0, bits, 5)}
    return b"".join(p.to_bytes(size, "little") for p in sorted(patterns))
