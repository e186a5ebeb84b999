"""Every array comes back bit for bit, whatever it holds."""

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
    bits,
    decode_floats,
    decode_mask,
    decode_sparse_symbols,
    decode_symbols,
    encode_floats,
    encode_mask,
    encode_sparse_symbols,
    encode_symbols,
    order0_bits,
)
from gossamer.coding.ans import AnsReader, ans_encode, frequencies
from gossamer.coding.bits import BitReader, BitWriter, golomb_bits, int_list_bits, pack_uints, unpack_uints
from gossamer.coding.symbols import decode_symbols_part, encode_plain_symbols
from gossamer.errors import DataError, FormatError

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def through(coded: Coded) -> Coded:
    """What the container does to a coded leaf."""
    return Coded.from_parts(list(coded.header), coded.data)


def symbols_survive(x: np.ndarray[Any, Any]) -> Coded:
    coded = encode_symbols(x)
    assert same(decode_symbols(through(coded), x.shape, x.dtype), x)
    return coded


def mask_survives(mask: np.ndarray[Any, Any]) -> Coded:
    coded = encode_mask(mask)
    assert same(decode_mask(through(coded), mask.shape), mask)
    return coded


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_symbols_of_any_integer_dtype_and_shape_survive(x: np.ndarray[Any, Any]) -> None:
    symbols_survive(x)


@given(
    st.sampled_from(DTYPES[1:]),
    st.lists(st.tuples(st.integers(-120, 120), st.integers(0, 400)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_symbols_with_repeats_survive(dtype: str, runs: list[tuple[int, int]], random: Any) -> None:
    values = [v for v, times in runs for _ in range(times)]
    random.shuffle(values)
    symbols_survive(np.array(values, dtype=np.int64).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_symbols_at_both_ends_of_the_dtype_survive(dtype: str) -> None:
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.max, info.min, info.max, info.max - 1] * 50, dtype=dtype)
    symbols_survive(ends)
    random = np.random.default_rng(0).integers(info.min, info.max, 5000, dtype=dtype, endpoint=True)
    symbols_survive(random)


def test_every_coder_of_symbols_is_used_and_survives() -> None:
    rng = np.random.default_rng(1)
    cases = {
        Coder.CONSTANT: np.full((5, 7), -3, dtype=np.int16),
        Coder.PACKED: rng.integers(0, 16, 3000).astype(np.uint8),
        Coder.STATIC: rng.binomial(15, 0.3, 900).astype(np.uint8),
        Coder.SHORT: rng.binomial(15, 0.3, 3000).astype(np.uint8),
        Coder.SPLIT: np.rint(rng.normal(size=20_000) * 1e6).astype(np.int32),
    }
    for coder, x in cases.items():
        assert symbols_survive(x).coder is coder


@pytest.mark.parametrize("count", [1024, 1025, 5003, 40_001, (1 << 18) - 1])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint64"])
@pytest.mark.parametrize(("top", "least"), [(1, 0), (3, -3), (15, 99), (120, -60), (255, 0)])
def test_short_leaves_survive_and_are_read_in_part(top: int, least: int, dtype: str, count: int) -> None:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    least = min(max(least, low), high - top)
    x = np.random.default_rng(top).binomial(top, 0.2, count).astype(dtype) + np.dtype(dtype).type(least)
    coded = symbols_survive(x)
    assert coded.coder is (Coder.SHORT if order0_bits(x) >= 8192 else Coder.STATIC)
    if coded.coder is Coder.STATIC:
        return
    assert np.array_equal(decode_symbols_part(coded, 5, count - 1, count, x.dtype), x[5:-1])


@given(st.lists(st.integers(0, 1 << 50), min_size=24, max_size=80), st.integers(0, 60), st.booleans())
def test_lists_are_read_alike_with_and_without_a_compiler(values: list[int], cut: int, small: bool) -> None:
    writer = BitWriter()
    writer.uint(1, 3)
    writer.int_list(np.array([value >> 44 if small else value for value in values], dtype=np.int64))
    table, found = writer.finish(), []
    for compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(bits, "coders", lambda: None)
            reader = BitReader(table[: len(table) - cut // 4 if cut % 2 else len(table)], "x")
            reader.uint(3)
            try:
                found.append((reader.int_list(len(values), 1 << 50), reader.rest()))
            except FormatError as error:
                found.append((str(error), b""))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [0, 9, 600, 5000, 300_000])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "int16", "int64"])
def test_symbols_are_decoded_into_memory_that_is_there(count: int, dtype: str) -> None:
    x = (np.random.default_rng(0).binomial(15, 0.3, (count, 1)) // (5 if dtype == "bool" else 1)).astype(dtype)
    coded, room = encode_symbols(x), np.zeros_like(x)
    assert decode_symbols(coded, x.shape, x.dtype, out=room) is room
    assert np.array_equal(room, x)
    strided = np.zeros((2 * count, 1), x.dtype)[::2]
    for wrong in (np.zeros((count + 1, 1), x.dtype), np.zeros((count, 1), np.uint32), strided):
        if wrong.shape != x.shape or wrong.dtype != x.dtype or not wrong.flags.c_contiguous:
            with pytest.raises(DataError, match="contiguous, writeable"):
                decode_symbols(coded, x.shape, x.dtype, out=wrong)


def test_short_leaves_at_the_ends_of_wide_integers_survive() -> None:
    q = np.random.default_rng(0).binomial(15, 0.3, 4000)
    for dtype in (np.int64, np.uint64):
        info = np.iinfo(dtype)
        assert symbols_survive(q.astype(dtype) + dtype(info.min)).coder is Coder.SHORT
        assert symbols_survive(dtype(info.max) - q.astype(dtype)).coder is Coder.SHORT


def test_one_rare_symbol_in_a_million_survives() -> None:
    for rare in (1, 4000, 10**12, 2**62):
        x = np.zeros(1_000_000, dtype=np.int64)
        x[765_432] = rare
        assert symbols_survive(x).nbytes <= 32


def test_streams_longer_than_one_piece_survive() -> None:
    x = np.random.default_rng(2).binomial(3, 0.1, (1 << 20) + 5).astype(np.uint8)
    assert np.array_equal(decode_symbols(encode_plain_symbols(x), x.shape, x.dtype), x)
    assert symbols_survive(x).coder is Coder.BLOCKS
    assert mask_survives(x > 0).coder is Coder.MASK_BERNOULLI


def test_strided_and_big_endian_arrays_survive() -> None:
    x = np.arange(60, dtype=np.int32).reshape(6, 10)
    symbols_survive(x[::2, ::3])
    assert np.array_equal(decode_symbols(encode_symbols(x.astype(">i4")), x.shape, x.dtype), x)
    mask_survives((x % 3 == 0).T)


def test_symbols_that_are_not_integers_are_refused() -> None:
    for wrong in (np.zeros(3, dtype=np.float32), np.array(["a"])):
        with pytest.raises(DataError, match="expected an integer dtype"):
            encode_symbols(wrong)
        with pytest.raises(DataError, match="expected an integer dtype"):
            order0_bits(wrong)


@given(hnp.arrays(np.bool_, SHAPES))
def test_masks_of_any_shape_survive(mask: np.ndarray[Any, Any]) -> None:
    mask_survives(mask)


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
)
def test_masks_with_uneven_rows_and_columns_survive(height: int, width: int, seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    odds = density * rng.choice([0.0, 0.2, 1.0, 3.0], (height, 1)) * rng.choice([0.0, 0.5, 1.0, 4.0], (1, width))
    mask_survives(rng.random((height, width)) < odds)


def test_every_coder_of_masks_is_used_and_survives() -> None:
    rng = np.random.default_rng(3)
    cases = {
        Coder.MASK_BITMAP: rng.random((64, 64)) < 0.5,
        Coder.MASK_BERNOULLI: rng.random((64, 64)) < 0.1,
        Coder.MASK_GAPS: np.arange(4096).reshape(64, 64) % 37 == 5,
        Coder.MASK_CLASSES: rng.random((64, 64)) < np.linspace(0, 0.6, 64) ** 2,
    }
    for coder, mask in cases.items():
        assert mask_survives(mask).coder is coder
        mask_survives(~mask)
        mask_survives(mask.reshape(4, 16, 8, 8))


def test_masks_that_are_not_bool_are_refused() -> None:
    with pytest.raises(DataError, match="expected bool"):
        encode_mask(np.zeros((2, 2), dtype=np.uint8))  # type: ignore[arg-type]


@given(hnp.arrays(np.bool_, SHAPES), st.sampled_from(DTYPES), st.data())
def test_masked_symbols_survive(mask: np.ndarray[Any, Any], dtype: str, data: st.DataObject) -> None:
    symbols = data.draw(hnp.arrays(dtype, int(mask.sum())))
    if len(symbols) and int(symbols.max()) - int(symbols.min()) == 2**64 - 1:
        return
    again, values = decode_sparse_symbols(through(encode_sparse_symbols(mask, symbols)), mask.shape, symbols.dtype)
    assert same(again, mask)
    assert same(values, symbols)


def test_masked_symbols_that_do_not_fit_together_are_refused() -> None:
    mask = np.array([True, False, True])
    with pytest.raises(DataError, match="3 symbols for a mask with 2 live"):
        encode_sparse_symbols(mask, np.zeros(3, dtype=np.uint8))
    with pytest.raises(DataError, match="expected bool and integers"):
        encode_sparse_symbols(mask, np.zeros(2, dtype=np.float32))
    with pytest.raises(DataError, match="leave no code"):
        encode_sparse_symbols(mask, np.array([0, 2**64 - 1], dtype=np.uint64))


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 80), st.data())
def test_floats_of_any_bytes_survive(itemsize: int, count: int, data: st.DataObject) -> None:
    raw = data.draw(hnp.arrays(np.uint8, itemsize * count))
    assert same(decode_floats(through(encode_floats(raw, itemsize)), len(raw), itemsize), raw)


@pytest.mark.parametrize(("count", "coder"), [(400, Coder.FLOAT_PLANES), (40_000, Coder.FLOAT_BLOCKS)])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_special_floats_survive_bit_for_bit(dtype: str, count: int, coder: Coder) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=count).astype(dtype)
    info = np.finfo(dtype)
    x[:8] = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, info.smallest_subnormal, -info.smallest_subnormal]
    raw = x.view(np.uint8).copy()
    raw.reshape(-1, x.itemsize)[8:10, :] = 0xFF  # NaN with a full payload
    raw.reshape(-1, x.itemsize)[10, -2:] = [0xF8, 0x7F]
    coded = encode_floats(raw, x.itemsize)
    assert coded.coder is coder
    assert same(decode_floats(through(coded), len(raw), x.itemsize), raw)


def test_floats_that_are_not_whole_items_are_refused() -> None:
    raw = np.zeros(6, dtype=np.uint8)
    for wrong, itemsize in ((raw, 4), (raw, 3), (raw.reshape(2, 3), 2), (raw.astype(np.int8), 2)):
        with pytest.raises(DataError, match="expected"):
            encode_floats(wrong, itemsize)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 1 << 16), min_size=1, max_size=300))
def test_frequencies_are_positive_and_sum_to_2_to_the_24(roots: list[int]) -> None:
    scaled = frequencies(np.array(roots, dtype=np.int64) ** 2)
    assert int(scaled.sum()) == 1 << 24
    assert int(scaled.min()) >= 1


def test_frequencies_stay_positive_at_the_largest_and_most_uneven_alphabet() -> None:
    for k in (2, 4095, 4096):
        roots = np.ones(k, dtype=np.int64)
        roots[k // 2] = 1 << 16
        for weights in (roots**2, np.ones(k, dtype=np.int64)):
            scaled = frequencies(weights)
            assert int(scaled.sum()) == 1 << 24
            assert int(scaled.min()) >= 1


@pytest.mark.parametrize("k", [2, 3, 16, 255, 1000, 4096])
def test_the_coder_uses_exactly_our_frequencies(k: int) -> None:
    rng = np.random.default_rng(k)
    scaled = frequencies(rng.integers(1, 1000, k) ** 2)
    below = np.cumsum(scaled) - scaled
    for index in {0, 1, k // 2, k - 1}:
        # an empty ANS coder that takes one symbol holds the sum of the frequencies below it
        stream = ans_encode([(np.array([index], dtype=np.int32), scaled)])
        assert int.from_bytes(stream, "little") == below[index]
        reader = AnsReader(stream, "test")
        assert [piece.tolist() for _, piece in reader.read(1, scaled)] == [[index]]
        reader.finish()


@given(st.lists(st.integers(0, (1 << 50) - 1), max_size=40), st.integers(-(1 << 64), 1 << 64))
def test_numbers_in_tables_survive(values: list[int], number: int) -> None:
    array = np.array(values, dtype=np.int64)
    lists, numbers = BitWriter(), BitWriter()
    lists.int_list(array)
    numbers.signed(number)
    numbers.golomb(abs(number), 7)
    table = lists.finish()
    assert len(table) == -(-int_list_bits(array) // 8)
    reader = BitReader(table, "test")
    assert reader.int_list(len(values), 1 << 50) == values
    reader.finish()
    reader = BitReader(numbers.finish() + b"rest", "test")
    assert (reader.signed(), reader.golomb(7), reader.rest()) == (number, abs(number), b"rest")
    assert golomb_bits(np.array([0, 1, 2, 6], dtype=np.int64), 0).tolist() == [1, 3, 3, 5]


@given(st.integers(1, 64), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_packed_values_survive_at_any_width(width: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << (width - 1), count, dtype=np.uint64, endpoint=True)
    packed = pack_uints(values, width)
    assert len(packed) == -(-count * width // 8)
    assert same(unpack_uints(packed, count, width, "test"), values)


def test_packed_values_survive_beyond_one_piece() -> None:
    values = np.random.default_rng(5).integers(0, 1 << 13, 200_001, dtype=np.uint64)
    assert same(unpack_uints(pack_uints(values, 13), len(values), 13, "test"), values)
