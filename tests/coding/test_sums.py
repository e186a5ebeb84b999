"""Counts and checksums are those of NumPy and zlib, whatever computes them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.coding.sums import checksum, count_bytes
from gossamer.jit.cpu import levels


@given(st.integers(0, 20_000), st.integers(0, 2**32 - 1), st.sampled_from(levels()), st.integers(0, 7))
def test_counts_and_checksums_are_those_of_numpy_and_zlib(n: int, seed: int, level: str, first: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, n + first).astype(np.uint8)[first:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSAMER_ISA", level)
        assert np.array_equal(count_bytes(x), np.bincount(x, minlength=256))
        assert checksum(x.data) == zlib.crc32(x)


def test_a_constant_megabyte_is_counted() -> None:
    assert count_bytes(np.full(1 << 20, 7, dtype=np.uint8))[7] == 1 << 20
