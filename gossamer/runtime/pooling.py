"""Max pooling of planes, which PyTorch does number by number."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor, nn

from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_tiles import PlaneTiles, block_length, clear_end, planes_as_blocks
from gossamer.runtime.description import described
from gossamer.runtime.kernels import ConvolutionKernels
from gossamer.runtime.pool_code import PoolField
from gossamer.runtime.slabs import Slabs, empty
from gossamer.runtime.spmm import workspace
from gossamer.runtime.threads import OpenMP

__all__ = ["PlanePool", "Pooling", "TiledPool", "every_second"]

_WORTH_A_TEAM = 1 << 18
"""Inputs from which on starting a team of threads saves time."""

_MINUS_INFINITY = 0xFF800000  # as a float32


@final
class Pooling(CompiledProduct):
    """The largest number of every window of a plane; NaN where a window has one.

    Args:
        kernel: rows and columns of a window.
        stride: of both dimensions, 1 or 2.
        padding: rows and columns, at most half of the kernel.
        kernels: compiled code.
        openmp: where threads come from.
        memory: for outputs.
        rectified: whether ReLU follows.
    """

    def __init__(
        self,
        kernel: tuple[int, int],
        stride: int,
        padding: tuple[int, int],
        kernels: ConvolutionKernels,
        openmp: OpenMP,
        memory: Slabs,
        *,
        rectified: bool = False,
    ) -> None:
        self.kernel, self.stride, self.padding, self.rectified = kernel, stride, padding, rectified
        self.kernels, self._openmp, self.memory = kernels, openmp, memory

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of outputs."""
        a, b = ((n + 2 * p - k) // self.stride + 1 for n, p, k in zip(size, self.padding, self.kernel, strict=True))
        return a, b

    def planes(self, x: Tensor) -> Tensor:
        """float32 [N, C, rows, columns], contiguous, → [N, C, rows', columns']."""
        images, channels, high, wide = x.shape
        rows, columns = self.outputs((high, wide))
        y = self.memory.empty(images, channels, rows, columns)
        self._run(x, y, channels, images, (high, wide), high * wide, rows * columns)
        return y

    def tiled(self, x: PlaneTiles) -> PlaneTiles:
        """The same for planes cut into blocks."""
        rows, columns = self.outputs(x.size)
        channels, positions = x.data.shape[1], x.images * rows * columns
        tile = block_length(positions, columns, self.kernels.processor.lanes)
        y = self.memory.empty(-(-positions // tile), channels, tile)
        self._run(x.data, y, channels, x.images, x.size, x.data.shape[2], tile)
        clear_end(y, positions)
        return PlaneTiles(y, x.images, (rows, columns), x.batched)

    def _run(
        self, x: Tensor, y: Tensor, channels: int, images: int, size: tuple[int, int], x_tile: int, y_tile: int
    ) -> None:
        lanes = self.kernels.processor.lanes
        rows, columns = self.outputs(size)
        last = max(-(-columns // lanes) * lanes * self.stride, size[1]) + self.kernel[1] + self.padding[1] + 2 * lanes
        line = -(-last // lanes) * lanes
        numbers = {
            PoolField.CHANNELS: channels,
            PoolField.KERNEL_ROWS: self.kernel[0],
            PoolField.KERNEL_COLUMNS: self.kernel[1],
            PoolField.STRIDE: self.stride,
            PoolField.PADDING_ROWS: self.padding[0],
            PoolField.PADDING_COLUMNS: self.padding[1],
            PoolField.HEIGHT: size[0],
            PoolField.BREADTH: size[1],
            PoolField.OUT_ROWS: rows,
            PoolField.OUT_COLUMNS: columns,
            PoolField.LINE: line,
            PoolField.X_TILE: x_tile,
            PoolField.X_BLOCK: x_tile * channels,
            PoolField.Y_TILE: y_tile,
            PoolField.Y_BLOCK: y_tile * channels,
            PoolField.SCRATCH: line,
            PoolField.FLOOR: 0 if self.rectified else _MINUS_INFINITY,
        }
        description = described(PoolField, numbers, self._openmp)
        threads = 1 if images * channels * size[0] * size[1] < _WORTH_A_TEAM else self._openmp.threads()
        scratch = workspace().address(line * threads)
        self.kernels.pool(description.ctypes.data, x.data_ptr(), y.data_ptr(), images, scratch, threads)


def every_second(x: PlaneTiles, kernels: ConvolutionKernels, openmp: OpenMP, memory: Slabs | None) -> PlaneTiles:
    """Every second row and column of planes cut into blocks.

    Args:
        x: any.
        kernels: compiled code.
        openmp: where threads come from.
        memory: for the result.

    Cost: reads half of the lines of X.
    Exact: yes.
    """
    (high, wide), channels = x.size, x.data.shape[1]
    rows, columns = -(-high // 2), -(-wide // 2)
    positions = x.images * rows * columns
    tile = block_length(positions, columns, kernels.processor.lanes)
    y = empty(memory, -(-positions // tile), channels, tile)
    numbers = {
        PoolField.CHANNELS: channels,
        PoolField.HEIGHT: high,
        PoolField.BREADTH: wide,
        PoolField.OUT_ROWS: rows,
        PoolField.OUT_COLUMNS: columns,
        PoolField.X_TILE: x.data.shape[2],
        PoolField.X_BLOCK: x.data.shape[2] * channels,
        PoolField.Y_TILE: tile,
        PoolField.Y_BLOCK: tile * channels,
    }
    threads = 1 if x.data.numel() < _WORTH_A_TEAM else openmp.threads()
    description = described(PoolField, numbers, openmp)
    kernels.pick(description.ctypes.data, x.data.data_ptr(), y.data_ptr(), x.images, threads)
    clear_end(y, positions)
    return PlaneTiles(y, x.images, (rows, columns), x.batched)


@final
class PlanePool(nn.Module):
    """``torch.nn.MaxPool2d`` of planes: PyTorch's own takes 6.6 ms for 64 planes of 112² in windows of 3².

    What the kernel cannot do goes to PyTorch.

    Args:
        pool: without indices, and as `pooling_of` says.
        pooling: the kernel.

    Exact: yes, the same comparisons.
    """

    def __init__(self, pool: nn.MaxPool2d, pooling: Pooling) -> None:
        super().__init__()
        self.pool = pool
        self.pooling = pooling

    @classmethod
    def of(
        cls,
        pool: nn.MaxPool2d,
        kernels: ConvolutionKernels,
        openmp: OpenMP,
        memory: Slabs,
        *,
        rectified: bool = False,
    ) -> PlanePool | None:
        """The module, or None if there is no kernel for such windows.

        Args:
            pool: dense.
            kernels: compiled code.
            openmp: where threads come from.
            memory: for outputs.
            rectified: whether ReLU comes before or after, which is the same: fewer numbers are left after.
        """
        kernel, stride, padding, dilation = (
            (n, n) if isinstance(n, int) else cast("tuple[int, int]", tuple(n))
            for n in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        if pool.return_indices or pool.ceil_mode or dilation != (1, 1) or stride not in ((1, 1), (2, 2)):
            return None
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            return None
        return cls(pool, Pooling(kernel, stride[0], padding, kernels, openmp, memory, rectified=rectified))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, rows, columns] → the largest of every window, contiguous."""
        fits = x.dtype is torch.float32 and x.is_cpu and x.ndim == 4 and x.numel()
        if not fits or min(self.pooling.outputs((x.shape[2], x.shape[3]))) < 1 or x.requires_grad:
            y = cast(Tensor, self.pool(x))
            return y.relu() if self.pooling.rectified else y
        return self.pooling.planes(x.contiguous())


@final
class TiledPool(nn.Module):
    """The same from blocks to blocks.

    Args:
        layer: for planes.
    """

    def __init__(self, layer: PlanePool) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: PlaneTiles | Tensor) -> PlaneTiles:
        """Blocks of planes, or float32 [N, C, rows, columns], → blocks of the largest of every window.

        Raises:
            RuntimeError: planes are smaller than a window, or no planes.
        """
        if isinstance(x, Tensor):
            if x.dtype is not torch.float32 or not x.is_cpu or x.ndim not in (3, 4) or x.requires_grad:
                found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
                raise RuntimeError(f"TiledPool: {found}, expected [N, C, rows, columns] torch.float32 on cpu")
            x = planes_as_blocks(x)
        if min(self.layer.pooling.outputs(x.size)) < 1 or not x.images:
            expected = f"planes of at least {self.layer.pooling.kernel}"
            raise RuntimeError(f"TiledPool: found {x.images} images of {x.size}, expected {expected}")
        return self.layer.pooling.tiled(x)
