"""Sparse convolutions over blocks of images, with the weight as `gossamer.runtime.conv_product` packs it."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.errors import PlanError
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_plan import Geometry
from gossamer.runtime.conv_product import ConvolutionProduct, GroupedProduct, PlaneProduct
from gossamer.runtime.description import described
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.image_blocks import ImageBlocks
from gossamer.runtime.image_code import STRIDES, WIDEST, ImageField
from gossamer.runtime.kernels import ImageKernels
from gossamer.runtime.recent import Recent
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.spmm import workspace
from gossamer.runtime.stepped_product import SteppedProduct
from gossamer.runtime.threads import WORTH_A_TEAM, OpenMP

__all__ = ["ImageProduct", "frame_of", "image_panel", "tile_width"]

Array = npt.NDArray[Any]

_PANEL_BYTES = 28672
"""What a tile reads of a panel should stay in the first-level cache, with room for weights and sums."""

_LARGEST_DISTANCE = 65535

STREAMED_FROM = 10 << 20
"""Bytes of outputs from which on these go past the caches: read first, lines would cost as much again."""

_CACHE_LINE = 64

_CLIPS = (Activation.NONE, Activation.RELU, Activation.RELU6)
"""What is applied in registers."""

_KEPT = 8
"""Shapes whose tables are kept."""


def frame_of(geometry: Geometry, size: tuple[int, int]) -> int:
    """Rows and columns of zeros that a convolution reads around planes of a size, at most.

    Example:
        >>> frame_of(Geometry((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), (56, 56))
        1
    """
    needed = 0
    for i, outputs in enumerate(geometry.outputs(size)):
        last = (outputs - 1) * geometry.stride[i] + (geometry.kernel[i] - 1) * geometry.dilation[i]
        needed = max(needed, geometry.padding[i], last - geometry.padding[i] - (size[i] - 1))
    return needed


def image_panel(rows: int, channels: int, geometry: Geometry, density: float, lanes: int) -> int:
    """Channels per panel: what a tile reads should stay in the first-level cache, and loops should not get short.

    Where far more rows are written than read, sums of several panels cost more than inputs from the second-level cache.

    Args:
        rows: channels of the output.
        channels: of the input.
        geometry: of the convolution.
        density: share of weights that are not zero.
        lanes: floats per vector.
    """
    reach = (WIDEST - 1) * geometry.stride[1] + (geometry.kernel[1] - 1) * geometry.dilation[1] + 1
    if geometry.kernel[1] == 1:
        reach = WIDEST
    cached = _PANEL_BYTES / (4 * lanes * reach * geometry.kernel[0])
    if geometry.taps == 1 and rows > channels:
        cached *= 2
    long_enough = 12 / max(density * geometry.taps, 1e-9)
    panels = max(1, round(channels / max(1.0, min(max(cached, long_enough), 4 * cached))))
    return max(1, min(-(-channels // panels), _LARGEST_DISTANCE // geometry.taps))


def tile_width(columns: int, *, even: bool = False) -> int:
    """Columns per tile for which an image row takes the least time.

    Args:
        columns: of the image row.
        even: whether an odd number is slow, for tiles would begin in the middle of a cache line.

    Example:
        >>> [tile_width(n) for n in (56, 7, 8, 3)], tile_width(56, even=True)
        ([7, 7, 4, 3], 6)
    """

    def cost(width: int) -> float:
        slow = 1.12 if even and width % 2 else 1.0
        return -(-columns // width) * (width + 1.0) * slow  # a column more for weights and indices

    return min(range(1, min(WIDEST, columns) + 1), key=lambda width: (cost(width), -width))


@final
class _Prepared:
    """A description for one shape, and the arrays that it points to."""

    __slots__ = ("address", "arrays", "scratch")

    def __init__(self, description: Array, arrays: tuple[Array, ...], scratch: int) -> None:
        self.address: int = description.ctypes.data
        self.arrays = (description, *arrays)
        self.scratch = scratch


@final
class ImageProduct(CompiledProduct):
    """Y = f(W ⊛ X + b + R) over blocks of images, for images of any size.

    Immutable but for a few tables that are kept per shape: one object may be used by many threads and modules.

    Args:
        planes: holds the packed weight, sliced; a group's product after the other.
        kernels: compiled code.
        openmp: where threads come from.
        memory: for outputs.
        team_from: multiply-adds of vectors from which on a product runs on several threads.

    Raises:
        PlanError: there is no kernel for such a product.

    Cost: beside the packed weight, 2 bytes per non-zero and shape in use.
    Exact: each output is one sum in float32 in an order that depends on W alone, not on the number of threads.
    """

    def __init__(
        self,
        planes: PlaneProduct,
        kernels: ImageKernels,
        openmp: OpenMP,
        memory: Slabs,
        *,
        team_from: int = WORTH_A_TEAM,
    ) -> None:
        if reason := _refusal(planes):
            raise PlanError(f"blocks of images: found {reason}")
        self.planes, self.kernels, self.memory = planes, kernels, memory
        self._openmp, self._team_from = openmp, team_from
        self._lanes = kernels.processor.lanes
        whole = planes.inner if isinstance(planes, SteppedProduct) else planes  # strides are taken by the kernel here
        found = whole.parts if isinstance(whole, GroupedProduct) else (whole,)
        self._parts = tuple(part for part in found if isinstance(part, ConvolutionProduct))
        self._prepared = Recent[tuple[int, ...], tuple[_Prepared, ...]](_KEPT)

    def __call__(self, x: ImageBlocks, residual: ImageBlocks | None, frame: int) -> ImageBlocks:
        """f(W ⊛ X + b + R), with a frame of zeros.

        Args:
            x: of C channels, with the frame that the layer needs. Not checked.
            residual: of the result's shape, with any frame.
            frame: of the result.

        Raises:
            PlanError: image rows are too long for distances of 16 bits.
        """
        size = self.planes.geometry.outputs(x.size)
        y = ImageBlocks.empty(self.memory, x.images, self.planes.rows, size, frame, self._lanes)
        if not x.images:
            return y
        key = (*x.size, x.frame, frame, -1 if residual is None else residual.frame)
        ready = self._prepared.get(key, lambda: tuple(self._prepare(part, x, y, residual) for part in self._parts))
        scratch = max(one.scratch for one in ready)
        work = self.planes.nonzeros * x.blocks * size[0] * size[1]
        threads = 1 if work < self._team_from else self._openmp.threads()
        added = 0 if residual is None else residual.data.data_ptr()
        space = workspace().address(scratch * threads)
        for one in ready:
            self.kernels.convolve(one.address, x.data.data_ptr(), y.data.data_ptr(), added, x.blocks, space, threads)
        return y

    def _prepare(
        self, part: ConvolutionProduct, x: ImageBlocks, y: ImageBlocks, residual: ImageBlocks | None
    ) -> _Prepared:
        geometry, lanes = self.planes.geometry, self._lanes
        down, across = geometry.dilation
        packed, panel = part.packed, part.panel
        channel = np.arange(min(panel, part.channels))[:, None, None] * x.line
        tap_row = np.arange(geometry.kernel[0])[:, None] * (down * x.row)
        distances = (channel + tap_row + np.arange(geometry.kernel[1]) * (across * lanes)).ravel() // lanes
        if distances.max() > _LARGEST_DISTANCE:
            raise PlanError(f"blocks of images: found rows of {x.size[1]} columns, expected shorter ones")
        index = part.places.at(distances)
        tables = (packed.starts, packed.counts, packed.order, index, packed.values, part.bias)
        start = tuple(x.frame - p for p in geometry.padding)
        streamed = not y.frame and 4 * y.data.numel() >= STREAMED_FROM
        width = tile_width(y.size[1], even=streamed and 4 * lanes < _CACHE_LINE and y.size[1] % 2 == 0)
        scratch = -(-part.rows * width * lanes // 1024) * 1024 + 272  # members do not meet in the same sets of a cache
        fresh = min(geometry.kernel[0], geometry.stride[0])
        numbers: dict[ImageField, int] = {
            ImageField.ROWS: part.rows,
            ImageField.PANELS: -(-part.channels // panel),
            ImageField.PANEL_STRIDE: panel * x.line,
            ImageField.CHUNKS: part.chunks,
            ImageField.WIDTH: width,
            ImageField.COLUMNS: y.size[1],
            ImageField.ACTIVATION: int(self.planes.activation),
            ImageField.TILES: -(-y.size[1] // width),
            ImageField.STRIDE: geometry.stride[1],
            ImageField.HEIGHT: y.size[0],
            ImageField.X_FIRST: start[0] * x.row + start[1] * lanes + part.first_channel * x.line,
            ImageField.X_BLOCK: x.block,
            ImageField.X_ROW: geometry.stride[0] * x.row,
            ImageField.X_LINE: x.line,
            ImageField.Y_FIRST: y.first + part.first_row * y.line,
            ImageField.Y_BLOCK: y.block,
            ImageField.Y_ROW: y.row,
            ImageField.Y_LINE: y.line,
            ImageField.Y_FRAME: y.frame,
            ImageField.CHANNELS: panel,
            ImageField.FRESH: (geometry.kernel[0] - fresh) * down * x.row,
            ImageField.FRESH_ROW: x.row,
            ImageField.FRESH_ROWS: fresh,
            ImageField.STREAMED: int(streamed),
            ImageField.SCRATCH: scratch,
        }
        if residual is not None:
            numbers |= {
                ImageField.R_FIRST: residual.first + part.first_row * residual.line,
                ImageField.R_BLOCK: residual.block,
                ImageField.R_ROW: residual.row,
                ImageField.R_LINE: residual.line,
            }
        addressed = (
            ImageField.STARTS,
            ImageField.COUNTS,
            ImageField.ORDER,
            ImageField.INDEX,
            ImageField.VALUES,
            ImageField.BIAS,
        )
        numbers |= {field: table.ctypes.data for field, table in zip(addressed, tables, strict=True)}
        return _Prepared(described(ImageField, numbers, self._openmp), tables, scratch)

    def reaches(self, size: tuple[int, int], channels: int) -> bool:
        """Whether distances of 16 bits are enough for images of a size, in the frame that the layer itself needs.

        Args:
            size: rows and columns.
            channels: of the whole input.
        """
        geometry = self.planes.geometry
        line = size[1] + frame_of(geometry, size) + 1
        down, across = ((k - 1) * d for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
        widest = max(min(part.panel, part.channels) for part in self._parts)
        return (widest - 1) * line + down * channels * line + across <= _LARGEST_DISTANCE


def _refusal(planes: PlaneProduct) -> str:
    geometry = planes.geometry
    if planes.way is not Way.SLICED:
        return f"a weight in {planes.way.name.lower()}, expected it sliced"
    if geometry.stride[1] not in STRIDES:
        return f"stride {geometry.stride[1]}, expected one of {STRIDES}"
    if planes.activation not in _CLIPS:
        return f"{planes.activation.name}, expected one of {[a.name for a in _CLIPS]}"
    return ""
