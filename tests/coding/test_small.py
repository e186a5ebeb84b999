"""Small leaves are read by one call of compiled code: alike with and without it, whole or damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.coding import Coded, Coder, bits, decode_floats, decode_symbols, encode_floats, small
from gossamer.coding.ans import ans_encode
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.compiled import coders
from gossamer.coding.rans_model import byte_frequencies
from gossamer.coding.small import SMALL_CODERS, small_planes, small_symbols
from gossamer.coding.symbols import encode_plain_symbols
from gossamer.coding.table import FrequencyTable
from gossamer.errors import FormatError

Found = tuple[str, Any]


def leaf(kind: str, count: int, seed: int, dtype: str) -> np.ndarray[Any, Any]:
    """Symbols that suit one coder or another."""
    rng = np.random.default_rng(seed)
    made = {
        "even": lambda: rng.integers(-128, 256, count),
        "normal": lambda: rng.normal(0, 2.0 ** rng.integers(-3, 6), count),
        "long tail": lambda: np.minimum(rng.geometric(rng.choice([0.01, 0.05, 0.3]), count), 255),
        "same": lambda: np.full(count, rng.integers(-128, 256)),
        "few": lambda: rng.choice([0, 5, 100, 255], count, p=[0.7, 0.1, 0.1, 0.1]),
    }
    return np.rint(made[kind]()).astype(np.int64).astype(dtype)


KINDS = st.sampled_from(["even", "normal", "long tail", "same", "few"])
leaves = st.builds(
    leaf,
    KINDS,
    st.sampled_from([1, 2, 9, 70, 500, 4000]),
    st.integers(0, 99),
    st.sampled_from(["uint8", "int8", "bool"]),
)


def both(read: Callable[..., Any], *arguments: Any) -> Found:
    """What is read with compiled code; without it that must be the same, or be refused in the same words."""
    assert coders() is not None  # loads the compiler
    found: list[Found] = []
    for compiled in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(small, "loaded", lambda: None)
                patch.setattr(bits, "loaded", lambda: None)
                patch.setattr(bits, "coders", lambda: None)
            try:
                x = read(*arguments)
                found.append((str(x.dtype), x.tolist()))
            except FormatError as error:
                found.append(("refused", str(error)))
    assert found[0] == found[1]
    return found[0]


def damaged(coded: Coded, data: st.DataObject) -> Coded:
    """One bit or byte is another, or bytes are missing or too many, of the table or of the payload."""
    parts = [bytearray(coded.table), bytearray(coded.payload)]
    part = parts[data.draw(st.integers(0, 1))]
    at = data.draw(st.integers(0, len(part)))
    if data.draw(st.booleans()) and at < len(part):
        part[at] ^= data.draw(st.integers(1, 255))
    else:
        part[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    coder = data.draw(st.sampled_from([coded.coder] * 5 + sorted(SMALL_CODERS)))
    return Coded(coder, bytes(parts[0]), bytes(parts[1]))


@settings(max_examples=200)
@given(leaves, st.data())
def test_small_leaves_are_read_alike_with_and_without_a_compiler(x: np.ndarray[Any, Any], data: st.DataObject) -> None:
    coded = encode_plain_symbols(x)
    assert both(decode_symbols, coded, x.shape, x.dtype) == (str(x.dtype), x.tolist())
    for _ in range(8):
        broken = damaged(coded, data)
        for count in (x.size, data.draw(st.integers(0, 70))):
            both(decode_symbols, broken, (count,), x.dtype)


@settings(max_examples=150)
@given(
    st.sampled_from([1, 2, 5, 40, 300]),
    st.sampled_from(["<f2", "<f4", "<f8", "<u2", "u1"]),
    st.integers(0, 99),
    st.data(),
)
def test_small_floats_are_read_alike_with_and_without_a_compiler(
    count: int, dtype: str, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.05, count) if seed % 2 else rng.integers(0, 200, count) * np.exp2(rng.integers(-9, 0))
    raw = np.abs(values).astype(dtype).view(np.uint8) if "u" in dtype else values.astype(dtype).view(np.uint8)
    itemsize = np.dtype(dtype).itemsize
    coded = encode_floats(raw, itemsize)
    assert both(decode_floats, coded, len(raw), itemsize) == ("uint8", raw.tolist())
    for _ in range(8):
        broken = damaged(coded, data)
        both(decode_floats, Coded(coded.coder, broken.table, broken.payload), len(raw), itemsize)


def test_every_coder_of_small_leaves_is_compiled() -> None:
    assert coders() is not None
    rng = np.random.default_rng(0)
    cases = {
        Coder.CONSTANT: np.full(9, 3, dtype=np.uint8),
        Coder.PACKED: rng.integers(0, 16, 300).astype(np.uint8),
        Coder.STATIC: rng.binomial(15, 0.3, 900).astype(np.uint8),
        Coder.SPLIT: np.minimum(rng.geometric(0.02, 900), 255).astype(np.uint8),
    }
    assert cases.keys() == SMALL_CODERS
    for coder, x in cases.items():
        coded, out = encode_plain_symbols(x), np.empty_like(x)
        assert coded.coder is coder
        assert small_symbols(coded, out, 0, 255)
        assert np.array_equal(out, x)
        assert not small_symbols(coded, out, 0, int(x.max()) - 1)
    raw = rng.normal(0, 0.05, 60).astype("<f4").view(np.uint8)
    coded = encode_floats(raw, 4)
    assert coded.coder is Coder.FLOAT_PLANES
    assert np.array_equal(small_planes(coded, 60, 4), raw)  # type: ignore[arg-type]


def test_a_split_without_low_bits_is_refused_with_and_without_a_compiler() -> None:
    x = np.arange(100, dtype=np.uint8) % 4
    table = FrequencyTable(np.arange(4), np.ones(4, dtype=np.int64))
    stream = ans_encode([(x, table.frequencies)])
    writer = BitWriter()
    writer.signed(0)
    for value, width in ((0, 1), (0, 6)):  # linear, no low bits
        writer.uint(value, width)
    writer.golomb(0, 2)
    table.write(writer)
    writer.golomb(len(stream), 7)
    assert both(decode_symbols, Coded(Coder.SPLIT, writer.finish(), stream), x.shape, x.dtype)[0] == "refused"


@pytest.mark.parametrize("coder", sorted(SMALL_CODERS), ids=lambda c: c.name)
@pytest.mark.parametrize("zeros", [27, 28, 29, 56, 57, 63, 64, 65])
def test_codes_of_a_word_and_longer_are_refused_alike(coder: Coder, zeros: int) -> None:
    for start in ((), (0,), (0, 0, 0)):  # the least symbol, or what follows it
        writer = BitWriter()
        for value in start:
            writer.golomb(value, 2)
        writer.uint(1, zeros + 1)
        writer.uint((1 << 70) - 1, 70)
        for payload in (b"", bytes(9), b"\1" * 9):
            assert both(decode_symbols, Coded(coder, writer.finish(), payload), (9,), np.dtype("u1"))[0] == "refused"


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 16)), min_size=1, max_size=40), st.data())
def test_tables_are_read_alike_with_and_without_a_compiler(more: list[tuple[int, int]], data: st.DataObject) -> None:
    close = data.draw(st.booleans())
    gaps = np.array([0, *((gap >> 38 if close else gap) + 1 for gap, _ in more)])
    roots = np.array([1, *(root for _, root in more)])
    writer = BitWriter()
    writer.uint(1, 3)
    FrequencyTable(np.cumsum(gaps), roots).write(writer)
    table = bytearray(writer.finish())
    if data.draw(st.booleans()):
        table[data.draw(st.integers(0, len(table) - 1))] ^= data.draw(st.integers(1, 255))

    def read() -> np.ndarray[Any, Any]:
        reader = BitReader(bytes(table), "x")
        reader.uint(3)
        found = FrequencyTable.read(reader, "x")
        return np.concatenate([found.offsets, found.roots, np.frombuffer(reader.rest(), dtype=np.uint8)])

    both(read)


@given(st.lists(st.lists(st.integers(0, 1 << 48), min_size=5, max_size=5).filter(any), min_size=1, max_size=4))
def test_tables_scaled_together_are_as_each_alone(weights: list[list[int]]) -> None:
    together = byte_frequencies(np.array(weights))
    assert np.array_equal(byte_frequencies(np.asfortranarray(weights)), together)
    for row, found in zip(np.array(weights), together, strict=True):
        assert np.array_equal(found[row > 0], byte_frequencies(row[row > 0]))
        assert not found[row == 0].any()


def test_small_leaves_alone_load_no_compiler() -> None:
    script = """
import sys
import numpy as np
from gossamer.coding import decode_symbols, encode_symbols
x = np.random.default_rng(0).binomial(15, 0.3, 300).astype(np.uint8)
assert np.array_equal(decode_symbols(encode_symbols(x), x.shape, x.dtype), x)
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
