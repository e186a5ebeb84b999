"""Grids under tables by class: lossless, the same compiled and from NumPy, near what their classes take."""

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
    decode_grid,
    decode_mask,
    decode_sparse_symbols,
    encode_grid,
    encode_mask,
    encode_sparse_symbols,
    encode_symbols,
    order0_bits,
    rans_kernels,
)
from gossamer.coding.alphabet import Alphabet
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.contexts import decode_numbers, encode_numbers
from gossamer.coding.grids import decode_grid_rows
from gossamer.coding.tabled import TabledModel, decode_tabled, encode_tabled
from gossamer.errors import DataError, FormatError

Array = np.ndarray[Any, Any]


def grid_survives(x: Array, span: int | None = None) -> Coded:
    coded = encode_grid(x, span=span)
    again = decode_grid(Coded.from_parts(coded.header, coded.data), x.shape, x.dtype, workers=2)
    assert again.dtype == x.dtype
    assert np.array_equal(again, x)
    return coded


def numbers_survive(numbers: Array, spans: tuple[int, ...] = ()) -> int:
    count = int(numbers.max()) + 1
    made = encode_numbers(BitWriter(), numbers, count, spans, 1)
    assert made is not None
    again = decode_numbers(BitReader(made[0], "x"), made[1], numbers.shape, count, "x", 1)
    assert np.array_equal(again, numbers.reshape(-1))
    return len(made[0]) + len(made[1])


def uneven(rows: int, columns: int, top: int = 15, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(rows, 1)) * 0.5) * np.exp(rng.normal(size=(1, columns)) * 0.5)
    return np.clip(np.rint(rng.normal(size=(rows, columns)) * scale * 2 + top / 2), 0, top).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 30)), elements=st.integers(0, 5)),
    st.integers(2, 9),
)
def test_numbers_of_any_small_grid_survive(numbers: Array, span: int) -> None:
    dense = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape).astype(np.uint8)
    if dense.max() > 0:
        numbers_survive(dense, (span,))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 150),
    st.sampled_from(["int8", "uint8", "int16", "int64", "bool", "uint64", ">i4"]),
    st.sampled_from(["one", "few", "normal", "rare", "rows", "all"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 1, 7, 64]),
)
def test_grids_of_any_shape_dtype_and_distribution_survive(
    rows: int, columns: int, dtype: str, kind: str, seed: int, span: int | None
) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows, columns)
    x = {
        "one": np.full(shape, 1),
        "few": rng.integers(0, 2, shape),
        "normal": np.clip(np.rint(rng.normal(size=shape) * 3), -60, 60) + 60,
        "rare": (rng.random(shape) < 0.001) * 100,
        "rows": np.arange(rows)[:, None] % 120 + np.zeros(shape, dtype=np.int64),
        "all": rng.integers(0, 256, shape),
    }[kind]
    x = x.astype(np.uint8).astype(dtype)
    found = encode_grid(x, span=span)
    assert np.array_equal(decode_grid(found, x.shape, x.dtype), x)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (1,), (1, 1), (7, 1), (1, 7), (9000,), (3, 70_000)])
def test_grids_of_odd_shapes_survive(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).binomial(9, 0.3, shape)
    grid_survives(np.asarray(x, dtype=np.int16), 64)


def test_symbols_at_the_ends_of_their_dtype_survive() -> None:
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint64):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        base = uneven(80, 90).astype(dtype)
        assert grid_survives(base + dtype(low)).coder is Coder.TABLES
        assert grid_survives(dtype(high) - base).coder is Coder.TABLES
        assert grid_survives(np.where(base > 7, dtype(high), dtype(low))).coder is not Coder.RAW


def test_listed_and_wide_alphabets_survive() -> None:
    x = uneven(120, 100, 255)
    assert grid_survives(x).coder is Coder.TABLES
    assert grid_survives(uneven(120, 100).astype(np.int32) ** 4 - 300).coder is Coder.TABLES
    grid_survives(np.random.default_rng(0).integers(0, 1 << 40, (100, 100)))


def test_rows_of_many_blocks_survive() -> None:
    x = uneven(300, 1000)
    x[:, :500] //= 4
    assert grid_survives(x, 100).coder is Coder.TABLES
    assert grid_survives(uneven(7, 65_536)).nbytes
    assert grid_survives(np.tile(x, (8, 1))).coder is Coder.TABLES


@pytest.mark.parametrize("even", [False, True])
def test_rows_are_read_from_their_blocks_alone(even: bool) -> None:
    x = np.random.default_rng(0).binomial(15, 0.4, (5000, 500)).astype(np.int16) if even else uneven(5000, 500)
    coded = encode_grid(x)
    assert coded.coder is (Coder.BLOCKS if even else Coder.TABLES)
    for first, last in ((0, 0), (0, 1), (3, 140), (4999, 5000), (5000, 5000), (0, 5000)):
        assert np.array_equal(decode_grid_rows(coded, first, last, x.shape, x.dtype), x[first:last])
    damaged = Coded(coded.coder, coded.table, bytes(coded.payload[:-1]) + bytes([coded.payload[-1] ^ 1]))
    assert np.array_equal(decode_grid_rows(damaged, 0, 5, x.shape, x.dtype), x[:5])
    with pytest.raises(FormatError, match="checksum"):
        decode_grid_rows(damaged, 4990, 5000, x.shape, x.dtype)
    with pytest.raises(FormatError, match="rows 5 to 5001"):
        decode_grid_rows(coded, 5, 5001, x.shape, x.dtype)


@pytest.mark.parametrize("lanes", [1, 4, 16, 32, 64, 128])
@pytest.mark.parametrize(
    ("count", "tables", "n"), [(2, 1, 1000), (16, 5, 3001), (256, 32, 4096), (1, 1, 50), (3, 2, 0)]
)
def test_numpy_and_compiled_coders_write_and_read_the_same_bytes(lanes: int, count: int, tables: int, n: int) -> None:
    rng = np.random.default_rng(lanes)
    weights = rng.integers(0, 9, (tables, count)) ** 2
    weights[:, 0] += 1
    model = TabledModel(weights)
    which = rng.integers(0, tables, n).astype(np.uint8)
    numbers = model.slots[(which.astype(np.int64) << 14) + rng.integers(0, 1 << 14, n)]
    block = encode_tabled(numbers, which, model, lanes)
    assert np.array_equal(encode_tabled(numbers, which, model, lanes, compiled=False), block)
    for compiled in (True, False):
        out = np.zeros(n, dtype=np.uint8)
        again = decode_tabled(block.data, out, which, model, lanes, "x", compiled=compiled)
        assert np.array_equal(again, numbers)


@pytest.mark.parametrize("compiled", [True, False])
def test_blocks_that_end_early_or_late_are_refused(compiled: bool) -> None:
    rng = np.random.default_rng(0)
    model = TabledModel(rng.integers(1, 9, (3, 16)))
    which = rng.integers(0, 3, 2000).astype(np.uint8)
    numbers = rng.integers(0, 16, 2000).astype(np.uint8)
    block = encode_tabled(numbers, which, model, 16).tobytes()
    for wrong in (b"", block[:3], block[:64], block[:-1], block[:-2], block + b"\0\0", block[2:]):
        with pytest.raises(FormatError, match="x: block"):
            decode_tabled(wrong, numbers.copy(), which, model, 16, "x", compiled=compiled)


def test_a_grid_of_uneven_rows_and_columns_takes_less_than_its_entropy() -> None:
    x = uneven(400, 300)
    assert encode_grid(x).nbytes < 0.96 * order0_bits(x) / 8
    assert encode_grid(x.T).nbytes < 0.96 * order0_bits(x) / 8


def test_known_classes_are_found_to_within_two_per_cent_of_what_they_take() -> None:
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, 3, 500), rng.integers(0, 2, 400)
    p = np.array([[0.1, 0.4], [0.3, 0.2], [0.5, 0.9]])[rows][:, columns]
    x = rng.binomial(15, p).astype(np.uint8)
    ideal = sum(order0_bits(x[rows == r][:, columns == c]) for r in range(3) for c in range(2))
    ideal += order0_bits(rows) + order0_bits(columns)
    assert encode_grid(x).nbytes <= 1.02 * ideal / 8


def test_groups_that_differ_in_shape_are_told_apart_by_span() -> None:
    rng = np.random.default_rng(2)
    centre = rng.choice([4, 6, 9, 11], (256, 8)).repeat(64, axis=1)
    x = np.clip(np.rint(rng.normal(size=centre.shape) * 2 + centre), 0, 15).astype(np.uint8)
    told, untold = encode_grid(x, span=64), encode_grid(x)
    assert told.nbytes < 0.9 * untold.nbytes


def test_even_grids_stay_with_one_table() -> None:
    x = np.random.default_rng(3).binomial(15, 0.4, (300, 200)).astype(np.uint8)
    assert encode_grid(x) == encode_symbols(x)


def test_masked_symbols_of_uneven_rows_take_less_than_mask_and_symbols() -> None:
    x = np.abs(uneven(400, 300, 30, 4).astype(np.int16) - 15).astype(np.uint8)
    mask = x > 3
    symbols = x[mask].astype(np.int32) * 3 - 40
    coded = encode_sparse_symbols(mask, symbols)
    assert coded.coder is Coder.SPARSE_TABLES
    again, values = decode_sparse_symbols(Coded.from_parts(coded.header, coded.data), mask.shape, symbols.dtype)
    assert np.array_equal(again, mask)
    assert np.array_equal(values, symbols)
    assert values.dtype == symbols.dtype
    assert coded.nbytes < 0.95 * (order0_bits(mask) + order0_bits(symbols)) / 8


def test_large_masks_of_uneven_rows_survive() -> None:
    mask = np.tile(uneven(256, 300, 30, 5) > 19, (5, 3))
    coded = encode_mask(mask)
    assert np.array_equal(decode_mask(coded, mask.shape), mask)
    made = encode_numbers(BitWriter(), mask.view(np.uint8), 2, (), 2)
    assert made is not None
    assert np.array_equal(decode_mask(Coded(Coder.MASK_TABLES, *made), mask.shape), mask)


def test_an_alphabet_holds_256_symbols_at_most() -> None:
    assert Alphabet.of(np.arange(257)) is None
    assert Alphabet.of(np.array([0, 1 << 16])) is None
    found = Alphabet.of(np.arange(256) * 255)
    assert found is not None
    assert len(found[0]) == 256


def test_symbols_beyond_their_dtype_are_refused() -> None:
    coded = encode_grid(uneven(80, 90).astype(np.int16) + 250)
    assert coded.coder is Coder.TABLES
    for dtype in ("uint8", "int8", "bool", "float32"):
        with pytest.raises(FormatError, match=r"do not fit|expected an integer dtype"):
            decode_grid(coded, (80, 90), np.dtype(dtype))


def test_other_shapes_are_refused() -> None:
    x = uneven(80, 90)
    coded = encode_grid(x)
    for shape in ((90, 80), (80, 91), (7200,), (0, 90), (80, 0), (1, 1)):
        with pytest.raises(FormatError):
            decode_grid(coded, shape, x.dtype)


def test_floats_are_refused() -> None:
    with pytest.raises(DataError, match="expected an integer dtype"):
        encode_grid(np.zeros((80, 80), dtype=np.float32))


def test_everything_works_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uneven(60, 90)
    compiled = encode_grid(x, span=30)
    monkeypatch.setattr(rans_kernels, "kernels", lambda: None)
    assert encode_grid(x, span=30) == compiled
    assert np.array_equal(decode_grid(compiled, x.shape, x.dtype), x)
