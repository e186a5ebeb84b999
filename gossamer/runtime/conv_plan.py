"""How a convolution of one image size is cut into bands, tiles and shifted copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.errors import PlanError

__all__ = ["Geometry", "Plan", "plan"]

Array = npt.NDArray[Any]

_LARGEST_INDEX = 1 << 16
_HELD = 1 << 18  # floats of copies that should stay in the second-level cache, half of 2 MB
_HELD_AVX2 = 3 << 15  # the same where vectors have 8 floats: of 512 KB
_CROSSING = 1.1  # times as long as with aligned vectors do products take that read at any float, 8 floats a vector
_TIME_OF_WIDTH = {1: 2.2, 2: 1.45, 3: 1.2, 4: 1.08, 6: 1.02, 7: 1.0}
_MULTIPLY, _COPY = 0.7, 4.0  # cycles per vector, roughly
_START = 60.0  # cycles to begin a tile with a row


@final
@dataclass(frozen=True)
class Geometry:
    """What a convolution does to the two dimensions of a plane.

    Args:
        kernel: rows and columns of the kernel.
        stride: step of each dimension.
        padding: zeros before the first row and column.
        after: zeros after the last row and column.
        dilation: distance of neighbouring weights.

    Example:
        >>> Geometry((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)).outputs((56, 56))
        (28, 28)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    after: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def taps(self) -> int:
        """Weights per channel."""
        return self.kernel[0] * self.kernel[1]

    @cached_property
    def pointwise(self) -> bool:
        """Whether every output depends on the input at its own place only."""
        return self == Geometry((1, 1), (1, 1), (0, 0), (0, 0), self.dilation)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of outputs; not positive if the kernel is larger than the plane."""
        if self.pointwise:
            return size
        a, b = (
            (n + self.padding[i] + self.after[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i, n in enumerate(size)
        )
        return a, b


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """Numbers and tables of one image size; lengths in floats where nothing else is said.

    Args:
        size: rows and columns of the input, perhaps as one row.
        width: vectors per tile.
        vectors: per band.
        bands: of output rows.
        band_step: input rows from band to band.
        copies: int64 [n, 3], first row, first column and shift of each copy; empty where X is read as it lies.
        copy_size: from copy to copy.
        line: from row to row of a copy.
        lines: rows of a copy.
        distances: int64 [panel's columns], in units: where each channel and tap of a panel begins.
        segments: int32 [n, 3] of all tiles of all bands.
        segment_starts: int64 [bands · tiles + 1].
        unit: of distances, in floats: a vector, or 1 where inputs are read at any float.
    """

    size: tuple[int, int]
    width: int
    vectors: int
    bands: int
    band_step: int
    copies: Array
    copy_size: int
    line: int
    lines: int
    distances: Array
    segments: Array
    segment_starts: Array
    unit: int

    @property
    def tiles(self) -> int:
        """Per band."""
        return -(-self.vectors // self.width)


@dataclass(frozen=True)
class _Draft:
    size: tuple[int, int]
    outputs: tuple[int, int]
    line: int
    band: int
    vectors: int
    width: int
    copies: tuple[tuple[int, int, int], ...]
    distance: tuple[tuple[int, int], ...]  # per tap: copy, units
    copy_vectors: int
    lines: int
    unit: int


def plan(
    geometry: Geometry,
    size: tuple[int, int],
    channels: int,
    panel: int,
    nonzeros: int,
    lanes: int,
    widths: tuple[int, ...],
    x_channel: int,
    *,
    run: int = 0,
) -> Plan:
    """The cheapest way by a rough model of time.

    Args:
        geometry: of the convolution.
        size: rows and columns of the input.
        channels: of the input.
        panel: channels per panel.
        nonzeros: weights that are not zero.
        lanes: floats per vector.
        widths: vectors per tile for which there is code, rising.
        x_channel: floats from channel to channel of the input.
        run: adjacent outputs are written in runs that end at multiples of it, where blocks end; 0 for planes.

    Returns:
        The plan.

    Raises:
        PlanError: one row of outputs is too long for indices of 16 bits.
    """
    best: tuple[float, _Draft] | None = None
    for draft in _drafts(geometry, size, panel, channels, lanes, widths, x_channel):
        cost = _cost(draft, channels, nonzeros, lanes)
        if best is None or cost < best[0]:
            best = cost, draft
    if best is None:
        raise PlanError(f"convolution: found planes of {size[0]} × {size[1]}, expected shorter rows")
    return _finished(best[1], geometry, panel, lanes, run)


def _cost(draft: _Draft, channels: int, nonzeros: int, lanes: int) -> float:
    bands = -(-draft.outputs[0] // draft.band)
    tiles = -(-draft.vectors // draft.width)
    multiply = nonzeros * tiles * draft.width * _MULTIPLY * _TIME_OF_WIDTH[draft.width] + tiles * _START
    multiply *= 1.0 if draft.unit == lanes else _CROSSING
    ragged = -(-draft.line // lanes) * lanes / draft.line
    copied = channels * len(draft.copies) * draft.copy_vectors * ragged * _COPY
    held = channels * len(draft.copies) * draft.copy_vectors * lanes
    return bands * (multiply + copied) * (1.0 if held <= (_HELD if lanes > 8 else _HELD_AVX2) else 1.3)


def _drafts(
    geometry: Geometry,
    size: tuple[int, int],
    panel: int,
    channels: int,
    lanes: int,
    widths: tuple[int, ...],
    x_channel: int,
) -> Iterator[_Draft]:
    outputs = geometry.outputs(size)
    pixels = size[0] * size[1]
    in_panel = min(panel, channels)
    if geometry.pointwise:
        vectors = -(-pixels // lanes)
        if x_channel % lanes == 0 and in_panel * (x_channel // lanes) <= _LARGEST_INDEX:
            for width in widths:
                if width <= vectors:
                    flat = (1, pixels)
                    yield _Draft(flat, flat, x_channel, 1, vectors, width, (), ((0, 0),), x_channel // lanes, 0, lanes)
            return
        yield from _copied(geometry, (1, pixels), (1, pixels), pixels, in_panel, lanes, widths)
    for line in _lines(geometry, size, outputs, lanes):
        yield from _copied(geometry, size, outputs, line, in_panel, lanes, widths)
        if lanes <= 8:
            yield from _copied(geometry, size, outputs, line, in_panel, lanes, widths, loose=True)


def _lines(geometry: Geometry, size: tuple[int, int], outputs: tuple[int, int], lanes: int) -> list[int]:
    """Lengths of rows that keep what a weight reads apart from the next row, or let both share zeros."""
    reach = max(j * geometry.dilation[1] // geometry.stride[1] for j in range(geometry.kernel[1]))
    shortest = outputs[1] + reach
    while shortest > outputs[1] and _apart(geometry, size, outputs, shortest - 1):
        shortest -= 1
    return sorted({shortest, *(-(-shortest // unit) * unit for unit in (lanes // 2, lanes))})


def _apart(geometry: Geometry, size: tuple[int, int], outputs: tuple[int, int], line: int) -> bool:
    for j in range(geometry.kernel[1]):
        far, phase = divmod(j * geometry.dilation[1], geometry.stride[1])
        last = outputs[1] - 1 + far - line  # column of the next row that would be read
        start = phase - geometry.padding[1]
        if last >= 0 and (last * geometry.stride[1] + start >= 0 or line * geometry.stride[1] + start < size[1]):
            return False
    return True


def _copied(
    geometry: Geometry,
    size: tuple[int, int],
    outputs: tuple[int, int],
    line: int,
    panel: int,
    lanes: int,
    widths: tuple[int, ...],
    *,
    loose: bool = False,
) -> Iterator[_Draft]:
    """One copy per distance modulo a vector; or, if ``loose``, one for all, read at any float.

    Half of the vectors that begin anywhere cross a cache line if they have 8 floats, nearly all if they have 16. What
    one copy saves of the first-level cache is worth more than these.
    """
    found: dict[tuple[int, int, int], int] = {}
    distance = []
    # Where rows are whole vectors and apart, copies start at another column instead: then all stores are aligned, too.
    reach = max(j * geometry.dilation[1] // geometry.stride[1] for j in range(geometry.kernel[1]))
    apart = line % lanes == 0 and line >= outputs[1] + reach
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            down, row = divmod(i * geometry.dilation[0], geometry.stride[0])
            right, column = divmod(j * geometry.dilation[1], geometry.stride[1])
            whole, shift = (down * line + right, 0) if loose else divmod(down * line + right, lanes)
            left, shift = (column + shift * geometry.stride[1], 0) if apart else (column, shift)
            copy = found.setdefault((row - geometry.padding[0], left - geometry.padding[1], shift), len(found))
            distance.append((copy, whole))
    farthest = max(whole for _, whole in distance)
    unit = 1 if loose else lanes
    farthest = -(-farthest * unit // lanes)
    for band in sorted({-(-outputs[0] // n) for n in range(1, outputs[0] + 1)}):
        needed = -(-((band - 1) * line + outputs[1]) // lanes)
        for width in widths:
            vectors = max(needed, width)
            if vectors > needed and width != widths[0] and width // 2 >= needed:
                continue
            copy_vectors = vectors + farthest + 1
            copy_vectors += 1 - copy_vectors % 2  # an odd number spreads channels over the sets of the cache
            lines = -(-(((vectors + farthest) * lanes) + lanes) // line)
            if panel * len(found) * copy_vectors * (lanes // unit) <= _LARGEST_INDEX:
                shape = size, outputs, line, band, vectors, width
                yield _Draft(*shape, tuple(found), tuple(distance), copy_vectors, lines, unit)


def _finished(draft: _Draft, geometry: Geometry, panel: int, lanes: int, run: int) -> Plan:
    bands = -(-draft.outputs[0] // draft.band)
    copy_size = draft.copy_vectors * lanes // draft.unit
    channel = max(1, len(draft.copies)) * copy_size
    within = np.array([copy * copy_size + whole for copy, whole in draft.distance], np.int64)
    distances = (np.arange(panel)[:, None] * channel + within).ravel()
    starts, segments = _segments(draft, bands, lanes, run)
    return Plan(
        size=draft.size,
        width=draft.width,
        vectors=draft.vectors,
        bands=bands,
        band_step=draft.band * geometry.stride[0],
        copies=np.array(draft.copies, np.int64).reshape(-1, 3),
        copy_size=draft.copy_vectors * lanes,
        line=draft.line,
        lines=draft.lines,
        distances=distances,
        segments=segments,
        segment_starts=starts,
        unit=draft.unit,
    )


def _segments(draft: _Draft, bands: int, lanes: int, most: int) -> tuple[Array, Array]:
    """Which runs of every tile are outputs, and where they go."""
    high, wide = draft.outputs
    tiles = -(-draft.vectors // draft.width)
    if draft.line == wide and not most:  # then rows follow each other without gaps, in the tile as in the plane
        run, per_band, step = wide * high, 1, wide * draft.band
    elif draft.line == wide and most % wide == 0 and (wide * draft.band) % most == 0:
        run, per_band, step = most, wide * draft.band // most, most
    else:
        run, per_band, step = wide, draft.band, draft.line
    found: list[tuple[int, int, int]] = []
    starts = [0]
    for band in range(bands):
        first = band * draft.band * wide
        total = min(draft.band * wide, wide * high - first)
        for tile in range(tiles):
            begin = min(tile * draft.width, draft.vectors - draft.width) * lanes
            end = begin + draft.width * lanes
            for row in range(max(0, begin // step), min(per_band, -(-end // step))):
                length = min(run, total - row * run)
                low, top = max(begin, row * step), min(end, row * step + length)
                if low < top:
                    found.append((low - begin, first + row * run + low - row * step, top - low))
            starts.append(len(found))
    return np.array(starts, np.int64), np.array(found, np.int32).reshape(-1, 3)
