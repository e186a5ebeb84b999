"""The orders of `gossamer.runtime.packing` in plain numpy, from positions: what compiled packers are compared with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.runtime.group_code import PATTERNS
from gossamer.runtime.packing import Packed

__all__ = ["pack_pairs", "pack_patterns", "pack_sliced"]

Array = npt.NDArray[Any]


def pack_sliced(
    row: Array, column: Array, values: Array, rows: int, columns: int, width: int, bounds: Array, tall: int
) -> Packed:
    """Rows of a group side by side.

    Args:
        row: int [n], of each non-zero.
        column: int [n]; non-zeros are in the order of rows, then columns.
        values: float32 [n].
        rows: of the weight.
        columns: of the weight.
        width: columns per panel.
        bounds: int64 [chunks + 1], where rows are cut, at multiples of four.
        tall: rows per group.
    """
    panels = max(1, -(-columns // width))
    panel = column // width
    counts = np.bincount(row * panels + panel, minlength=rows * panels).reshape(rows, panels)
    order, group_panel, begins = _sorted_groups(counts, bounds, tall)
    step = counts[order[:, 0], group_panel]
    first = np.concatenate([[0], np.cumsum(step * tall)])  # index of each group's first entry
    # Where every row of a panel lies: its group's beginning plus its place among the rows of the group.
    begin, length = np.zeros((2, rows, panels), np.int64)
    for r in range(tall):
        real = order[:, r] >= 0
        begin[order[real, r], group_panel[real]] = first[:-1][real] + r
        length[order[real, r], group_panel[real]] = step[real]
    key = row * panels + panel
    which, at, divisor = _parts(_ranks(counts.ravel()), counts.ravel(), length.ravel(), key)
    place = begin.ravel()[key[which]] + at * tall
    index, packed = np.zeros(first[-1], np.uint16), np.zeros(first[-1], np.float32)
    index[place], packed[place] = (column - panel * width)[which], values[which] / divisor
    starts = np.stack([begins, first[begins], first[begins]], axis=1)
    return Packed(starts, step, np.where(order < 0, order[:, :1], order), index, packed)


def pack_pairs(
    row: Array, column: Array, values: Array, rows: int, columns: int, width: int, bounds: Array, tall: int
) -> Packed:
    """What the first two rows of a group have in common, beside what the last two have; then the rest, sliced.

    Arguments as of `pack_sliced`.
    """
    panels = max(1, -(-columns // width))
    dense = np.zeros((rows + 1, panels * width), np.float32)  # the last row stands for none
    live = np.zeros((rows + 1, panels, width), np.bool_)
    dense[row, column] = values
    live.reshape(rows + 1, -1)[row, column] = True
    order, group_panel, begins = _sorted_groups(live[:rows].sum(axis=2), bounds, tall)
    chosen = (order, group_panel[:, None])
    single = live[chosen]  # [groups, 4, width]
    value = dense.reshape(rows + 1, panels, width)[chosen].reshape(-1)
    both = single[:, 0::2] & single[:, 1::2]
    # Every row keeps one weight of its own, which can be split where it has fewer than the others.
    common = np.minimum(both.sum(axis=2).min(axis=1), np.maximum(single.sum(axis=2).min(axis=1) - 1, 0))
    rank = np.cumsum(both, axis=2, dtype=np.uint16)
    shared = both & (rank <= common[:, None, None])
    single[:, 0::2] &= ~shared
    single[:, 1::2] &= ~shared
    own = single.sum(axis=2).reshape(-1)
    alone = own.reshape(-1, 4).max(axis=1, initial=0)
    indices = np.concatenate([[0], np.cumsum(2 * common + 4 * alone)])
    weights = np.concatenate([[0], np.cumsum(4 * common + 4 * alone)])
    index, packed = np.zeros(indices[-1], np.uint16), np.zeros(weights[-1], np.float32)

    flat = np.flatnonzero(shared)  # (group · 2 + pair) · width + column
    row_pair, at = np.divmod(flat, width)
    group, pair = row_pair >> 1, row_pair & 1
    step = rank.reshape(-1)[flat].astype(np.int64) - 1
    index[indices[group] + 2 * step + pair] = at
    place = weights[group] + 4 * step + 2 * pair
    first = flat + row_pair * width  # the same column of the pair's first row: (group · 4 + 2 · pair) · width + column
    packed[place] = value[first]
    packed[place + 1] = value[first + width]

    flat = np.flatnonzero(single)  # (group · 4 + row) · width + column
    counted = np.repeat(np.arange(len(own)), own)  # group · 4 + row of each
    at = flat - counted * width
    which, step, divisor = _parts(_ranks(own), own, np.repeat(alone, 4), counted)
    counted = counted[which]
    group, member = counted >> 2, counted & 3
    place = 4 * step + member
    index[(indices[:-1] + 2 * common)[group] + place] = at[which]
    packed[(weights[:-1] + 4 * common)[group] + place] = value[flat][which] / divisor
    starts = np.stack([begins, indices[begins], weights[begins]], axis=1)
    counts = np.stack([common, alone], axis=1)
    return Packed(starts, counts, np.where(order < 0, order[:, :1], order), index, packed)


def _sorted_groups(counts: Array, bounds: Array, tall: int) -> tuple[Array, Array, Array]:
    """Rows sorted by how many non-zeros they have in a panel, longest first, within every panel and chunk.

    Rows that have none come last and in groups of their own, for they have no weight that could be split.

    Returns:
        Rows of each group, −1 for none; its panel; and the first group of every panel and chunk, with the end.
    """
    order: list[Array] = []
    panels, sizes = counts.shape[1], []
    for p in range(panels):
        for low, high in pairwise(bounds):
            have = counts[low:high, p]
            rows = np.argsort(-have, kind="stable") + low
            live = int(np.count_nonzero(have))
            padded = [_filled(rows[:live], tall), _filled(rows[live:], tall)]
            order.append(np.concatenate(padded).reshape(-1, tall))
            sizes.append(len(order[-1]))
    panel = np.repeat(np.repeat(np.arange(panels), len(bounds) - 1), sizes)
    return np.concatenate(order), panel, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _filled(rows: Array, tall: int) -> Array:
    """Padded with −1 to whole groups."""
    return np.concatenate([rows, np.full(-len(rows) % tall, -1, np.int64)])


def _ranks(counts: Array) -> Array:
    """0, 1, … within each run of so many."""
    ends = np.cumsum(counts)
    ranks: Array = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    return ranks


def _parts(rank: Array, have: Array, want: Array, row: Array) -> tuple[Array, Array, Array]:
    """Spreads the ``have`` non-zeros of each row over its ``want`` ≥ have steps.

    A row with too few splits some of them into 2, 3, … parts, w/2ᵏ or half of that, which add up exactly.

    Args:
        rank: of each non-zero in its row.
        have: of each row.
        want: of each row, if it has any.
        row: of each non-zero.

    Returns:
        For every part: the non-zero that it is of, its step, and the float32 that the weight is divided by.
    """
    everything = np.arange(len(rank))
    short = (have < want)[row]
    if not short.any():
        return everything, rank, np.ones(1, np.float32)
    some = everything[short]
    k, lacking = rank[short], row[short]
    share, extra = (np.divmod(want, np.maximum(have, 1))[i][lacking] for i in range(2))
    parts = share + (k < extra)
    begin = k * share + np.minimum(k, extra)
    which = np.repeat(np.arange(len(some)), parts)
    nth = _ranks(parts)
    large = 1 << np.floor(np.log2(parts)).astype(np.int64)
    divisor = np.where(nth < (2 * large - parts)[which], large[which], 2 * large[which])
    enough = everything[~short]
    return (
        np.concatenate([enough, some[which]]),
        np.concatenate([rank[enough], begin[which] + nth]),
        np.concatenate([np.ones(len(enough), np.float32), divisor.astype(np.float32)]),
    )


_RANK = np.full(16, 15, np.uint8)
_RANK[list(PATTERNS)] = np.arange(15)
_MEMBERS = np.array([[mask >> r & 1 for r in range(4)] for mask in range(16)], np.bool_)


def pack_patterns(
    row: Array, column: Array, values: Array, rows: int, columns: int, width: int, bounds: Array, tall: int
) -> Packed:
    """Columns of four rows by which of them are not zero there.

    Arguments as of `pack_sliced`.
    """
    del tall
    panels, groups, chunks = max(1, -(-columns // width)), -(-rows // 4), len(bounds) - 1
    dense = np.zeros((groups * 4, columns), np.float32)
    live = np.zeros((groups * 4, columns), np.uint8)
    dense[row, column] = values
    live[row, column] = 1
    four = live.reshape(groups, 4, columns)
    masks = four[:, 0] | four[:, 1] << 1 | four[:, 2] << 2 | four[:, 3] << 3
    group, at = np.nonzero(masks)
    mask = masks[group, at]
    panel = at // width
    key = (panel * groups + group) * 15 + _RANK[mask]
    ordered = np.argsort(key, kind="stable")
    group, at, mask, panel = group[ordered], at[ordered], mask[ordered], panel[ordered]
    counts = np.bincount(key, minlength=panels * groups * 15).reshape(panels * groups, 15)
    members = _MEMBERS[mask]
    chosen = dense.reshape(groups, 4, columns)[group, :, at][members]
    order = np.tile(np.arange(groups * 4).reshape(groups, 4), (panels, 1))
    order = np.where(order >= rows, order[:, :1], order)
    # Groups lie panel by panel, chunk after chunk: chunks begin at multiples of four rows.
    begin = (np.arange(panels)[:, None] * groups + (bounds[None, :-1] + 3) // 4).ravel()
    begin = np.concatenate([begin, [panels * groups]])
    sizes = np.array([m.bit_count() for m in PATTERNS])
    indices = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    weights = np.concatenate([[0], np.cumsum(counts @ sizes)])
    starts = np.stack([begin, indices[begin], weights[begin]], axis=1)
    assert len(begin) == panels * chunks + 1
    return Packed(starts, counts, order, at - panel * width, chosen)
