"""A matrix that is a convolution: entries depend on how far output and input positions are apart, on nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.encoding.node import Category, Encoding, child, computable, require

__all__ = ["Convolutional", "fits_grids"]


def fits_grids(window: int, tiles: int, outputs: int, inputs: int) -> bool:
    """Whether kernels of this window along an axis are laid out without taking much more room than the weight."""
    return tiles * (window + 1) <= 2 * outputs * inputs + 2


@final
@dataclass(frozen=True, eq=False)
class Convolutional(Encoding):
    """w[(o, y), (c, x)] = kernel[o, c, x − y·stride − offset] inside the kernel's window, zero outside, per axis.

    Outputs o at positions y, inputs c at positions x, on grids of two axes; a Toeplitz matrix has one channel each and
    grids (1, n). With several tiles the output grid is cut into tiles[0] × tiles[1] parts (⌈size / tiles⌉ positions
    along an axis, the last part may be smaller) and each part has kernels of its own.

    Args:
        kernel: [parts · c_out, c_in, kh, kw], part by part in row-major order; trainable.
        output_grid: positions (height, width) of each output channel.
        input_grid: positions of each input channel.
        stride: ≥ 1 along each axis.
        offset: input position of the kernel's first entry at output position 0; minus the padding of a convolution.
        tiles: parts of the output grid along each axis.

    Source: LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition; in tiles: Le et al. 2010,
    Tiled convolutional neural networks.
    """

    kernel: Encoding = field(metadata=child(weight=True, category=Category.VALUES))
    output_grid: tuple[int, int]
    input_grid: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    tiles: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        shape = self.kernel.dense_shape()
        sizes = min(*self.output_grid, *self.input_grid, *self.stride, *self.tiles)
        require(len(shape) == 4 and min(shape) >= 1, self, f"kernel of shape {shape}", "[parts · c_out, c_in, kh, kw]")
        require(sizes >= 1, self, "a grid, stride or number of tiles below 1", "at least 1")
        parts = self.tiles[0] * self.tiles[1]
        require(shape[0] % parts == 0, self, f"{shape[0]} kernels in {parts} tiles", "as many in each")
        for axis in (0, 1):
            out, tiles = self.output_grid[axis], self.tiles[axis]
            # Every part holds an output, and a kernel is not wider than what its outputs can see.
            full = ceil(out / ceil(out / tiles)) == tiles
            require(full, self, f"{tiles} tiles of {out} positions", "no empty tile")
            require(
                fits_grids(shape[2 + axis], tiles, out, self.input_grid[axis]),
                self,
                f"kernel of {shape[2 + axis]} positions",
                "one no wider than its grids",
            )
            require(abs(self.offset[axis]) < 1 << 40, self, f"offset {self.offset}", "one inside the grids")

    def dense_shape(self) -> tuple[int, ...]:
        """[c_out · outputs, c_in · inputs]."""
        kernels, channels, _, _ = self.kernel.dense_shape()
        outputs, inputs = self.output_grid, self.input_grid
        parts = self.tiles[0] * self.tiles[1]
        return kernels // parts * outputs[0] * outputs[1], channels * inputs[0] * inputs[1]

    def _entries(self, axis: int, size: int, device: torch.device) -> Tensor:
        """Entry of the tiles' padded kernels, one after the other, for each (output, input) position; int64, flat."""
        out = torch.arange(self.output_grid[axis], device=device)[:, None]
        distance = torch.arange(self.input_grid[axis], device=device) - out * self.stride[axis] - self.offset[axis]
        inside = (distance >= 0) & (distance < size)
        tile = out // ceil(self.output_grid[axis] / self.tiles[axis])
        return (torch.where(inside, distance, size) + tile * (size + 1)).reshape(-1)

    def to_dense(self) -> Tensor:
        """Kernels laid out over the positions, in float32 for a half-precision kernel."""
        kernel = computable(self.kernel.to_dense())
        kernels, channels, high, wide = kernel.shape
        down, across = self.tiles
        outputs = kernels // (down * across)
        padded = F.pad(kernel, (0, 1, 0, 1))  # one more entry per axis: the zero outside the window
        padded = padded.view(down, across, outputs, channels, high + 1, wide + 1).permute(2, 3, 0, 4, 1, 5)
        w = padded.reshape(outputs, channels, down * (high + 1), across * (wide + 1))
        w = w.index_select(3, self._entries(1, wide, kernel.device))  # [o, c, down · (kh + 1), out_x · in_x]
        w = w.index_select(2, self._entries(0, high, kernel.device))  # [o, c, out_y · in_y, out_x · in_x]
        (oy, ox), (iy, ix) = self.output_grid, self.input_grid
        w = w.view(outputs, channels, oy, iy, ox, ix).permute(0, 2, 4, 1, 3, 5)
        return w.reshape(self.dense_shape())
