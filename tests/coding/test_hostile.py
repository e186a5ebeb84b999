"""Whatever the bytes, decoding ends in `FormatError` or in an array of the right shape and dtype, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.coding import (
    Coded,
    Coder,
    decode_floats,
    decode_grid,
    decode_mask,
    decode_sparse_symbols,
    decode_symbols,
    encode_floats,
    encode_mask,
    encode_sparse_symbols,
    encode_symbols,
)
from gossamer.coding.alphabet import Alphabet
from gossamer.coding.bits import MAX_TABLE_BYTES, BitReader, BitWriter
from gossamer.coding.byte_blocks import BytePlan
from gossamer.coding.contexts import encode_numbers
from gossamer.coding.float_blocks import encode_float_blocks
from gossamer.coding.floats import coarse_floats, listed_floats, masked_floats
from gossamer.coding.short import encode_short, short_table
from gossamer.coding.table import FrequencyTable
from gossamer.errors import FormatError

Decode = Callable[[Coded], None]


def symbols(shape: tuple[int, ...], dtype: str) -> Decode:
    def decode(coded: Coded) -> None:
        x = decode_grid(coded, shape, np.dtype(dtype))
        assert (x.shape, x.dtype) == (shape, np.dtype(dtype))

    return decode


def mask(shape: tuple[int, ...]) -> Decode:
    def decode(coded: Coded) -> None:
        x = decode_mask(coded, shape)
        assert (x.shape, x.dtype) == (shape, np.dtype(bool))
        assert set(np.unique(x.view(np.uint8)).tolist()) <= {0, 1}

    return decode


def sparse(shape: tuple[int, ...], dtype: str) -> Decode:
    def decode(coded: Coded) -> None:
        where, values = decode_sparse_symbols(coded, shape, np.dtype(dtype))
        assert (where.shape, where.dtype) == (shape, np.dtype(bool))
        assert (values.shape, values.dtype) == ((int(where.sum()),), np.dtype(dtype))

    return decode


def floats(nbytes: int, itemsize: int) -> Decode:
    def decode(coded: Coded) -> None:
        x = decode_floats(coded, nbytes, itemsize)
        assert (x.shape, x.dtype) == ((nbytes,), np.dtype(np.uint8))

    return decode


def refused_or_valid(decode: Decode, coded: Coded) -> bool:
    """Whether it was refused; anything but `FormatError`, a Rust panic above all, fails the test."""
    try:
        decode(coded)
    except FormatError as error:
        assert str(error)
        assert "\n" not in str(error)
        return True
    return False


def real_leaves() -> list[tuple[str, Coded, Decode]]:
    rng = np.random.default_rng(0)
    q = rng.binomial(15, 0.3, (10, 30)).astype(np.uint8)
    wide = np.rint(rng.normal(size=120) * 1e6).astype(np.int32)
    gaps = np.arange(600).reshape(20, 30) % 37 == 5
    uneven = rng.random((40, 30)) < np.linspace(0, 0.9, 30) ** 3
    even = rng.random((20, 30)) < 0.1
    listed = rng.choice(np.array([-5000, 3, 4, 10**9]), 200, p=[0.1, 0.2, 0.6, 0.1])
    bias = rng.normal(0, 0.05, 60).astype("<f4").view(np.uint8)
    half = rng.normal(0, 0.05, 60).astype("<f2").view(np.uint8)
    codes = np.arange(int(even.sum()), dtype=np.int8) % 5 - 2
    return [
        ("constant", encode_symbols(np.full((4, 5), -7, dtype=np.int8)), symbols((4, 5), "int8")),
        ("packed", encode_symbols(np.arange(37, dtype=np.int16) % 31), symbols((37,), "int16")),
        ("static", encode_symbols(q), symbols((10, 30), "uint8")),
        ("static listed", encode_symbols(listed), symbols((200,), "int64")),
        ("static bool", encode_symbols(even), symbols((20, 30), "bool")),
        ("split", encode_symbols(wide), symbols((120,), "int32")),
        ("split log", encode_symbols(rng.geometric(0.002, 200)), symbols((200,), "int64")),
        ("bitmap", encode_mask(rng.random((5, 9)) < 0.5), mask((5, 9))),
        ("bernoulli", encode_mask(even), mask((20, 30))),
        ("gaps", encode_mask(gaps), mask((20, 30))),
        ("classes", encode_mask(uneven), mask((40, 30))),
        ("sparse", encode_sparse_symbols(even, codes), sparse((20, 30), "int8")),
        ("planes fp32", encode_floats(bias, 4), floats(240, 4)),
        ("planes fp16", encode_floats(half, 2), floats(120, 2)),
        ("raw", encode_floats(bias[:12], 4), floats(12, 4)),
        *block_leaves(rng),
        *table_leaves(rng),
    ]


def table_leaves(rng: np.random.Generator) -> list[tuple[str, Coded, Decode]]:
    """Small leaves by the coders of grids, one of them with bins."""
    scale = np.array([1, 3])[rng.integers(0, 2, 30)][:, None] * np.array([1, 4])[rng.integers(0, 2, 40)]
    q = np.abs(np.rint(rng.normal(size=scale.shape) * scale)).astype(np.uint8)
    wide = np.rint(rng.normal(size=(24, 30)) * scale[:24, :30] * 8).astype(np.int16)
    found = []
    for name, x, spans, decode in (
        ("tables", q, (), symbols((30, 40), "uint8")),
        ("tables by span", q, (10,), symbols((30, 40), "uint8")),
        ("tables of bins", wide, (), symbols((24, 30), "int16")),
    ):
        listed = Alphabet.of(x)
        assert listed is not None
        writer = BitWriter()
        listed[0].write(writer)
        made = encode_numbers(writer, listed[1].reshape(x.shape), len(listed[0]), spans, 1)
        assert made is not None
        found.append((name, Coded(Coder.TABLES, *made), decode))
    alphabet, _ = Alphabet.of(q[q > 0])  # type: ignore[misc]
    writer = BitWriter()
    alphabet.write(writer)
    made = encode_numbers(
        writer, np.unique(q, return_inverse=True)[1].reshape(q.shape).astype(np.uint8), 1 + len(alphabet), (), 1
    )
    assert made is not None
    found.append(("sparse tables", Coded(Coder.SPARSE_TABLES, *made), sparse((30, 40), "uint8")))
    made = encode_numbers(BitWriter(), (q > 1).view(np.uint8), 2, (), 1)
    assert made is not None
    found.append(("mask tables", Coded(Coder.MASK_TABLES, *made), mask((30, 40))))
    for _, coded, decode in found:
        decode(coded)
    return found


def block_leaves(rng: np.random.Generator) -> list[tuple[str, Coded, Decode]]:
    """Small leaves by the coders of large ones."""
    q = rng.binomial(15, 0.3, 300).astype(np.uint8)
    counts = np.bincount(q)
    seen = np.flatnonzero(counts)
    plan, _ = BytePlan.fit(FrequencyTable.quick(seen - seen[0], counts[seen]), counts[seen], 0)
    writer = BitWriter()
    writer.signed(int(seen[0]) - 100)
    plan.write(writer)
    blocks = Coded(Coder.BLOCKS, writer.finish(), plan.encode(q - q.min(), 1))
    table, bits = short_table(seen - seen[0], counts[seen])
    short = encode_short(q, int(seen[0]), table, True, bits, bits)
    weights = rng.normal(0, 0.05, 400).astype("<f4")
    few = np.round(weights * 20).view("<u4")
    zeros = np.where(rng.random(400) < 0.5, weights, 0).astype("<f4").view("<u4")
    runs = weights.copy()
    runs[128:256] = runs[128:256].astype("<f2")
    found = [
        ("blocks", blocks, symbols((10, 30), "int16")),
        ("short", short, symbols((10, 30), "uint8")),
        ("float blocks", encode_float_blocks(weights.view(np.uint8), 4, 1), floats(1600, 4)),
        ("half blocks", encode_float_blocks(weights.astype("<f2").view(np.uint8), 2, 1), floats(800, 2)),
        ("distinct", listed_floats(few, 1), floats(1600, 4)),
        ("zeros", masked_floats(zeros, 1), floats(1600, 4)),
        ("coarse", coarse_floats(runs.view("<u4"), 1)[0], floats(1600, 4)),
    ]
    for name, coded, decode in found:
        assert coded is not None, name
        decode(coded)
    return [leaf for leaf in found if leaf[1] is not None]  # type: ignore[misc]


LEAVES = real_leaves()
leaves = pytest.mark.parametrize(("coded", "decode"), [leaf[1:] for leaf in LEAVES], ids=[leaf[0] for leaf in LEAVES])


def test_the_battery_holds_every_coder() -> None:
    assert {coded.coder for _, coded, _ in LEAVES} == set(Coder)


@leaves
def test_every_truncated_payload_is_refused(coded: Coded, decode: Decode) -> None:
    # a stream of no bytes is the one that repeats the first symbol, so there the length alone shows nothing
    refused_or_valid(decode, Coded(coded.coder, coded.table, b""))
    for size in range(1, len(coded.payload)):
        assert refused_or_valid(decode, Coded(coded.coder, coded.table, coded.payload[:size]))


@leaves
def test_every_truncated_or_longer_table_is_refused_or_valid(coded: Coded, decode: Decode) -> None:
    for size in range(len(coded.table)):
        refused_or_valid(decode, Coded(coded.coder, coded.table[:size], coded.payload))
    assert refused_or_valid(decode, Coded(coded.coder, coded.table + b"\0", coded.payload))
    assert refused_or_valid(decode, Coded(coded.coder, coded.table, bytes(coded.payload) + b"\0"))


@leaves
def test_every_flipped_bit_is_refused_or_valid(coded: Coded, decode: Decode) -> None:
    for bit in range(8 * coded.nbytes):
        damaged = bytearray(coded.data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        refused_or_valid(decode, Coded.from_parts(coded.header, bytes(damaged)))


@leaves
def test_every_coder_of_the_wrong_kind_is_refused_or_valid(coded: Coded, decode: Decode) -> None:
    for coder in Coder:
        refused_or_valid(decode, Coded(coder, coded.table, coded.payload))


@settings(max_examples=300)
@given(st.sampled_from(LEAVES), st.sampled_from(list(Coder)), st.binary(max_size=60), st.binary(max_size=60))
def test_random_bytes_are_refused_or_valid(leaf: Any, coder: Coder, table: bytes, payload: bytes) -> None:
    refused_or_valid(leaf[2], Coded(coder, table, payload))


@settings(max_examples=300)
@given(st.sampled_from(LEAVES), st.binary(max_size=12), st.integers(0, 200), st.binary(max_size=12), st.data())
def test_spliced_bytes_are_refused_or_valid(leaf: Any, new: bytes, at: int, more: bytes, data: st.DataObject) -> None:
    _, coded, decode = leaf
    table = coded.table[: at % (len(coded.table) + 1)] + new + coded.table[at % (len(coded.table) + 1) + len(new) :]
    cut = data.draw(st.integers(0, len(coded.payload)))
    refused_or_valid(decode, Coded(coded.coder, table, bytes(coded.payload[:cut]) + more))


@settings(max_examples=100)
@given(
    st.sampled_from(LEAVES),
    st.sampled_from([(), (0,), (1,), (0, 5), (5, 0), (3, 3), (300,), (20, 31), (2, 3, 4)]),
    st.sampled_from(["bool", "int8", "uint8", "int64", "uint64"]),
)
def test_leaves_read_in_another_shape_or_dtype_are_refused_or_valid(
    leaf: Any, shape: tuple[int, ...], dtype: str
) -> None:
    for decode in (symbols(shape, dtype), mask(shape), sparse(shape, dtype)):
        refused_or_valid(decode, leaf[1])


def test_symbols_outside_the_dtype_are_refused() -> None:
    for dtype, wrong in (("int8", "uint8"), ("int16", "int8"), ("int8", "bool"), ("int64", "uint64")):
        factor = 50 if wrong == "int8" else 1
        for x in (np.full(50, -3) * factor, np.arange(-40, 40) * factor, np.repeat([-3, 0, 1, 1, 1, 1], 60) * factor):
            with pytest.raises(FormatError, match="do not fit"):
                decode_symbols(encode_symbols(x.astype(dtype)), x.shape, np.dtype(wrong))
    with pytest.raises(FormatError, match="expected an integer dtype"):
        decode_symbols(encode_symbols(np.arange(9)), (9,), np.dtype(np.float32))
    with pytest.raises(FormatError, match="expected an integer dtype"):
        decode_sparse_symbols(Coded(Coder.SPARSE_ZERO_SYMBOL, b"", b""), (9,), np.dtype(np.float32))


def test_masked_symbols_outside_the_dtype_are_refused() -> None:
    live = np.arange(100) % 3 == 0
    coded = encode_sparse_symbols(live, np.arange(34, dtype=np.int16) + 100)
    with pytest.raises(FormatError, match="do not fit int8"):
        decode_sparse_symbols(coded, (100,), np.dtype(np.int8))


def test_floats_of_broken_items_are_refused() -> None:
    for nbytes, itemsize in ((6, 4), (6, 3), (-4, 4)):
        with pytest.raises(FormatError, match="expected whole items"):
            decode_floats(Coded(Coder.RAW, b"", b""), nbytes, itemsize)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ([1, 2], "header is not"),
        ("123", "header is not"),
        (None, "header is not"),
        ([1, 2.0, 1], "three non-negative integers"),
        ([True, 2, 1], "three non-negative integers"),
        ([1, -1, 4], "three non-negative integers"),
        ([1, 10**5000, 1], "three non-negative integers"),
        ([99, 2, 1], "unknown coder 99"),
        ([1, 2, 2], "3 bytes, expected 2 of table and 2 of payload"),
    ],
)
def test_headers_that_describe_nothing_are_refused(header: Any, found: str) -> None:
    with pytest.raises(FormatError, match=found):
        Coded.from_parts(header, b"abc")


def test_oversized_tables_are_refused_before_they_are_read() -> None:
    with pytest.raises(FormatError, match="at most"):
        BitReader(bytes(MAX_TABLE_BYTES + 1), "test")


def gap_bomb() -> Coded:
    """Gaps whose sum passes 2^63."""
    inner = encode_symbols(np.full(100, 2**62, dtype=np.int64))
    writer = BitWriter()
    writer.uint(1, 1)
    writer.uint(0, 2)
    writer.golomb(100, 5)
    return Coded(Coder.MASK_GAPS, writer.finish() + inner.table, inner.payload)


def count_bomb() -> Coded:
    """2^60 gaps."""
    writer = BitWriter()
    writer.uint(1, 1)
    writer.uint(0, 2)
    writer.golomb(1 << 60, 5)
    return Coded(Coder.MASK_GAPS, writer.finish() + b"\x90", b"")


def stream_bomb() -> Coded:
    """A split stream that claims 2^60 bytes."""
    coded = next(coded for name, coded, _ in LEAVES if name == "split")
    return Coded(Coder.SPLIT, coded.table[:-2] + b"\0\0\0\0\0\0\1" + bytes(9), coded.payload)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x55", b"\x80", b"\x01"])
@pytest.mark.parametrize("coder", list(Coder))
def test_large_monotonous_tables_take_little_memory(coder: Coder, fill: bytes) -> None:
    coded = Coded(coder, fill * 20_000, b"\x01" * 100)
    for decode in (symbols((30, 30), "int64"), mask((30, 30)), sparse((30, 30), "int8"), floats(1600, 4)):
        refused_or_valid(decode, coded)


@pytest.mark.parametrize("bomb", [gap_bomb(), count_bomb(), stream_bomb()], ids=["gaps", "count", "stream"])
def test_bombs_are_refused_in_little_memory(bomb: Coded) -> None:
    tracemalloc.start()
    try:
        decode = mask((30, 30)) if bomb.coder is Coder.MASK_GAPS else symbols((120,), "int32")
        assert refused_or_valid(decode, bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@leaves
def test_damaged_leaves_take_little_memory(coded: Coded, decode: Decode) -> None:
    rng = np.random.default_rng(1)
    tracemalloc.start()
    try:
        for _ in range(40):
            damaged = bytearray(coded.data)
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            refused_or_valid(decode, Coded.from_parts(coded.header, bytes(damaged)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
