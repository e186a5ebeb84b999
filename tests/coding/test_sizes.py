"""Coded leaves are as small as their statistics allow, and never blown up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.coding import (
    Coder,
    decode_symbols,
    encode_floats,
    encode_mask,
    encode_sparse_symbols,
    encode_symbols,
    order0_bits,
)
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.paths import paths
from gossamer.coding.table import FrequencyTable


def packed_bytes(x: np.ndarray[Any, Any]) -> int:
    span = int(x.max()) - int(x.min()) if x.size else 0
    return -(-x.size * span.bit_length() // 8)


def entropy(x: np.ndarray[Any, Any]) -> float:
    counts = np.unique(x, return_counts=True)[1]
    return float(-(counts * np.log2(counts / x.size)).sum())


@given(hnp.arrays(np.int16, st.integers(0, 300), elements=st.integers(-9, 9)))
def test_order_0_bits_is_the_entropy_by_its_definition(x: np.ndarray[Any, Any]) -> None:
    assert order0_bits(x) == pytest.approx(entropy(x) if x.size else 0.0, abs=1e-6)


@given(st.sampled_from(["uint8", "int16", "int64"]).flatmap(lambda d: hnp.arrays(d, st.integers(0, 400))))
def test_symbols_never_take_more_than_packed_and_a_few_bytes(x: np.ndarray[Any, Any]) -> None:
    assert encode_symbols(x).nbytes <= packed_bytes(x) + 2 + 2 * x.itemsize


@given(hnp.arrays(np.bool_, hnp.array_shapes(max_dims=3, min_side=0, max_side=30)))
def test_masks_never_take_more_than_a_bitmap(mask: np.ndarray[Any, Any]) -> None:
    assert encode_mask(mask).nbytes <= -(-mask.size // 8)


@given(hnp.arrays(np.uint8, st.integers(0, 100).map(lambda n: 4 * n)))
def test_floats_never_take_more_than_raw(raw: np.ndarray[Any, Any]) -> None:
    assert encode_floats(raw, 4).nbytes <= len(raw)


@pytest.mark.parametrize("count", [10_000, 100_000])
@pytest.mark.parametrize("p", [0.5, 0.2, 0.01, 0.0001])
@pytest.mark.parametrize("top", [1, 3, 15, 255])
def test_large_leaves_take_their_entropy_and_half_a_per_cent(top: int, p: float, count: int) -> None:
    x = np.random.default_rng(top).binomial(top, p, count).astype(np.uint8)
    alphabet = len(np.unique(x))
    assert encode_symbols(x).nbytes <= 1.005 * order0_bits(x) / 8 + 6 + 0.75 * alphabet


def test_tables_of_sixteen_symbols_take_less_than_twenty_four_bytes() -> None:
    rng = np.random.default_rng(0)
    for count in (300, 10_000, 1_000_000):
        for shape in (rng.normal(8, 2.5, count), rng.exponential(3, count), rng.uniform(0, 16, count) ** 1.5 / 4):
            coded = encode_symbols(np.clip(np.rint(shape), 0, 15).astype(np.uint8))
            assert len(coded.table) <= 22
    few = np.clip(np.rint(rng.normal(8, 2.5, 300)), 0, 15).astype(np.uint8)
    assert encode_symbols(few).nbytes <= order0_bits(few) / 8 + 14


def test_a_million_equal_symbols_but_one_take_a_few_bytes() -> None:
    x = np.zeros(1_000_000, dtype=np.uint8)
    x[31_415] = 1
    assert encode_symbols(x).nbytes <= order0_bits(x) / 8 + 8
    assert encode_mask(x.astype(bool)).nbytes <= 8


def test_wide_gaussian_integers_take_their_differential_entropy() -> None:
    sigma = 1e6
    x = np.rint(np.random.default_rng(1).normal(0, sigma, 50_000)).astype(np.int32)
    bits = 0.5 * np.log2(2 * np.pi * np.e * sigma**2)  # a symbol
    assert encode_symbols(x).nbytes <= 1.005 * bits * x.size / 8 + 64


def test_a_mask_of_one_density_takes_its_entropy() -> None:
    for density in (0.3, 0.05, 0.001):
        mask = np.random.default_rng(2).random((300, 784)) < density
        assert encode_mask(mask).nbytes <= 1.001 * order0_bits(mask) / 8 + 8


def test_masks_with_uneven_columns_take_what_each_column_takes() -> None:
    rng = np.random.default_rng(3)
    density = np.minimum(1, np.exp(rng.normal(size=784) * 1.2 - 3)) * (np.arange(784) >= 100)
    mask = rng.random((300, 784)) < density
    inside = density[density > 0]
    ideal = 300 * float(-(inside * np.log2(inside) + (1 - inside) * np.log2(np.maximum(1 - inside, 1e-12))).sum())
    naming = 784 * 3
    assert encode_mask(mask).nbytes <= (1.02 * ideal + naming) / 8
    assert encode_mask(mask).nbytes <= 0.8 * order0_bits(mask) / 8
    assert encode_mask(mask.T).nbytes <= (1.02 * ideal + naming) / 8


def test_row_and_column_classes_together_beat_either() -> None:
    rng = np.random.default_rng(4)
    rows, columns = np.exp(rng.normal(size=(300, 1)) * 0.7), np.exp(rng.normal(size=(1, 784)) * 1.2 - 3)
    mask = rng.random((300, 784)) < rows * columns
    within_rows = sum(order0_bits(row) for row in mask) / 8
    within_columns = sum(order0_bits(column) for column in mask.T) / 8
    assert encode_mask(mask).nbytes < 0.95 * min(within_rows, within_columns)


def test_dead_rows_cost_one_bit_each() -> None:
    rows = np.random.default_rng(5).random((400, 1)) < 0.5
    assert encode_mask(np.repeat(rows, 100, axis=1)).nbytes <= 50 + 8
    assert encode_mask(np.repeat(rows.T, 100, axis=0)).nbytes <= 50 + 8


def test_zero_symbols_take_the_entropy_of_mask_and_symbols() -> None:
    rng = np.random.default_rng(6)
    mask = rng.random((300, 784)) < 0.05
    symbols = np.clip(np.rint(rng.normal(8, 2.5, int(mask.sum()))), 0, 15).astype(np.uint8)
    coded = encode_sparse_symbols(mask, symbols)
    assert coded.nbytes <= 1.001 * (order0_bits(mask) + order0_bits(symbols)) / 8 + 24


@pytest.mark.parametrize(("dtype", "ratio"), [("<f2", 0.85), ("<f4", 0.835), ("bf16", 0.67)])
def test_gaussian_weights_lose_the_redundancy_of_their_exponents(dtype: str, ratio: float) -> None:
    x = np.random.default_rng(7).normal(0, 0.05, 50_000).astype("<f4")
    raw = (x.view("<u4") >> 16).astype("<u2").view(np.uint8) if dtype == "bf16" else x.astype(dtype).view(np.uint8)
    assert encode_floats(raw, len(raw) // x.size).nbytes <= ratio * len(raw)


def test_small_float_leaves_are_not_blown_up_and_large_ones_of_zeros_vanish() -> None:
    bias = np.random.default_rng(8).normal(0, 0.05, 300).astype("<f4").view(np.uint8)
    assert encode_floats(bias, 4).nbytes <= 0.86 * len(bias)
    assert encode_floats(np.zeros(400_000, dtype=np.uint8), 4).nbytes <= 12


def _two_peaks(count: int) -> np.ndarray[Any, Any]:
    """Symbols as weights of depthwise convolutions at 8 bits have them: two narrow peaks on long tails."""
    rng = np.random.default_rng(count)
    scale = np.where(rng.random(count) < 0.2, 25.0, np.where(rng.random(count) < 0.5, 2.0, 4.0))
    return np.clip(
        np.rint(np.where(rng.random(count) < 0.3, 110, 140) + scale * rng.normal(size=count)), 1, 254
    ).astype(np.uint8)


@pytest.mark.parametrize("count", [10_000, 20_000])
def test_tables_of_small_leaves_with_long_tails_are_chosen_for_their_own_bits_too(count: int) -> None:
    x = _two_peaks(count)
    offsets, counts = np.unique(x, return_counts=True)
    offsets = offsets.astype(np.int64) - int(offsets[0])
    fitted, bits = FrequencyTable.fit(offsets, counts)
    table, fewer = FrequencyTable.tight(offsets, counts)
    assert bits - fewer > 0.05 * (bits - order0_bits(x))
    writer = BitWriter()
    table.write(writer)
    again = FrequencyTable.read(BitReader(writer.finish(), "x"), "x")
    assert np.array_equal(again.offsets, table.offsets)
    assert np.array_equal(again.roots, table.roots)
    assert set(offsets) <= set(table.offsets) != set(fitted.offsets)
    coded = encode_symbols(x)
    assert coded.coder is Coder.SHORT
    assert coded.nbytes <= fewer / 8 + 6
    assert np.array_equal(decode_symbols(coded, x.shape, x.dtype), x)


def _bits(spread: np.ndarray[Any, Any], roots: np.ndarray[Any, Any], sigma: float) -> float:
    """What `paths` promises to make least, by its definition."""
    seen = spread > 0
    if (roots[seen] == 0).any() or not roots[0] or not roots[-1]:
        return float("inf")
    steps = np.diff(roots, prepend=0)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    folded[0] = roots[0]
    golomb = sum(2 * int(v + 1).bit_length() - 1 for v in folded)
    symbols = float(-(spread[seen] * 2 * np.log2(roots[seen])).sum())
    return golomb + symbols + float((roots**2).sum()) / (sigma**2 * np.log(2))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=4).map(lambda c: [c[0] + 1, *c[1:-1], c[-1] + 1]))
def test_a_path_is_the_best_of_all(counts: list[int]) -> None:
    spread = np.array(counts)
    for sigma, path in zip((0.5, 0.6, 0.7, 0.85, 1.0, 1.2), paths(spread), strict=True):
        every = np.stack(np.meshgrid(*[np.arange(5)] * len(spread)), -1).reshape(-1, len(spread))
        assert _bits(spread, path, sigma) <= min(_bits(spread, roots, sigma) for roots in every) + 1e-9
