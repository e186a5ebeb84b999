"""A sparse weight packed for the kernels, and the product with rows of activations."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.runtime.codegen import PIECES, TILES, Slot
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.kernels import PackKernels, RowKernels
from gossamer.runtime.layout import Pool
from gossamer.runtime.packing import count_nonzeros, pack_rows
from gossamer.runtime.slabs import huge_pages
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP

__all__ = ["SparseProduct", "Workspace", "check_sparse", "workspace"]

_SPARSEST = 64
"""Entries of the matrix per non-zero up to which it is unpacked on the way: compiled packers read matrices."""

Array = npt.NDArray[Any]


@final
class Workspace(threading.local):
    """Scratch memory that grows when needed and is kept: one per thread, so calls never share it."""

    def __init__(self) -> None:
        self._floats = 0
        self._address = 0
        self._memory: object = None

    def address(self, floats: int) -> int:
        """Address of memory for that many floats, aligned to a page; valid until this thread's next request."""
        if floats > self._floats:
            self._memory, self._address, size = huge_pages(4 * floats)
            self._floats = size // 4
        return self._address


@cache
def workspace() -> Workspace:
    """The workspace that products use unless they are given another one."""
    return Workspace()


@final
class SparseProduct(CompiledProduct):
    """Y = f(X·Wᵀ + b) for a weight W [M, K] with zeros, f the identity or ReLU.

    Immutable: one object may be used by many threads and modules.

    Args:
        shape: (M, K).
        positions: int [n], where W is not zero: row · K + column, ascending.
        values: float32 [n], what is there.
        bias: float32 [M] or None.
        relu: whether negative results become zero.
        kernels: compiled code.
        openmp: where threads come from.
        packers: compiled code that packs ten times as fast; None to do without.
        scratch: memory for tiles; None for the common one.
        width: columns per panel, at most 65536; None to choose by vector length and density.
        vectors: vectors of tokens per tile, 1, 2, 4 or 8; None to choose.
        team_from: multiply-adds of vectors from which on a product runs on several threads.

    Raises:
        PlanError: sizes or positions do not fit.

    Cost: 6 bytes per non-zero and 4 per row and panel; a product takes n · tokens multiply-adds.
    Exact: each output is one sum in float32 in an order that depends on W alone, not on the number of threads.
    """

    __slots__ = (
        "_address",
        "_arrays",
        "_kernels",
        "_lanes",
        "_openmp",
        "_team_from",
        "_tile",
        "_workspace",
        "columns",
        "nonzeros",
        "rows",
    )

    def __init__(
        self,
        shape: tuple[int, int],
        positions: npt.NDArray[Any],
        values: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32] | None,
        *,
        relu: bool,
        kernels: RowKernels,
        openmp: OpenMP,
        packers: PackKernels | None = None,
        scratch: Workspace | None = None,
        width: int | None = None,
        vectors: int | None = None,
        team_from: int = WORTH_A_TEAM,
    ) -> None:
        rows, columns = shape
        check_sparse(rows, columns, positions, values, bias)
        lanes = kernels.processor.lanes
        nonzeros = len(values)
        vectors = vectors or (4 if lanes == 16 else 8)
        width = width or _panel_width(columns, vectors * lanes, nonzeros / max(1, rows * columns))
        if vectors not in TILES or not 0 < width <= 1 << 16:
            raise PlanError(f"tile: found {vectors} vectors and panels of {width}, expected one of {TILES} and 1–65536")
        panels = max(1, -(-columns // width))
        dense = _dense(rows, columns, positions, values) if packers is not None and width < 1 << 16 else None
        if packers is not None and dense is not None:
            starts, index, ordered = pack_rows(packers, dense, width)
        else:
            starts, index, ordered = _panel_major(rows, columns, positions, values, width)
        self.rows, self.columns, self.nonzeros = rows, columns, nonzeros
        self._kernels, self._openmp, self._workspace = kernels, openmp, scratch or workspace()
        self._lanes, self._tile, self._team_from = lanes, lanes * vectors, team_from
        packed = (
            starts,
            index,
            ordered,
            np.zeros(rows, np.float32) if bias is None else np.array(bias, np.float32),
            _bounds(np.diff(starts.astype(np.int64), axis=1).sum(axis=0)),
        )
        description = np.zeros(len(Slot) + len(Pool), np.int64)
        addresses = openmp.addresses or (0, 0, 0, 0)
        for slot, number in {
            Slot.ROWS: rows,
            Slot.COLUMNS: columns,
            Slot.PANELS: panels,
            Slot.WIDTH: width,
            Slot.STARTS: packed[0].ctypes.data,
            Slot.INDEX: packed[1].ctypes.data,
            Slot.VALUES: packed[2].ctypes.data,
            Slot.BIAS: packed[3].ctypes.data,
            Slot.RELU: int(relu),
            Slot.VECTORS: vectors,
            Slot.BOUNDS: packed[4].ctypes.data,
            Pool.PARALLEL: addresses[0],
            Pool.NUMBER: addresses[1],
            Pool.TEAM: addresses[2],
            Pool.BARRIER: addresses[3],
        }.items():
            description[slot] = number
        self._arrays = (*packed, description)
        self._address: int = description.ctypes.data

    def __call__(self, x: Tensor) -> Tensor:
        """f(X·Wᵀ + b).

        Args:
            x: float32 [tokens, K] on the CPU; rows may lie apart, the elements of a row are adjacent. Not checked.

        Returns:
            float32 [tokens, M], contiguous.
        """
        tokens = x.shape[0]
        y = x.new_empty(tokens, self.rows)  # explicit sizes: a tuple takes PyTorch longer to read
        if tokens == 0:
            return y
        threads = self.threads(tokens)
        scratch = 0
        if tokens > 1:
            tiles = max(1, min(threads, tokens // self._tile))  # bounds those of any smaller team too
            scratch = self._workspace.address((self.rows + self.columns) * self._tile * tiles)
        x_stride = self.columns if x.is_contiguous() else x.stride()[0]
        self._kernels.layer(self._address, x.data_ptr(), x_stride, y.data_ptr(), self.rows, tokens, scratch, threads)
        return y

    def threads(self, tokens: int) -> int:
        """Threads that a product with so many tokens is worth."""
        vectors = (tokens + self._lanes - 1) // self._lanes
        if self.nonzeros * vectors < self._team_from:
            return 1
        return min(PIECES, self._openmp.threads())

    def tiles(self, x: Tensor, y: Tensor) -> None:
        """The product for feature-major activations, without any change of layout.

        Args:
            x: float32 [tiles, K, tokens], contiguous, aligned to a vector; tokens is 1, 2, 4 or 8 vectors.
            y: float32 [tiles, M, tokens], likewise; overwritten.

        Raises:
            PlanError: the shapes do not fit.
        """
        lanes = self._kernels.processor.lanes
        tiles, columns, tokens = x.shape
        vectors = tokens // lanes
        fits = columns == self.columns and tuple(y.shape) == (tiles, self.rows, tokens)
        aligned = all(t.is_contiguous() and t.data_ptr() % (4 * lanes) == 0 for t in (x, y))
        if not fits or not aligned or vectors not in TILES or tokens % lanes:
            raise PlanError(
                f"tiles: found {tuple(x.shape)} to {tuple(y.shape)}, expected [tiles, {self.columns}, tokens] to "
                f"[tiles, {self.rows}, tokens], aligned, tokens one of {[lanes * t for t in TILES]}"
            )
        self._kernels.tiles(self._address, x.data_ptr(), y.data_ptr(), tiles, vectors, self.threads(tiles * tokens))

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, indices and where rows begin; without the bias."""
        return sum(array.nbytes for array in self._arrays[:3])


def _dense(rows: int, columns: int, positions: Array, values: Array) -> Array | None:
    """The weight as a matrix; None where that takes too much memory, or would lose values that are zero."""
    if rows * columns > _SPARSEST * len(positions) or count_nonzeros(values) < len(values):
        return None
    dense = np.zeros((rows, columns), np.float32)
    dense.reshape(-1)[positions] = values
    return dense


def _panel_major(rows: int, columns: int, positions: Array, values: Array, width: int) -> tuple[Array, Array, Array]:
    """Where rows begin, columns within the panel, and values, panel by panel, row by row."""
    panels = max(1, -(-columns // width))
    row, column = np.divmod(positions.astype(np.int64, copy=False), max(1, columns))
    panel, within = np.divmod(column, width)
    order = np.argsort(panel.astype(np.uint16 if panels <= 1 << 16 else np.int64), kind="stable")
    counts = np.bincount(panel * rows + row, minlength=panels * rows).reshape(panels, rows)
    starts = np.zeros((panels, rows + 1), np.int64)
    np.cumsum(counts, axis=1, out=starts[:, 1:])
    starts[1:] += np.cumsum(starts[:-1, -1])[:, None]
    return (
        np.ascontiguousarray(starts, np.uint32),
        np.ascontiguousarray(within[order], np.uint16),
        np.ascontiguousarray(values[order], np.float32),
    )


def _panel_width(columns: int, tokens: int, density: float) -> int:
    """Columns per panel: a panel of activations should stay in the first-level cache, and rows should not get short."""
    width = 32768 // (4 * tokens)
    while width < 1 << 14 and width * density < 20:
        width = width * 3 // 2
    if columns <= width * 3 // 2:
        return max(1, columns)
    panels = -(-columns // width)
    return -(-columns // panels)


def _bounds(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where rows are cut into pieces of about equally many non-zeros, at multiples of 16 rows: a cache line of Y."""
    total = np.concatenate([[0], np.cumsum(counts + 1)])  # an empty row costs something too
    wanted = total[-1] * np.arange(PIECES + 1) / PIECES
    cut = np.searchsorted(total, wanted, side="left")
    bounds = np.minimum((cut + 8) // 16 * 16, len(counts)).astype(np.int64)
    bounds[0], bounds[-1] = 0, len(counts)
    return np.ascontiguousarray(bounds)


def check_sparse(
    rows: int,
    columns: int,
    positions: npt.NDArray[Any],
    values: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
) -> None:
    """Refuse what no kernel could multiply with.

    Raises:
        PlanError: sizes do not fit, or positions are out of order or range.
    """
    if rows < 0 or columns < 0 or positions.ndim != 1 or values.shape != positions.shape:
        raise PlanError(
            f"sparse weight: found shape {(rows, columns)}, {positions.shape} positions and {values.shape} values, "
            "expected two sizes ≥ 0 and as many values as positions"
        )
    if positions.dtype.kind not in "iu" or values.dtype.kind != "f":
        raise PlanError(
            f"sparse weight: found {positions.dtype} positions and {values.dtype} values, expected int, float"
        )
    if bias is not None and bias.shape != (rows,):
        raise PlanError(f"bias: found shape {bias.shape}, expected {(rows,)}")
    if len(positions) >= 1 << 31:
        raise PlanError(f"sparse weight: found {len(positions)} non-zeros, expected fewer than 2³¹")
    if len(positions) == 0:
        return
    ascending = bool(np.all(positions[1:] > positions[:-1]))
    if not ascending or int(positions[0]) < 0 or int(positions[-1]) >= rows * columns:
        raise PlanError(f"sparse weight: found positions out of order or range, expected ascending < {rows * columns}")
