"""Planes cut into blocks of positions, which is how neighbouring sparse convolutions hand them on.

Positions of all images follow each other, [images · rows · columns], and are cut into blocks: [blocks, channels,
positions]. What a pointwise convolution reads and writes for a block is one run of memory, and small images share
vectors. A block is a whole number of image rows, or all positions: no row lies in two blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.runtime.slabs import Slabs, empty

__all__ = ["FromTiles", "IntoTiles", "PlaneTiles", "block_length", "clear_end", "planes_as_blocks"]

_WIDEST = 7  # vectors that kernels take at once
_VECTORS = 48  # that a block has at most where rows allow it


@final
@dataclass(frozen=True, eq=False)
class PlaneTiles:
    """Planes of several images.

    Args:
        data: float32 [blocks, channels, positions], contiguous, aligned; what follows the last image is of no meaning.
        images: how many.
        size: rows and columns of each.
        batched: whether planes have a dimension of images, else there is one image.
    """

    data: Tensor
    images: int
    size: tuple[int, int]
    batched: bool = True


@lru_cache(maxsize=256)
def block_length(positions: int, columns: int, lanes: int) -> int:
    """Positions per block: whole vectors and whole rows, which divide into the widest tiles where possible.

    Args:
        positions: of all images.
        columns: of an image.
        lanes: floats per vector.

    Example:
        >>> block_length(56 * 56, 56, 16), block_length(7 * 7, 7, 16)
        (112, 64)
    """
    widest = _WIDEST
    all_vectors = -(-positions // lanes)
    row = lcm(columns, lanes) // lanes
    if all_vectors <= max(row, widest):
        return all_vectors * lanes

    def waste(vectors: int) -> float:
        return -(-vectors // widest) * widest / vectors + 0.001 * vectors

    choices = range(row, min(max(row, _VECTORS), all_vectors) + 1, row)
    return min(choices, key=waste) * lanes


def clear_end(data: Tensor, positions: int) -> None:
    """Zeros behind the last image: numbers that happen to be there could be slow to compute with."""
    used = positions - (data.shape[0] - 1) * data.shape[2]
    if used < data.shape[2]:
        data[-1, :, used:].zero_()


def planes_as_blocks(x: Tensor) -> PlaneTiles:
    """float32 [N, C, rows, columns] or [C, rows, columns] as blocks that are planes; no copy where x is contiguous."""
    batched = x.ndim == 4
    images, channels, rows, columns = x.shape if batched else (1, *x.shape)
    data = x.resolve_neg().reshape(images, channels, rows * columns).contiguous()
    return PlaneTiles(data, images, (rows, columns), batched)


@final
class IntoTiles(nn.Module):
    """Planes to blocks.

    Args:
        lanes: floats per vector.
        memory: for the blocks.

    Example:
        >>> tiles = IntoTiles(4, Slabs())(torch.arange(12.0).view(2, 1, 2, 3))
        >>> tiles.data
        tensor([[[ 0.,  1.,  2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10., 11.]]])
    """

    def __init__(self, lanes: int, memory: Slabs) -> None:
        super().__init__()
        self.lanes = lanes
        self.memory = memory

    def forward(self, x: Tensor) -> PlaneTiles:
        """float32 [N, C, rows, columns] or [C, rows, columns] → blocks of them.

        Raises:
            RuntimeError: x has another dtype, device or shape.
        """
        if x.dtype is not torch.float32 or not x.is_cpu or x.ndim not in (3, 4):
            found = f"found input {tuple(x.shape)} {x.dtype} on {x.device}"
            raise RuntimeError(f"sparse convolution: {found}, expected [N, C, rows, columns] torch.float32 on cpu")
        batched = x.ndim == 4
        if not batched:
            x = x[None]
        images, channels, rows, columns = x.shape
        pixels = rows * columns
        tile = block_length(images * pixels, columns, self.lanes)
        blocks = -(-images * pixels // tile)
        data = empty(self.memory, blocks, channels, tile)
        if pixels % tile == 0:
            split = x.reshape(images, channels, pixels // tile, tile).transpose(1, 2)
            data.view(images, pixels // tile, channels, tile).copy_(split)
        else:
            line = x.reshape(images, channels, pixels).transpose(0, 1).reshape(channels, images * pixels)
            padded = F.pad(line, (0, blocks * tile - images * pixels))
            data.copy_(padded.view(channels, blocks, tile).transpose(0, 1))
        return PlaneTiles(data, images, (rows, columns), batched)


@final
class FromTiles(nn.Module):
    """Blocks to planes.

    Args:
        memory: for the planes.

    Example:
        >>> x = torch.randn(3, 2, 5, 7)
        >>> bool((FromTiles(Slabs())(IntoTiles(8, Slabs())(x)) == x).all())
        True
    """

    def __init__(self, memory: Slabs) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, x: PlaneTiles) -> Tensor:
        """Blocks → [N, C, rows, columns] or [C, rows, columns], contiguous."""
        blocks, channels, tile = x.data.shape
        rows, columns = x.size
        pixels = rows * columns
        y = empty(self.memory, x.images, channels, rows, columns)
        if pixels % tile == 0:
            split = x.data.view(x.images, pixels // tile, channels, tile).transpose(1, 2)
            y.view(x.images, channels, pixels // tile, tile).copy_(split)
        else:
            line = x.data.transpose(0, 1).reshape(channels, blocks * tile)[:, : x.images * pixels]
            y.view(x.images, channels, pixels).copy_(line.reshape(channels, x.images, pixels).transpose(0, 1))
        return y if x.batched else y[0]
