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
    def score(self, scores: Tensor) -> Tensor:
        """Mean score per unit.

        Args:
            scores: float32, shape of the weight, ≥ 0; −1 marks weights that are dead already.

        Returns:
            float32 [units]; −1 where every weight of the unit is dead.
        """

    @abstractmethod
    def pattern(self, kept: Tensor, shape: tuple[int, ...]) -> Pattern:
        """The pattern in which the units ``kept`` (bool [units]) live."""

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

    def score(self, scores: Tensor) -> Tensor:
        """The scores themselves."""
        return scores.reshape(-1)


@final
@dataclass(frozen=True)
class Unstructured(_Single):
    """Every weight on its own."""

    def pattern_kind(self) -> type[Pattern]:
        """`Mask`."""
        return Mask

    def pattern(self, kept: Tensor, shape: tuple[int, ...]) -> Pattern:
        """A free mask."""
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

    def score(self, scores: Tensor) -> Tensor:
        """Mean of the squares over the block's weights (dead ones count as zero)."""
        shape = tuple(scores.shape)
        height, width = self.block(shape)
        down, across = self.grid(shape)
        rows, columns = shape[0], prod(shape[1:])
        padded = torch.full((down * height, across * width), -1.0, dtype=scores.dtype)
        padded[:rows, :columns] = scores.reshape(rows, columns)
        blocks = padded.view(down, height, across, width).transpose(1, 2).reshape(down * across, height * width)
        exists = torch.zeros(down * height, across * width)
        exists[:rows, :columns] = 1.0
        count = exists.view(down, height, across, width).transpose(1, 2).reshape(down * across, -1).sum(1)
        mean = blocks.clamp_min(0).double().square().sum(1).div(count).sqrt().float()
        return torch.where((blocks < 0).all(1), -1.0, mean)

    def pattern(self, kept: Tensor, shape: tuple[int, ...]) -> Pattern:
        """Blocks."""
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
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (1 <= self.m <= 16 and 0 <= self.n <= self.m):
            raise PlanError(f"NofM: found {self.n}:{self.m}, expected 0 ≤ N ≤ M ≤ 16")

    def pattern_kind(self) -> type[Pattern]:
        """`NM`."""
        return NM

    def pattern(self, kept: Tensor, shape: tuple[int, ...]) -> Pattern:
        """N of M."""
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
