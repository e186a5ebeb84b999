"""Interleaved ANS: every decoder reads every encoder's bytes, which are the same, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.coding.rans import decode_begun, decode_block, encode_block, lanes_for
from gossamer.coding.rans_model import PRECISION, ByteModel, byte_frequencies
from gossamer.errors import FormatError
from gossamer.jit.cpu import levels

LANES = (1, 2, 4, 8, 16, 32, 64, 128)
LEVELS = st.sampled_from(levels())


def model_of(x: np.ndarray[Any, Any]) -> ByteModel:
    """The model of what occurs, with one byte more where that is only one."""
    counts = np.bincount(x, minlength=256)
    if (counts > 0).sum() < 2:
        counts[:2] += 1
    seen = np.flatnonzero(counts)
    return ByteModel(seen.astype(np.uint8), byte_frequencies(counts[seen]))


def reference(x: np.ndarray[Any, Any], model: ByteModel, lanes: int) -> bytes:
    """The definition in Python integers, symbol by symbol."""
    frequency = dict(zip(model.bytes.tolist(), model.frequencies.tolist(), strict=True))
    start, at = {}, 0
    for byte in sorted(frequency, key=lambda byte: (-frequency[byte], byte)):
        start[byte] = at
        at += frequency[byte]
    states, words = [1 << 16] * lanes, []
    for i in reversed(range(len(x))):
        f, c, lane = frequency[int(x[i])], start[int(x[i])], i % lanes
        if states[lane] >= f << (32 - PRECISION):
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16
        states[lane] = (states[lane] // f << PRECISION) + states[lane] % f + c
    return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


@st.composite
def symbols(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Bytes of any length and alphabet, evenly or adversarially distributed."""
    seed, n = draw(st.integers(0, 2**32 - 1)), draw(st.one_of(st.integers(0, 300), st.integers(1000, 3000)))
    rng = np.random.default_rng(seed)
    alphabet = rng.permutation(256)[: draw(st.sampled_from([1, 2, 3, 15, 16, 17, 32, 33, 64, 65, 200, 256]))]
    weights = rng.random(len(alphabet)) ** draw(st.sampled_from([0, 1, 20, 200])) + 1e-12
    return rng.choice(alphabet, n, p=weights / weights.sum()).astype(np.uint8)


@given(symbols(), st.sampled_from(LANES), LEVELS)
def test_compiled_and_numpy_code_to_the_bytes_of_the_definition_and_back(
    x: np.ndarray[Any, Any], lanes: int, level: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSAMER_ISA", level)
        model = model_of(x)
        block = reference(x, model, lanes)
        for compiled in (True, False):
            assert encode_block(x, model, lanes, compiled=compiled) == block
            out = np.empty_like(x)
            assert np.array_equal(decode_block(block, out, model, lanes, "x", compiled=compiled), x)


@given(symbols(), st.sampled_from(LANES), LEVELS, st.data())
def test_any_other_bytes_are_refused_or_are_what_some_symbols_code_to(
    x: np.ndarray[Any, Any], lanes: int, level: str, data: st.DataObject
) -> None:
    model = model_of(x)
    block = bytearray(encode_block(x, model, lanes))
    at, bit = data.draw(st.integers(0, len(block) - 1)), data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, 3))
    block[at] ^= 1 << bit
    hurt = bytes(block[: len(block) - cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSAMER_ISA", level)
        found = []
        for compiled in (True, False):
            try:
                found.append(decode_block(hurt, np.empty_like(x), model, lanes, "x", compiled=compiled).tobytes())
            except FormatError:
                found.append(None)
    assert found[0] == found[1]
    if found[0] is not None:
        assert encode_block(np.frombuffer(found[0], np.uint8), model, lanes) == hurt


@given(symbols(), st.sampled_from(LANES), LEVELS, st.integers(0, 2**32 - 1))
def test_blocks_tell_what_they_begin_with(x: np.ndarray[Any, Any], lanes: int, level: str, seed: int) -> None:
    model, begin = model_of(x), np.random.default_rng(seed).integers(0, 1 << 16, lanes, dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSAMER_ISA", level)
        block = encode_block(x, model, lanes, begin=begin)
        assert block == encode_block(x, model, lanes, begin=begin, compiled=False)
        for compiled in (True, False):
            out = np.empty_like(x)
            assert np.array_equal(decode_begun(block, out, model, lanes, "x", compiled=compiled), begin)
            assert np.array_equal(out, x)
    if begin.any():
        with pytest.raises(FormatError, match="does not end"):
            decode_block(block, np.empty_like(x), model, lanes, "x")


def test_a_model_is_the_same_whatever_integers_it_is_given() -> None:
    narrow = ByteModel(np.array([0, 7, 9]).astype(np.uint16), np.array([4096, 12287, 1], dtype=np.int32))  # type: ignore[arg-type]
    model = ByteModel(np.array([0, 7, 9], dtype=np.uint8), np.array([4096, 12287, 1]))
    assert np.array_equal(narrow.table, model.table)
    assert np.array_equal(narrow.slots, model.slots)


@pytest.mark.parametrize("k", [2, 128, 255, 256])
def test_frequencies_are_positive_and_sum_to_the_precision(k: int) -> None:
    for raised in range(0, k, max(1, k // 17)):
        weights = np.full(k, 1 << 32)
        weights[:raised] = 1
        scaled = byte_frequencies(weights)
        assert scaled.min() >= 1
        assert scaled.sum() == 1 << PRECISION


@pytest.mark.parametrize("top", [1, 15, 40, 255])
def test_large_blocks_take_their_entropy_and_a_fifth_of_a_per_cent(top: int) -> None:
    x = np.random.default_rng(top).binomial(top, 0.3, 1 << 18).astype(np.uint8)
    counts = np.bincount(x)
    counts = counts[counts > 0]
    entropy = float((counts * np.log2(len(x) / counts)).sum()) / 8
    block = encode_block(x, model_of(x), lanes_for(entropy))
    assert len(block) <= 1.002 * entropy


def test_models_that_are_none_are_refused() -> None:
    for bytes_, frequencies in (
        ([0], [1 << 14]),
        ([0, 1], [1, 1]),
        ([0, 0], [1, (1 << 14) - 1]),
        ([0, 1], [0, 1 << 14]),
    ):
        with pytest.raises(FormatError, match="frequencies"):
            ByteModel(np.array(bytes_, dtype=np.uint8), np.array(frequencies))
