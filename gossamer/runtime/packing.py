"""Non-zeros in the orders in which the kernels of `group_code` go through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.errors import PlanError
from gossamer.runtime.group_code import PAIRINGS, PATTERNS, Way, segments_of
from gossamer.runtime.kernels import PackKernels
from gossamer.runtime.matching_code import matching_bytes
from gossamer.runtime.pack_parts import scratch_bytes

__all__ = ["Packed", "count_nonzeros", "even_steps", "pack", "pack_rows", "whole_quads"]

Array = npt.NDArray[Any]

_ABLE = 0.4
"""Share of groups that have fewer steps in a pairing than all others get, because their columns do not allow more."""


@final
@dataclass(frozen=True, eq=False)
class Packed:
    """Arrays of a packed weight, as `group_code.Field` describes them."""

    starts: Array
    counts: Array
    order: Array
    index: Array
    values: Array


def count_nonzeros(weight: Array) -> int:
    """How many entries are not zero; NaN counts.

    Cost: a tenth of what counting floats themselves costs numpy or PyTorch.
    """
    return int(np.count_nonzero(weight != 0))


def pack(
    kernels: PackKernels, way: Way, weight: Array, *, width: int, bounds: Array, tall: int, narrow: bool
) -> Packed:
    """A weight's non-zeros panel by panel, chunk by chunk, group by group.

    Args:
        kernels: compiled code.
        way: how a group's non-zeros are ordered.
        weight: float32 [rows, columns], contiguous.
        width: columns per panel, at most 65535; at most 256 for narrow indices.
        bounds: int64 [chunks + 1], where rows are cut, at multiples of four.
        tall: rows per group.
        narrow: whether indices take one byte instead of two.

    Returns:
        starts int64 [panels · chunks + 1, 3], counts uint16 [groups] or [groups, segments], order uint32
        [groups, tall], index uint8 or uint16, values float32.

    Raises:
        PlanError: the weight or the width does not fit.

    Cost: the weight is read twice, at a few tenths of a nanosecond and one to two nanoseconds per entry; beside the
        result, 2 bytes per row and panel.
    """
    _check(weight, width, 256 if narrow else 65535)
    if way is Way.PATTERNS:
        return _pack_patterns(kernels, weight, width, bounds, narrow=narrow)
    rows, columns = weight.shape
    panels, chunks = max(1, -(-columns // width)), len(bounds) - 1
    have = np.zeros((panels, rows), np.uint16)
    kernels.count(weight.ctypes.data, rows, columns, width, have.ctypes.data)
    most = sum(-(-int(n) // tall) + 1 for n in np.diff(bounds)) * panels
    order, begins = np.empty((most, tall), np.uint32), np.empty(panels * chunks + 1, np.int64)
    scratch = np.empty(max(scratch_bytes(width), 8 * (width + 1)), np.uint8)
    shared = order.ctypes.data, begins.ctypes.data
    kernels.sort(have.ctypes.data, rows, panels, width, bounds.ctypes.data, chunks, tall, scratch.ctypes.data, *shared)
    order = order[: begins[-1]].copy()
    if way is Way.SLICED:
        of_panel = np.repeat(np.arange(panels), np.diff(begins[::chunks]))
        counts = whole_quads(have[of_panel, order[:, 0]], tall)
        indices = values = _sums(counts, tall)
    elif way is Way.PAIRINGS:
        of_panel = np.repeat(np.arange(panels), np.diff(begins[::chunks]))
        possible = np.empty((len(order), len(PAIRINGS)), np.uint16)
        addresses = (array.ctypes.data for array in (begins, order, have, scratch, possible))
        kernels.deal_pairings(weight.ctypes.data, rows, columns, width, chunks, *addresses)
        counts = even_steps(possible, have[of_panel[:, None], order].astype(np.int64), of_panel, panels)
        indices, values = _sums(counts, np.array([2, 2, 2, 4])), _sums(counts, np.array([4, 4, 4, 4]))
    else:
        counts = np.empty((len(order), segments_of(way)), np.uint16)
        room = np.empty(matching_bytes(int(np.diff(bounds).max(initial=0)) + 4, width), np.uint8)
        addresses = (array.ctypes.data for array in (begins, order, have, room))
        kernels.match_rows(weight.ctypes.data, rows, columns, width, chunks, *addresses)
        kernels.match_pairs(
            weight.ctypes.data,
            rows,
            columns,
            width,
            chunks,
            begins.ctypes.data,
            order.ctypes.data,
            have.ctypes.data,
            counts.ctypes.data,
        )
        indices, values = _sums(counts, np.array([2, 4])), _sums(counts, np.array([4, 4]))
    made = _room(indices, values, narrow=narrow)
    kernels.fill[way, narrow](
        weight.ctypes.data,
        rows,
        columns,
        width,
        chunks,
        tall,
        begins.ctypes.data,
        order.ctypes.data,
        have.ctypes.data,
        counts.ctypes.data,
        scratch.ctypes.data,
        *(array.ctypes.data for array in made),
    )
    return Packed(np.stack([begins, indices[begins], values[begins]], axis=1), counts, order, *made)


def pack_rows(kernels: PackKernels, weight: Array, width: int) -> tuple[Array, Array, Array]:
    """A weight's non-zeros panel by panel, row by row, as `codegen.Slot` describes them.

    Args:
        kernels: compiled code.
        weight: float32 [rows, columns], contiguous.
        width: columns per panel, at most 65535.

    Returns:
        starts uint32 [panels, rows + 1], index uint16 [non-zeros], values float32 [non-zeros].

    Raises:
        PlanError: the weight or the width does not fit.
    """
    _check(weight, width, 65535)
    rows, columns = weight.shape
    have = np.zeros((max(1, -(-columns // width)), rows), np.uint16)
    kernels.count(weight.ctypes.data, rows, columns, width, have.ctypes.data)
    starts = np.zeros((len(have), rows + 1), np.int64)
    np.cumsum(have, axis=1, out=starts[:, 1:])
    starts[1:] += np.cumsum(starts[:-1, -1])[:, None]
    nonzeros = int(starts[-1, -1])
    if nonzeros >= 1 << 31:
        raise PlanError(f"sparse weight: found {nonzeros} non-zeros, expected fewer than 2³¹")
    index, values = np.empty(nonzeros + 1, np.uint16), np.empty(nonzeros + 1, np.float32)
    addresses = (array.ctypes.data for array in (have, index, values))
    kernels.rows(weight.ctypes.data, rows, columns, width, *addresses)
    return starts.astype(np.uint32), index[:nonzeros], values[:nonzeros]


def _check(weight: Array, width: int, most: int) -> None:
    if weight.dtype != np.float32 or weight.ndim != 2 or not weight.flags.c_contiguous:
        raise PlanError(f"weight: found {weight.dtype} {weight.shape}, expected float32 [rows, columns], contiguous")
    if not 0 < width <= most:
        raise PlanError(f"panel: found {width} columns, expected 1–{most}")


def _pack_patterns(kernels: PackKernels, weight: Array, width: int, bounds: Array, *, narrow: bool) -> Packed:
    rows, columns = weight.shape
    panels, groups = max(1, -(-columns // width)), -(-rows // 4)
    counts = np.empty((panels * groups, len(PATTERNS)), np.uint16)
    scratch = np.empty(scratch_bytes(width), np.uint8)
    shared = counts.ctypes.data
    kernels.count_patterns(weight.ctypes.data, rows, columns, width, scratch.ctypes.data, shared)
    indices = _sums(counts, np.ones(len(PATTERNS), np.int64))
    values = _sums(counts, np.array([mask.bit_count() for mask in PATTERNS]))
    made = _room(indices, values, narrow=narrow)
    addresses = (array.ctypes.data for array in made)
    kernels.fill[Way.PATTERNS, narrow](
        weight.ctypes.data, rows, columns, width, shared, scratch.ctypes.data, *addresses
    )
    order = np.arange(groups * 4, dtype=np.uint32).reshape(groups, 4)
    order = np.tile(np.where(order >= rows, order[:, :1], order), (panels, 1))
    # Groups lie panel by panel, chunk after chunk: chunks begin at multiples of four rows.
    begin = (np.arange(panels)[:, None] * groups + (bounds[None, :-1] + 3) // 4).ravel()
    begin = np.append(begin, panels * groups)
    return Packed(np.stack([begin, indices[begin], values[begin]], axis=1), counts, order, *made)


def whole_quads(steps: Array, tall: int) -> Array:
    """Steps of sliced groups, so that these hold a multiple of four weights: kernels load four at once, and no rest."""
    each = max(1, 4 // tall)
    return (-(-steps.astype(np.int64) // each) * each).astype(np.uint16)


def even_steps(possible: Array, lengths: Array, of_panel: Array, panels: int) -> Array:
    """Steps of a group in each pairing and row by row: in most groups of a panel as many, for ends to be foreseen.

    Args:
        possible: [groups, pairings], steps that the columns allow.
        lengths: [groups, 4], non-zeros of each row.
        of_panel: [groups].
        panels: how many there are.
    """
    steps = possible.astype(np.int64)
    for p in range(panels):
        mine = of_panel == p
        whole = mine & (possible.sum(axis=1) > 0)
        if whole.any():
            steps[mine] = np.minimum(
                steps[mine], np.quantile(possible[whole], _ABLE, axis=0, method="lower").astype(np.int64)
            )
    # Every row keeps one weight of its own, which can be split where it has fewer than the others.
    room = np.maximum(lengths.min(axis=1) - 1, 0)
    for k in range(steps.shape[1]):
        steps[:, k] = np.minimum(steps[:, k], room)
        room -= steps[:, k]
    alone = lengths.max(axis=1) - steps.sum(axis=1)
    return np.concatenate([steps, alone[:, None]], axis=1).astype(np.uint16)


def _sums(counts: Array, each: Array | int) -> Array:
    """Where each group begins if a step of its segments takes so many places, and the end; int64."""
    sizes = counts.astype(np.int64) @ each if isinstance(each, np.ndarray) else counts.astype(np.int64) * each
    return np.concatenate([[0], np.cumsum(sizes)])


def _room(indices: Array, values: Array, *, narrow: bool) -> tuple[Array, Array]:
    """Zeros: rows that stand for none are not written."""
    return np.zeros(indices[-1], np.uint8 if narrow else np.uint16), np.zeros(values[-1], np.float32)
