"""Sparse convolutions of planes, with the weight packed for compiled code."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.jit.cpu import first_level_cache
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_code import AHEAD, widths
from gossamer.runtime.conv_edge import ConvField
from gossamer.runtime.conv_plan import Geometry, Plan, plan
from gossamer.runtime.conv_tiles import PlaneTiles, block_length, clear_end
from gossamer.runtime.description import described
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way, height
from gossamer.runtime.kernels import ConvolutionKernels, PackKernels
from gossamer.runtime.packing import Packed, count_nonzeros, pack
from gossamer.runtime.places import Places
from gossamer.runtime.recent import Recent
from gossamer.runtime.slabs import Slabs, empty
from gossamer.runtime.spmm import workspace
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP

__all__ = ["ConvolutionProduct", "GroupedProduct", "PlaneProduct", "panel_width"]

Array = npt.NDArray[Any]

_PANEL_BYTES = 40960
"""What a tile reads of a panel should stay in the first-level cache; of processors with vectors of 16 floats."""

_CHUNK = 128
"""Rows that are sorted together where vectors have 8 floats: long runs of equal lengths, whose ends are foreseen."""

_BLOCK = 1024
"""Rows whose sums stay in the second-level cache from panel to panel there."""

_CLIPS = (Activation.NONE, Activation.RELU, Activation.RELU6)
"""What is applied in registers."""

_CLOSE = 64
"""Vectors from channel to channel up to which sums of several panels are kept where the outputs belong."""

_KEPT = 8
"""Image sizes whose tables are kept."""


@final
class _Prepared:
    """A description for one image size, and the arrays that it points to."""

    __slots__ = ("address", "arrays", "once", "plan", "scratch")

    def __init__(self, made: Plan, description: Array, arrays: tuple[Array, ...], scratch: int, once: bool) -> None:
        self.plan = made
        self.once = once  # whether every output is begun once, in its place: then it may begin with what is added
        self.address: int = description.ctypes.data
        self.arrays = (description, *arrays)
        self.scratch = scratch


class PlaneProduct(CompiledProduct):
    """What products of planes and of blocks of planes have in common: outputs are made here and filled by `_run`.

    Args:
        rows: channels of the output.
        channels: of the input.
        geometry: strides, padding, dilation.
        activation: f, applied after the residual is added.
        kernels: compiled code.
        way: how a group's non-zeros are ordered.
    """

    def __init__(
        self,
        rows: int,
        channels: int,
        geometry: Geometry,
        activation: Activation,
        kernels: ConvolutionKernels,
        way: Way,
    ) -> None:
        self.rows, self.channels = rows, channels
        self.geometry, self.activation, self.kernels, self.way = geometry, activation, kernels, way
        self.memory: Slabs | None = None
        self._lanes = kernels.processor.lanes

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """f(W ⊛ x + b + R).

        Args:
            x: float32 [N, C, rows, columns], contiguous. Not checked.
            residual: float32, of the result's shape, contiguous, or None.

        Returns:
            float32 [N, M, rows', columns'].

        Raises:
            PlanError: a row of the image is too long.
        """
        images, _, high, wide = x.shape
        rows, columns = self.geometry.outputs((high, wide))
        y = empty(self.memory, images, self.rows, rows, columns)
        self._run(x, y, residual, (high, wide), images, high * wide, rows * columns)
        return y

    def tiled(self, x: PlaneTiles, residual: PlaneTiles | None = None, *, into: bool = False) -> PlaneTiles:
        """The same for planes cut into blocks.

        Args:
            x: of C channels; if the layer is not pointwise, a block may be a plane. Not checked.
            residual: of the result's shape.
            into: whether the result takes the residual's memory: it is not needed any more.

        Raises:
            PlanError: a row of the image is too long.
        """
        added = None if residual is None else residual.data
        size = self.geometry.outputs(x.size)
        if self.geometry.pointwise:
            blocks, _, tile = x.data.shape
            y = added if into and added is not None else empty(self.memory, blocks, self.rows, tile)
            rest = -(-(x.images * x.size[0] * x.size[1] - (blocks - 1) * tile) // self._lanes) * self._lanes
            whole = blocks if rest == tile else blocks - 1
            self._run(x.data, y, added, (1, tile), whole, tile, tile)
            if whole < blocks:  # vectors behind the last image are left out
                last = None if added is None else added[whole:]
                self._run(x.data[whole:], y[whole:], last, (1, rest), 1, tile, tile)
        else:
            positions = x.images * size[0] * size[1]
            tile = block_length(positions, size[1], self._lanes)
            y = empty(self.memory, -(-positions // tile), self.rows, tile)
            self._run(x.data, y, added, x.size, x.images, x.data.shape[2], tile)
            clear_end(y, positions)
        return PlaneTiles(y, x.images, size, x.batched)

    def within(self, activation: Activation, memory: Slabs) -> Self:
        """The same weight, shared, with another f and outputs in the memory of a network."""
        raise NotImplementedError

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        residual: Tensor | None,
        size: tuple[int, int],
        images: int,
        x_tile: int,
        y_tile: int,
    ) -> None:
        """Writes f(W ⊛ X + b + R) into y; blocks have ``x_tile`` and ``y_tile`` positions."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drops tables of image sizes that were met; they are made anew when needed."""
        raise NotImplementedError

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        raise NotImplementedError

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        raise NotImplementedError

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, indices, counts and order; without the bias."""
        raise NotImplementedError


@final
class ConvolutionProduct(PlaneProduct):
    """Y = f(W ⊛ X + b + R) for a weight W [M, C, rows, columns] with zeros, over images of any size.

    Immutable but for a few tables that are kept per image size: one object may be used by many threads and modules.

    Args:
        weight: float32 [M, C, rows, columns].
        bias: float32 [M] or None.
        geometry: strides, padding, dilation.
        activation: f, applied after the residual is added.
        kernels: compiled code.
        packers: compiled code.
        openmp: where threads come from.
        way: how a group's non-zeros are ordered.
        size: rows and columns of typical images; panels are chosen for it.
        panel: channels per panel; None to choose.
        team_from: multiply-adds of vectors from which on a product runs on several threads.

    Raises:
        PlanError: sizes do not fit.

    Cost: 6 bytes per non-zero and image size in use; less where patterns share indices.
    Exact: each output is one sum in float32 in an order that depends on W and ``size`` alone, not on the number of
        threads.
    """

    def __init__(
        self,
        weight: Array,
        bias: Array | None,
        geometry: Geometry,
        *,
        activation: Activation,
        kernels: ConvolutionKernels,
        packers: PackKernels,
        openmp: OpenMP,
        way: Way,
        size: tuple[int, int],
        panel: int | None = None,
        team_from: int = WORTH_A_TEAM,
    ) -> None:
        if weight.ndim != 4 or weight.shape[2:] != geometry.kernel or 0 in weight.shape:
            expected = f"[M, C, {geometry.kernel[0]}, {geometry.kernel[1]}], nothing empty"
            raise PlanError(f"convolution: found a weight {weight.shape}, expected {expected}")
        rows, channels = weight.shape[:2]
        super().__init__(rows, channels, geometry, activation, kernels, way)
        self._openmp, self._team_from = openmp, team_from
        self._first_channel, self._first_row = 0, 0
        self._all_channels, self._all_rows = self.channels, self.rows
        self._widths = widths(way, self._lanes)
        columns = self.channels * geometry.taps
        if bias is not None and bias.shape != (self.rows,):
            raise PlanError(f"bias: found shape {bias.shape}, expected {(self.rows,)}")
        flat = np.ascontiguousarray(weight, np.float32).reshape(self.rows, columns)
        self._nonzeros = count_nonzeros(flat)
        best = panel_width(self.channels, geometry, size, self.density, self._widths, self._lanes)
        self.panel = best if panel is None else panel
        chunks = max(1, min(16, self.rows // (64 if self._lanes > 8 else _CHUNK)))
        bounds = np.minimum((np.arange(chunks + 1) * self.rows // chunks + 3) // 4 * 4, self.rows).astype(np.int64)
        bounds[-1] = self.rows
        width, tall = self.panel * geometry.taps, height(way, self._lanes)
        made = pack(packers, way, flat, width=width, bounds=bounds, tall=tall, narrow=False)
        self.places = Places(made.index)
        self._weights = (
            made.starts,
            made.counts,
            _with_more(made.order),
            made.values,
            np.zeros(self.rows, np.float32) if bias is None else np.array(bias, np.float32),
            bounds,
        )
        self._prepared = Recent[tuple[int, int, int, int], _Prepared](_KEPT)

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        residual: Tensor | None,
        size: tuple[int, int],
        images: int,
        x_tile: int,
        y_tile: int,
    ) -> None:
        """Writes f(W ⊛ X + b + R) into y; blocks have ``x_tile`` and ``y_tile`` positions."""
        if not images:
            return
        key = (*size, x_tile, y_tile)
        ready = self._prepared.get(key, lambda: self._prepare(size, x_tile, y_tile))
        if not ready.plan.copies.size and x.data_ptr() % (4 * self._lanes):
            x = x.clone()
        if residual is not None and (
            residual.data_ptr() % (4 * self._lanes) or (residual.data_ptr() == y.data_ptr() and not ready.once)
        ):
            residual = residual.clone()
        vectors = images * ready.plan.bands * ready.plan.vectors
        threads = 1 if self._nonzeros * vectors < self._team_from else self._openmp.threads()
        self.kernels.convolve(
            ready.address,
            x.data_ptr() + 4 * self._first_channel * x_tile,
            y.data_ptr() + 4 * self._first_row * y_tile,
            0 if residual is None else residual.data_ptr() + 4 * self._first_row * y_tile,
            images,
            workspace().address(ready.scratch * threads),
            threads,
        )

    def _prepare(self, size: tuple[int, int], x_tile: int, y_tile: int) -> _Prepared:
        lanes = self._lanes
        rows, columns = self.geometry.outputs(size)
        pixels = rows * columns
        run = 0 if y_tile == pixels else y_tile if pixels % y_tile == 0 else columns
        panel, known = self.panel, self._widths
        made = plan(self.geometry, size, self.channels, panel, self._nonzeros, lanes, known, x_tile, run=run)
        starts, counts, order, values, bias, bounds = self._weights
        index = self.places.at(made.distances)
        tables: tuple[Array, ...] = (
            starts,
            counts,
            order,
            index,
            values,
            bias,
            bounds,
            made.copies,
            made.segments,
            made.segment_starts,
        )
        copies, panels = len(made.copies), -(-self.channels // panel)
        # Tiles that overlap, and are added to panel by panel, would disturb each other; so would channels far apart.
        undisturbed = panels == 1 or (made.vectors % made.width == 0 and y_tile <= _CLOSE * lanes)
        in_place = not copies and undisturbed and self.activation in _CLIPS
        # With longer vectors second-level caches are larger, and it was not measured.
        whole = lanes <= 8 and in_place and made.tiles == 1 and made.width * lanes == x_tile == y_tile
        groups = -(-self.rows // height(self.way, lanes))
        sums = 0 if in_place else -(-self.rows * made.width * lanes // 16) * 16
        words = max(int(np.diff(made.segment_starts).max(initial=0)), copies * (made.lines + 2))
        places = -(-2 * words // 16) * 16
        held = self.channels * copies * made.copy_size + made.line + 2 * lanes if copies else 0
        scratch = -(-(sums + places + held) // 1024) * 1024 + 272  # members do not meet in the same sets of a cache
        chunk = max(1, self.rows // (len(bounds) - 1))
        numbers: dict[ConvField, int] = {
            ConvField.ROWS: self.rows,
            ConvField.CHANNELS: self.channels,
            ConvField.PANELS: panels,
            ConvField.PANEL_STRIDE: panel * (copies * made.copy_size if copies else x_tile),
            ConvField.CHUNKS: len(bounds) - 1,
            ConvField.STEP: max(1, (384 if lanes > 8 else _BLOCK) // chunk),
            ConvField.ACTIVATION: int(self.activation),
            ConvField.WAY: int(self.way),
            ConvField.WIDTH: made.width,
            ConvField.TILES: made.tiles,
            ConvField.VECTORS: made.vectors,
            ConvField.BANDS: made.bands,
            ConvField.BAND_STEP: made.band_step,
            ConvField.COPIES: copies,
            ConvField.COPY_SIZE: made.copy_size,
            ConvField.LINE: made.line,
            ConvField.LINES: made.lines,
            ConvField.HEIGHT: made.size[0],
            ConvField.BREADTH: made.size[1],
            ConvField.ROW_STRIDE: self.geometry.stride[0],
            ConvField.COLUMN_STRIDE: self.geometry.stride[1],
            ConvField.X_TILE: x_tile,
            ConvField.X_BLOCK: x_tile * self._all_channels,
            ConvField.X_PLANE: size[0] * size[1],
            ConvField.Y_TILE: y_tile,
            ConvField.Y_BLOCK: y_tile * self._all_rows,
            ConvField.Y_PLANE: pixels,
            ConvField.SCRATCH: scratch,
            ConvField.PLACES: sums,
            ConvField.SUMS: sums + places,
            ConvField.IN_PLACE: int(in_place),
            ConvField.NEXT: int(whole),
            ConvField.UNIT: made.unit,
            ConvField.FETCHED: -(-min(panel, self.channels) * x_tile // groups // 16) * 16 if whole else 0,
        }
        addressed = (
            ConvField.STARTS,
            ConvField.COUNTS,
            ConvField.ORDER,
            ConvField.INDEX,
            ConvField.VALUES,
            ConvField.BIAS,
            ConvField.BOUNDS,
            ConvField.COPY,
            ConvField.SEGMENTS,
            ConvField.SEGMENT_STARTS,
        )
        numbers |= {field: table.ctypes.data for field, table in zip(addressed, tables, strict=True)}
        description = described(ConvField, numbers, self._openmp)
        return _Prepared(made, description, tables, scratch + 16, in_place and not made.vectors % made.width)

    @property
    def packed(self) -> Packed:
        """The weight as kernels read it; indices count from the start of the panel, tap by tap."""
        starts, counts, order, values, _, _ = self._weights
        return Packed(starts, counts, order, self.places.columns(), values)

    @property
    def bias(self) -> Array:
        """float32 [M]."""
        return self._weights[4]

    @property
    def chunks(self) -> int:
        """Into how many runs of rows each panel is cut."""
        return len(self._weights[5]) - 1

    @property
    def first_channel(self) -> int:
        """Of the input that it reads."""
        return self._first_channel

    @property
    def first_row(self) -> int:
        """Of the output that it writes."""
        return self._first_row

    def within(self, activation: Activation, memory: Slabs) -> Self:
        """The same weight, shared, with another f and outputs in the memory of a network."""
        made = self._copied()
        made.activation = activation
        made.memory = memory
        return made

    def placed(self, first_channel: int, first_row: int, channels: int, rows: int) -> Self:
        """The same weight, shared, for some of the channels of an input and some rows of an output.

        Args:
            first_channel: of the input that it reads.
            first_row: of the output that it writes.
            channels: of the whole input.
            rows: of the whole output.
        """
        made = self._copied()
        made._first_channel, made._first_row = first_channel, first_row
        made._all_channels, made._all_rows = channels, rows
        return made

    def forget(self) -> None:
        """Drops tables of image sizes that were met; they are made anew when needed."""
        self._prepared.clear()
        self.places.release()

    def _copied(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._prepared = Recent(_KEPT)
        return made

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return self._nonzeros

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self._nonzeros / (self.rows * self.channels * self.geometry.taps)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, indices, counts and order; without the bias."""
        return self.places.nbytes + sum(array.nbytes for array in self._weights[:4])


@final
class GroupedProduct(PlaneProduct):
    """The same for a convolution of several groups, one product after the other.

    Args:
        parts: of equal shapes and geometry, one for every group; two or more.
    """

    def __init__(self, parts: tuple[ConvolutionProduct, ...]) -> None:
        first, count = parts[0], len(parts)
        rows, channels = count * first.rows, count * first.channels
        super().__init__(rows, channels, first.geometry, first.activation, first.kernels, first.way)
        self.parts = tuple(p.placed(i * p.channels, i * p.rows, channels, rows) for i, p in enumerate(parts))

    def within(self, activation: Activation, memory: Slabs) -> Self:
        """The same weights, shared, with another f and outputs in the memory of a network."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.activation, made.memory = activation, memory
        made.parts = tuple(part.within(activation, memory) for part in self.parts)
        return made

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        residual: Tensor | None,
        size: tuple[int, int],
        images: int,
        x_tile: int,
        y_tile: int,
    ) -> None:
        for part in self.parts:
            part._run(x, y, residual, size, images, x_tile, y_tile)

    def forget(self) -> None:
        """Drops tables of image sizes that were met; they are made anew when needed."""
        for part in self.parts:
            part.forget()

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return sum(part.nonzeros for part in self.parts)

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return sum(part.density for part in self.parts) / len(self.parts)

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weights."""
        return sum(part.resident_bytes for part in self.parts)


def _with_more(order: Array) -> Array:
    """With zeros behind, for the kernel looks ahead."""
    return np.concatenate([np.ascontiguousarray(order, np.uint32).ravel(), np.zeros(4 * AHEAD, np.uint32)])


def panel_width(
    channels: int, geometry: Geometry, size: tuple[int, int], density: float, known: tuple[int, ...], lanes: int
) -> int:
    """Channels per panel: what a tile reads should stay in the first-level cache, and loops should not get short.

    Rows should have 12 non-zeros in a panel, with several taps 20 for channels are whole: measured on ResNet-50.
    """
    high, wide = geometry.outputs(size)
    vectors = min(known[-1], -(-high * wide // lanes))
    cached = _panel_bytes(geometry, lanes) / (4 * _reach(geometry, (high, wide), lanes * vectors, lanes))
    long_enough = (12 if geometry.taps == 1 else 20) / max(density * geometry.taps, 1e-9)
    panels = max(1, round(channels / max(1.0, min(max(cached, long_enough), 4 * cached))))
    largest = max(1, 65535 // geometry.taps)
    return max(1, min(-(-channels // panels), largest))


def _reach(geometry: Geometry, outputs: tuple[int, int], tile: int, lanes: int) -> int:
    """Floats of a channel that a tile reads."""
    if lanes > 8:
        return tile * geometry.taps  # of a copy each
    down, right = (
        [divmod(geometry.dilation[d] * t, geometry.stride[d]) for t in range(geometry.kernel[d])] for d in range(2)
    )
    line, total = outputs[1] + right[-1][0], 0
    for row in {phase for _, phase in down}:
        below = {far for far, phase in down if phase == row}
        for column in {phase for _, phase in right}:
            beside = max(far for far, phase in right if phase == column)
            total += min(len(below) * (tile + beside), tile + max(below) * line + beside)
    return total


def _panel_bytes(geometry: Geometry, lanes: int) -> int:
    """What a tile reads of a panel at most; weights and outputs need room beside it."""
    if lanes > 8:
        return _PANEL_BYTES
    return first_level_cache() * (6 if geometry.taps == 1 else 5) // 8
