"""``torch.nn.Conv1d`` and ``Conv2d`` with zeros in their weights, for inference."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_code import AHEAD, widths
from gossamer.runtime.conv_edge import ConvField
from gossamer.runtime.conv_plan import Geometry, Plan, plan
from gossamer.runtime.conv_tiles import PlaneTiles, block_length, clear_end
from gossamer.runtime.cpu import Level, host, unavailable, wanted_level
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way, height
from gossamer.runtime.kernel_cache import ConvolutionKernels, cache_directory, load_convolution_kernels
from gossamer.runtime.layout import Pool
from gossamer.runtime.packing import pack_pairs, pack_patterns, pack_sliced
from gossamer.runtime.slabs import Slabs, empty
from gossamer.runtime.spmm import check_sparse, workspace
from gossamer.runtime.threads import OpenMP, openmp

__all__ = ["ConvolutionProduct", "SparseConv", "geometry_of", "product_of", "refusal"]

Array = npt.NDArray[Any]

_WORTH_A_TEAM = 120_000
"""Multiply-adds of vectors, about 40 µs of one thread, from which on starting a team of threads saves time."""

_PANEL_BYTES = 40960
"""What a tile reads of a panel should stay in the first-level cache."""

_STEPS = 12
"""Non-zeros that a row should have in a panel: shorter loops end too often."""

_CLIPS = (Activation.NONE, Activation.RELU, Activation.RELU6)
"""What is applied in registers."""

_CLOSE = 64
"""Vectors from channel to channel up to which sums of several panels are kept where the outputs belong."""

_KEPT = 8
"""Image sizes whose tables are kept."""


@final
class _Prepared:
    """A description for one image size, and the arrays that it points to."""

    __slots__ = ("address", "arrays", "plan", "scratch")

    def __init__(self, made: Plan, description: Array, arrays: tuple[Array, ...], scratch: int) -> None:
        self.plan = made
        self.address: int = description.ctypes.data
        self.arrays = (description, *arrays)
        self.scratch = scratch


@final
class ConvolutionProduct(CompiledProduct):
    """Y = f(W ⊛ X + b + R) for a weight W [M, C, rows, columns] with zeros, over images of any size.

    Immutable but for a few tables that are kept per image size: one object may be used by many threads and modules.

    Args:
        weight: float32 [M, C, rows, columns].
        bias: float32 [M] or None.
        geometry: strides, padding, dilation.
        activation: f, applied after the residual is added.
        kernels: compiled code.
        openmp: where threads come from.
        way: how a group's non-zeros are ordered.
        size: rows and columns of typical images; panels are chosen for it.
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
        openmp: OpenMP,
        way: Way,
        size: tuple[int, int],
        team_from: int = _WORTH_A_TEAM,
    ) -> None:
        if weight.ndim != 4 or weight.shape[2:] != geometry.kernel or 0 in weight.shape:
            expected = f"[M, C, {geometry.kernel[0]}, {geometry.kernel[1]}], nothing empty"
            raise PlanError(f"convolution: found a weight {weight.shape}, expected {expected}")
        self.rows, self.channels = weight.shape[:2]
        self.geometry, self.activation, self.kernels, self.way = geometry, activation, kernels, way
        self.memory: Slabs | None = None
        self._openmp, self._team_from, self._lanes = openmp, team_from, kernels.processor.lanes
        self._widths = widths(way, self._lanes)
        columns = self.channels * geometry.taps
        flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
        positions = np.flatnonzero(flat)
        values = flat[positions]
        check_sparse(self.rows, columns, positions, values, bias)
        self.nonzeros = len(values)
        self.panel = _panel(self.channels, geometry, size, self.nonzeros / flat.size, self._widths, self._lanes)
        chunks = max(1, min(16, self.rows // 64))
        bounds = np.minimum((np.arange(chunks + 1) * self.rows // chunks + 3) // 4 * 4, self.rows).astype(np.int64)
        bounds[-1] = self.rows
        pack = {Way.SLICED: pack_sliced, Way.PATTERNS: pack_patterns, Way.PAIRS: pack_pairs}[way]
        width = self.panel * geometry.taps
        row, column = np.divmod(positions, columns)
        made = pack(row, column, values, self.rows, columns, width, bounds, height(way, self._lanes))
        self._columns = np.ascontiguousarray(made.index, np.uint16)
        self._weights = (
            np.ascontiguousarray(made.starts, np.int64),
            np.ascontiguousarray(made.counts, np.uint16),
            _with_more(made.order),
            np.ascontiguousarray(made.values, np.float32),
            np.zeros(self.rows, np.float32) if bias is None else np.array(bias, np.float32),
            bounds,
        )
        self._prepared: dict[tuple[int, int, int, int], _Prepared] = {}

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

    def tiled(self, x: PlaneTiles, residual: PlaneTiles | None = None) -> PlaneTiles:
        """The same for planes cut into blocks.

        Args:
            x: of C channels. Not checked.
            residual: of the result's shape.

        Raises:
            PlanError: a row of the image is too long.
        """
        size = self.geometry.outputs(x.size)
        added = None if residual is None else residual.data
        if self.geometry.pointwise:
            blocks, _, tile = x.data.shape
            y = empty(self.memory, blocks, self.rows, tile)
            self._run(x.data, y, added, (1, tile), blocks, tile, tile)
        else:
            positions = x.images * size[0] * size[1]
            tile = block_length(positions, size[1], self._lanes)
            y = empty(self.memory, -(-positions // tile), self.rows, tile)
            self._run(x.data, y, added, x.size, x.images, x.data.shape[2], tile)
            clear_end(y, positions)
        return PlaneTiles(y, x.images, size, x.batched)

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
        ready = self._prepared.get(key)
        if ready is None:
            ready = self._prepare(size, x_tile, y_tile)
            while len(self._prepared) >= _KEPT:
                self._prepared.pop(next(iter(self._prepared)), None)
            self._prepared[key] = ready
        if not ready.plan.copies.size and x.data_ptr() % (4 * self._lanes):
            x = x.clone()
        if residual is not None and residual.data_ptr() % (4 * self._lanes):
            residual = residual.clone()
        vectors = images * ready.plan.bands * ready.plan.vectors
        threads = 1 if self.nonzeros * vectors < self._team_from else self._openmp.threads()
        self.kernels.convolve(
            ready.address,
            x.data_ptr(),
            y.data_ptr(),
            0 if residual is None else residual.data_ptr(),
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
        made = plan(self.geometry, size, self.channels, panel, self.nonzeros, lanes, known, x_tile, run=run)
        starts, counts, order, values, bias, bounds = self._weights
        index = made.distances.astype(np.uint16)[self._columns]
        tables = (starts, counts, order, index, values, bias, bounds, made.copies, made.segments, made.segment_starts)
        copies, panels = len(made.copies), -(-self.channels // panel)
        # Tiles that overlap, and are added to panel by panel, would disturb each other; so would channels far apart.
        undisturbed = panels == 1 or (made.vectors % made.width == 0 and y_tile <= _CLOSE * lanes)
        in_place = not copies and undisturbed and self.activation in _CLIPS
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
            ConvField.STEP: max(1, 384 // chunk),
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
            ConvField.X_BLOCK: x_tile * self.channels,
            ConvField.X_PLANE: size[0] * size[1],
            ConvField.Y_TILE: y_tile,
            ConvField.Y_BLOCK: y_tile * self.rows,
            ConvField.Y_PLANE: pixels,
            ConvField.SCRATCH: scratch,
            ConvField.PLACES: sums,
            ConvField.SUMS: sums + places,
            ConvField.IN_PLACE: int(in_place),
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
        description = np.zeros(len(ConvField) + len(Pool), np.int64)
        for slot, address in zip(Pool, self._openmp.addresses or (0, 0, 0, 0), strict=True):
            description[slot] = address
        for field, number in numbers.items():
            description[field] = number
        for field, table in zip(addressed, tables, strict=True):
            description[field] = table.ctypes.data
        return _Prepared(made, description, tables, scratch + 16)

    def within(self, activation: Activation, memory: Slabs) -> ConvolutionProduct:
        """The same weight, shared, with another f and outputs in the memory of a network."""
        made = object.__new__(ConvolutionProduct)
        made.__dict__.update(self.__dict__)
        made.activation = activation
        made.memory = memory
        made._prepared = {}
        return made

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the weight: values, indices, counts and order; without the bias."""
        indices = self._columns.nbytes * max(1, len(self._prepared))
        return indices + sum(array.nbytes for array in self._weights[:4])


def _with_more(order: Array) -> Array:
    """With zeros behind, for the kernel looks ahead."""
    return np.concatenate([np.ascontiguousarray(order, np.uint32).ravel(), np.zeros(4 * AHEAD, np.uint32)])


def _panel(
    channels: int, geometry: Geometry, size: tuple[int, int], density: float, known: tuple[int, ...], lanes: int
) -> int:
    """Channels per panel: what a tile reads should stay in the first-level cache, and loops should not get short."""
    high, wide = geometry.outputs(size)
    vectors = min(known[-1], max(1, high * wide // lanes))
    cached = _PANEL_BYTES / (4 * lanes * vectors * geometry.taps)
    long_enough = _STEPS / max(density * geometry.taps, 1e-9)
    panels = max(1, round(channels / max(1.0, min(max(cached, long_enough), 4 * cached))))
    largest = max(1, 65535 // geometry.taps)
    return max(1, min(-(-channels // panels), largest))


def geometry_of(layer: nn.Conv1d | nn.Conv2d) -> Geometry | str:
    """A layer's geometry with two dimensions, or why there is no kernel for it."""
    if layer.groups != 1:
        return f"{layer.groups} groups: sparse kernels take one"
    if layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode!r}: sparse kernels pad with zeros"
    spatial = len(layer.kernel_size)

    def two(given: tuple[int, ...], missing: int) -> tuple[int, int]:
        return (missing, given[0]) if spatial == 1 else (given[0], given[1])

    kernel, dilation = layer.kernel_size, layer.dilation
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if layer.padding == "same":
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
    elif layer.padding == "valid":
        before = after = (0,) * spatial
    else:
        before = after = cast("tuple[int, ...]", layer.padding)
    return Geometry(two(kernel, 1), two(layer.stride, 1), two(before, 0), two(after, 0), two(dilation, 1))


def refusal(layer: nn.Conv1d | nn.Conv2d, size: tuple[int, ...], density: float) -> str:
    """Why there is no kernel for a layer and inputs of a size; empty if there is one."""
    geometry = geometry_of(layer)
    if isinstance(geometry, str):
        return geometry
    high, wide = (1, size[0]) if len(size) == 1 else (size[0], size[1])
    if min(geometry.outputs((high, wide))) < 1:
        return "no outputs"
    lanes, channels = host(wanted_level()).lanes, layer.in_channels
    try:
        for way in Way:
            known = widths(way, lanes)
            panel = _panel(channels, geometry, (high, wide), density, known, lanes)
            plan(geometry, (high, wide), channels, panel, 1, lanes, known, high * wide)
    except PlanError as error:
        return str(error)
    return ""


@cache
def _kernels(level: Level) -> ConvolutionKernels:
    return load_convolution_kernels(host(level), cache_directory())


def product_of(
    layer: nn.Conv1d | nn.Conv2d,
    way: Way,
    size: tuple[int, ...],
    *,
    activation: Activation = Activation.NONE,
    level: Level | None = None,
) -> ConvolutionProduct:
    """A layer's weight packed for images like those of a size.

    Raises:
        PlanError: there is no kernel for it, or kernels cannot be compiled here.
    """
    if reason := unavailable():
        raise PlanError(f"sparse kernels: {reason}, expected a processor that LLVM can compile for at run time")
    geometry = geometry_of(layer)
    if isinstance(geometry, str):
        raise PlanError(f"sparse convolution: found {geometry}")
    weight = layer.weight.detach().cpu().float()
    return ConvolutionProduct(
        weight.reshape(*weight.shape[:2], *geometry.kernel).numpy(),
        None if layer.bias is None else layer.bias.detach().cpu().float().numpy(),
        geometry,
        activation=activation,
        kernels=_kernels(wanted_level() if level is None else level),
        openmp=openmp(),
        way=way,
        size=(1, size[0]) if len(size) == 1 else (size[0], size[1]),
    )


@final
class SparseConv(nn.Module):
    """A drop-in replacement of a convolution with zeros in its weight; fp32 on the CPU, without gradients.

    It has no parameters: the packed weight never changes, and copies of the module share it.

    Args:
        layer: one group, padded with zeros; its weight is copied.
        way: how a group's non-zeros are ordered.
        size: rows and columns, or the length, of typical inputs.
        activation: applied to the outputs.
        level: instruction set; None for what GOSSAMER_ISA asks for, else the processor's own.

    Raises:
        PlanError: there is no kernel for the layer, or kernels cannot be compiled here.

    Cost: 6 bytes per non-zero; n multiply-adds per output place.
    Exact: up to the order of float32 additions; 1e-6 of the largest output is typical.

    Example:
        >>> layer = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[[1.0, 0.0, 10.0]]]))
        >>> SparseConv(layer, Way.SLICED, (4,))(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        tensor([[[20., 31., 42.,  3.]]])
    """

    def __init__(
        self,
        layer: nn.Conv1d | nn.Conv2d,
        way: Way,
        size: tuple[int, ...],
        *,
        activation: Activation = Activation.NONE,
        level: Level | None = None,
    ) -> None:
        super().__init__()
        self.product = product_of(layer, way, size, activation=activation, level=level)
        self.dimensions = len(layer.kernel_size)

    def within(self, activation: Activation, memory: Slabs) -> SparseConv:
        """The same weight, shared, with another activation and outputs in the memory of a network."""
        made = copy.copy(self)
        made.product = self.product.within(activation, memory)
        return made

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """float32 [N, C, …] or [C, …] → [N, M, …] or [M, …].

        Args:
            x: any strides.
            residual: added before the activation; of the result's shape.

        Raises:
            RuntimeError: x has another dtype, device or shape, or a gradient is asked for.
        """
        product, n = self.product, self.dimensions
        fits = (
            x.dtype is torch.float32 and x.is_cpu and x.ndim in (n + 1, n + 2) and x.shape[-n - 1] == product.channels
        )
        if not fits or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(self._refusal(x))
        size = (1, x.shape[-1]) if n == 1 else (x.shape[-2], x.shape[-1])
        if min(product.geometry.outputs(size)) < 1 or 0 in size:
            raise RuntimeError(f"SparseConv: found input {tuple(x.shape)}, smaller than the kernel")
        outer = x.shape[: x.ndim - n - 1]
        if residual is not None:
            rows, columns = product.geometry.outputs(size)
            places = (columns,) if n == 1 else (rows, columns)
            if residual.shape != (*outer, product.rows, *places) or residual.dtype is not torch.float32:
                found = f"found residual {tuple(residual.shape)} {residual.dtype}"
                raise RuntimeError(f"SparseConv: {found}, expected {(*outer, product.rows, *places)} torch.float32")
            residual = residual.contiguous()
        y = product(x.contiguous().view(-1, product.channels, *size), residual)
        return y.view(*outer, product.rows, *(y.shape[3:] if n == 1 else y.shape[2:]))

    def _refusal(self, x: Tensor) -> str:
        if x.requires_grad and torch.is_grad_enabled():
            return "SparseConv: found an input that requires a gradient, expected inference; train with .trainable()"
        places = ", length" if self.dimensions == 1 else ", rows, columns"
        found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
        return f"SparseConv: {found}, expected [N, {self.product.channels}{places}] torch.float32 on cpu"

    @property
    def resident_bytes(self) -> int:
        """Bytes held for the packed weight, without the bias."""
        return self.product.resident_bytes

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        p = self.product
        zeros = 1 - p.nonzeros / (p.rows * p.channels * p.geometry.taps)
        return f"{p.channels}, {p.rows}, {p.geometry}, sparsity={zeros:.3f}, {p.way.name.lower()}"
