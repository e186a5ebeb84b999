"""A sparse weight packed in groups of rows, and its product with feature-major tiles."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.jit.cpu import first_level_cache
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.description import blank
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import TILES, Field, Way, height
from gossamer.runtime.kernels import PackKernels, TileKernels
from gossamer.runtime.packing import count_nonzeros, pack
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP
from gossamer.runtime.value_code import WORDS, Stored, ValueField
from gossamer.runtime.value_forms import Grid, carriers, group_values, stored_values

__all__ = ["GroupedProduct", "describe", "panel_width"]

_AVX512_CACHE = 49152
"""Bytes of the first-level cache of the processors for which panels were measured with vectors of 16 floats."""

_NARROW = 256
"""Columns per panel up to which indices take one byte."""

Array = npt.NDArray[Any]


_ARRAYS = (
    Field.STARTS,
    Field.COUNTS,
    Field.ORDER,
    Field.INDEX,
    Field.VALUES,
    ValueField.TABLE,
    ValueField.SCALES,
    Field.BIAS,
)


@final
class GroupedProduct(CompiledProduct):
    """Y = f(W·X + b) + R for a weight W [M, K] with zeros, over feature-major tiles.

    Immutable: one object may be used by many threads and modules.

    Args:
        weight: float32 [M, K], W; copied.
        bias: float32 [M] or None; copied.
        activation: f.
        kernels: compiled code.
        packers: compiled code.
        openmp: where threads come from.
        way: how a group's non-zeros are ordered.
        width: columns per panel, at most 65535; None for one that keeps a panel of X in the first-level cache.
        stored: how values are stored; all formats hold them exactly.
        grid: what they are made of, for `Stored.INTEGERS`.
        team_from: multiply-adds of vectors from which on a product runs on several threads.

    Raises:
        PlanError: sizes or types do not fit, or a format does not hold the values.

    Cost: 5 bytes per non-zero for panels of up to 256 columns, else 6; 3 or 2 bytes less with values of 8 or 16 bits;
        less where patterns share indices. Smaller values are expanded once per group and tile.
    Exact: each output is one sum in float32 in an order that depends on W alone, not on the number of threads. Sliced
        rows are made equally long by splitting weights into halves, which is exact down to subnormal numbers; values of
        8 bits, by entries that change a product by less than a hundredth of its rounding (`value_code`).
    """

    __slots__ = (
        "_address",
        "_arrays",
        "_openmp",
        "_team_from",
        "columns",
        "kernels",
        "nonzeros",
        "rows",
        "stored",
        "way",
        "width",
    )

    def __init__(
        self,
        weight: Array,
        bias: Array | None,
        *,
        activation: Activation,
        kernels: TileKernels,
        packers: PackKernels,
        openmp: OpenMP,
        way: Way,
        width: int | None = None,
        stored: Stored = Stored.FLOATS,
        grid: Grid | None = None,
        team_from: int = WORTH_A_TEAM,
    ) -> None:
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            found = f"found {weight.shape} and a bias {None if bias is None else bias.shape}"
            raise PlanError(f"sparse weight: {found}, expected [M, K] and [M]")
        rows, columns = weight.shape
        lanes, nonzeros = kernels.processor.lanes, count_nonzeros(weight)
        width = max(1, min(width or panel_width(columns, lanes, nonzeros / max(1, rows * columns), way), columns))
        if grid is not None:
            width = max(1, min(grid.width(width), columns))
        panels = max(1, -(-columns // width))
        bounds, step = _chunks(rows, 256 if way is Way.PAIRS or lanes <= 8 else 128)
        narrow = width <= _NARROW
        tall = height(way, lanes)
        carried, entries = carriers(stored, weight, grid)
        made = pack(packers, way, carried, width=width, bounds=bounds, tall=tall, narrow=narrow)
        values = stored_values(stored, made, way, tall, entries, lanes)
        scales = np.zeros(0, np.float32) if grid is None else grid.scales(panels, width)
        largest = int(group_values(way, made.counts, tall).max(initial=0))
        room = 0 if stored is Stored.FLOATS else -(-largest // lanes) * lanes
        offsets = np.zeros(rows, np.float32) if bias is None else np.array(bias, np.float32)
        arrays = (made.starts, made.counts, made.order, made.index, values.array, values.table, scales, offsets)
        description = describe(openmp)
        for field, number in {
            Field.ROWS: rows,
            Field.COLUMNS: columns,
            Field.PANELS: panels,
            Field.WIDTH: width,
            Field.CHUNKS: len(bounds) - 1,
            Field.STEP: step,
            Field.ACTIVATION: int(activation),
            Field.WAY: int(way),
            Field.NARROW: int(narrow),
            ValueField.FORMAT: int(values.stored),
            ValueField.LARGEST: largest,
            ValueField.ROOM: room,
            ValueField.LENGTH: len(made.values),
            **dict(zip(_ARRAYS, (array.ctypes.data if array.size else 0 for array in arrays), strict=True)),
        }.items():
            description[field] = number
        self.rows, self.columns, self.nonzeros, self.way, self.width = rows, columns, nonzeros, way, width
        self.stored = stored
        self.kernels, self._openmp, self._team_from = kernels, openmp, team_from
        self._arrays = (*arrays, description)
        self._address: int = description.ctypes.data

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """f(W·X + b) + R.

        Args:
            x: float32 [tiles, K, tile], contiguous, aligned to a vector. Not checked.
            residual: float32 [tiles, M, tile], likewise, or None.

        Returns:
            float32 [tiles, M, tile].
        """
        tiles, _, tile = x.shape
        y = x.new_empty(tiles, self.rows, tile)
        vectors = tile // self.kernels.processor.lanes
        other = 0 if residual is None else residual.data_ptr()
        threads = self.threads(tiles * vectors)
        self.kernels.multiply(self._address, x.data_ptr(), y.data_ptr(), other, tiles, vectors, threads)
        return y

    def with_activation(self, activation: Activation) -> GroupedProduct:
        """The same weight, shared, with another f."""
        made = object.__new__(GroupedProduct)
        for name in GroupedProduct.__slots__:
            setattr(made, name, getattr(self, name))
        description = self._arrays[-1].copy()
        description[Field.ACTIVATION] = int(activation)
        made._arrays = (*self._arrays[:-1], description)
        made._address = description.ctypes.data
        return made

    def threads(self, vectors: int) -> int:
        """Threads that a product with so many vectors of tokens is worth."""
        return 1 if self.nonzeros * vectors < self._team_from else self._openmp.threads()

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, scales, indices, counts and order; without the bias."""
        return sum(array.nbytes for array in self._arrays[: len(_ARRAYS) - 1])


def describe(openmp: OpenMP) -> npt.NDArray[np.int64]:
    """A description that holds the addresses of the OpenMP runtime and nothing else yet."""
    return blank(WORDS, openmp)


def panel_width(columns: int, lanes: int, density: float, way: Way) -> int:
    """Columns per panel: a panel of X should stay in the first-level cache, and a group's rows should not get short."""
    # The rest of the cache is for weights and sums. Patterns have fifteen loops to end.
    cache = _AVX512_CACHE if lanes > 8 else first_level_cache()
    width = (cache if way is Way.PATTERNS else cache * 5 // 6) // (4 * lanes * TILES[-1])
    while width < 1 << 13 and width * density < 10:
        width = width * 3 // 2
    panels = max(1, round(columns / width))
    return -(-columns // panels)


def _chunks(rows: int, about: int) -> tuple[Array, int]:
    """Where rows are cut into chunks, at multiples of four, and how many chunks make a block of about 768 rows.

    Rows are sorted by length and matched within a chunk: large ones have long runs of equal lengths, and better
    partners. Threads divide chunks.
    """
    count = max(1, min(16, rows // about))
    bounds = np.minimum((np.arange(count + 1) * rows // count + 3) // 4 * 4, rows).astype(np.int64)
    bounds[-1] = rows
    return bounds, max(1, 768 * count // max(1, rows))
