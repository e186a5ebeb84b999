"""Non-zeros in the orders in which the kernels of `group_code` go through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.errors import PlanError
from gossamer.runtime.group_code import PATTERNS, Way, segments_of
from gossamer.runtime.kernel_cache import PackKernels
from gossamer.runtime.pack_code import scratch_bytes

__all__ = ["Packed", "count_nonzeros", "pack"]

Array = npt.NDArray[Any]


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
    if weight.dtype != np.float32 or weight.ndim != 2 or not weight.flags.c_contiguous:
        raise PlanError(f"weight: found {weight.dtype} {weight.shape}, expected float32 [rows, columns], contiguous")
    if not 0 < width < 1 << 16 or (narrow and width > 1 << 8):
        raise PlanError(f"panel: found {width} columns, expected 1–{256 if narrow else 65535}")
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
        counts = have[of_panel, order[:, 0]]
        indices = values = _sums(counts, tall)
    else:
        counts = np.empty((len(order), segments_of(way)), np.uint16)
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


def _sums(counts: Array, each: Array | int) -> Array:
    """Where each group begins if a step of its segments takes so many places, and the end; int64."""
    sizes = counts.astype(np.int64) @ each if isinstance(each, np.ndarray) else counts.astype(np.int64) * each
    return np.concatenate([[0], np.cumsum(sizes)])


def _room(indices: Array, values: Array, *, narrow: bool) -> tuple[Array, Array]:
    """Zeros: rows that stand for none are not written."""
    return np.zeros(indices[-1], np.uint8 if narrow else np.uint16), np.zeros(values[-1], np.float32)
