"""Where live values are: free masks, N of M, blocks (of which rows and columns are the extremes), kernel shapes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import ceil, comb, prod
from typing import final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import Category, Codec, Pattern, Role, leaf, require
from gossamer.errors import PlanError

__all__ = ["NM", "Blocks", "KernelShapes", "Mask", "pack_bits", "unpack_bits"]

_PIECE = 1 << 20  # a multiple of 8
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # bits set in a byte


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean tensor, flattened row-major, eight to a byte, first element in the highest bit.

    Example:
        >>> pack_bits(torch.tensor([True, False, True])).tolist()
        [160]
    """
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy()))


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """The first ``count`` packed bits as a boolean tensor [count]; inverse of `pack_bits`."""
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count)).bool()


def _check_bits(pattern: Pattern, bits: Tensor, count: int) -> None:
    require(bits.dtype == torch.uint8, pattern, f"bits of {bits.dtype}", "uint8")
    expected = (ceil(count / 8),)
    require(tuple(bits.shape) == expected, pattern, f"bits of shape {tuple(bits.shape)}", f"{expected}")


def _check_spare_bits(pattern: Pattern, bits: Tensor, count: int) -> None:
    if count % 8:
        spare = int(bits[-1]) & ((1 << (8 - count % 8)) - 1)
        require(spare == 0, pattern, f"spare bits {spare:b}", "zero")


@final
@dataclass(frozen=True, eq=False)
class Mask(Pattern):
    """Any subset: one bit per weight, True = kept.

    Args:
        bits_packed: uint8 [⌈n/8⌉], see `pack_bits`.
        weight_shape: shape of the weight; n = its number of elements.
    """

    bits_packed: Tensor = field(metadata=leaf(Role.INDEX, Codec.MASK, Category.POSITIONS))
    weight_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_bits(self, self.bits_packed, prod(self.weight_shape))

    @classmethod
    def of(cls, mask: Tensor) -> Mask:
        """The pattern of a boolean tensor."""
        return cls(pack_bits(mask), tuple(mask.shape))

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    def leaf_bits(self, field: str) -> int:
        """One bit per weight."""
        del field
        return prod(self.weight_shape)

    def grid_shape(self) -> tuple[int, ...]:
        """Shape of the mask that is stored: the weight's."""
        return self.weight_shape

    @cached_property
    def _positions(self) -> Tensor:
        packed, count = self.bits_packed.cpu().numpy(), prod(self.weight_shape)
        # Piece by piece, as NumPy's positions take 8 bytes each.
        found = np.empty(int(_ONES[packed].sum(dtype=np.int64)), np.int32)
        at = 0
        for start in range(0, count, _PIECE):
            kept = np.unpackbits(packed[start // 8 : (start + _PIECE) // 8], count=min(_PIECE, count - start))
            positions = np.flatnonzero(kept)
            found[at : at + len(positions)] = positions + start
            at += len(positions)
        return torch.from_numpy(found[:at]).to(self.bits_packed.device)

    def positions(self) -> Tensor:
        """Flat positions of kept weights, int32, ascending."""
        return self._positions

    def validate(self) -> None:
        """Bits beyond the last weight are zero."""
        _check_spare_bits(self, self.bits_packed, prod(self.weight_shape))


@final
@dataclass(frozen=True, eq=False)
class Blocks(Pattern):
    """Whole blocks of a weight seen as a matrix [rows, columns]: one bit per block.

    A block of (1, columns) is a row, one of (rows, 1) a column. Blocks at the edges may be smaller.

    Args:
        bits_packed: uint8, one bit per block, blocks in row-major order.
        weight_shape: shape of the weight; rows = weight_shape[0], columns = the rest flattened.
        block: (height, width), each ≥ 1.
    """

    bits_packed: Tensor = field(metadata=leaf(Role.INDEX, Codec.MASK, Category.POSITIONS))
    weight_shape: tuple[int, ...]
    block: tuple[int, int]

    def __post_init__(self) -> None:
        require(min(self.block) >= 1, self, f"block {self.block}", "two sizes ≥ 1")
        require(len(self.weight_shape) >= 1, self, f"weight_shape {self.weight_shape}", "at least one dimension")
        _check_bits(self, self.bits_packed, prod(self.grid_shape()))

    @classmethod
    def of(cls, kept: Tensor, weight_shape: tuple[int, ...], block: tuple[int, int]) -> Blocks:
        """The pattern in which the blocks ``kept`` (boolean, `grid_shape`) stay."""
        return cls(pack_bits(kept), weight_shape, block)

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    def _matrix(self) -> tuple[int, int]:
        return self.weight_shape[0], prod(self.weight_shape[1:])

    def grid_shape(self) -> tuple[int, ...]:
        """Number of blocks down and across."""
        rows, columns = self._matrix()
        return ceil(rows / self.block[0]), ceil(columns / self.block[1])

    def leaf_bits(self, field: str) -> int:
        """One bit per block."""
        del field
        return prod(self.grid_shape())

    @cached_property
    def _positions(self) -> Tensor:
        rows, columns = self._matrix()
        down, across = self.grid_shape()
        kept = unpack_bits(self.bits_packed, down * across).view(down, across)
        height, width = min(self.block[0], rows), min(self.block[1], columns)  # a block may be larger than the weight
        full = kept.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        return full.reshape(-1).nonzero().squeeze(1).int().to(self.bits_packed.device)

    def positions(self) -> Tensor:
        """Flat positions of kept weights, int32, ascending."""
        return self._positions

    def validate(self) -> None:
        """Bits beyond the last block are zero."""
        _check_spare_bits(self, self.bits_packed, prod(self.grid_shape()))


@cache
def _combinations(n: int, m: int) -> Tensor:
    """All ways of keeping n of m in lexicographic order, int32 [C(m, n), n]."""
    return torch.tensor(list(itertools.combinations(range(m), n)), dtype=torch.int32).view(comb(m, n), n)


@final
@dataclass(frozen=True, eq=False)
class NM(Pattern):
    """N kept of every M consecutive weights along a row: log2 C(M, N) bits per group.

    Args:
        choice: int16 [groups], number of the combination in lexicographic order.
        weight_shape: shape of the weight; the product of all but the first dimension is a multiple of m.
        n: kept per group, 0 ≤ n ≤ m.
        m: size of a group, 1 to 16.

    Source: Mishra et al. 2021, arXiv 2104.08378 (2:4); Zhou et al. 2021, arXiv 2102.04010 (N:M).
    """

    choice: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.POSITIONS))
    weight_shape: tuple[int, ...]
    n: int
    m: int

    def __post_init__(self) -> None:
        require(1 <= self.m <= 16 and 0 <= self.n <= self.m, self, f"{self.n}:{self.m}", "0 ≤ N ≤ M ≤ 16")
        row = prod(self.weight_shape[1:])
        require(row % self.m == 0, self, f"rows of {row}", f"a multiple of {self.m}")
        require(self.choice.dtype == torch.int16, self, f"choice of {self.choice.dtype}", "int16")
        groups = prod(self.weight_shape) // self.m
        require(tuple(self.choice.shape) == (groups,), self, f"choice of {tuple(self.choice.shape)}", f"[{groups}]")

    @classmethod
    def of(cls, mask: Tensor, n: int, m: int) -> NM:
        """The pattern of a boolean tensor of the weight's shape with exactly n of every m kept."""
        groups = mask.reshape(-1, m)
        if not bool((groups.sum(1) == n).all()):
            raise PlanError(f"{n}:{m} mask: found a group with {int(groups.sum(1).max())} kept, expected {n} in each")
        power = 1 << torch.arange(m, dtype=torch.int64)
        code = (groups.long() * power).sum(1)
        table = (1 << _combinations(n, m).long()).sum(1)
        by_code, order = table.sort()
        choice = order[torch.searchsorted(by_code, code)]
        return cls(choice.to(torch.int16), tuple(mask.shape), n, m)

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    def leaf_bits(self, field: str) -> int:
        """⌈log2 C(m, n)⌉ per group."""
        del field
        return self.choice.numel() * (comb(self.m, self.n) - 1).bit_length()

    @cached_property
    def _positions(self) -> Tensor:
        start = torch.arange(self.choice.numel(), dtype=torch.int32) * self.m
        return (
            (start[:, None] + _combinations(self.n, self.m)[self.choice.cpu().long()])
            .reshape(-1)
            .to(self.choice.device)
        )

    def positions(self) -> Tensor:
        """Flat positions of kept weights, int32, ascending."""
        return self._positions

    def validate(self) -> None:
        """Choices are numbers of combinations."""
        if self.choice.numel():
            low, high = int(self.choice.min()), int(self.choice.max())
            total = comb(self.m, self.n)
            require(low >= 0 and high < total, self, f"choice {low} to {high}", f"0 to {total - 1}")


@final
@dataclass(frozen=True, eq=False)
class KernelShapes(Pattern):
    """Convolution kernels that each live in one of a few shapes; an empty shape is a kernel that is gone.

    Args:
        choice: uint8 [kernels], which shape each kernel has; kernels in row-major order of the first two dimensions.
        shapes: uint8 [shapes, kernel size], 1 where a weight is kept; 1 to 256 shapes.
        weight_shape: [out, in, *kernel], at least three dimensions.

    Source: Niu et al. 2020, PatDNN, arXiv 2001.00138, section 3.
    """

    choice: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.POSITIONS))
    shapes: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.POSITIONS))
    weight_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        require(len(self.weight_shape) >= 3, self, f"weight_shape {self.weight_shape}", "[out, in, *kernel]")
        for name, tensor in (("choice", self.choice), ("shapes", self.shapes)):
            require(tensor.dtype == torch.uint8, self, f"{name} of {tensor.dtype}", "uint8")
        kernels, size = prod(self.weight_shape[:2]), prod(self.weight_shape[2:])
        require(tuple(self.choice.shape) == (kernels,), self, f"choice of {tuple(self.choice.shape)}", f"[{kernels}]")
        found = tuple(self.shapes.shape)
        good = len(found) == 2 and 1 <= found[0] <= 256 and found[1] == size
        require(good, self, f"shapes of {found}", f"[1 to 256, {size}]")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    def leaf_bits(self, field: str) -> int:
        """⌈log2 shapes⌉ per kernel, one bit per place of a shape."""
        if field == "choice":
            return self.choice.numel() * (len(self.shapes) - 1).bit_length()
        return self.shapes.numel()

    @cached_property
    def _positions(self) -> Tensor:
        kept = self.shapes.bool()[self.choice.long()]  # [kernels, kernel size]
        return kept.reshape(-1).nonzero().squeeze(1).int()

    def positions(self) -> Tensor:
        """Flat positions of kept weights, int32, ascending."""
        return self._positions

    def validate(self) -> None:
        """Choices are numbers of shapes, and shapes are made of zeros and ones."""
        largest = int(self.choice.max()) if self.choice.numel() else 0
        require(largest < len(self.shapes), self, f"choice {largest}", f"below {len(self.shapes)}")
        largest = int(self.shapes.max()) if self.shapes.numel() else 0
        require(largest <= 1, self, f"shapes with {largest}", "0 and 1")
