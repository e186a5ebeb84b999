"""Blocks of images with one image per lane of a vector, which is how neighbouring convolutions hand on large batches.

`gossamer.runtime.image_code` describes the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy.typing as npt
import torch
from torch import Tensor, nn

from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.description import described
from gossamer.runtime.image_edge_code import EdgeField
from gossamer.runtime.kernels import ImageKernels
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.threads import OpenMP

__all__ = ["FromImages", "ImageBlocks", "ImageEdges", "ImageMean", "ImagePool", "IntoImages", "Window"]

Array = npt.NDArray[Any]

_WORTH_A_TEAM = 1 << 18
"""Numbers from which on starting a team of threads saves time."""


@final
@dataclass(frozen=True, eq=False)
class ImageBlocks:
    """Planes of several images in blocks of as many images as a vector has lanes.

    Args:
        data: float32, one dimension, aligned; what belongs to missing images of the last block is of no meaning.
        images: how many.
        channels: of each.
        size: rows and columns of each.
        frame: columns of zeros before each line and rows of zeros before each block, which also end what is before.
        lanes: images per block.
    """

    data: Tensor
    images: int
    channels: int
    size: tuple[int, int]
    frame: int
    lanes: int

    @staticmethod
    def empty(memory: Slabs, images: int, channels: int, size: tuple[int, int], frame: int, lanes: int) -> ImageBlocks:
        """Blocks of undefined content; who fills them also writes the frame."""
        blocks, line = -(-images // lanes), (size[1] + frame) * lanes
        rows = blocks * (size[0] + frame) + frame
        data = memory.empty(rows * channels * line + frame * lanes)
        return ImageBlocks(data, images, channels, size, frame, lanes)

    @property
    def blocks(self) -> int:
        """How many."""
        return -(-self.images // self.lanes)

    @property
    def line(self) -> int:
        """Floats from channel to channel."""
        return (self.size[1] + self.frame) * self.lanes

    @property
    def row(self) -> int:
        """Floats from image row to image row."""
        return self.channels * self.line

    @property
    def block(self) -> int:
        """Floats from block to block."""
        return (self.size[0] + self.frame) * self.row

    @property
    def first(self) -> int:
        """Floats before the first number that is not of the frame."""
        return self.frame * (self.row + self.lanes)


@final
@dataclass(frozen=True)
class Window:
    """What max pooling looks at.

    Args:
        kernel: rows and columns.
        stride: of both dimensions.
        padding: rows and columns, at most half of the kernel.

    Example:
        >>> Window((3, 3), (2, 2), (1, 1)).outputs((112, 112))
        (56, 56)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of outputs."""
        a, b = (
            (n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, self.padding, self.kernel, self.stride, strict=True)
        )
        return a, b


@final
class ImageEdges(CompiledProduct):
    """Changes of layout, pooling and means of blocks of images.

    Args:
        kernels: compiled code.
        openmp: where threads come from.
        memory: for outputs.
    """

    def __init__(self, kernels: ImageKernels, openmp: OpenMP, memory: Slabs) -> None:
        self.kernels, self._openmp, self.memory = kernels, openmp, memory
        self.lanes = kernels.processor.lanes

    def into(self, x: Tensor, frame: int) -> ImageBlocks:
        """float32 [N, C, rows, columns], contiguous, → blocks with a frame."""
        images, channels, high, wide = x.shape
        made = ImageBlocks.empty(self.memory, images, channels, (high, wide), frame, self.lanes)
        if x.numel():
            description = self._description(made)
            threads = self._threads(x.numel())
            self.kernels.from_planes(description.ctypes.data, made.data.data_ptr(), x.data_ptr(), made.blocks, threads)
        return made

    def back(self, x: ImageBlocks) -> Tensor:
        """Blocks → float32 [N, C, rows, columns], contiguous."""
        y = self.memory.empty(x.images, x.channels, *x.size)
        if y.numel():
            description = self._description(x)
            threads = self._threads(y.numel())
            self.kernels.to_planes(description.ctypes.data, x.data.data_ptr(), y.data_ptr(), x.blocks, threads)
        return y

    def pool(self, x: ImageBlocks, window: Window, frame: int) -> ImageBlocks:
        """The largest number of every window of a plane; NaN where a window has one."""
        size = window.outputs(x.size)
        y = ImageBlocks.empty(self.memory, x.images, x.channels, size, frame, self.lanes)
        description = self._description(x)
        numbers = {
            EdgeField.Y_FIRST: y.first,
            EdgeField.Y_BLOCK: y.block,
            EdgeField.Y_ROW: y.row,
            EdgeField.Y_LINE: y.line,
            EdgeField.Y_FRAME: frame,
            EdgeField.OUT_HEIGHT: size[0],
            EdgeField.OUT_BREADTH: size[1],
            EdgeField.KERNEL_ROWS: window.kernel[0],
            EdgeField.KERNEL_COLUMNS: window.kernel[1],
            EdgeField.ROW_STRIDE: window.stride[0],
            EdgeField.COLUMN_STRIDE: window.stride[1],
            EdgeField.PADDING_ROWS: window.padding[0],
            EdgeField.PADDING_COLUMNS: window.padding[1],
        }
        for place, number in numbers.items():
            description[place] = number
        threads = self._threads(x.data.numel())
        self.kernels.pool(description.ctypes.data, x.data.data_ptr(), y.data.data_ptr(), x.blocks, threads)
        return y

    def mean(self, x: ImageBlocks) -> Tensor:
        """The mean of every plane: float32 [N, C]."""
        y = torch.empty((x.blocks, x.channels, self.lanes), dtype=torch.float32, device="cpu")
        description, threads = self._description(x), self._threads(x.data.numel())
        self.kernels.mean(description.ctypes.data, x.data.data_ptr(), y.data_ptr(), x.blocks, threads)
        return y.transpose(1, 2).reshape(x.blocks * self.lanes, x.channels)[: x.images]

    def _threads(self, numbers: int) -> int:
        return 1 if numbers < _WORTH_A_TEAM else self._openmp.threads()

    def _description(self, x: ImageBlocks) -> Array:
        numbers = {
            EdgeField.CHANNELS: x.channels,
            EdgeField.HEIGHT: x.size[0],
            EdgeField.BREADTH: x.size[1],
            EdgeField.FIRST: x.first,
            EdgeField.BLOCK: x.block,
            EdgeField.ROW: x.row,
            EdgeField.LINE: x.line,
            EdgeField.FRAME: x.frame,
            EdgeField.IMAGES: x.images,
        }
        return described(EdgeField, numbers, self._openmp)


@final
class IntoImages(nn.Module):
    """Planes to blocks of images.

    Args:
        edges: does it.
        frame: that layers need which read the blocks.
    """

    def __init__(self, edges: ImageEdges, frame: int) -> None:
        super().__init__()
        self.edges, self.frame = edges, frame

    def forward(self, x: Tensor) -> ImageBlocks:
        """float32 [N, C, rows, columns] → blocks of them.

        Raises:
            RuntimeError: x has another dtype, device or shape.
        """
        if x.dtype is not torch.float32 or not x.is_cpu or x.ndim != 4:
            found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
            raise RuntimeError(f"blocks of images: {found}, expected [N, C, rows, columns] torch.float32 on cpu")
        return self.edges.into(x.resolve_neg().contiguous(), self.frame)


@final
class FromImages(nn.Module):
    """Blocks of images to planes.

    Args:
        edges: does it.
    """

    def __init__(self, edges: ImageEdges) -> None:
        super().__init__()
        self.edges = edges

    def forward(self, x: ImageBlocks) -> Tensor:
        """Blocks → [N, C, rows, columns], contiguous."""
        return self.edges.back(x)


@final
class ImagePool(nn.Module):
    """``torch.nn.MaxPool2d`` from blocks to blocks.

    Args:
        edges: does it.
        window: what is looked at.
        frame: that layers need which read the blocks.

    Exact: yes, the same comparisons.
    """

    def __init__(self, edges: ImageEdges, window: Window, frame: int) -> None:
        super().__init__()
        self.edges, self.window, self.frame = edges, window, frame

    def forward(self, x: ImageBlocks) -> ImageBlocks:
        """Blocks of planes → blocks of the largest of every window.

        Raises:
            RuntimeError: planes are smaller than a window.
        """
        if min(self.window.outputs(x.size)) < 1:
            raise RuntimeError(f"ImagePool: found planes of {x.size}, expected at least {self.window.kernel}")
        return self.edges.pool(x, self.window, self.frame)


@final
class ImageMean(nn.Module):
    """Means of whole planes.

    Args:
        edges: does it.
        keep: whether planes of one number are returned rather than numbers.
    """

    def __init__(self, edges: ImageEdges, *, keep: bool) -> None:
        super().__init__()
        self.edges, self.keep = edges, keep

    def forward(self, x: ImageBlocks) -> Tensor:
        """Blocks → float32 [N, C], or [N, C, 1, 1]."""
        y = self.edges.mean(x)
        return y[:, :, None, None] if self.keep else y
