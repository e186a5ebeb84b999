"""Differences of two arrays as bit patterns: exact, and small where the arrays are alike."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError

__all__ = ["Difference", "restore", "take"]

U8 = npt.NDArray[np.uint8]

_SIZES: Final = (1, 2, 4, 8)


class Difference(IntEnum):
    """How bytes are told by those of a reference. The numbers are part of the file format."""

    NONE = 0  # not at all: the bytes themselves
    XOR = 1  # bits that differ
    MINUS = 2  # distance along the number line in steps of one representable value, sign last
    SAME = 3  # they are equal


def _signed(raw: U8, size: int) -> npt.NDArray[Any]:
    if raw.dtype != np.uint8 or raw.ndim != 1 or size not in _SIZES or len(raw) % size:
        raise DataError(f"found {raw.dtype} of shape {raw.shape}, expected whole items of {size} bytes as flat uint8")
    return np.ascontiguousarray(raw).view(f"<i{size}")


def _as_bytes(items: npt.NDArray[Any]) -> U8:
    flat: U8 = items.view(np.uint8)
    return flat


def _in_order(items: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bit patterns of floats ↔ integers in the same order: magnitudes of negative ones are counted downwards."""
    ordered: npt.NDArray[Any] = items ^ ((items >> (8 * items.itemsize - 1)) & np.iinfo(items.dtype).max)
    return ordered


def take(raw: U8, base: U8, size: int, how: Difference, *, floats: bool) -> U8:
    """What must be kept of an array whose reference is known.

    XOR: `x ⊕ b`. MINUS: `d = o(x) − o(b)` modulo 2^w, folded onto 0, 1, 2, … as 0, −1, 1, −2, …; `o` are the integers
    of the bit patterns, for floats in the order of the values.

    Args:
        raw: [nbytes] uint8, little-endian items.
        base: [nbytes] uint8.
        size: bytes of an item: 1, 2, 4 or 8.
        how: XOR or MINUS.
        floats: items are of sign and magnitude.

    Returns:
        [nbytes] uint8, little-endian unsigned items.

    Raises:
        DataError: sizes that do not fit.

    Cost: a few passes. Always exact, NaN and infinities included.

    Example:
        >>> x, b = (np.array(v, "<f4").view(np.uint8) for v in ([1.0, -0.0], [1.0000001, 0.0]))
        >>> kept = take(x, b, 4, Difference.MINUS, floats=True)
        >>> kept.view("<u4").tolist(), bool(np.array_equal(restore(kept, b, 4, Difference.MINUS, floats=True), x))
        ([1, 1], True)
    """
    x, b = _signed(raw, size), _signed(base, size)
    if len(x) != len(b):
        raise DataError(f"found a reference of {len(base)} bytes, expected {len(raw)}")
    if how is Difference.XOR:
        return _as_bytes(x ^ b)
    if floats:
        x, b = _in_order(x), _in_order(b)
    d = x - b  # wraps
    return _as_bytes((d << 1) ^ (d >> (8 * size - 1)))


def restore(kept: U8, base: U8, size: int, how: Difference, *, floats: bool) -> U8:
    """The inverse of `take`, with the same arguments."""
    x, b = _signed(kept, size), _signed(base, size)
    if len(x) != len(b):
        raise DataError(f"found a reference of {len(base)} bytes, expected {len(kept)}")
    if how is Difference.XOR:
        return _as_bytes(x ^ b)
    unsigned = x.view(f"<u{size}")
    one = unsigned.dtype.type(1)
    d = ((unsigned >> one) ^ (~(unsigned & one) + one)).view(x.dtype)
    if not floats:
        return _as_bytes(b + d)
    return _as_bytes(_in_order(_in_order(b) + d))
