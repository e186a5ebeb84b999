"""The bytes of a few leaves, literally: files written today must be read for ever, and written the same."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from gossamer.coding import (
    Coded,
    Coder,
    decode_floats,
    decode_grid,
    decode_mask,
    decode_sparse_symbols,
    decode_symbols,
    encode_floats,
    encode_grid,
    encode_mask,
    encode_sparse_symbols,
    encode_symbols,
    rans_kernels,
)
from gossamer.coding.bits import BitWriter
from gossamer.coding.contexts import encode_numbers
from gossamer.coding.symbols import encode_nested_symbols


def noise(count: int) -> np.ndarray[Any, Any]:
    """Numbers from 0 to 65535 that depend on no generator's version."""
    state, numbers = 1, []
    for _ in range(count):
        state = (1103515245 * state + 12345) % (1 << 31)
        numbers.append(state >> 15)
    return np.array(numbers, dtype=np.int64)


SYMBOLS = {
    "constant": np.full((4, 5), -7, dtype=np.int8),
    "packed": (noise(11) % 7 - 2).astype(np.int16),
    "static": np.minimum(noise(120) // 4000, 5).astype(np.uint8),
    "static, listed": np.array([-5000, 3, 10**9], dtype=np.int64)[np.minimum(2, noise(90) // 7000)],
    "split": ((noise(150) + noise(300)[150:] + noise(450)[300:]) >> 8).astype(np.int32),
}
MASKS = {
    "bitmap": noise(20).reshape(4, 5) < 30_000,
    "bernoulli": noise(600).reshape(20, 30) < 5_000,
    "gaps": np.arange(600).reshape(20, 30) % 37 == 5,
    "classes": noise(1200).reshape(40, 30) < np.arange(30) ** 3 * 2,
    "dead": np.zeros((20, 30), dtype=bool),
}
FLOATS = {
    "raw": np.array([-0.0, 1.5], dtype="<f4"),
    "planes": (noise(40).astype("<f4") - 32768) / 65536,
}
ZERO_SYMBOL = (MASKS["bernoulli"], (noise(int(MASKS["bernoulli"].sum())) % 5 - 2).astype(np.int8))

GOLDEN = {
    ("symbols", "constant"): (Coder.CONSTANT, "22", ""),
    ("symbols", "packed"): (Coder.PACKED, "a100", "cd54aa9800"),
    ("symbols", "static"): (Coder.STATIC, "8c4179c0", "939f36452a895bfc6442bbe2e6ad2ceb769b171202eb82fe3f2103"),
    ("symbols", "static, listed"): (Coder.STATIC, "001389e4f938a0003b9b49fc07d8", "d5d52a60714c45b40d064e2f1d"),
    ("symbols", "split"): (
        Coder.SPLIT,
        "059078b41ba554",
        "2e12c3ac534c4358da12541df93c309d42ffb5322783b7fed9e64eaaa15343170e6294d7aad45af34008b48860"
        "12815f64810ff28d545347fe5a61223be57eed6753d36a9186d385c88e9950b384fbc7585fa58e4844748b3112"
        "7a295ac889c830815a103a58ff256ebd7bc8070db7328ff1ad55e8ab7533cefe5e35fe6e17914be864410abdc7"
        "6d2906b03767461d5dcaa9855fb40a24e2befee026452ddd2f481c4985e103eff06999a3c26a02",
    ),
    ("mask", "bitmap"): (Coder.MASK_BITMAP, "", "a63e00"),
    ("mask", "bernoulli"): (Coder.MASK_BERNOULLI, "3180", "fa8f1ae2799be4d69f60953ae246789d06a0cb1ce863462381161f6901"),
    ("mask", "gaps"): (Coder.MASK_GAPS, "d8807605f81dc0", "00000010"),
    ("mask", "classes"): (
        Coder.MASK_CLASSES,
        "30d39eee87",
        "1c6e9698e5206f1ee0b8891210137abeddf938c44fc52cf85d73349f66d3df2c4c21807998a030ff1befafe3a2"
        "2e239126c5bb95c3b74db7475a6f43c8906444196fbe8f2a22475596aa3f0000107c05",
    ),
    ("mask", "dead"): (Coder.MASK_BERNOULLI, "00", ""),
    ("floats", "raw"): (Coder.RAW, "", "000000800000c03f"),
    ("floats", "planes"): (
        Coder.FLOAT_PLANES,
        "198001a31c800f9c0e2021261056ac",
        "0006f4702e14141280260c08201c84f006fcc67a58367cc4c89ac070a020f066a8b44cb0d8d87c6263a6430de5"
        "a84f8cabc0d5e26407f7108815888fa5b2003d1cd5a1cada92dcbdbb3284a7e21399a75c797beab6a06aa65cd7"
        "11d91f01",
    ),
    ("sparse", "zero symbol"): (
        Coder.SPARSE_ZERO_SYMBOL,
        "b88c04cffc",
        "e6eca55bb91b54095278cb015ab8268528c978421072a7ff85cc0a9cbe8b6e49a024545a6c2f90",
    ),
}


BITS = noise(6 << 15)
SMALL_FLOATS = ((BITS[: 2 << 15] - 32768) / 700000).astype("<f4")
LARGE = {
    "blocks": np.minimum((BITS[: 3 << 15] * BITS[3 << 15 :]) >> 28, 9).astype(np.int8) - 4,
    "float blocks": SMALL_FLOATS,
    "distinct": np.round(SMALL_FLOATS * 60).astype("<f4"),
    "zeros": np.where(BITS[2 << 15 : 4 << 15] < 20_000, SMALL_FLOATS, 0).astype("<f4"),
    "coarse": np.where(np.arange(2 << 15) // 128 % 9, SMALL_FLOATS * np.float32(np.pi), SMALL_FLOATS.astype("<f2")),
}
SHORT = {
    "short": np.minimum((BITS[: 3 << 15] * BITS[3 << 15 :]) >> 28, 9).astype(np.int8) - 4,
    "short, wide": np.minimum(BITS[:2000] // 900, 60).astype(np.int16) - 1000,
}
# coder, bytes, and SHA-256 of table and payload
SHORT_GOLDEN = {
    "short": (Coder.SHORT, 38469, "c1c0bb92fe38bbfe"),
    "short, wide": (Coder.SHORT, 1408, "b203243862b1e096"),
}
LARGE_GOLDEN = {
    "blocks": (Coder.BLOCKS, 38480, "77c9f8bf52bfefc4"),
    "float blocks": (Coder.FLOAT_BLOCKS, 215510, "481faea4118d3682"),
    "distinct": (Coder.FLOAT_DISTINCT, 23480, "b6a52a6b24fc8e65"),
    "zeros": (Coder.FLOAT_SPARSE, 72686, "bcd65f7aaf19ae3c"),
    "coarse": (Coder.FLOAT_COARSE, 204018, "5ed0222c979bff16"),
}


# rows and columns that differ so much that no rounding can change their classes
GRID = (noise(128 * 96).reshape(128, 96) >> 8) * np.where(np.arange(128) % 3, 3, 20)[:, None] * np.where(
    np.arange(96) < 32, 1, 4
) >> 10
GRIDS = {
    "tables": GRID.astype(np.uint8),
    "sparse tables": GRID.astype(np.uint8),
    "mask tables": GRID > 3,
}
GRID_GOLDEN = {
    "tables": (Coder.TABLES, 3029, "6f59270231ca544d"),
    "sparse tables": (Coder.SPARSE_TABLES, 3029, "f1cc53ede8bb1336"),
    "mask tables": (Coder.MASK_TABLES, 440, "2ada9183938c9644"),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", GRIDS)
def test_golden_grids_are_written_and_read_as_ever(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = GRIDS[name]
    if not compiled:
        monkeypatch.setattr(rans_kernels, "kernels", lambda: None)
        monkeypatch.setattr(rans_kernels, "checksum_kernel", lambda: None)
    if name == "tables":
        coded = encode_grid(x)
        assert np.array_equal(decode_grid(coded, x.shape, x.dtype), x)
    elif name == "mask tables":
        made = encode_numbers(BitWriter(), x.view(np.uint8), 2, (), 1)
        assert made is not None
        coded = Coded(Coder.MASK_TABLES, *made)
        assert np.array_equal(decode_mask(coded, x.shape), x)
    else:
        coded = encode_sparse_symbols(x > 0, x[x > 0])
        mask, symbols = decode_sparse_symbols(coded, x.shape, x.dtype)
        assert np.array_equal(mask, x > 0)
        assert np.array_equal(symbols, x[x > 0])
    assert (coded.coder, coded.nbytes, sha256(coded.data).hexdigest()[:16]) == GRID_GOLDEN[name]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", LARGE)
def test_golden_large_leaves_are_written_and_read_as_ever(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = LARGE[name]
    if not compiled:
        monkeypatch.setattr(rans_kernels, "kernels", lambda: None)
        monkeypatch.setattr(rans_kernels, "checksum_kernel", lambda: None)
    # within other coders, and in files of older versions, leaves of this size are in blocks
    coded = encode_nested_symbols(x) if x.dtype.kind == "i" else encode_floats(x.astype("<f4").view(np.uint8), 4)
    assert (coded.coder, coded.nbytes, sha256(coded.data).hexdigest()[:16]) == LARGE_GOLDEN[name]
    if x.dtype.kind == "i":
        assert np.array_equal(decode_symbols(coded, x.shape, x.dtype), x)
    else:
        assert np.array_equal(decode_floats(coded, 4 * len(x), 4), x.astype("<f4").view(np.uint8))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", SHORT)
def test_golden_short_leaves_are_written_and_read_as_ever(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = SHORT[name]
    if not compiled:
        monkeypatch.setattr(rans_kernels, "kernels", lambda: None)
        monkeypatch.setattr(rans_kernels, "checksum_kernel", lambda: None)
    coded = encode_symbols(x)
    assert (coded.coder, coded.nbytes, sha256(coded.data).hexdigest()[:16]) == SHORT_GOLDEN[name]
    assert np.array_equal(decode_symbols(coded, x.shape, x.dtype), x)


def golden(kind: str, name: str) -> Coded:
    coder, table, payload = GOLDEN[kind, name]
    return Coded(coder, bytes.fromhex(table), bytes.fromhex(payload))


def test_codes_of_coders_never_change() -> None:
    assert {coder.name: coder.value for coder in Coder} == {
        "RAW": 0,
        "CONSTANT": 1,
        "PACKED": 2,
        "STATIC": 3,
        "SPLIT": 4,
        "MASK_BITMAP": 5,
        "MASK_BERNOULLI": 6,
        "MASK_GAPS": 7,
        "MASK_CLASSES": 8,
        "SPARSE_ZERO_SYMBOL": 9,
        "FLOAT_PLANES": 10,
        "BLOCKS": 11,
        "FLOAT_BLOCKS": 12,
        "FLOAT_DISTINCT": 13,
        "FLOAT_SPARSE": 14,
        "FLOAT_COARSE": 15,
        "TABLES": 16,
        "SPARSE_TABLES": 17,
        "MASK_TABLES": 18,
        "SHORT": 19,
    }


def test_every_coder_has_golden_bytes() -> None:
    found = [*GOLDEN.values(), *SHORT_GOLDEN.values(), *LARGE_GOLDEN.values(), *GRID_GOLDEN.values()]
    assert {coder for coder, _, _ in found} == set(Coder)


@pytest.mark.parametrize("name", SYMBOLS)
def test_golden_symbols_are_written_and_read_as_ever(name: str) -> None:
    x = SYMBOLS[name]
    assert encode_symbols(x) == golden("symbols", name)
    assert np.array_equal(decode_symbols(golden("symbols", name), x.shape, x.dtype), x)


@pytest.mark.parametrize("name", MASKS)
def test_golden_masks_are_written_and_read_as_ever(name: str) -> None:
    mask = MASKS[name]
    assert encode_mask(mask) == golden("mask", name)
    assert np.array_equal(decode_mask(golden("mask", name), mask.shape), mask)


@pytest.mark.parametrize("name", FLOATS)
def test_golden_floats_are_written_and_read_as_ever(name: str) -> None:
    raw = FLOATS[name].astype("<f4").view(np.uint8)
    assert encode_floats(raw, 4) == golden("floats", name)
    assert np.array_equal(decode_floats(golden("floats", name), len(raw), 4), raw)


def test_golden_masked_symbols_are_written_and_read_as_ever() -> None:
    mask, symbols = ZERO_SYMBOL
    coded = golden("sparse", "zero symbol")
    assert encode_sparse_symbols(mask, symbols) == coded
    again, values = decode_sparse_symbols(coded, mask.shape, symbols.dtype)
    assert np.array_equal(again, mask)
    assert np.array_equal(values, symbols)
