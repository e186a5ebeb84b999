"""Row and column classes of a mask: a few densities instead of one, where they differ enough to pay for saying so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.ans import PRECISION
from gossamer.coding.bits import int_list_bits

__all__ = ["MAX_CLASSES", "MAX_TANGENT_BITS", "ClassModel", "candidate_models", "entropy_bits", "live_frequency"]

Bits2D = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

MAX_CLASSES: Final = 8
MAX_TANGENT_BITS: Final = 12
_BINS: Final = 48
_CLASS_BITS: Final = 8.0  # about what one more class costs in the table
_ROUNDS: Final = 3
_PIECE: Final = 1 << 22


def live_frequency(ticks: I64, tangent_bits: int) -> I64:
    """Probability of "live" from its tick: `t² / (t² + (T − t)²)`, `T = 2^tangent_bits`, as a frequency out of 2^24.

    Even steps in t are nearly even steps of redundancy, as for `√p`; ticks 0 and T mean that no and that every position
    lives.
    """
    live, dead = ticks**2, ((1 << tangent_bits) - ticks) ** 2
    return np.clip((live << PRECISION) // (live + dead), 1, (1 << PRECISION) - 1)


@dataclass(frozen=True)
class ClassModel:
    """A static model of a mask [rows, columns].

    Args:
        rows: [R] int64, class of each row, below `live.shape[0]`.
        columns: [C] int64, class of each column.
        tangent_bits: precision of the ticks.
        ticks: [row classes, column classes] int64, see `live_frequency`.
        bits: estimated bits of classes, ticks and mask.
    """

    rows: I64
    columns: I64
    tangent_bits: int
    ticks: I64
    bits: float


def entropy_bits(part: npt.ArrayLike, whole: npt.ArrayLike) -> F64:
    """`n·H(a/n)`, elementwise."""
    a, n = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    d = n - a
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(a > 0, a * np.log2(n / a), 0.0) + np.where(d > 0, d * np.log2(n / d), 0.0)
    return np.asarray(bits, dtype=np.float64)


def _class_bits(classes: I64) -> float:
    """Order-0 bits of the class indices themselves."""
    counts = np.bincount(classes)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(classes) / counts)).sum())


def _by_density(live: I64, each: int) -> I64:
    """Classes of rows by density: the cut of the sorted rows that costs the fewest bits of mask, indices and table.

    Dynamic programming over at most 50 runs of rows with near equal density; rows without live or without dead
    positions have runs of their own.

    Args:
        live: [R] int64, live positions of each row.
        each: positions of each row.

    Returns:
        [R] int64, class of each row, from 0 by increasing density.
    """
    levels, level_of, rows = np.unique(live, return_inverse=True, return_counts=True)
    total = len(live)
    run = (np.cumsum(rows) - rows) * _BINS // total + (levels > 0) + (levels == each)
    run = np.unique(run, return_inverse=True)[1]
    runs = int(run[-1]) + 1
    lives = np.concatenate([[0.0], np.cumsum(np.bincount(run, weights=levels * rows))])
    sizes = np.concatenate([[0.0], np.cumsum(np.bincount(run, weights=rows))])
    a, m = lives[None, :] - lives[:, None], sizes[None, :] - sizes[:, None]
    # [start, end): bits of the positions, and of naming the class for each row
    cost = np.where(m > 0, entropy_bits(np.maximum(a, 0), np.maximum(m, 0) * each), np.inf)
    cost += np.where(m > 0, m * np.log2(total / np.maximum(m, 1)), 0.0) + _CLASS_BITS
    best = cost[0].copy()
    cuts: list[I64] = []
    finals = [float(best[-1])]
    for _ in range(1, min(MAX_CLASSES, runs)):
        options = best[:, None] + cost
        cuts.append(options.argmin(axis=0))
        best = options.min(axis=0)
        finals.append(float(best[-1]))
    classes = np.zeros(runs, dtype=np.int64)
    end = runs
    for step in range(int(np.argmin(finals)), 0, -1):
        start = int(cuts[step - 1][end])
        classes[start:end] = step
        end = start
    return classes[run][level_of]


def _live_counts(mask: Bits2D, rows: I64, columns: I64) -> tuple[I64, I64]:
    """Live positions of each column in each row class [row classes, C], and summed by column class."""
    by_row = np.zeros((int(rows.max()) + 1, mask.shape[1]), dtype=np.int64)
    for c in range(len(by_row)):
        chosen = mask if len(by_row) == 1 else mask[rows == c]
        by_row[c] = np.add.reduce(chosen.view(np.uint8), axis=0, dtype=np.int32)
    cells = np.stack([by_row[:, columns == c].sum(axis=1) for c in range(int(columns.max()) + 1)], axis=1)
    return by_row, cells


def _fit(live: I64, rows: I64, columns: I64) -> ClassModel:
    """Ticks for the live counts of each cell, as precise as pays."""
    sizes = np.outer(np.bincount(rows), np.bincount(columns))
    dead = sizes - live
    root = np.sqrt(live.astype(np.float64)) / (np.sqrt(live.astype(np.float64)) + np.sqrt(dead.astype(np.float64)))
    best: tuple[float, int, I64] | None = None
    mixed = (live > 0) & (dead > 0)
    for bits in range(1, MAX_TANGENT_BITS + 1):
        top = 1 << bits
        ticks = np.rint(root * top).astype(np.int64)
        ticks = np.where(live == 0, 0, np.where(dead == 0, top, np.clip(ticks, 1, top - 1)))
        frequency = live_frequency(ticks[mixed], bits)
        cost = float(
            (live[mixed] * (PRECISION - np.log2(frequency))).sum()
            + (dead[mixed] * (PRECISION - np.log2((1 << PRECISION) - frequency))).sum()
        )
        cost += int_list_bits(ticks.ravel())
        if best is None or cost < best[0]:
            best = (cost, bits, ticks)
    assert best is not None
    classes = sum(_class_bits(ids) + 3.0 * (int(ids.max()) + 1) for ids in (rows, columns) if ids.max())
    return ClassModel(rows, columns, best[1], best[2], best[0] + classes)


def _reassign(profiles: F64, sizes: F64, live: F64, classes: I64) -> I64:
    """Moves each row to the class whose densities code it in the fewest bits.

    Args:
        profiles: [R, k'] live positions of each row in each column class.
        sizes: [k'] columns of each column class.
        live: [k, k'] live positions of each cell.
        classes: [R] present class of each row.

    Returns:
        [R] int64, classes numbered without gaps.
    """
    members = np.bincount(classes, minlength=len(live)).astype(np.float64)
    density = (live + 0.05) / (members[:, None] * sizes[None, :] + 0.1)
    # [R, k'] @ [k', k]
    cost = -(profiles @ np.log2(density).T) - (sizes[None, :] - profiles) @ np.log2(1.0 - density).T
    cost -= np.log2(members / members.sum())[None, :]
    return np.unique(cost.argmin(axis=1), return_inverse=True)[1].astype(np.int64)


def candidate_models(mask: Bits2D) -> list[ClassModel]:
    """Models of a mask, simplest first: one density; row, column, and row × column classes where they differ.

    The product starts from the two density classes and is improved by turns, each row (column) moving to the class that
    codes it best given the classes of the columns (rows).

    Args:
        mask: [rows, columns] bool, not empty.

    Returns:
        One to four models with estimated bits.

    Source: hard clustering of rows and columns by code length, as in Chakrabarti et al., "Fully automatic
    cross-associations", KDD 2004, from density classes instead of random ones.
    """
    one_row, one_column = np.zeros(mask.shape[0], dtype=np.int64), np.zeros(mask.shape[1], dtype=np.int64)
    by_column = np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.int32).astype(np.int64)
    by_row = np.add.reduce(mask.view(np.uint8), axis=1, dtype=np.int32).astype(np.int64)
    models = [_fit(by_row.sum().reshape(1, 1), one_row, one_column)]
    # a class for each row of one position would be the mask itself
    rows = _by_density(by_row, mask.shape[1]) if mask.shape[1] > 1 else one_row
    columns = _by_density(by_column, mask.shape[0]) if mask.shape[0] > 1 else one_column
    if rows.max():
        live = np.bincount(rows, weights=by_row).astype(np.int64)
        models.append(_fit(live[:, None], rows, one_column))
    if columns.max():
        live = np.bincount(columns, weights=by_column).astype(np.int64)
        models.append(_fit(live[None, :], one_row, columns))
    if rows.max() and columns.max():
        models.append(_product(mask, rows, columns))
    return models


def _product(mask: Bits2D, rows: I64, columns: I64) -> ClassModel:
    """The best row × column model found from the given classes in a few turns."""
    per_column, cells = _live_counts(mask, rows, columns)
    best = _fit(cells, rows, columns)
    for _ in range(_ROUNDS):
        sizes = np.bincount(columns).astype(np.float64)
        members = np.eye(len(sizes), dtype=np.float32)[columns]
        # [R, C] @ [C, column classes], some rows at a time: as floats the mask takes 4 bytes a position
        step = max(1, _PIECE // mask.shape[1])
        pieces = [mask[i : i + step].astype(np.float32) @ members for i in range(0, len(mask), step)]
        profiles = np.concatenate(pieces).astype(np.float64)
        rows = _reassign(profiles, sizes, cells.astype(np.float64), rows)
        per_column, cells = _live_counts(mask, rows, columns)
        heights = np.bincount(rows).astype(np.float64)
        columns = _reassign(per_column.T.astype(np.float64), heights, cells.T.astype(np.float64), columns)
        cells = np.stack([per_column[:, columns == c].sum(axis=1) for c in range(int(columns.max()) + 1)], axis=1)
        model = _fit(cells, rows, columns)
        if model.bits >= best.bits - 8:
            break
        best = model
    return best
