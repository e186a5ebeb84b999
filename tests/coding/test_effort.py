"""Coding in a hurry: the same symbols and masks, one table where that is near the entropy, classes where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.coding import (
    Coded,
    Coder,
    check_effort,
    decode_grid,
    decode_mask,
    encode_grid,
    encode_mask,
    encode_symbols,
    order0_bits,
)
from gossamer.errors import PlanError

Array = np.ndarray[Any, Any]


def grid_survives(x: Array) -> Coded:
    coded = encode_grid(x, effort="fast")
    again = decode_grid(Coded.from_parts(coded.header, coded.data), x.shape, x.dtype)
    assert again.dtype == x.dtype
    assert np.array_equal(again, x)
    return coded


def mask_survives(mask: Array) -> Coded:
    coded = encode_mask(mask, effort="fast")
    again = decode_mask(Coded.from_parts(coded.header, coded.data), mask.shape)
    assert again.dtype == mask.dtype
    assert np.array_equal(again, mask)
    return coded


def loud_rows(rows: int, columns: int, seed: int = 0, octaves: float = 5.5) -> Array:
    """Scales that differ from row to row, as of a depthwise convolution's channels under one scale."""
    made = np.random.default_rng(seed)
    scales = np.exp2(made.uniform(0, octaves, (rows, 1)))
    return np.clip(np.rint(made.standard_normal((rows, columns)) * scales), -127, 127).astype(np.int8)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(st.sampled_from([np.uint8, np.int8, np.int32, np.int64]), hnp.array_shapes(min_side=0, max_dims=4)))
def test_any_small_grid_survives(x: Array) -> None:
    grid_survives(x)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 120), st.floats(0, 1), st.integers(0, 5))
def test_any_mask_survives(rows: int, columns: int, density: float, seed: int) -> None:
    mask_survives(np.random.default_rng(seed).random((rows, columns)) < density)


@pytest.mark.parametrize("shape", [(5000,), (1, 70_000), (64, 64), (40, 7, 3, 5), (300_000,), (1200, 700)])
@pytest.mark.parametrize("density", [0.0, 0.004, 0.2, 0.5, 0.97, 1.0])
def test_masks_take_their_entropy_or_a_bit_each(shape: tuple[int, ...], density: float) -> None:
    mask = np.random.default_rng(1).random(shape) < density
    coded = mask_survives(mask)
    assert coded.nbytes <= min(mask.size / 8, 1.005 * order0_bits(mask) / 8 + 60) + 1


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_masks_without_structure_have_one_density(density: float) -> None:
    mask = np.random.default_rng(1).random((300, 400)) < density
    assert mask_survives(mask).coder is (Coder.MASK_BITMAP if density == 0.5 else Coder.MASK_TABLES)


def structured() -> dict[str, Array]:
    made = np.random.default_rng(0)
    i, j = np.indices((400, 400))
    tiles = made.random((25, 25)) < 0.1
    return {
        "band": abs(i - j) <= 5,
        "identity": i == j,
        "dead rows": (made.random((400, 400)) < 0.5) & (made.random((400, 1)) < 0.1),
        "dead columns": (made.random((400, 400)) < 0.5) & (made.random((1, 400)) < 0.1),
        "blocks": np.kron(tiles, np.ones((16, 16), dtype=bool)).astype(bool),
        "one": (i == 7) & (j == 9),
        "odd": (i + 2 * j) % 3 == 0,
    }


@pytest.mark.parametrize("kind", structured())
def test_masks_with_structure_are_as_small_as_ever(kind: str) -> None:
    mask = structured()[kind]
    assert mask_survives(mask).nbytes <= 1.1 * encode_mask(mask).nbytes + 8


def test_rows_that_differ_by_much_have_classes_in_large_leaves_too() -> None:
    x = np.rint(loud_rows(512, 512) / 16).astype(np.int8)
    assert grid_survives(x).coder is Coder.TABLES
    assert grid_survives(x).data == encode_grid(x).data


def test_a_large_leaf_has_one_table_where_the_best_has_classes() -> None:
    x = loud_rows(800, 100, octaves=2.0)
    assert encode_grid(x).coder is Coder.TABLES
    assert grid_survives(x).data == encode_symbols(x).data


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.int8, np.uint8, np.bool_])
def test_rows_are_looked_at_in_every_dtype_and_range(kind: type) -> None:
    made = np.random.default_rng(0)
    info = None if kind is np.bool_ else np.iinfo(kind)
    for low in (0,) if info is None else (info.min, info.max - 255):
        span = 2 if info is None else 256
        x = (made.integers(0, span, (256, 256)).astype(np.uint64) + np.uint64(low % (1 << 64))).astype(kind)
        grid_survives(x)


def test_sparse_masks_without_structure_are_not_searched() -> None:
    mask = np.random.default_rng(0).random((8192, 64)) < 0.01
    assert mask_survives(mask).coder in (Coder.MASK_TABLES, Coder.MASK_GAPS)


def test_a_small_leaf_has_classes_where_one_table_costs_too_much() -> None:
    x = loud_rows(1152, 9)
    assert 8 * encode_symbols(x).nbytes > 1.005 * order0_bits(x)
    assert grid_survives(x).data == encode_grid(x).data
    assert 8 * grid_survives(x).nbytes < order0_bits(x)


def test_a_small_leaf_has_one_table_where_that_is_near_the_entropy() -> None:
    x = np.clip(loud_rows(300, 100) // 16, -4, 3)
    assert encode_grid(x).coder is Coder.TABLES
    assert 8 * encode_symbols(x).nbytes <= 1.005 * order0_bits(x)
    assert grid_survives(x).data == encode_symbols(x).data


def test_another_effort_is_refused() -> None:
    check_effort("fast")
    with pytest.raises(PlanError, match="found 'quick', expected 'fast' or 'best'"):
        check_effort("quick")
