"""Ranges of bytes of a file, read into memory of their own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gossamer.coding.sums import checksum
from gossamer.errors import DataError, FormatError

__all__ = ["file_sums", "read_bytes"]

_MOST_AT_ONCE = 1 << 30  # one read call gives at most 2 GiB
_SUM_PIECE = 1 << 24


def read_bytes(path: Path, at: int, size: int, what: str = "its data") -> npt.NDArray[np.uint8]:
    """So many bytes from an offset on. A mapped file would be an accident where it shrinks meanwhile.

    Args:
        path: the file.
        at: offset.
        size: how many.
        what: the name that an early end is reported under.

    Returns:
        [size] uint8.

    Raises:
        DataError: the file cannot be read.
        FormatError: it ends before.
    """
    raw = np.empty(size, dtype=np.uint8)
    view, done = raw.data, 0
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while done < size:
                got = os.preadv(file, [view[done : done + _MOST_AT_ONCE]], at + done)
                if got == 0:
                    raise FormatError(f"{path}: found its end inside {what}, expected no change")
                done += got
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return raw


def file_sums(path: Path, size: int) -> str:
    """A checksum of a whole file: the CRC-32 of the CRC-32s of its pieces of 16 MiB, as 8 digits.

    Raises:
        DataError: the file cannot be read.
        FormatError: it has fewer bytes than ``size``.
    """
    sums = b""
    for at in range(0, size, _SUM_PIECE):
        piece = read_bytes(path, at, min(_SUM_PIECE, size - at))
        sums += checksum(piece.data).to_bytes(4, "little")
    return f"{checksum(sums):08x}"
