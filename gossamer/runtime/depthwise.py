"""Depthwise convolutions between sparse ones, so that layouts need not change around them."""

from __future__ import annotations

from functools import cache
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gossamer.jit.cpu import Processor
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.conv_tiles import PlaneTiles, block_length, clear_end
from gossamer.runtime.depthwise_code import STRIDES, DepthwiseField
from gossamer.runtime.description import described
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.kernels import DepthwiseKernels, load
from gossamer.runtime.recent import Recent
from gossamer.runtime.slabs import Slabs
from gossamer.runtime.spmm import workspace
from gossamer.runtime.threads import OpenMP

__all__ = ["Depthwise", "PlaneDepthwise", "TiledDepthwise"]

Array = npt.NDArray[Any]

_KEPT = 8
"""Image sizes whose descriptions are kept."""

_WORTH_A_TEAM = 1 << 18
"""Inputs from which on starting a team of threads saves time."""


@final
class Depthwise(CompiledProduct):
    """Y = f(W ⊛ X + b) where every output reads one channel.

    Args:
        layer: as `PlaneDepthwise.of` accepts it; its weight is copied.
        activation: f.
        kernels: compiled code.
        openmp: where threads come from.
        memory: for outputs.
    """

    def __init__(
        self, layer: nn.Conv2d, activation: Activation, kernels: DepthwiseKernels, openmp: OpenMP, memory: Slabs
    ) -> None:
        self.channels, self.multiple = layer.in_channels, layer.out_channels // layer.in_channels
        self.kernel, self.stride = cast("tuple[int, int]", layer.kernel_size), layer.stride[0]
        self.padding = cast("tuple[int, int]", layer.padding)
        self.activation, self.kernels, self._openmp, self.memory = activation, kernels, openmp, memory
        self._weight = np.array(layer.weight.detach().numpy(), np.float32, order="C")
        bias = np.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().numpy()
        self._bias = np.array(bias, np.float32, order="C")
        self._prepared = Recent[tuple[int, int, int, int], tuple[Array, int, int]](_KEPT)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of outputs."""
        a, b = ((n + 2 * p - k) // self.stride + 1 for n, p, k in zip(size, self.padding, self.kernel, strict=True))
        return a, b

    def planes(self, x: Tensor) -> Tensor:
        """float32 [N, C, rows, columns], contiguous, → [N, M, rows', columns']."""
        images, _, high, wide = x.shape
        rows, columns = self.outputs((high, wide))
        y = self.memory.empty(images, self.channels * self.multiple, rows, columns)
        self._run(x, y, images, (high, wide), high * wide, rows * columns)
        return y

    def tiled(self, x: PlaneTiles) -> PlaneTiles:
        """The same for planes cut into blocks."""
        rows, columns = self.outputs(x.size)
        positions = x.images * rows * columns
        tile = block_length(positions, columns, self.kernels.processor.lanes)
        y = self.memory.empty(-(-positions // tile), self.channels * self.multiple, tile)
        self._run(x.data, y, x.images, x.size, x.data.shape[2], tile)
        clear_end(y, positions)
        return PlaneTiles(y, x.images, (rows, columns), x.batched)

    def _run(self, x: Tensor, y: Tensor, images: int, size: tuple[int, int], x_tile: int, y_tile: int) -> None:
        key = (*size, x_tile, y_tile)
        _, address, floats = self._prepared.get(key, lambda: self._prepare(size, x_tile, y_tile))
        threads = 1 if images * self.channels * size[0] * size[1] < _WORTH_A_TEAM else self._openmp.threads()
        scratch = workspace().address(floats * threads)
        self.kernels.depthwise(address, x.data_ptr(), y.data_ptr(), images, scratch, threads)

    def _prepare(self, size: tuple[int, int], x_tile: int, y_tile: int) -> tuple[Array, int, int]:
        """A description for one image size, its address, and the floats of scratch that a thread needs."""
        lanes = self.kernels.processor.lanes
        rows, columns = self.outputs(size)
        # What the last vector of outputs reads: two vectors for each tap where every second number counts.
        last = -(-columns // lanes) * lanes * self.stride + self.kernel[1] + 2 * lanes
        line = -(-max(last, size[1] + 2 * lanes) // lanes) * lanes + lanes
        lines = max((rows - 1) * self.stride + self.kernel[0], size[0] + self.padding[0]) + 1
        numbers = {
            DepthwiseField.CHANNELS: self.channels,
            DepthwiseField.MULTIPLE: self.multiple,
            DepthwiseField.KERNEL_ROWS: self.kernel[0],
            DepthwiseField.KERNEL_COLUMNS: self.kernel[1],
            DepthwiseField.STRIDE: self.stride,
            DepthwiseField.PADDING_ROWS: self.padding[0],
            DepthwiseField.PADDING_COLUMNS: self.padding[1],
            DepthwiseField.HEIGHT: size[0],
            DepthwiseField.BREADTH: size[1],
            DepthwiseField.OUT_ROWS: rows,
            DepthwiseField.OUT_COLUMNS: columns,
            DepthwiseField.X_TILE: x_tile,
            DepthwiseField.X_BLOCK: x_tile * self.channels,
            DepthwiseField.Y_TILE: y_tile,
            DepthwiseField.Y_BLOCK: y_tile * self.channels * self.multiple,
            DepthwiseField.LINE: line,
            DepthwiseField.SCRATCH: line * lines,
            DepthwiseField.WEIGHT: self._weight.ctypes.data,
            DepthwiseField.BIAS: self._bias.ctypes.data,
            DepthwiseField.ACTIVATION: int(self.activation),
        }
        description = described(DepthwiseField, numbers, self._openmp)
        return description, description.ctypes.data, line * lines


@final
class PlaneDepthwise(nn.Module):
    """A depthwise ``torch.nn.Conv2d`` of planes, with the activation that follows it.

    Args:
        product: the kernel.

    Cost: every weight is used, zero or not: a kernel's rows · columns multiply-adds per output.
    Exact: up to the order of float32 additions.
    """

    def __init__(self, product: Depthwise) -> None:
        super().__init__()
        self.product = product

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether there is a kernel for a layer."""
        if type(layer) is not nn.Conv2d or layer.groups != layer.in_channels or layer.padding_mode != "zeros":
            return False
        square = layer.stride[0] == layer.stride[1] and layer.stride[0] in STRIDES and layer.dilation == (1, 1)
        plain = layer.weight.dtype is torch.float32 and layer.weight.is_cpu
        # Rows are copied to a vector's length from the line's beginning.
        return square and plain and not isinstance(layer.padding, str) and int(layer.padding[1]) <= 4

    @classmethod
    def of(
        cls, layer: nn.Conv2d, activation: Activation, processor: Processor, openmp: OpenMP, memory: Slabs
    ) -> PlaneDepthwise:
        """The module for a layer that it takes."""
        return cls(Depthwise(layer, activation, _kernels(processor), openmp, memory))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, rows, columns] → [N, M, rows', columns'], contiguous.

        Raises:
            RuntimeError: x has another dtype, device or shape, or is smaller than the kernel.
        """
        product = self.product
        fits = x.dtype is torch.float32 and x.is_cpu and x.ndim == 4 and x.shape[1] == product.channels and x.numel()
        if not fits or min(product.outputs((x.shape[2], x.shape[3]))) < 1:
            expected = f"[N, {product.channels}, rows, columns] torch.float32 on cpu, at least {product.kernel}"
            raise RuntimeError(f"depthwise: found {tuple(x.shape)} {x.dtype} on {x.device}, expected {expected}")
        return product.planes(x.contiguous())


@final
class TiledDepthwise(nn.Module):
    """The same from blocks to blocks.

    Args:
        layer: for planes.
    """

    def __init__(self, layer: PlaneDepthwise) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: PlaneTiles) -> PlaneTiles:
        """Blocks of planes → blocks of the outputs.

        Raises:
            RuntimeError: other channels, or planes smaller than the kernel.
        """
        product = self.layer.product
        if x.data.shape[1] != product.channels or min(product.outputs(x.size)) < 1 or not x.images:
            found = f"found {x.images} images of {x.data.shape[1]} planes of {x.size}"
            raise RuntimeError(f"depthwise: {found}, expected {product.channels} planes of at least {product.kernel}")
        return product.tiled(x)


@cache
def _kernels(processor: Processor) -> DepthwiseKernels:
    return load(DepthwiseKernels, processor, cache_directory())
