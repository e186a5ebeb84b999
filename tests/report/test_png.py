"""Pictures are PNG files that any reader reads, losslessly."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from gossamer.errors import DataError
from gossamer.report.png import grey_png, png, tinted_png


def chunks(content: bytes) -> dict[bytes, bytes]:
    """Chunks by name, their checksums verified."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(content):
        size, name = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        (sum_,) = struct.unpack(">I", content[at + 8 + size : at + 12 + size])
        assert zlib.crc32(name + body) == sum_
        found[name] = body
        at += 12 + size
    names = list(found)
    assert (names[0], names[-1]) == (b"IHDR", b"IEND")
    return found


def decoded(content: bytes) -> np.ndarray:
    """Samples of a picture, by the standard: filters None and Up, 4 or 8 bits."""
    found = chunks(content)
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert rest == [0, 0, 0]
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[kind]
    row = (width * channels * depth + 7) // 8
    raw = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, 1 + row)
    rows = np.zeros((height, row), np.uint8)
    for i in range(height):
        assert raw[i, 0] in (0, 2)
        rows[i] = raw[i, 1:] + (rows[i - 1] if raw[i, 0] == 2 and i else 0)
    if depth == 4:
        return np.stack([rows >> 4, rows & 15], -1).reshape(height, -1)[:, :width]
    return rows.reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 4), (16, 3, 1), (9, 8)])
def test_pixels_come_back(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    for pixels in (draw.integers(0, 256, shape), np.add.outer(np.arange(shape[0]), np.zeros(shape[1:])) * 20):
        array = pixels.astype(np.uint8)
        assert np.array_equal(decoded(png(array)), array.reshape(*shape[:2], -1))


@pytest.mark.parametrize("width", [1, 2, 7])
def test_sixteen_shades_come_back(width: int) -> None:
    levels = np.random.default_rng(1).integers(0, 16, (4, width)).astype(np.uint8)
    assert np.array_equal(decoded(grey_png(levels << 4)), levels)
    tinted = tinted_png(levels / 15, (1, 2, 3))
    assert np.array_equal(decoded(tinted), levels)
    assert chunks(tinted)[b"PLTE"] == bytes((1, 2, 3)) * 16
    assert list(chunks(tinted)[b"tRNS"]) == [17 * i for i in range(16)]


def test_numbers_that_are_none_are_transparent() -> None:
    shares = np.array([[np.nan, 2.0, -1.0, np.inf]])
    assert decoded(tinted_png(shares, (0, 0, 0))).tolist() == [[0, 15, 0, 15]]


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((0, 2), np.uint8), np.zeros((2, 2, 2), np.uint8)])
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected uint8"):
        png(pixels)
