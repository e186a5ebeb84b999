"""The places of a convolution's live values laid out for the kernels, and what a training step computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.description import described
from gossamer.runtime.live_conv_code import STRIDES, WIDEST, ConvField
from gossamer.runtime.live_planes import Blocks, PlanesMath
from gossamer.runtime.recent import Recent
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP

__all__ = ["LiveConvolution"]

_CACHE = 14336
"""Bytes of a panel of activations that stay in the first-level cache, beside outputs and weights that pass through."""

_FARTHEST = (1 << 32) - 1
"""Bytes that an index can reach."""

_KEPT = 4
"""Shapes of images whose distances are kept."""

Array = npt.NDArray[Any]
Pair = tuple[int, int]


@final
class LiveConvolution(CompiledProduct):
    """Where the live values of a weight W [M, C, kh, kw] are, laid out for W ⊛ X and both gradients.

    It holds no values. One object may be used by many modules.

    Args:
        shape: (M, C, kh, kw).
        geometry: of the convolution; with equal padding on opposite sides.
        positions: int [live], flat, ascending. Order is not checked.
        math: kernels.

    Raises:
        PlanError: there is no kernel for such strides, or there are 2³¹ live values or more.

    Cost: 16 bytes per live value, for its place in W and in Wᵀ, and 8 more per shape of images in use; a product takes
        as many multiply-adds per output position as there are live values.
    Exact: each result is one sum in float32 in an order that depends on the places and the number of images, not on the
        number of threads.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], geometry: Geometry, positions: Array, math: PlanesMath
    ) -> None:
        if geometry.stride[1] not in STRIDES:
            raise PlanError(f"live convolution: found stride {geometry.stride[1]}, expected one of {STRIDES}")
        if len(positions) >= 1 << 31:
            raise PlanError(f"live values: found {len(positions)}, expected fewer than 2³¹")
        self.shape, self.geometry, self.live, self.math = shape, geometry, len(positions), math
        rows, channels = shape[:2]
        density = self.live / max(1, prod(shape))
        place = np.arange(self.live)
        rest, tap = np.divmod(positions, geometry.taps)
        row, channel = np.divmod(rest, max(1, channels))
        offsets = np.stack(
            [(i * d - p) for i, d, p in zip(_taps(geometry), geometry.dilation, geometry.padding, strict=True)]
        )
        width = _panel(channels, offsets, geometry.stride[1], density, math.lanes)
        order = _Order((rows, channels), (row, channel, tap, place), offsets, width)
        self._forward = _Products([_Phase((0, 0), order)])
        slots = np.empty(self.live, np.int32)
        slots[order.places] = np.arange(self.live)
        self._slots = torch.from_numpy(slots)  # the other way round: faster than to scatter
        by_channel = np.argsort(channel.astype(np.uint16) if channels <= 1 << 16 else channel, kind="stable")
        turned = (channel[by_channel], row[by_channel], tap[by_channel], by_channel)
        self._backward = _Products(
            [
                _Phase(start, _transposed((channels, rows), turned, geometry, start, density, math.lanes))
                for start in np.ndindex(geometry.stride)
            ]
        )
        self._prepared = Recent[tuple[Any, ...], _Prepared](3 * _KEPT)  # a product and two gradients of each

    def frames(self, size: Pair) -> tuple[Pair, Pair]:
        """Rows and columns of zeros that must surround inputs of a size, and gradients of the outputs."""
        outputs, stride = self.geometry.outputs(size), self.geometry.stride
        x = self._forward.phases[0].order.reach(outputs, stride, size)
        dy = (0, 0)
        for phase in self._backward.phases:
            mine = phase.order.reach(phase.size(size, stride), (1, 1), outputs)
            dy = (max(dy[0], mine[0]), max(dy[1], mine[1]))
        return x, dy

    def product(self, values: Tensor, x: Blocks, bias: Tensor | None) -> Blocks:
        """W ⊛ X + b.

        Args:
            values: float32 [live], contiguous.
            x: of C channels, in its frame.
            bias: float32 [M], contiguous, or None.
        """
        size = self.geometry.outputs(x.size)
        y = Blocks.empty(self.math.memory, x.images, self.shape[0], size, (0, 0), x.lanes)
        self._multiply(self._forward, values, x, y, (1, 1), bias)
        return y

    def input_gradient(self, values: Tensor, dy: Blocks, size: Pair) -> Blocks:
        """The gradient of an input of a size.

        Args:
            values: float32 [live], contiguous.
            dy: of M channels, in its frame.
            size: rows and columns.
        """
        dx = Blocks.empty(self.math.memory, dy.images, self.shape[1], size, (0, 0), dy.lanes)
        self._multiply(self._backward, values, dy, dx, self.geometry.stride, None)
        return dx

    def gradient(self, x: Blocks, dy: Blocks) -> Tensor:
        """The gradient of the live values, float32 [live]."""
        sums = torch.empty(self.live)
        prepared = self._prepared_for(self._forward, x, dy, (1, 1))
        self.math.kernels.weigh(
            prepared.address, x.address, dy.address, sums.data_ptr(), x.blocks, self._threads(x.blocks * prod(dy.size))
        )
        return sums.index_select(0, self._slots)

    @property
    def resident_bytes(self) -> int:
        """Bytes held."""
        orders = [phase.order for products in (self._forward, self._backward) for phase in products.phases]
        return (
            sum(order.resident_bytes for order in orders)
            + self._slots.nbytes
            + sum(prepared.resident_bytes for prepared in self._prepared.values())
        )

    def _multiply(
        self, products: _Products, values: Tensor, x: Blocks, y: Blocks, stride: Pair, bias: Tensor | None
    ) -> None:
        prepared = self._prepared_for(products, x, y, stride)
        ordered = values.index_select(0, products.places)
        self.math.kernels.multiply(
            prepared.address,
            ordered.data_ptr(),
            x.address,
            y.address,
            0 if bias is None else bias.data_ptr(),
            x.blocks,
            self._threads(x.blocks * min(prod(x.size), prod(y.size))),
        )

    def _threads(self, vectors: int) -> int:
        return 1 if self.live * vectors < WORTH_A_TEAM else self.math.openmp.threads()

    def _prepared_for(self, products: _Products, x: Blocks, y: Blocks, stride: Pair) -> _Prepared:
        """Tables for images of some sizes; outputs of a phase lie a stride apart."""
        key = (products is self._forward, x.size, x.frame, y.size, y.frame)

        def make() -> _Prepared:
            reading = self.geometry.stride if products is self._forward else (1, 1)
            views = [(p, _View(p.size(y.size, stride), p.start, stride, reading)) for p in products.phases]
            made = [self._prepare(p, x, y, view) for p, view in views if min(view.size) > 0]
            return _Prepared([numbers for numbers, _ in made], [index for _, index in made], self.math.openmp)

        return self._prepared.get(key, make)

    def _prepare(self, phase: _Phase, x: Blocks, y: Blocks, view: _View) -> tuple[dict[ConvField, int], Array]:
        order, index = phase.order, phase.order.index(x)
        columns = view.size[1]
        tiles = -(-columns // WIDEST)
        width = -(-columns // tiles)
        tiles = -(-columns // width)
        numbers: dict[ConvField, int] = {
            ConvField.ROWS: order.rows,
            ConvField.PANELS: order.panels,
            ConvField.CHUNKS: order.chunks,
            ConvField.STEP: order.step,
            ConvField.ORDER: order.order.ctypes.data,
            ConvField.COUNTS: order.counts.ctypes.data,
            ConvField.CELLS: order.cells.ctypes.data,
            ConvField.INDEX: index.ctypes.data,
            ConvField.PANEL_STRIDE: 4 * order.width * x.line,
            ConvField.HEIGHT: view.size[0],
            ConvField.TILES: tiles,
            ConvField.WIDTH: width,
            ConvField.LAST: columns - (tiles - 1) * width,
            ConvField.STRIDE: view.reading[1],
            ConvField.X_BLOCK: 4 * x.block,
            ConvField.X_ROW: 4 * view.reading[0] * x.row,
            ConvField.Y_BLOCK: 4 * y.block,
            ConvField.Y_ROW: 4 * view.stride[0] * y.row,
            ConvField.Y_LINE: 4 * y.line,
            ConvField.X_LINE: 4 * x.line,
            ConvField.X_FRESH: 4 * order.rows_read * x.row,
            ConvField.X_FIRST: order.start(x),
            ConvField.Y_COLUMN: 4 * view.stride[1] * y.lanes,
            ConvField.Y_FIRST: 4 * (view.start[0] * y.row + view.start[1] * y.lanes),
            ConvField.VALUES_FIRST: 4 * phase.first_value,
        }
        return numbers, index


@final
class _Prepared:
    """Descriptions for images of some sizes, one after the other, and the tables that they point to.

    Args:
        numbers: of each description, by their places in it.
        tables: kept alive.
        pool: where threads come from.
    """

    __slots__ = ("_arrays", "address")

    def __init__(self, numbers: list[dict[ConvField, int]], tables: list[Array], pool: OpenMP) -> None:
        size = max(ConvField) + 1
        common = {ConvField.PHASES: len(numbers), ConvField.WORDS: size}
        made = np.concatenate([described(ConvField, one | common, pool) for one in numbers])
        assert len(made) == size * len(numbers)
        self._arrays = (made, *tables)
        self.address: int = made.ctypes.data

    @property
    def resident_bytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._arrays)


@final
@dataclass(frozen=True)
class _View:
    """Which outputs a kernel computes.

    Args:
        size: how many rows and columns.
        start: the first one.
        stride: from one to the next.
        reading: steps of the input meanwhile.
    """

    size: Pair
    start: Pair
    stride: Pair
    reading: Pair


@final
@dataclass(eq=False)
class _Phase:
    """The places of an output that lie equally between steps.

    Args:
        start: the first one.
        order: the weights that connect them with inputs.
        first_value: of the ordered values of all phases.
    """

    start: Pair
    order: _Order
    first_value: int = 0

    def size(self, size: Pair, stride: Pair) -> Pair:
        """How many rows and columns of them planes of a size have."""
        a, b = (-(-(n - first) // s) for n, first, s in zip(size, self.start, stride, strict=True))
        return a, b


@final
class _Products:
    """Products that one call computes.

    Args:
        phases: their outputs lie side by side; the first one's image rows are not fewer than another's.
    """

    def __init__(self, phases: list[_Phase]) -> None:
        first = 0
        for phase in phases:
            phase.first_value = first
            first += len(phase.order.places)
        self.phases = phases
        places = np.concatenate([phase.order.places for phase in phases])
        for phase in phases:
            phase.order.places = places[phase.first_value :][: len(phase.order.places)]
        self.places = torch.from_numpy(places)
        """int32: which value comes where in the order of the kernels."""


@final
class _Order:
    """A matrix [rows, channels · taps] in the order of the kernels, without values.

    Args:
        shape: (rows, channels).
        entries: row, channel, tap and place among the values of each non-zero; rows ascending, in each row channels.
        offsets: [2, taps], rows and columns from what an output would read to what a tap does.
        width: channels per panel.
    """

    def __init__(self, shape: Pair, entries: tuple[Array, Array, Array, Array], offsets: Array, width: int) -> None:
        (self.rows, channels), self.width, self.offsets = shape, width, offsets
        row, channel, tap, place = entries
        self.rows_read = int(np.ptp(offsets[0])) if offsets.size else 0
        self.panels, self.step = max(1, -(-channels // width)), _step(self.rows)
        self.chunks = max(1, -(-self.rows // self.step))
        segments = self.rows * self.panels
        counts = np.bincount(row * self.panels + channel // width, minlength=segments)
        sources = np.cumsum(counts) - counts
        rows, panels = np.divmod(np.arange(segments), self.panels)
        # Segments by chunk, panel and falling length.
        turn = np.lexsort((rows, -counts, panels, rows // self.step))
        counts = counts[turn]
        begins = np.concatenate([[0], np.cumsum(counts)])
        # Non-zeros of a segment are neighbours in the entries.
        entry = np.repeat(sources[turn] - begins[:-1], counts) + np.arange(len(row))
        self.places: Array = place[entry].astype(np.int32)
        taps = max(1, offsets.shape[1])
        self._column = (channel % width * taps + tap)[entry].astype(np.uint16 if width * taps <= 1 << 16 else np.uint32)
        self.order: Array = np.concatenate([rows[turn], np.zeros(8, np.int64)]).astype(np.uint32)
        self.counts: Array = counts.astype(np.uint32)
        first = np.minimum(np.arange(self.chunks + 1) * self.step, self.rows)
        cells = first[:-1, None] * self.panels + np.arange(self.panels) * np.diff(first)[:, None]
        self.cells: Array = begins[np.append(cells.ravel(), segments)].astype(np.int64)

    @property
    def resident_bytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in (self.order, self.counts, self.cells, self.places, self._column))

    def reach(self, outputs: Pair, stride: Pair, size: Pair) -> Pair:
        """Rows and columns before and after planes of a size that so many outputs read."""
        if not self.offsets.size:
            return 0, 0
        lowest, highest = self.offsets.min(1), self.offsets.max(1)
        a, b = (
            max(0, -int(lowest[i]), int(highest[i]) + (outputs[i] - 1) * stride[i] - (size[i] - 1)) for i in range(2)
        )
        return a, b

    def start(self, x: Blocks) -> int:
        """Bytes from the first number to what the first tap of all reads."""
        if not self.offsets.size:
            return 0
        down, across = (int(o) for o in self.offsets.min(1))
        return 4 * (down * x.row + across * x.lanes)

    def index(self, x: Blocks) -> Array:
        """uint32, in bytes: how far from the start of a panel each non-zero reads."""
        down, across = self.offsets - self.offsets.min(1, keepdims=True) if self.offsets.size else np.zeros((2, 1), int)
        table = 4 * (np.arange(self.width)[:, None] * x.line + down * x.row + across * x.lanes).ravel()
        if table.max(initial=0) > _FARTHEST:
            raise PlanError(f"live convolution: found planes of {x.size}, expected smaller ones")
        made: Array = table.astype(np.uint32)[self._column]
        return made


def _taps(geometry: Geometry) -> tuple[Array, Array]:
    """Row and column of each tap."""
    down, across = np.divmod(np.arange(geometry.taps), geometry.kernel[1])
    return down, across


def _transposed(
    shape: Pair, entries: tuple[Array, Array, Array, Array], geometry: Geometry, start: Pair, density: float, lanes: int
) -> _Order:
    """What connects one phase of the input with outputs.

    Input i·s + start lies under tap t of output i + (start + p − t·d)/s, where that is an integer.
    """
    away = [
        first + p - i * d
        for first, p, i, d in zip(start, geometry.padding, _taps(geometry), geometry.dilation, strict=True)
    ]
    stride = geometry.stride
    mine = (away[0] % stride[0] == 0) & (away[1] % stride[1] == 0)
    number = np.cumsum(mine) - 1
    offsets = np.stack([a[mine] // s for a, s in zip(away, stride, strict=True)])
    row, channel, tap, place = (e[mine[entries[2]]] for e in entries)
    width = _panel(shape[1], offsets, 1, density, lanes)
    return _Order(shape, (row, channel, number[tap], place), offsets, width)


def _panel(channels: int, offsets: Array, stride: int, density: float, lanes: int) -> int:
    """Channels per panel: activations should stay in the first-level cache, and segments should not get short."""
    taps = max(1, offsets.shape[1])
    lines = len(np.unique(offsets[0])) or 1
    columns = (WIDEST - 1) * stride + (int(np.ptp(offsets[1])) if offsets.size else 0) + 1
    width: float = _CACHE / (4 * lanes * lines * columns)
    width = max(width, min(2.3 * width, 16 / max(density * taps, 1e-9)))
    width = max(1.0, width, min(10 * width, 8 / max(density * taps, 1e-9)))
    panels: int = max(1, round(channels / width))
    return max(1, -(-channels // panels))


def _step(rows: int) -> int:
    """Rows per chunk: there should be some chunks to share, and not much of a panel's reading for few non-zeros."""
    return max(32, min(256, -(-rows // 8)))
