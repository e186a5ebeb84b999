"""Small leaves of bytes and floats by one call of compiled code, where that finds them as they should be."""

from __future__ import annotations

from ctypes import byref, c_int64
from typing import Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import MAX_TABLE_BYTES
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.compiled import loaded

__all__ = ["SMALL_CODERS", "small_planes", "small_symbols"]

U8 = npt.NDArray[np.uint8]

SMALL_CODERS: Final = frozenset((Coder.CONSTANT, Coder.PACKED, Coder.STATIC, Coder.SPLIT))
_MOST: Final = 1 << 16  # symbols; beyond, Python takes no noticeable time, and the compiled search for symbols more
_BEHIND: Final = bytes(8)  # may be touched


def _fits(coded: Coded, count: int) -> bool:
    return 0 < count <= _MOST and len(coded.table) <= MAX_TABLE_BYTES and len(coded.payload) <= 9 * count + _MOST


def small_symbols(coded: Coded, out: U8, least: int, most: int) -> bool:
    """Decodes symbols by one of `SMALL_CODERS`.

    Args:
        coded: not trusted.
        out: [n] uint8, contiguous; filled with symbols from the least to the most, modulo 256.
        least: that their dtype holds.
        most: that it holds.

    Returns:
        False where no compiled code is loaded, or where the leaf is too large or anything but what an encoder writes:
        ``out`` then holds anything, and `symbols.decode_symbols` says what is wrong.
    """
    made = loaded()
    if made is None or not _fits(coded, len(out)):
        return False
    table, payload, good = coded.table + _BEHIND, b"".join((coded.payload, _BEHIND)), c_int64()
    coded_ = coded.coder, table, len(coded.table), payload, len(coded.payload)
    made.symbols(*coded_, len(out), least, most, out.ctypes.data, 1, byref(good))
    return bool(good.value)


def small_planes(coded: Coded, count: int, itemsize: int) -> U8 | None:
    """Decodes as many floats by `Coder.FLOAT_PLANES`; None as `small_symbols`.

    Args:
        coded: not trusted.
        count: of items.
        itemsize: their bytes, at most 8.
    """
    made = loaded()
    if made is None or not _fits(coded, count):
        return None
    out, good = np.empty(count * itemsize, dtype=np.uint8), c_int64()
    data = b"".join((coded.table, coded.payload, _BEHIND))
    made.planes(data, len(coded.table), len(coded.payload), count, itemsize, out.ctypes.data, byref(good))
    return out if good.value else None
