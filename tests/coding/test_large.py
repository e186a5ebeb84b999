"""Leaves so large that candidates are chosen by estimate: lossless, and within 0.5% of the entropy of one model."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.coding import (
    Coder,
    decode_floats,
    decode_mask,
    decode_symbols,
    encode_floats,
    encode_mask,
    encode_symbols,
    order0_bits,
)

N = 1 << 20


def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", ["even", "rows", "runs"])
def test_large_masks(shape: str) -> None:
    rng = random()
    density = np.full((1024, 1024), 0.1)
    if shape == "rows":
        density[::2] = 0.02
    mask = rng.random((1024, 1024)) < density
    if shape == "runs":
        mask = (np.cumsum(rng.random((1024, 1024)) < 0.01, axis=1) % 2).astype(bool)
    coded = encode_mask(mask)
    assert np.array_equal(decode_mask(coded, mask.shape), mask)
    if shape != "runs":
        assert coded.coder is Coder.MASK_TABLES
    assert coded.nbytes <= 1.005 * order0_bits(mask) / 8 + 64


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("least", [0, 3])
def test_large_symbols(dtype: type[np.generic], least: int) -> None:
    x = (least + random().geometric(0.3, N).clip(max=60)).astype(dtype)
    coded = encode_symbols(x)
    assert np.array_equal(decode_symbols(coded, (N,), x.dtype), x)
    assert coded.nbytes <= 1.002 * order0_bits(x) / 8 + 64


def test_large_floats() -> None:
    raw = random().normal(0, 0.02, N).astype("<f4").view(np.uint8)
    coded = encode_floats(raw, 4)
    assert np.array_equal(decode_floats(coded, 4 * N, 4), raw)
    assert coded.nbytes < 0.9 * 4 * N
