"""The places of a weight's live values laid out for the kernels, and what a training step computes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, multiplies_pairs, wanted_level
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.choice import Room, float_bits, row_edges
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.grouped import describe
from gossamer.runtime.kernels import LiveKernels, RoundedKernels, load
from gossamer.runtime.live_code import LiveField
from gossamer.runtime.live_dense_code import DEAD_ROWS, panel_columns
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.spmm import workspace
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP, openmp

__all__ = ["Batch", "LiveMath", "LiveMatrix", "Ordered", "live_math"]

_WORTH_COPYING_TOGETHER = 1 << 16
"""Floats from which on a change of layout is worth a team."""

_CACHE = 28672
"""Bytes of a panel of activations that stay in the first-level cache."""

_WORTH_PLACING_TOGETHER = 1 << 15
"""Live values from which on laying them out is worth a team."""

Array = npt.NDArray[Any]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Activations [tokens, features] as tiles [tiles, features, tile]; lanes beyond the last token are zero.

    Args:
        data: float32, contiguous, aligned to a vector.
        tokens: how many there are.
    """

    data: Tensor
    tokens: int


@final
class LiveMath(CompiledProduct):
    """The kernels at one instruction set, and changes of layout. Immutable.

    Args:
        kernels: compiled code.
        pool: where threads come from.
        rounded: of dense gradients from bfloat16, where the processor gains by that.
    """

    def __init__(self, kernels: LiveKernels, pool: OpenMP, rounded: RoundedKernels | None = None) -> None:
        self.kernels = kernels
        self.rounded = rounded
        self.openmp = pool
        self.lanes = kernels.processor.lanes
        self.memory = Slabs()
        self._description = describe(pool)
        self.address: int = self._description.ctypes.data

    def batch(self, rows: Tensor) -> Batch:
        """float32 [tokens, features] → tiles.

        Args:
            rows: elements of a row are adjacent. Not checked.
        """
        tokens, features = rows.shape
        tiles, vectors = self.split(tokens)
        tile = vectors * self.lanes
        made = self.memory.empty(tiles, features, tile)
        stride = rows.stride(0) if tokens > 1 else features
        self.pack(rows.data_ptr(), stride, made.data_ptr(), tokens, features, vectors)
        return Batch(made, tokens)

    def rows(self, batch: Batch) -> Tensor:
        """Tiles → [tokens, features], contiguous."""
        _, features, tile = batch.data.shape
        made = torch.empty(batch.tokens, features)
        self.unpack(made.data_ptr(), features, batch.data.data_ptr(), batch.tokens, features, tile // self.lanes)
        return made

    def pack(self, rows: int, stride: int, tiles: int, tokens: int, features: int, vectors: int) -> None:
        """The same between addresses; rows lie ``stride`` floats apart."""
        threads = self._threads(tokens * features)
        self.kernels.pack(self.address, rows, stride, tiles, tokens, features, vectors, threads)

    def unpack(self, rows: int, stride: int, tiles: int, tokens: int, features: int, vectors: int) -> None:
        """The way back."""
        threads = self._threads(tokens * features)
        self.kernels.unpack(self.address, rows, stride, tiles, tokens, features, vectors, threads)

    def split(self, tokens: int) -> tuple[int, int]:
        """Tiles, and vectors per tile, for so many tokens: as few tiles as there can be, all equally wide.

        Example:
            >>> tiles, vectors = live_math().split(100)
            >>> 100 <= tiles * vectors * live_math().lanes < 100 + tiles * live_math().lanes
            True
        """
        tiles = -(-tokens // (self.kernels.most_vectors * self.lanes))
        # Tiles of which the last is not empty: its lanes then are those of the last tokens.
        vectors = -(-tokens // (tiles * self.lanes))
        return -(-tokens // (vectors * self.lanes)), vectors

    def panels(self, x: Tensor, *, rounded: bool = False) -> Tensor:
        """Tiles [tiles, features, tile] → panels of features for `dense_gradient`, [panels, tokens, width].

        Args:
            x: float32.
            rounded: whether tokens become pairs in bfloat16, [panels, tokens / 2, width] of 32 bits; needs `rounded`.
        """
        tiles, features, tile = x.shape
        width = panel_columns(self.lanes)
        count, tokens = -(-features // width), tiles * tile
        rows = self.memory.empty(tokens, count * width)
        if features % width:
            rows[:, features:] = 0.0
        x = x.contiguous()
        self.unpack(rows.data_ptr(), count * width, x.data_ptr(), tokens, features, tile // self.lanes)
        if not rounded:
            return rows.view(tokens, count, width).transpose(0, 1).contiguous()
        assert self.rounded is not None
        made = self.memory.empty(count, tokens // 2, width)
        threads = self._threads(rows.numel())
        self.rounded.pair_panels(self.address, rows.data_ptr(), tokens // 2, count, made.data_ptr(), threads)
        return made

    def dense_gradient(self, panels: Tensor, dy: Tensor, made: Tensor, *, adding: bool) -> None:
        """dY·Xᵀ for some rows, dead places included.

        Args:
            panels: of X.
            dy: float32 [rows, tokens], contiguous, or bfloat16 where the panels are rounded.
            made: float32 [rows, features], contiguous: is written.
            adding: whether onto what is there.
        """
        rows, features = dy.shape[0], made.shape[1]
        kernels, tokens = self._weighing(dy)
        threads = self._threads(rows * features)
        addresses = (self.address, panels.data_ptr(), dy.data_ptr(), made.data_ptr())
        kernels.weigh_all(*addresses, rows, features, tokens, int(adding), threads)

    def _weighing(self, dy: Tensor) -> tuple[LiveKernels | RoundedKernels, int]:
        """Kernels for such gradients of outputs, and how many tokens, or pairs of them, there are."""
        if dy.dtype is torch.float32:
            return self.kernels, dy.shape[1]
        assert self.rounded is not None
        return self.rounded, dy.shape[1] // 2

    def dead_above(
        self, panels: Tensor, dy: Tensor, columns: int, live: Tensor, starts: Tensor, size: float
    ) -> tuple[Tensor, Tensor]:
        """Where dY·Xᵀ is larger in magnitude than a size, or not a number, but for the live places.

        Args:
            panels: of X.
            dy: float32 [rows, tokens], contiguous, or bfloat16 where the panels are rounded.
            columns: features of X.
            live: int64 [live], contiguous, ascending.
            starts: int64 [rows + 1], which of them is the first of each row; and their number.
            size: not negative.

        Returns:
            positions int64 [found], ascending, and float32 [found].
        """
        rows, (kernels, tokens) = len(dy), self._weighing(dy)
        threads = self._threads(rows * columns)
        tiles = self.memory.empty(threads, DEAD_ROWS, columns)
        room, counts = Room(rows * columns, self.memory), np.zeros((threads, 2), np.int64)
        kernels.dead_above(
            self.address,
            panels.data_ptr(),
            dy.data_ptr(),
            tiles.data_ptr(),
            rows,
            columns,
            tokens,
            live.data_ptr(),
            starts.data_ptr(),
            float_bits(size),
            room.positions.data_ptr(),
            room.found.data_ptr(),
            counts.ctypes.data,
            threads,
        )
        return room.taken(counts, own=True)

    def _threads(self, floats: int) -> int:
        return 1 if floats < _WORTH_COPYING_TOGETHER else self.openmp.threads()


def live_math(level: Level | None = None) -> LiveMath:
    """The kernels at an instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: this processor lacks the instruction set.
    """
    return _live_math(wanted_level() if level is None else level)


@cache
def _live_math(level: Level) -> LiveMath:
    rounded = load(RoundedKernels, host(level), cache_directory()) if multiplies_pairs(level) else None
    return LiveMath(load(LiveKernels, host(level), cache_directory()), openmp(), rounded)


@final
class LiveMatrix(CompiledProduct):
    """Where the live values of a weight W [M, K] are, laid out for W·X, Wᵀ·dY and dY·Xᵀ; it holds no values.

    Immutable: one object may be used by many threads and modules.

    Args:
        shape: (M, K).
        positions: int [live], row · K + column, ascending. Order is not checked.
        math: kernels.

    Raises:
        PlanError: there are 2³¹ live values or more.

    Cost: 8 bytes per live value, for its place in W and in Wᵀ, and 16 per row and panel of columns, which has some 16
        live values; a product takes as many multiply-adds per token as there are live values.
    Exact: each result is one sum in float32 in an order that depends on the places and the number of tokens, not on the
        number of threads.
    """

    def __init__(self, shape: tuple[int, int], positions: Array, math: LiveMath) -> None:
        rows, columns = shape
        if len(positions) >= 1 << 31:
            raise PlanError(f"live values: found {len(positions)}, expected fewer than 2³¹")
        self.rows, self.columns, self.live = rows, columns, len(positions)
        self.math = math
        flat = np.ascontiguousarray(positions, np.int64)
        row_starts = row_edges(torch.from_numpy(flat), rows, columns).numpy()
        density = self.live / max(1, rows * columns)
        tile_bytes = 4 * math.lanes * math.kernels.most_vectors
        width, height = _width(columns, density, tile_bytes), _width(rows, density, tile_bytes)
        panels, t_panels = max(1, -(-columns // width)), max(1, -(-rows // height))
        counts, transposed = np.zeros((rows, panels), np.uint32), np.zeros((t_panels, columns), np.uint32)
        sizes = (math.address, flat.ctypes.data, row_starts.ctypes.data, rows, columns, width, height)
        threads = 1 if self.live < _WORTH_PLACING_TOGETHER else math.openmp.threads()
        math.kernels.count_places(*sizes, counts.ctypes.data, transposed.ctypes.data, threads)
        self._forward = _Layout(counts, rows, panels, columns, (panels, 1), width, math, row_starts)
        self._backward = _Layout(transposed, columns, t_panels, rows, (1, columns), height, math, None)
        places = np.empty(self.live, np.uint32)
        fields = (self._forward.following, self._forward.index, self._backward.following, self._backward.index, places)
        addresses = (array.ctypes.data for array in (counts, *fields))
        at = row_starts.copy()
        math.kernels.fill_places(*sizes[:2], at.ctypes.data, *sizes[3:], *addresses, threads)
        chunk_rows = np.minimum(np.arange(self._forward.chunks + 1) * self._forward.step, rows)
        panel_rows = np.minimum(np.arange(self._backward.panels + 1) * height, rows)
        self._forward.serve(None, row_starts[chunk_rows])
        self._backward.serve(places, row_starts[panel_rows])

    def product(self, values: Tensor, x: Batch, bias: Tensor | None) -> Batch:
        """W·X + b.

        Args:
            values: float32 [live], contiguous.
            x: of K features.
            bias: float32 [M], contiguous, or None.
        """
        return self._product(self._forward, self.math.kernels.gather, values, x, bias)

    def transposed_product(self, values: Tensor, dy: Batch) -> Batch:
        """Wᵀ·dY.

        Args:
            values: float32 [live], contiguous.
            dy: of M features.
        """
        return self._product(self._backward, self.math.kernels.gather_transposed, values, dy, None)

    def ordered(self, values: Tensor, *, transposed: bool) -> Ordered:
        """W, or Wᵀ, with these values: for many small products, which bring them into the kernels' order only once.

        Args:
            values: float32 [live], contiguous.
            transposed: whether Wᵀ is meant.
        """
        kernels = self.math.kernels
        layout, gather = (self._backward, kernels.gather_transposed) if transposed else (self._forward, kernels.gather)
        memory = self.math.memory.empty(self.live + 64)
        gather(layout.address, values.data_ptr(), memory.data_ptr(), self._threads(1))
        return Ordered(kernels, layout.address, memory, self._threads)

    def _product(self, layout: _Layout, gather: Any, values: Tensor, x: Batch, bias: Tensor | None) -> Batch:
        tiles, _, tile = x.data.shape
        vectors = tile // self.math.lanes
        y = self.math.memory.empty(tiles, layout.rows, tile)
        ordered = workspace().address(self.live + 64)
        threads = self._threads(tiles * vectors)
        gather(layout.address, values.data_ptr(), ordered, threads)
        self.math.kernels.multiply(
            layout.address,
            ordered,
            x.data.data_ptr(),
            y.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            tiles,
            vectors,
            threads,
        )
        return Batch(y, x.tokens)

    def gradient(self, x: Batch, dy: Batch, *, bias: bool = False) -> tuple[Tensor, Tensor | None]:
        """dW = dY·Xᵀ at the live places and db = dY·1.

        Args:
            x: of K features.
            dy: of M features.
            bias: whether db is wanted: it costs next to nothing here.

        Returns:
            float32 [live], and float32 [M] or None.
        """
        tiles, _, tile = x.data.shape
        vectors = tile // self.math.lanes
        made = torch.empty(self.live)
        totals = torch.empty(self.rows) if bias else None
        sums = workspace().address(self.live + 64)
        addresses = (t.data_ptr() for t in (x.data, dy.data))
        last = 0 if totals is None else totals.data_ptr()
        threads = self._threads(tiles * vectors)
        self.math.kernels.weigh(self._forward.address, *addresses, sums, made.data_ptr(), last, tiles, vectors, threads)
        return made, totals

    def _threads(self, vectors: int) -> int:
        return 1 if self.live * vectors < WORTH_A_TEAM else self.math.openmp.threads()

    @property
    def resident_bytes(self) -> int:
        """Bytes held."""
        return self._forward.resident_bytes + self._backward.resident_bytes


@final
class Ordered(CompiledProduct):
    """A matrix with its values in the order of the kernels.

    Args:
        kernels: compiled code.
        layout: address of the matrix's description.
        memory: the values.
        threads: vectors of tokens → how many threads they are worth.
    """

    __slots__ = ("_address", "_layout", "_memory", "_multiply", "_threads")

    def __init__(self, kernels: LiveKernels, layout: int, memory: Tensor, threads: Callable[[int], int]) -> None:
        self._multiply, self._layout, self._threads = kernels.multiply, layout, threads
        self._memory, self._address = memory, memory.data_ptr()

    def product(self, x: int, y: int, bias: int, tiles: int, vectors: int) -> None:
        """y ← W·x + b, between addresses of tiles; ``bias`` may be 0."""
        self._multiply(self._layout, self._address, x, y, bias, tiles, vectors, self._threads(tiles * vectors))


@final
class _Layout:
    """One matrix in the order of the kernels, without values.

    Args:
        counts: uint32, lengths of the segments of ``rows`` rows and ``panels`` panels.
        rows: M.
        panels: of columns.
        columns: K.
        strides: from a row's count to the next row's, and from a panel's to the next panel's.
        width: columns per panel.
        math: kernels.
        row_starts: int64 [rows + 1], where rows begin among values that come row by row; None: they do not.
    """

    def __init__(
        self,
        counts: Array,
        rows: int,
        panels: int,
        columns: int,
        strides: tuple[int, int],
        width: int,
        math: LiveMath,
        row_starts: Array | None,
    ) -> None:
        self.rows, self.panels, self.step = rows, panels, _step(rows)
        self.chunks = max(1, -(-rows // self.step))
        segments = rows * panels
        order = np.zeros(segments + 8, np.uint32)
        lengths, cells = np.empty(segments, np.uint16), np.zeros(self.chunks * panels + 1, np.int64)
        self.following = np.empty_like(counts)
        room = np.empty(width + 1, np.int64)
        at = None if row_starts is None else row_starts[:rows].copy()
        self._places = None if row_starts is None else np.empty(segments, np.uint32)
        math.kernels.order_segments(
            counts.ctypes.data,
            rows,
            panels,
            *strides,
            self.step,
            *(array.ctypes.data for array in (room, order, lengths, cells, self.following)),
            *(0 if array is None else array.ctypes.data for array in (at, self._places)),
        )
        self.index = np.empty(int(cells[-1]), np.uint16)
        self._arrays: list[Array] = [order, lengths, cells, self.index]
        self._description = describe(math.openmp)
        for field, number in {
            LiveField.ROWS: rows,
            LiveField.COLUMNS: columns,
            LiveField.PANELS: panels,
            LiveField.WIDTH: width,
            LiveField.CHUNKS: self.chunks,
            LiveField.STEP: self.step,
            LiveField.ORDER: order.ctypes.data,
            LiveField.COUNTS: lengths.ctypes.data,
            LiveField.CELLS: cells.ctypes.data,
            LiveField.INDEX: self.index.ctypes.data,
        }.items():
            self._description[field] = number
        self.address: int = self._description.ctypes.data

    def serve(self, places: Array | None, starts: Array) -> None:
        """Completes the description, after which what only its making needed is gone.

        Args:
            places: where values are; None where segments know.
            starts: see `LiveField.STARTS`.
        """
        known = self._places if places is None else places
        made: list[Array] = [np.ascontiguousarray(known, np.uint32), np.ascontiguousarray(starts, np.int64)]
        self._arrays += made
        self._description[LiveField.PLACES], self._description[LiveField.STARTS] = (a.ctypes.data for a in made)
        del self.following, self._places

    @property
    def resident_bytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._arrays)


def _width(columns: int, density: float, tile_bytes: int) -> int:
    """Columns per panel: activations should stay in the first-level cache, and segments should not get short."""
    width = _CACHE / tile_bytes
    width = max(width, min(2.3 * width, 16 / max(density, 1e-9)))
    width = max(width, min(10 * width, 8 / max(density, 1e-9)))
    panels = max(1, round(columns / width))
    return max(1, min(1 << 16, -(-columns // panels)))


def _step(rows: int) -> int:
    """Rows per chunk: a chunk of outputs should stay in the second-level cache, and there should be some to share."""
    return max(64, min(256, -(-rows // 4)))
