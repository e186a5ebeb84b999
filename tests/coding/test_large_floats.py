"""Large float leaves: lossless whatever they hold, on several threads, in part, and into memory that is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.coding import Coder, decode_floats, decode_symbols, encode_floats, encode_symbols
from gossamer.coding.floats import decode_floats_part
from gossamer.coding.symbols import decode_symbols_part
from gossamer.errors import DataError, FormatError

U8 = np.ndarray[Any, np.dtype[np.uint8]]


@st.composite
def bytes_of_floats(draw: st.DrawFn) -> tuple[U8, int]:
    """Floats of any size: normal, coarse in runs, with zeros, few distinct, constant, or any bits."""
    itemsize, seed = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(0, 2**32 - 1))
    n = (1 << 14) // itemsize + draw(st.integers(0, 5000))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["normal", "coarse", "zeros", "distinct", "constant", "bits"]))
    if kind == "bits" or itemsize == 1:
        return rng.integers(0, 256 if kind == "bits" else 20, n * itemsize).astype(np.uint8), itemsize
    x = rng.normal(0, 0.02, n).astype(f"<f{itemsize}")
    if kind == "coarse":
        narrow = x.astype({2: "<f2", 4: "<f2", 8: "<f4"}[itemsize]).astype(x.dtype)
        x = np.where(np.arange(n) // 384 % 3, x, narrow)
    elif kind == "zeros":
        x[rng.random(n) < rng.random()] = 0
    elif kind == "distinct":
        x = rng.choice(x[: int(rng.integers(1, 300))], n)
    elif kind == "constant":
        x[:] = x[0]
    return x.view(np.uint8), itemsize


@settings(max_examples=60)
@given(bytes_of_floats(), st.sampled_from([1, 3]), st.data())
def test_floats_survive_whole_in_part_and_in_place(leaf: tuple[U8, int], workers: int, data: st.DataObject) -> None:
    raw, itemsize = leaf
    count = len(raw) // itemsize
    coded = encode_floats(raw, itemsize, workers=workers)
    assert coded == encode_floats(raw, itemsize)
    assert coded.nbytes <= len(raw)
    assert np.array_equal(decode_floats(coded, len(raw), itemsize, workers=workers), raw)
    room = np.empty_like(raw)
    assert np.shares_memory(decode_floats(coded, len(raw), itemsize, out=room), room)
    assert np.array_equal(room, raw)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    part = decode_floats_part(coded, first, last, count, itemsize)
    assert np.array_equal(part, raw[first * itemsize : last * itemsize])


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_several_blocks_survive_and_are_read_in_part(dtype: str) -> None:
    x = np.random.default_rng(0).normal(0, 0.02, (1 << 21) + 77).astype(dtype)
    raw = x.view(np.uint8)
    coded = encode_floats(raw, x.itemsize, workers=2)
    assert coded.coder is Coder.FLOAT_BLOCKS
    assert np.array_equal(decode_floats(coded, len(raw), x.itemsize, workers=2), raw)
    for first, last in ((0, 3), ((1 << 20) - 2, (1 << 20) + 2), (5, 1 << 21), (len(x) - 1, len(x))):
        part = decode_floats_part(coded, first, last, len(x), x.itemsize)
        assert np.array_equal(part, raw[first * x.itemsize : last * x.itemsize])
    with pytest.raises(FormatError, match="asked for"):
        decode_floats_part(coded, 5, len(x) + 1, len(x), x.itemsize)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int64", "bool"])
def test_several_blocks_of_symbols_survive_and_are_read_in_part(dtype: str) -> None:
    x = (np.random.default_rng(1).geometric(0.4, 3_000_000).clip(max=9) % (2 if dtype == "bool" else 99)).astype(dtype)
    coded = encode_symbols(x, workers=2)
    assert coded.coder is Coder.BLOCKS
    assert coded == encode_symbols(x)
    assert np.array_equal(decode_symbols(coded, x.shape, x.dtype, workers=2), x)
    for first, last in ((0, 3), ((1 << 20) - 2, (1 << 21) + 2), (len(x) - 1, len(x)), (7, 7)):
        assert np.array_equal(decode_symbols_part(coded, first, last, len(x), x.dtype), x[first:last])
    with pytest.raises(FormatError, match="asked for"):
        decode_symbols_part(coded, 5, len(x) + 1, len(x), x.dtype)


def test_rooms_that_do_not_fit_are_refused() -> None:
    raw = np.random.default_rng(0).normal(size=5000).astype("<f4").view(np.uint8)
    coded = encode_floats(raw, 4)
    fixed = np.frombuffer(bytes(len(raw)), np.uint8)
    for room in (
        fixed,
        np.empty(2 * len(raw), np.uint8)[::2],
        np.empty(len(raw) + 1, np.uint8),
        raw.view("<f4").copy(),
    ):
        with pytest.raises(DataError, match="contiguous, writeable"):
            decode_floats(coded, len(raw), 4, out=room)
    assert not fixed.any()
