"""What lives or dies together: single weights, rows, columns, blocks, or N of every M."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Pattern
from gossamer.encoding.patterns import NM, Blocks, Mask
from gossamer.errors import PlanError

__all__ = ["Block", "Columns", "NofM", "Rows", "Structure", "Unstructured"]


@dataclass(frozen=True)
class Structure(ABC):
    """A partition of a weight into units that are kept or removed as one."""

    @abstractmethod
    def pattern_kind(self) -> type[Pattern]:
        """Kind of pattern that stores such a mask."""

    @abstractmethod
    def units(self, shape: tuple[int, ...]) -> int:
        """Number of units in a weight of that shape."""

    @abstractmethod
    def size(self, shape: tuple[int, ...]) -> int:
        """Elements per unit, on average."""

    @abstractmethod
    def score(self, scores: Tensor, *, rms: bool) -> Tensor:
        """One score per unit.

        Args:
            scores: float32, shape of the weight; −∞ marks weights that are dead already.
            rms: root mean square of the unit's scores rather than their mean; dead ones count as zero.

        Returns:
            float32 [units]; −∞ where every weight of the unit is dead.
        """

    @abstractmethod
    def pattern(
        self, kept: Tensor, shape: tuple[int, ...], scores: Tensor | None = None, *, rms: bool = False
    ) -> Pattern:
        """The pattern in which the units ``kept`` (bool [units]) live; ``scores`` where they shape the units."""

    @property
    def refills(self) -> bool:
        """Whether dead weights come back, with the value zero, where a unit has fewer live ones than it holds."""
        return False

    @property
    def complete(self) -> bool:
        """Whether the structure says by itself how many weights live, so that no budget is needed."""
        return False

    def total(self, shape: tuple[int, ...]) -> int:
        """Elements of a weight that a sparsity is a share of."""
        return self.units(shape) * self.size(shape)

    def position_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of the positions, before entropy coding: one per unit."""
        return self.units(shape)

    def refuses(self, shape: tuple[int, ...]) -> str:
        """Why a weight of that shape cannot be partitioned so; empty: it can."""
        del shape
        return ""


@dataclass(frozen=True)
class _Single(Structure, ABC):
    """Every weight is a unit of its own."""

    def units(self, shape: tuple[int, ...]) -> int:
        """One per weight."""
        return prod(shape)

    def size(self, shape: tuple[int, ...]) -> int:
        """One."""
        del shape
        return 1

    def score(self, scores: Tensor, *, rms: bool) -> Tensor:
        """The scores themselves."""
        del rms
        return scores.reshape(-1)


@final
@dataclass(frozen=True)
class Unstructured(_Single):
    """Every weight on its own."""

    def pattern_kind(self) -> type[Pattern]:
        """`Mask`."""
        return Mask

    def pattern(
        self, kept: Tensor, shape: tuple[int, ...], scores: Tensor | None = None, *, rms: bool = False
    ) -> Pattern:
        """A free mask."""
        del scores, rms
        return Mask.of(kept.view(shape))


@dataclass(frozen=True)
class _Grid(Structure, ABC):
    """Blocks of a weight seen as a matrix [out, rest]."""

    @abstractmethod
    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a block."""

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Blocks down and across."""
        height, width = self.block(shape)
        return ceil(shape[0] / height), ceil(prod(shape[1:]) / width)

    def pattern_kind(self) -> type[Pattern]:
        """`Blocks`."""
        return Blocks

    def units(self, shape: tuple[int, ...]) -> int:
        """One per block."""
        return prod(self.grid(shape))

    def size(self, shape: tuple[int, ...]) -> int:
        """Elements of a block on average: those at the edges may hang over."""
        return max(1, round(prod(shape) / max(1, self.units(shape))))

    def score(self, scores: Tensor, *, rms: bool) -> Tensor:
        """Mean, or root mean square, over the block's weights (dead ones count as zero)."""
        shape = tuple(scores.shape)
        height, width = self.block(shape)
        down, across = self.grid(shape)
        rows, columns = shape[0], prod(shape[1:])
        padded = torch.full((down * height, across * width), -torch.inf, dtype=scores.dtype)
        padded[:rows, :columns] = scores.reshape(rows, columns)
        blocks = padded.view(down, height, across, width).transpose(1, 2).reshape(down * across, height * width)
        exists = torch.zeros(down * height, across * width)
        exists[:rows, :columns] = 1.0
        count = exists.view(down, height, across, width).transpose(1, 2).reshape(down * across, -1).sum(1)
        dead = blocks.isinf()
        live = blocks.masked_fill(dead, 0.0).double()
        mean = live.square().sum(1).div(count).sqrt() if rms else live.sum(1).div(count)
        return torch.where(dead.all(1), -torch.inf, mean.float())

    def pattern(
        self, kept: Tensor, shape: tuple[int, ...], scores: Tensor | None = None, *, rms: bool = False
    ) -> Pattern:
        """Blocks."""
        del scores, rms
        return Blocks.of(kept.view(self.grid(shape)), shape, self.block(shape))

    def refuses(self, shape: tuple[int, ...]) -> str:
        """A vector has no blocks."""
        return "" if len(shape) >= 2 else f"found shape {shape}, expected at least two dimensions"


@final
@dataclass(frozen=True)
class Rows(_Grid):
    """Whole rows (output neurons, filters)."""

    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """One row."""
        return 1, max(1, prod(shape[1:]))


@final
@dataclass(frozen=True)
class Columns(_Grid):
    """Whole columns (inputs; for a convolution one input channel at one kernel position)."""

    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """One column."""
        return max(1, shape[0]), 1


@final
@dataclass(frozen=True)
class Block(_Grid):
    """Blocks of ``height`` rows and ``width`` columns.

    Args:
        height: rows, ≥ 1.
        width: columns, ≥ 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise PlanError(f"Block: found {self.height}×{self.width}, expected sizes of at least 1")

    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """As given."""
        del shape
        return self.height, self.width


@final
@dataclass(frozen=True)
class NofM(_Single):
    """N kept of every M consecutive weights along a row; the budget is in the structure itself.

    Args:
        n: kept.
        m: of so many, 1 to 16.
        permute: first reorder the columns so that groups keep more (see `permutation`); the order is stored.
    """

    n: int
    m: int
    permute: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.m <= 16 and 0 <= self.n <= self.m):
            raise PlanError(f"NofM: found {self.n}:{self.m}, expected 0 ≤ N ≤ M ≤ 16")

    def pattern_kind(self) -> type[Pattern]:
        """`NM`."""
        return NM

    @property
    def refills(self) -> bool:
        """A group with fewer than N live weights is filled up."""
        return True

    @property
    def complete(self) -> bool:
        """N of M live."""
        return True

    def pattern(
        self, kept: Tensor, shape: tuple[int, ...], scores: Tensor | None = None, *, rms: bool = False
    ) -> Pattern:
        """N of M."""
        del scores, rms
        return NM.of(kept.view(shape), self.n, self.m)

    def refuses(self, shape: tuple[int, ...]) -> str:
        """Rows must divide into groups."""
        row = prod(shape[1:])
        if len(shape) < 2 or row % self.m:
            return f"found rows of {row}, expected a multiple of {self.m}"
        return ""

    def best(self, scores: Tensor) -> Tensor:
        """The n best of every group, ties to the earlier; bool, shape of ``scores``."""
        groups = scores.reshape(-1, self.m)
        order = groups.argsort(dim=1, descending=True, stable=True)[:, : self.n]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)
