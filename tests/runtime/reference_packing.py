"""The orders of `gossamer.runtime.packing` in plain numpy, from positions: what compiled packers are compared with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.runtime.group_code import PAIRINGS, PATTERNS
from gossamer.runtime.packing import Packed, even_steps, whole_quads

__all__ = ["pack_pairings", "pack_pairs", "pack_patterns", "pack_sliced"]

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
    step = whole_quads(counts[order[:, 0], group_panel], tall).astype(np.int64)
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
    _match(order, live, group_panel, begins)
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


def _match(order: Array, live: Array, group_panel: Array, begins: Array) -> None:
    """Changes the order of rows in full groups: each takes the partner with most columns in common."""
    for first, last in pairwise(begins):
        if first == last:
            continue
        panel = group_panel[first]
        full = [g for g in range(first, last) if order[g, 3] >= 0 and live[order[g, 3], panel].any()]
        rows = [int(r) for g in full for r in order[g]]
        sets = {r: live[r, panel] for r in rows}
        pairs: list[tuple[int, int, int, int]] = []
        left = list(rows)
        while left:
            a = left.pop(0)
            long = int(sets[a].sum())
            common = [int((sets[a] & sets[b]).sum()) for b in left]
            best = max(range(len(left)), key=lambda i: common[i] - long + int(sets[left[i]].sum()))
            pairs.append((long, common[best], a, left.pop(best)))
        pairs.sort(key=lambda p: (-p[0], -p[1]))
        order[full] = np.array([[a, b] for _, _, a, b in pairs], np.int64).reshape(-1, 4)


def pack_pairings(
    row: Array, column: Array, values: Array, rows: int, columns: int, width: int, bounds: Array, tall: int
) -> Packed:
    """Columns in common dealt to three pairings; then the rest, sliced. Arguments as of `pack_sliced`."""
    panels = max(1, -(-columns // width))
    dense = np.zeros((rows + 1, panels * width), np.float32)
    dense[row, column] = values
    value = dense.reshape(rows + 1, panels, width)
    live = np.zeros((rows + 1, panels * width), np.bool_)
    live[row, column] = True
    live = live.reshape(rows + 1, panels, width)
    order, group_panel, begins = _sorted_groups(live[:rows].sum(axis=2), bounds, tall)
    lengths = live[order, group_panel[:, None]].sum(axis=2)
    whole = (order[:, 3] >= 0) & (lengths.min(axis=1) > 1)
    dealt = [
        _dealt(live[order[g], group_panel[g]]) if whole[g] else [([], []), ([], []), ([], [])]
        for g in range(len(order))
    ]
    possible = np.array([[min(len(a), len(b)) for a, b in d] for d in dealt], np.int64).reshape(-1, 3)
    real = np.where(order < 0, lengths[:, :1], lengths)
    counts = even_steps(possible, real, group_panel, panels)
    index: list[int] = []
    packed: list[float] = []
    begin = []
    for g, rows_of in enumerate(order):
        begin.append((len(index), len(packed)))
        single = live[rows_of, group_panel[g]].copy()
        of = value[rows_of, group_panel[g]]
        for queues, pairing, steps in zip(dealt[g], PAIRINGS, counts[g, :3], strict=True):
            for step in range(steps):
                for queue, pair in zip(queues, pairing, strict=True):
                    c = queue[step]
                    index.append(c)
                    packed += [of[r, c] for r in pair]
                    single[list(pair), c] = False
        alone = int(counts[g, 3])
        own = np.where(rows_of < 0, 0, single.sum(axis=1))
        at = np.concatenate(
            [np.flatnonzero(s) if r >= 0 else np.zeros(0, np.int64) for s, r in zip(single, rows_of, strict=True)]
        )
        member = np.repeat(np.arange(4), own)
        which, step, divisor = _parts(_ranks(own), own, np.full(4, alone), member)
        block, weights = np.zeros(4 * alone, np.int64), np.zeros(4 * alone, np.float32)
        place = 4 * step + member[which]
        block[place] = at[which]
        weights[place] = of[member, at][which] / divisor
        index += block.tolist()
        packed += list(weights)
    begin.append((len(index), len(packed)))
    at_begin = np.array(begin)[begins]
    starts = np.stack([begins, at_begin[:, 0], at_begin[:, 1]], axis=1)
    chosen = np.where(order < 0, order[:, :1], order)
    return Packed(starts, counts, chosen, np.array(index, np.int64), np.array(packed, np.float32))


def _dealt(live: Array) -> list[tuple[list[int], list[int]]]:
    """For each pairing the columns of its two pairs, in the order of steps."""
    queues = [pair for pairing in PAIRINGS for pair in pairing]
    masks = live[0] + 2 * live[1] + 4 * live[2] + 8 * live[3].astype(np.int64)
    of = {mask: np.flatnonzero(masks == mask).tolist() for mask in range(16)}
    filled = [list(of[1 << a | 1 << b]) for a, b in queues]
    levels = [len(f) for f in filled]
    left = [len(of[15 & ~(1 << r)]) for r in range(4)]
    three = np.zeros((4, 3), np.int64)
    for _ in range(sum(left)):
        able = [q for q in range(6) if any(left[r] for r in range(4) if r not in queues[q])]
        q = min(able, key=lambda q: levels[q])
        a, b = (r for r in range(4) if r not in queues[q])
        missing = b if left[a] < left[b] else a
        levels[q] += 1
        left[missing] -= 1
        three[missing, q // 2] += 1
    four = [0, 0, 0]
    for _ in of[15]:
        k = min(range(3), key=lambda k: min(levels[2 * k], levels[2 * k + 1]))
        levels[2 * k] += 1
        levels[2 * k + 1] += 1
        four[k] += 1
    for missing in range(4):
        columns = iter(of[15 & ~(1 << missing)])
        for k in range(3):
            (q,) = (q for q in (2 * k, 2 * k + 1) if missing not in queues[q])
            filled[q] += [next(columns) for _ in range(three[missing, k])]
    columns = iter(of[15])
    for k in range(3):
        shared = [next(columns) for _ in range(four[k])]
        filled[2 * k] += shared
        filled[2 * k + 1] += shared
    return [(filled[2 * k], filled[2 * k + 1]) for k in range(3)]


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
