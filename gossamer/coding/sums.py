"""Counts and checksums of bytes: compiled for this processor where that pays, else by NumPy and zlib."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import checksums, coders

__all__ = ["checksum", "count_bytes"]

U8 = npt.NDArray[np.uint8]

_WORTH: Final = 1 << 12  # bytes from which on a call of compiled code pays
_FOLDED: Final = 256
_PIECE: Final = 1 << 20


def count_bytes(x: U8) -> npt.NDArray[np.int64]:
    """How often each byte occurs.

    Args:
        x: [n] uint8, contiguous.

    Returns:
        [256] int64.

    Cost: 0.4 ns a byte.

    Example:
        >>> count_bytes(np.array([3, 0, 3], dtype=np.uint8))[:5].tolist()
        [1, 0, 0, 2, 0]
    """
    counts = np.zeros(256, dtype=np.int64)
    if len(x) >= _WORTH:
        made = coders()
        if made is not None:
            made.count(x.ctypes.data, len(x), counts.ctypes.data)
            return counts
    for start in range(0, len(x), _PIECE):
        counts += np.bincount(x[start : start + _PIECE], minlength=256)
    return counts


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 as zlib's, of any length.

    Cost: 0.03 ns a byte where the processor has carry-less products, else zlib's 0.25 ns.

    Example:
        >>> checksum(b"123456789") == 0xCBF43926
        True
    """
    if len(data) < _WORTH:
        return zlib.crc32(data)
    made = checksums()
    if made is None:
        return zlib.crc32(data)
    x = np.frombuffer(data, dtype=np.uint8)
    whole = len(x) // _FOLDED * _FOLDED
    folded = np.empty(16, dtype=np.uint8)
    made.fold(x.ctypes.data, whole, folded.ctypes.data)
    # The first register is in what was folded already: zlib inverts what it is given, so that it begins with zero.
    return zlib.crc32(x[whole:].data, zlib.crc32(folded.data, 0xFFFFFFFF))
