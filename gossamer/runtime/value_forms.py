"""Which smaller formats hold a weight exactly, and packed values in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Affine
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.runtime.group_code import PATTERNS, Way, segments_of
from gossamer.runtime.packing import Packed
from gossamer.runtime.value_code import LEAST, SHORT, Stored

__all__ = [
    "Grid",
    "PackedValues",
    "carriers",
    "grid_of",
    "group_values",
    "smaller_form",
    "stored_values",
]

Array = npt.NDArray[Any]

_ENTRIES = 256
_STEPS = 127
_SAMPLE = 1 << 14
_SMALLEST = 2.0**-94  # next to nothing beside it is still an ordinary float32


@final
@dataclass(frozen=True, eq=False)
class Grid:
    """Values on a uniform grid: w = scale[row, column // size] · q.

    Args:
        q: int8 [rows, columns], −127 to 127.
        scale: float32 [rows, ⌈columns / size⌉].
        size: columns that share a scale.
    """

    q: Array
    scale: Array
    size: int

    def __post_init__(self) -> None:
        if self.q.dtype != np.int8 or self.q.min(initial=0) < -_STEPS:
            raise PlanError(f"grid: found {self.q.dtype} from {self.q.min(initial=0)} on, expected int8 from -127 on")

    def width(self, wanted: int) -> int:
        """Columns per panel next to the wanted number, so that a panel has one scale per row."""
        if self.size >= wanted and self.scale.shape[1] == 1:
            return wanted
        return next(w for w in range(min(self.size, 2 * wanted), 0, -1) if self.size % w == 0)

    def scales(self, panels: int, width: int) -> Array:
        """float32 [panels, rows]."""
        chosen = np.minimum(np.arange(panels) * width // self.size, self.scale.shape[1] - 1)
        return np.ascontiguousarray(self.scale[:, chosen].T, np.float32)


@final
@dataclass(frozen=True, eq=False)
class PackedValues:
    """Values as kernels read them.

    Args:
        stored: their format.
        array: in the order of a packed weight, with a vector's worth of bytes behind the last one.
        table: float32 [256] of `Stored.TABLE`, else empty.
    """

    stored: Stored
    array: Array
    table: Array


def smaller_form(weight: Array, grid: Grid | None, *, filled: bool = False) -> Stored:
    """The smallest format that holds a weight's non-zeros exactly, `Stored.FLOATS` if only float32 does.

    Args:
        weight: float32 [rows, columns].
        grid: what it is made of, if that is known.
        filled: whether rows have to be filled up with next to nothing, which takes two entries of a table.

    Cost: where only float32 will do, that is seen in the first few non-zeros.

    Example:
        >>> smaller_form(np.array([[0.5, 0, -2, 0.5]], np.float32), None).name
        'SHORT_TABLE'
        >>> smaller_form(np.arange(999, dtype=np.float32).reshape(9, 111) / 7, None).name
        'FLOATS'
    """
    if grid is not None:
        return Stored.INTEGERS
    flat, most = weight.reshape(-1), _ENTRIES - 2 if filled else _ENTRIES
    some = flat[:_SAMPLE][flat[:_SAMPLE] != 0]
    few, short = len(np.unique(some)) <= most, not np.any(some.view(np.uint32) & 0xFFFF)
    if not few and not short:
        return Stored.FLOATS
    values = flat[flat != 0]
    if not len(values) or not np.isfinite(values).all() or np.abs(values).min() < _SMALLEST:
        return Stored.FLOATS
    if few and (entries := len(np.unique(values))) <= most:
        return Stored.SHORT_TABLE if entries <= SHORT - 2 else Stored.TABLE
    return Stored.FLOATS if np.any(values.view(np.uint32) & 0xFFFF) else Stored.BFLOATS


def grid_of(tree: Encoding, weight: Array) -> Grid | None:
    """The grid that a matrix's encoding consists of, if it is one and gives exactly this weight.

    Args:
        tree: of the weight.
        weight: float32 [rows, columns].
    """
    affine = tree.value if isinstance(tree, Masked) else tree
    if not isinstance(affine, Affine) or tuple(tree.dense_shape()) != weight.shape or weight.ndim != 2:
        return None
    rows, columns = weight.shape
    scale = affine.scale.to_dense().detach().float().numpy()
    groups = -(-columns // affine.group_size) if affine.columns == columns else 1
    if len(scale) != 1 and (len(scale) != rows * groups or affine.columns != columns):
        return None
    size = affine.group_size if len(scale) > 1 else columns

    def everywhere(per_group: Array) -> Array:
        """[groups of all rows], or one for all → what can be combined with [rows, columns]."""
        if len(per_group) == 1:
            return per_group.reshape(1, 1)
        by_row = per_group.reshape(rows, groups)
        return by_row if groups == 1 else np.repeat(by_row, size, axis=1)[:, :columns]

    zero = affine.zero_point
    middle = np.array([zero], np.int16) if isinstance(zero, int) else zero.numpy().astype(np.int16)
    if isinstance(tree, Masked):
        live = tree.where.mask().cpu().numpy()
        steps = np.zeros((rows, columns), np.int16)
        steps[live] = affine.q.detach().numpy()
        steps -= np.where(live, everywhere(middle), np.int16(0))
    else:
        steps = affine.q.detach().numpy().astype(np.int16) - everywhere(middle)
    if steps.size and max(int(steps.max()), -int(steps.min())) > _STEPS:
        return None
    if not np.array_equal(steps.astype(np.float32) * everywhere(scale), weight):
        return None
    steps *= weight != 0  # a scale may be zero
    if len(scale) == 1:
        return Grid(steps.astype(np.int8), np.full((rows, 1), scale[0], np.float32), columns)
    return Grid(steps.astype(np.int8), scale.reshape(rows, groups), columns if groups == 1 else size)


def carriers(stored: Stored, weight: Array, grid: Grid | None) -> tuple[Array, Array]:
    """What is packed in place of a weight, and the table of its different values.

    Packing divides numbers by powers of two where it splits weights. Integers and entries of tables are packed as odd
    numbers, so that afterwards parts of weights can be told from whole ones, and what they are parts of.

    Args:
        stored: the format.
        weight: float32 [rows, columns].
        grid: of `Stored.INTEGERS`.

    Returns:
        float32 [rows, columns], zero where the weight is, and float32 [entries], which is empty but for tables.

    Raises:
        PlanError: the format does not hold the values exactly.
    """
    entries = np.zeros(0, np.float32)
    if stored is Stored.FLOATS:
        return weight, entries
    if stored is Stored.INTEGERS:
        if grid is None or grid.q.shape != weight.shape:
            raise PlanError(f"values as integers: found no grid of {weight.shape}, expected one")
        odd = 2 * grid.q.astype(np.int16) + 257
        odd *= grid.q != 0
        return odd.astype(np.float32), entries
    live = weight != 0
    values = weight[live]
    least = np.abs(values).min(initial=np.inf)
    if stored is Stored.BFLOATS:
        if np.any(values.view(np.uint32) & 0xFFFF) or not least >= _SMALLEST:
            raise PlanError("values in 16 bits: found some that need more, expected bfloat16 of at least 2⁻⁹⁴")
        return weight, entries
    entries, codes = np.unique(values, return_inverse=True)
    if len(entries) > _ENTRIES or not least >= _SMALLEST:
        raise PlanError(f"values in a table: found {len(entries)}, expected at most 256, none below 2⁻⁹⁴")
    made = np.zeros(weight.shape, np.float32)
    made[live] = 2 * codes + 1
    return made, entries


def stored_values(stored: Stored, packed: Packed, way: Way, tall: int, entries: Array, spare: int) -> PackedValues:
    """Packed values in their format.

    Args:
        stored: the format.
        packed: of what `carriers` gave.
        way: how its groups are ordered.
        tall: rows per group.
        entries: different values of tables, either of which is chosen here by their number.
        spare: elements to put behind the last one.

    Raises:
        PlanError: a table is full, and rows have to be filled up with next to nothing.
    """
    values, nothing = packed.values, np.zeros(0, np.float32)
    if stored is Stored.FLOATS:
        return PackedValues(stored, values, nothing)
    if stored is Stored.BFLOATS:
        return PackedValues(stored, _spared((values.view(np.uint32) >> 16).astype(np.uint16), spare), nothing)
    rounded = values.astype(np.int32)
    whole = (rounded == values) & (rounded & 1 == 1)
    codes = np.where(whole, rounded >> 1, 0)
    parts = np.flatnonzero(~whole & (values > 0))
    codes[parts] = _odd(values[parts]) >> 1
    fillers = parts[_continues(packed, way, tall, parts)]
    if stored is Stored.INTEGERS:
        q = np.where(values > 0, codes - 128, 0)  # the places of rows that are none
        q[fillers] = np.where(q[fillers] > 0, 0, -128)
        return PackedValues(stored, _spared(q.astype(np.int8), spare), nothing)
    table = np.zeros(_ENTRIES, np.float32)
    table[: len(entries)] = entries
    negative = entries[codes[fillers]] < 0
    used = len(entries)
    for sign, some in ((1, fillers[~negative]), (-1, fillers[negative])):
        if len(some):
            if used == _ENTRIES:
                raise PlanError("values in a table: found it full, expected room for what fills rows up")
            table[used] = sign * np.float32(LEAST) * np.abs(entries).min()
            codes[some] = used
            used += 1
    stored = Stored.SHORT_TABLE if used <= SHORT else Stored.TABLE
    return PackedValues(stored, _spared(codes.astype(np.uint8), spare), table)


def group_values(way: Way, counts: Array, tall: int) -> Array:
    """Values of each group, from its numbers of steps."""
    steps = counts.reshape(-1, segments_of(way)).astype(np.int64)
    # Each step serves every row of the group once, but for patterns.
    each = [mask.bit_count() for mask in PATTERNS] if way is Way.PATTERNS else [tall] * steps.shape[1]
    found: Array = steps @ np.array(each)
    return found


def _spared(array: Array, spare: int) -> Array:
    return np.concatenate([array, np.zeros(spare, array.dtype)])


def _odd(values: Array) -> Array:
    """The odd number that each is a power of two of."""
    fraction, _ = np.frexp(values)
    number = (fraction * (1 << 24)).astype(np.int32)
    return number // (number & -number)


def _continues(packed: Packed, way: Way, tall: int, parts: Array) -> Array:
    """Which parts belong to the same weight as the part one step before: it has the same column."""
    if way is Way.PATTERNS or not len(parts):
        return np.zeros(len(parts), np.bool_)
    steps = packed.counts.reshape(len(packed.order), -1).astype(np.int64)
    begins = _begins(group_values(way, packed.counts, tall))  # values of each group
    values, indices = begins, begins
    if way is not Way.SLICED:  # first what pairs have in common: an index per two values
        shared = steps[:, :-1].sum(axis=1)
        values = begins + 4 * shared
        indices = _begins(2 * shared + 4 * steps[:, -1]) + 2 * shared
    group = np.searchsorted(begins, parts, side="right") - 1
    inside = parts - tall >= values[group]
    at = (parts - values[group] + indices[group])[inside]
    found = np.zeros(len(parts), np.bool_)
    found[inside] = packed.index[at] == packed.index[at - tall]
    return found


def _begins(sizes: Array) -> Array:
    begins: Array = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return begins
