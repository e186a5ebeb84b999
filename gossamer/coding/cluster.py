"""Classes of spans and of columns of a grid of symbols: few static tables where one does not fit all places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CLASSES", "MAX_TABLES", "MOST_BINS", "Clustering", "bins_of", "cluster", "span_count"]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

MAX_CLASSES: Final = 16
MAX_TABLES: Final = 32
MOST_BINS: Final = 32
"""Of symbols that are alike: what classes tell apart."""
_ROUNDS: Final = 4
_MOVES: Final = 8
_PRIOR: Final = 0.5
_PIECE: Final = 1 << 18  # symbols counted at a time
_LARGE: Final = 1 << 17  # symbols that tell classes surely enough for one attempt
_SAMPLE: Final = 1 << 18  # symbols whose rows tell what classes there are, where a grid has more
_FEWEST_ROWS: Final = 64
_GOLDEN: Final = 2654435769  # 2^32 over the golden ratio
_UNITS: Final = 1 << 14  # units that first classes are found from, where there are more
_HOPELESS: Final = 0.004  # of the bits: where neither kind of class saves as much, both together save little
_CLASS_BITS: Final = 5.0  # what naming one more class costs in the tables


def span_count(columns: int, size: int) -> int:
    """Spans of `size` columns in a row; the last may be shorter."""
    return -(-columns // size)


@dataclass(frozen=True)
class Clustering:
    """The table of each place of a grid: `tables[spans[row, column // size], columns[column]]`.

    Args:
        size: columns of one span.
        spans: [rows, spans of a row] uint8, class of each span.
        columns: [columns] uint8, class of each column.
        tables: [span classes, column classes] uint8, number of the table.
        bits: estimated bits of classes, tables and symbols.
    """

    size: int
    spans: npt.NDArray[np.uint8]
    columns: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.uint8]
    bits: float


def _coded_bits(counts: F64) -> F64:
    """About what symbols take that occur so often, with their table: `Σ c·log₂(n/c) + Σ (½·log₂ c + 1.2)`.

    Args:
        counts: [..., k] integers; a symbol that does not occur costs the table 0.3 bits.
    """
    total = counts.sum(axis=-1)
    logs = np.log2(np.maximum(counts, 1.0))
    bits = total * np.log2(np.maximum(total, 1.0)) - ((counts - 0.5) * logs).sum(axis=-1)
    return np.asarray(bits + 0.9 * np.count_nonzero(counts, axis=-1) + (0.3 * counts.shape[-1] + 8.0))


def _tight(classes: I64) -> I64:
    """Numbered without gaps."""
    used = np.bincount(classes.ravel()) > 0
    return (np.cumsum(used) - 1)[classes]


def _naming(classes: I64) -> float:
    counts = np.bincount(classes.ravel()).astype(np.float64)
    if len(counts) < 2:
        return 0.0
    seen = counts[counts > 0]
    return float((seen * np.log2(seen.sum() / seen)).sum()) + _CLASS_BITS * len(counts)


def _log_costs(counts: F64) -> F64:
    """Bits of each symbol under smoothed counts."""
    prior = counts.sum(axis=tuple(range(counts.ndim - 1)))
    smooth = counts + _PRIOR * (prior + 1e-3) / (prior.sum() + 1e-3 * len(prior))
    return np.asarray(np.log2(smooth.sum(axis=-1, keepdims=True)) - np.log2(smooth))


def _summed(profiles: F64, classes: I64, count: int) -> F64:
    """Profiles [units, k] summed by class [count, k]."""
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(count))
    sums = np.add.reduceat(profiles[order], np.minimum(starts, len(order) - 1), axis=0)
    sums[np.bincount(classes, minlength=count) == 0] = 0.0
    return np.asarray(sums)


def _moved(profiles: F64, costs: F64, members: I64) -> I64:
    """Each unit in the class that codes it in the fewest bits.

    Args:
        profiles: [units, k] what each unit holds.
        costs: [classes, k] bits of one of each kind under each class.
        members: [classes] units in each class so far, which say what naming one costs.
    """
    sizes = members + 0.5
    total = profiles @ costs.T
    total -= np.log2(sizes / sizes.sum())[None, :]
    return np.asarray(total.argmin(axis=1), dtype=np.int64)


def _merged(cells: F64, most: int, extra: I64 | None = None) -> I64:
    """Groups of cells [m, k] that share a table, merged while that saves bits or more than `most` are left.

    Args:
        cells: occurrences in each cell.
        most: groups at most.
        extra: [m] members of each cell, where joining two also saves telling them apart.

    Returns:
        [m] int64, the group of each cell, without gaps.
    """
    sums, group = cells.copy(), np.arange(len(cells))
    sizes = np.zeros(len(cells)) if extra is None else extra.astype(np.float64)
    alone, alive = _coded_bits(sums), np.ones(len(cells), dtype=bool)

    def gains(i: int, others: I64) -> F64:
        """Bits saved by joining cell i with others."""
        gain = alone[others] + alone[i] - _coded_bits(sums[others] + sums[i])
        if extra is not None:  # classes have names: the more members, the shorter
            mine, theirs = sizes[i], sizes[others]
            gain += mine * np.log2(1.0 + theirs / mine) + theirs * np.log2(1.0 + mine / theirs) + _CLASS_BITS
        return np.asarray(gain)

    table = np.full((len(cells), len(cells)), -np.inf)
    for i in range(len(cells) - 1):
        table[i, i + 1 :] = gains(i, np.arange(i + 1, len(cells)))
    left = len(cells)
    while left > 1:
        i, j = divmod(int(table.argmax()), len(cells))
        if table[i, j] <= 0 and left <= most:
            break
        sums[i] += sums[j]
        sizes[i] += sizes[j]
        group[group == j] = i
        alive[j], left = False, left - 1
        alone[i] = float(_coded_bits(sums[i]))
        table[j, :] = table[:, j] = -np.inf
        others = np.flatnonzero(alive)
        others = others[others != i]
        row = gains(i, others)
        table[np.minimum(i, others), np.maximum(i, others)] = row
    return _tight(group)


def _first_classes(profiles: F64) -> I64:
    """Classes of units [n] from what each holds [n, k]: sixteen by spread and mean, improved, joined where it pays."""
    count, places = len(profiles), np.arange(profiles.shape[1])
    total = np.maximum(profiles.sum(axis=1), 1e-9)
    mean = profiles @ places / total
    centre = float(profiles.sum(axis=0) @ places / total.sum())
    spread = profiles @ np.abs(places - centre) / total
    fourth = np.argsort(np.argsort(spread, kind="stable"), kind="stable") * 4 // count
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort((mean, fourth))] = np.arange(count)
    classes = _tight(rank * MAX_CLASSES // count)
    for _ in range(_MOVES):
        sums = _summed(profiles, classes, int(classes.max()) + 1)
        moved = _tight(_moved(profiles, _log_costs(sums), np.bincount(classes)))
        if np.array_equal(moved, classes):
            break
        classes = moved
    members = np.bincount(classes)
    sums = _summed(profiles, classes, len(members))
    return _merged(sums, MAX_CLASSES, members)[classes]


def _saved(profiles: F64, classes: I64) -> float:
    """Bits that a table for each class saves over one for all units, names of classes paid."""
    sums = _summed(profiles, classes, int(classes.max()) + 1)
    return float(_coded_bits(profiles.sum(axis=0)) - _coded_bits(sums).sum()) - _naming(classes)


def bins_of(counts: I64) -> I64:
    """[k] int64, the bin of each symbol: neighbours together until at most 32 bins of about equal Σ√count are left."""
    if len(counts) <= MOST_BINS:
        return np.arange(len(counts))
    roots = np.sqrt(counts.astype(np.float64))
    middle = np.cumsum(roots) - roots / 2
    return _tight(np.minimum(MOST_BINS - 1, middle * MOST_BINS / roots.sum()).astype(np.int64))


@dataclass(frozen=True)
class _Grid:
    """Binned symbols [rows, columns] cut into spans of `size` columns."""

    binned: npt.NDArray[np.uint8]
    bins: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and spans of a row."""
        return len(self.binned), span_count(self.binned.shape[1], self.size)

    def parts(self) -> Iterator[slice]:
        """Some rows at a time."""
        step = max(1, _PIECE // self.binned.shape[1])
        return (slice(start, min(start + step, len(self.binned))) for start in range(0, len(self.binned), step))

    def by_span(self, part: slice, columns: I64) -> F64:
        """Occurrences in some rows [rows · spans, column classes · bins]."""
        spans, each = self.shape[1], (int(columns.max()) + 1) * self.bins
        rows = part.stop - part.start
        place = columns * self.bins + np.arange(len(columns)) // self.size * each
        at = self.binned[part] + place[None, :] + (np.arange(rows) * (spans * each))[:, None]
        return np.bincount(at.ravel(), minlength=rows * spans * each).reshape(rows * spans, each).astype(np.float64)

    def by_column(self, spans: I64) -> F64:
        """Occurrences [columns, span classes · bins]; spans [rows, spans of a row]."""
        width = self.binned.shape[1]
        each = (int(spans.max()) + 1) * self.bins
        out = np.zeros(width * each, dtype=np.int64)
        place, span_of = np.arange(width) * each, np.arange(width) // self.size
        for part in self.parts():
            at = self.binned[part] + place[None, :] + (spans[part] * self.bins)[:, span_of]
            out += np.bincount(at.ravel(), minlength=len(out))
        return out.reshape(width, each).astype(np.float64)

    def moved_spans(self, costs: F64, columns: I64, members: I64) -> I64:
        """The class of each span under which it takes the fewest bits; costs [span classes, column classes · bins]."""
        found = [_moved(self.by_span(part, columns), costs, members) for part in self.parts()]
        return np.concatenate(found).reshape(self.shape)

    def first_spans(self) -> tuple[I64, float]:
        """Classes of spans from their histograms alone, and the bits that these save."""
        one = np.zeros(self.binned.shape[1], dtype=np.int64)
        profiles = np.concatenate([self.by_span(part, one) for part in self.parts()])
        if len(profiles) < 2:
            return np.zeros(self.shape, dtype=np.int64), 0.0
        seen = profiles[:: max(1, len(profiles) // _UNITS)]
        classes = _first_classes(seen)
        if len(seen) < len(profiles):
            costs = _log_costs(_summed(seen, classes, int(classes.max()) + 1))
            classes = _tight(_moved(profiles, costs, np.bincount(classes)))
        return classes.reshape(self.shape), _saved(profiles, classes)


def _tables(cells: F64) -> tuple[I64, F64, float]:
    """Cells [m, k] that share tables: the table of each, the tables' sums, and their bits and those of the symbols."""
    group = _merged(cells, MAX_TABLES)
    shared = _summed(cells, group, int(group.max()) + 1)
    return group, shared, float(_coded_bits(shared).sum()) + 2.0 * len(cells)


def _improved(grid: _Grid, spans: I64, columns: I64) -> tuple[I64, I64, float]:
    """Spans and columns move by turns to the class that codes them best, given the others' classes; and the bits."""
    best: tuple[I64, I64, float] | None = None
    for _ in range(_ROUNDS):
        high, wide = int(spans.max()) + 1, int(columns.max()) + 1
        profiles = grid.by_column(spans)
        cells = _summed(profiles, columns, wide).reshape(wide, high, grid.bins).swapaxes(0, 1)
        group, shared, bits = _tables(cells.reshape(high * wide, grid.bins))
        bits += _naming(columns) + _naming(spans)
        if best is not None and bits >= 0.9999 * best[2]:
            break
        best = (spans, columns, bits)
        if high == wide == 1:
            break
        if high > 1:
            costs = _log_costs(shared)[group].reshape(high, wide * grid.bins)
            spans = _tight(grid.moved_spans(costs, columns, np.bincount(spans.ravel(), minlength=high)))
            high = int(spans.max()) + 1
            profiles = grid.by_column(spans)
        if wide > 1:
            costs = _log_costs(_summed(profiles, columns, wide).reshape(wide, high, grid.bins))
            members = np.bincount(columns, minlength=wide)
            columns = _tight(_moved(profiles, costs.reshape(wide, high * grid.bins), members))
    assert best is not None
    return best


def spread(turns: I64, height: int) -> I64:
    """Rows below `height`, one for each turn, in steps of the golden section: evenly, and never periodically."""
    steps = turns.astype(np.uint64) * np.uint64(_GOLDEN) & np.uint64((1 << 32) - 1)
    return (steps * np.uint64(height) >> np.uint64(32)).astype(np.int64)


def _some_rows(binned: Array) -> Array:
    """Rows with about 2^18 symbols, in steps of the golden section, which meet every period of the rows evenly."""
    count = len(binned) // max(1, binned.size // _SAMPLE)
    if count == len(binned) or count < _FEWEST_ROWS:
        return binned
    return np.asarray(binned[np.unique(spread(np.arange(count), len(binned)))])


def cluster(binned: Array, bins: int, sizes: Sequence[int]) -> Clustering:
    """The classes of spans and columns, and the tables, that code a grid in the fewest estimated bits.

    Args:
        binned: [rows, columns] uint8, the bin of each symbol, below `bins`; not empty.
        bins: of `bins_of`.
        sizes: columns of one span to try; the number of columns makes a span of each row.
    """
    everything, binned = binned, _some_rows(binned)
    one_column = np.zeros(binned.shape[1], dtype=np.int64)
    columns, by_columns = one_column, 0.0
    profiles = _Grid(binned, bins, binned.shape[1]).by_column(np.zeros((len(binned), 1), dtype=np.int64))
    if len(one_column) > 1 and len(binned) > 1:
        columns = _first_classes(profiles)
        by_columns = _saved(profiles, columns)
    alone = float(_coded_bits(profiles.sum(axis=0)))
    best: tuple[int, I64, I64, float] | None = None
    for size in sizes:
        grid = _Grid(binned, bins, size)
        one_span = np.zeros(grid.shape, dtype=np.int64)
        # the spans of one column would be the grid itself
        spans, by_spans = grid.first_spans() if size > 1 else (one_span, 0.0)
        if max(by_spans, 0.0) + max(by_columns, 0.0) < _HOPELESS * alone:
            if best is None or alone < best[3]:
                best = (size, one_span, one_column, alone)
            continue
        # where there is much to tell classes from, those that say nothing have been joined already
        ways = ((True, True),) if binned.size >= _LARGE else ((True, True), (True, False), (False, True))
        for some_spans, some_columns in ways:
            found = _improved(grid, spans if some_spans else one_span, columns if some_columns else one_column)
            if best is None or found[2] < best[3]:
                best = (size, *found)
    assert best is not None
    size, spans, columns, bits = best
    high, wide = int(spans.max()) + 1, int(columns.max()) + 1
    cells = _summed(_Grid(binned, bins, size).by_column(spans), columns, wide).reshape(wide, high, bins).swapaxes(0, 1)
    group, shared, _ = _tables(cells.reshape(high * wide, bins))
    tables = group.reshape(high, wide)
    if len(binned) < len(everything):  # the spans of other rows, by the classes that some rows have shown
        costs = _log_costs(shared)[group].reshape(high, wide * bins)
        spans = _Grid(everything, bins, size).moved_spans(costs, columns, np.bincount(spans.ravel()))
        used, spans = np.unique(spans, return_inverse=True)
        spans, tables = spans.reshape(len(everything), -1), _tight(tables[used])
        bits *= len(everything) / len(binned)
    return Clustering(size, spans.astype(np.uint8), columns.astype(np.uint8), tables.astype(np.uint8), bits)
