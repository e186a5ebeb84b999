"""Compiled packers write, byte by byte, what plain numpy puts together from positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runtime.reference_packing import pack_pairings, pack_pairs, pack_patterns, pack_sliced

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, Processor, host, levels
from gossamer.jit.kernel_cache import assembly, cache_directory
from gossamer.runtime.group_code import Way, height
from gossamer.runtime.kernels import PACKERS, PackKernels, load
from gossamer.runtime.packing import Packed, count_nonzeros, pack, pack_rows
from gossamer.runtime.spmm import _panel_major

LEVELS = levels()
REFERENCE = {Way.SLICED: pack_sliced, Way.PATTERNS: pack_patterns, Way.PAIRS: pack_pairs, Way.PAIRINGS: pack_pairings}
Array = npt.NDArray[Any]


def expected(weight: Array, way: Way, width: int, bounds: Array, tall: int, narrow: bool) -> Packed:
    rows, columns = weight.shape
    positions = np.flatnonzero(weight)
    row, column = np.divmod(positions, max(1, columns))
    made = REFERENCE[way](row, column, weight.ravel()[positions], rows, columns, width, bounds, tall)
    return Packed(
        made.starts.astype(np.int64),
        made.counts.astype(np.uint16),
        made.order.astype(np.uint32),
        made.index.astype(np.uint8 if narrow else np.uint16),
        made.values.astype(np.float32),
    )


def assert_equal(found: Packed, wanted: Packed) -> None:
    for name in ("starts", "counts", "order", "index", "values"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert a.flags.c_contiguous and a.tobytes() == b.tobytes(), name


def cuts(rows: int, chunks: int) -> Array:
    bounds = np.minimum((np.arange(chunks + 1) * rows // chunks + 3) // 4 * 4, rows).astype(np.int64)
    bounds[-1] = rows
    return bounds


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=150, deadline=None)
@given(
    way=st.sampled_from(Way),
    rows=st.integers(0, 90),
    columns=st.integers(0, 130),
    width=st.sampled_from([1, 2, 7, 16, 33, 64, 256, 300]),
    chunks=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]),
    uneven=st.booleans(),
    narrow=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(way=Way.PAIRS, rows=64, columns=128, width=32, chunks=2, density=0.5, uneven=True, narrow=True, seed=1)
@example(way=Way.PAIRINGS, rows=64, columns=128, width=64, chunks=2, density=0.5, uneven=True, narrow=True, seed=1)
@example(way=Way.SLICED, rows=5, columns=0, width=1, chunks=1, density=1.0, uneven=False, narrow=True, seed=0)
def test_packed_arrays_are_those_of_numpy(
    level: Level,
    way: Way,
    rows: int,
    columns: int,
    width: int,
    chunks: int,
    density: float,
    uneven: bool,
    narrow: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((rows, columns), np.float32)
    weight[draw.random((rows, columns)) >= density] = 0
    if uneven and columns:  # some rows full, some with one weight, some empty; and what is hardly a zero, or one
        weight[:: 3 + seed % 5] = 1.5
        weight[1 :: 2 + seed % 4, : columns - 1] = 0
        weight[2 :: 3 + seed % 7] = 0
        weight[seed % 3 :: 7, 0] = [np.nan, 1e-45, -0.0][seed % 3]
    bounds, lanes = cuts(rows, chunks), host(level).lanes
    narrow = narrow and width <= 256
    tall = height(way, lanes)
    packers = load(PackKernels, host(level), cache_directory())
    found = pack(packers, way, weight, width=width, bounds=bounds, tall=tall, narrow=narrow)
    assert_equal(found, expected(weight, way, width, bounds, tall, narrow))
    assert count_nonzeros(weight) == np.count_nonzero(weight)


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_large_weights_are_packed_as_numpy_does(way: Way, density: float) -> None:
    draw = np.random.default_rng(3)
    weight = draw.standard_normal((770, 1100), np.float32)
    weight[draw.random(weight.shape) >= density] = 0
    bounds = cuts(770, 6)
    for width, narrow in ((96, True), (192, True), (1100, False)):
        found = pack(
            load(PackKernels, host("native"), cache_directory()),
            way,
            weight,
            width=width,
            bounds=bounds,
            tall=4,
            narrow=narrow,
        )
        assert_equal(found, expected(weight, way, width, bounds, 4, narrow))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 130),
    width=st.sampled_from([1, 7, 33, 64, 300, 65535]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_rows_are_packed_as_numpy_does(
    level: Level, rows: int, columns: int, width: int, density: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((rows, columns), np.float32)
    weight[draw.random((rows, columns)) >= density] = 0
    weight[1 :: 2 + seed % 4] = seed % 2
    found = pack_rows(load(PackKernels, host(level), cache_directory()), weight, width)
    positions = np.flatnonzero(weight)
    for a, b in zip(found, _panel_major(rows, columns, positions, weight.ravel()[positions], width), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_rows_with_the_same_columns_are_put_side_by_side() -> None:
    draw = np.random.default_rng(0)
    live = np.repeat(draw.random((32, 96)) < 0.1, 2, axis=0)[draw.permutation(64)]
    live[:, :2] = True  # a weight to share and one to keep for every row
    packers = load(PackKernels, host("native"), cache_directory())
    made = pack(packers, Way.PAIRS, live.astype(np.float32), width=96, bounds=np.array([0, 64]), tall=4, narrow=True)
    rows = made.order.reshape(32, 2)
    assert np.array_equal(live[rows[:, 0]], live[rows[:, 1]])


def test_most_groups_of_a_panel_have_as_many_steps_in_every_pairing() -> None:
    draw = np.random.default_rng(0)
    weight = (draw.random((256, 256)) < 0.5).astype(np.float32)
    packers = load(PackKernels, host("native"), cache_directory())
    made = pack(packers, Way.PAIRINGS, weight, width=256, bounds=np.array([0, 256]), tall=4, narrow=True)
    assert made.counts[:, :3].sum() >= 0.6 * made.counts.sum()
    for steps in made.counts[:, :3].T:
        assert np.mean(steps == steps.max()) >= 0.6


@pytest.mark.parametrize(("width", "narrow"), [(0, False), (65536, False), (257, True)])
def test_panels_that_indices_cannot_count_are_refused(width: int, narrow: bool) -> None:
    packers = load(PackKernels, host("native"), cache_directory())
    with pytest.raises(PlanError, match=f"found {width} columns"):
        pack(
            packers,
            Way.SLICED,
            np.ones((4, 4), np.float32),
            width=width,
            bounds=np.array([0, 4]),
            tall=4,
            narrow=narrow,
        )


def test_weights_of_other_types_or_strides_are_refused() -> None:
    packers = load(PackKernels, host("native"), cache_directory())
    for weight in (np.ones((4, 4)), np.ones((4, 8), np.float32)[:, ::2], np.ones(4, np.float32)):
        with pytest.raises(PlanError, match="expected float32"):
            pack(packers, Way.SLICED, weight, width=4, bounds=np.array([0, 4]), tall=4, narrow=True)


def test_packers_compile_for_neon() -> None:
    text = assembly(Processor.neon(), PACKERS)
    assert "fcmeq\tv" in text and "pairs_16" in text


@pytest.mark.parametrize("tall", [1, 2, 4])
def test_sliced_groups_hold_whole_quads_of_weights_and_add_up_to_the_weight(tall: int) -> None:
    draw = np.random.default_rng(5)
    weight = draw.standard_normal((37, 90), np.float32) * (draw.random((37, 90)) < 0.2)
    packers = load(PackKernels, host("native"), cache_directory())
    made = pack(packers, Way.SLICED, weight, width=90, bounds=np.array([0, 37]), tall=tall, narrow=True)
    assert not np.any(made.counts.astype(int) * tall % 4)
    total = np.zeros_like(weight)
    at = 0
    for rows, steps in zip(made.order, made.counts, strict=True):
        for _ in range(int(steps)):
            for r, row in enumerate(rows):
                total[row, made.index[at + r]] += made.values[at + r]
            at += tall
    assert np.array_equal(total, weight)
