"""PNG files from arrays, with nothing but zlib: small pictures that a page carries within itself."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError

__all__ = ["data_uri", "grey_png", "png", "tinted_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = {1: 0, 3: 2, 4: 6}  # channels → colour type
_TINTS = 16

Pixels = npt.NDArray[np.uint8]


def png(pixels: Pixels) -> bytes:
    """A grey, RGB or RGBA picture.

    Args:
        pixels: uint8 [height, width] or [height, width, 1, 3 or 4].

    Raises:
        DataError: another shape or dtype.

    Exact: lossless, every row with the filter None or Up, whichever has the smaller sum of differences.

    Example:
        >>> png(np.zeros((2, 3), np.uint8))[:8] == b"\\x89PNG\\r\\n\\x1a\\n"
        True

    Source: PNG, third edition (W3C 2025), sections 5, 9 and 11.
    """
    array = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in _KINDS or 0 in array.shape:
        raise DataError(f"found pixels {array.dtype} {array.shape}, expected uint8 [height, width, 1, 3 or 4]")
    height, width, channels = array.shape
    return _file(array.reshape(height, width * channels), width, 8, _KINDS[channels], ())


def grey_png(pixels: Pixels) -> bytes:
    """A grey picture of 16 shades, half a byte per pixel before compression.

    Args:
        pixels: uint8 [height, width].
    """
    return _file(_halves((pixels >> 4).astype(np.uint8)), pixels.shape[1], 4, 0, ())


def tinted_png(shares: npt.NDArray[Any], colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour on nothing: 16 degrees of opacity, so that it suits light and dark pages.

    Args:
        shares: [height, width], 0 (transparent) to 1 (opaque); clipped.
        colour: red, green, blue.
    """
    levels = np.rint(np.clip(np.nan_to_num(shares), 0, 1) * (_TINTS - 1)).astype(np.uint8)
    palette = bytes(colour) * _TINTS
    opacity = bytes(round(255 * i / (_TINTS - 1)) for i in range(_TINTS))
    return _file(_halves(levels), levels.shape[1], 4, 3, ((b"PLTE", palette), (b"tRNS", opacity)))


def data_uri(content: bytes) -> str:
    """A PNG as an address that holds it.

    Example:
        >>> data_uri(b"abc")
        'data:image/png;base64,YWJj'
    """
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _halves(levels: Pixels) -> Pixels:
    """Two pixels per byte, the first in the high half."""
    padded = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
    return ((padded[:, ::2] << 4) | padded[:, 1::2]).astype(np.uint8)


def _file(rows: Pixels, width: int, depth: int, kind: int, extra: tuple[tuple[bytes, bytes], ...]) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    filtered = _filtered(rows) if depth == 8 else np.pad(rows, ((0, 0), (1, 0)))
    body = zlib.compress(filtered.tobytes(), 9)
    chunks = ((b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _filtered(rows: Pixels) -> Pixels:
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    up = rows - above
    cost = [np.minimum(found, 256 - found.astype(np.int32)).sum(1) for found in (rows, up)]
    chosen = (cost[1] < cost[0]).astype(np.uint8)[:, None]
    body = np.where(chosen == 1, up, rows)
    return np.concatenate([chosen * np.uint8(2), body], axis=1).astype(np.uint8)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
