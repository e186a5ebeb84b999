"""Non-zeros in the orders in which the kernels of `vector_code` and `bitmap_code` go through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = ["BITMAP_ROWS", "WIDTH", "PackedBitmap", "PackedSlices", "choose_split", "pack_bitmap", "pack_slices"]

Array = npt.NDArray[Any]

WIDTH = 1 << 16
"""Columns per panel: as many as 16-bit indices reach."""

BITMAP_ROWS = 4
"""Rows that go through the columns of a bitmap together."""


@final
@dataclass(frozen=True, eq=False)
class PackedSlices:
    """A weight in slices of ``lanes / split`` rows, as `vector_code.Field` describes them.

    Args:
        steps: uint32 [slices, panels, 2], steps in which all lanes have a non-zero, and all steps.
        lengths: uint32 [slices, panels, lanes], non-zeros of each lane.
        starts: int64 [slices], the first step of each.
        order: uint32 [slices, lanes], rows; those beyond the last are 0 and not written.
        index: uint16 [steps, lanes], column within the panel.
        place: int64 [n], where in steps · lanes each non-zero lies.
        split: lanes per row.
    """

    steps: Array
    lengths: Array
    starts: Array
    order: Array
    index: Array
    place: Array
    split: int


@final
@dataclass(frozen=True, eq=False)
class PackedBitmap:
    """A weight in groups of four rows: one bit per position, and the values row by row within sixteen columns.

    Args:
        masks: uint64 [groups, chunks], 16 bits for each of the rows, the first row's lowest.
        starts: int64 [groups], the first value of each.
        place: int64 [n], which value each non-zero is.
    """

    masks: Array
    starts: Array
    place: Array


def choose_split(counts: Array, lanes: int) -> int:
    """Lanes per row, 1, 2, … or ``lanes``, that take the fewest steps; the fewest lanes of those that are about equal.

    Args:
        counts: int [rows], non-zeros per row.
        lanes: floats per vector register.

    Example:
        >>> choose_split(np.full(64, 10), 16), choose_split(np.array([100, 100]), 16)
        (1, 8)
    """
    longest = np.sort(counts)[::-1]
    best, split, least = 1, 1, np.inf
    while split <= lanes:
        steps = float((-(-longest[:: lanes // split] // split)).sum())
        if steps < 0.97 * least:
            best, least = split, steps
        split *= 2
    return best


def pack_slices(row: Array, column: Array, rows: int, columns: int, lanes: int) -> PackedSlices:
    """Rows of about equal length side by side, one or several lanes each.

    Args:
        row: int [n], of each non-zero.
        column: int [n]; non-zeros are in the order of rows, then columns.
        rows: of the weight.
        columns: of the weight.
        lanes: floats per vector register.
    """
    panels = max(1, -(-columns // WIDTH))
    panel = column // WIDTH
    counts = np.bincount(row * panels + panel, minlength=rows * panels).reshape(rows, panels)
    total = counts.sum(axis=1)
    split = choose_split(total, lanes)
    tall = lanes // split
    slices = -(-rows // tall)
    longest_first = np.argsort(-total, kind="stable")
    order = np.zeros(slices * tall, np.int64)
    order[:rows] = longest_first
    # A row's non-zeros of a panel are dealt to its lanes in turn. Lanes of no row count as long as the longest:
    # what they compute is not written anywhere.
    have = np.zeros((slices * tall, panels), np.int64)
    have[:rows] = counts[longest_first]
    shares = -((np.arange(split) - have[:, :, None]) // split)  # ⌈(have − lane) / split⌉
    shares = np.maximum(shares, 0).reshape(slices, tall, panels, split).transpose(0, 2, 1, 3)
    lengths = np.ascontiguousarray(shares).reshape(slices, panels, lanes)
    every = lengths.max(axis=2, initial=0)
    real = np.ones((slices * tall, split), np.bool_)
    real[rows:] = False
    lengths = np.where(real.reshape(slices, 1, lanes), lengths, every[:, :, None])
    common = lengths.min(axis=2, initial=1 << 30) if slices else every
    firsts = np.concatenate([[0], np.cumsum(every.ravel())])
    where = np.empty(rows, np.int64)
    where[longest_first] = np.arange(rows)
    slot = where[row]
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts.ravel()) - counts.ravel(), counts.ravel())
    step = firsts[:-1].reshape(slices, panels)[slot // tall, panel] + rank // split
    place = step * lanes + slot % tall * split + rank % split
    index = np.zeros(int(firsts[-1]) * lanes, np.uint16)
    index[place] = column - panel * WIDTH
    rows_of_lanes = np.zeros((slices, lanes), np.uint32)
    rows_of_lanes[:, :tall] = order.reshape(slices, tall)
    return PackedSlices(
        np.stack([common, every], axis=2).astype(np.uint32),
        lengths.astype(np.uint32),
        firsts[:-1].reshape(slices, panels)[:, 0].astype(np.int64),
        rows_of_lanes,
        index,
        place,
        split,
    )


def pack_bitmap(row: Array, column: Array, rows: int, columns: int) -> PackedBitmap:
    """Bits and order of values.

    Arguments as of `pack_slices`.
    """
    groups, chunks = -(-rows // BITMAP_ROWS), -(-columns // 16)
    live = np.zeros((groups * BITMAP_ROWS, chunks * 16), np.bool_)
    live[row, column] = True
    halves = np.packbits(live, axis=1, bitorder="little").view("<u2").reshape(groups, BITMAP_ROWS, chunks)
    words = np.ascontiguousarray(halves.transpose(0, 2, 1)).view("<u8").reshape(groups, chunks)
    run = row.astype(np.int64) * chunks + column // 16  # ascending: a row's non-zeros of sixteen columns are neighbours
    counts = np.bincount(run, minlength=groups * BITMAP_ROWS * chunks)
    by_chunk = counts.reshape(groups, BITMAP_ROWS, chunks).transpose(0, 2, 1)
    begins = (np.cumsum(by_chunk) - by_chunk.ravel()).reshape(by_chunk.shape).transpose(0, 2, 1).ravel()
    place = (begins - (np.cumsum(counts) - counts))[run] + np.arange(len(row))
    per_group = by_chunk.sum(axis=(1, 2))
    starts = np.cumsum(per_group) - per_group
    return PackedBitmap(words.astype(np.uint64), starts.astype(np.int64), place)
