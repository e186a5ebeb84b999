"""Convolution kernels in a few shapes: each keeps a few entries, in one of a few patterns."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Pattern
from gossamer.encoding.patterns import KernelShapes
from gossamer.errors import PlanError
from gossamer.methods.prune.structure import Structure

__all__ = ["KernelPattern"]


@final
@dataclass(frozen=True)
class KernelPattern(Structure):
    """Every kernel of a convolution keeps ``entries`` weights, in one of the tensor's most frequent shapes.

    The shape of a kernel is where its ``entries`` best weights are; the ``patterns`` most frequent shapes of the tensor
    are kept (ties to the lexicographically first), and each kernel takes the one of them in which it keeps most. With a
    sparsity or another budget, whole kernels go as well (connectivity pruning); without, all of them stay.

    Args:
        entries: kept per kernel, ≥ 1.
        patterns: shapes per tensor, 1 to 255.

    Source: Niu et al. 2020, PatDNN, arXiv 2001.00138, section 3.
    """

    entries: int = 4
    patterns: int = 8

    def __post_init__(self) -> None:
        if self.entries < 1 or not 1 <= self.patterns <= 255:
            found = f"{self.entries} entries, {self.patterns} patterns"
            raise PlanError(f"KernelPattern: found {found}, expected at least 1 and 1 to 255")

    def pattern_kind(self) -> type[Pattern]:
        """`KernelShapes`."""
        return KernelShapes

    @property
    def refills(self) -> bool:
        """A kernel with fewer live weights than entries is filled up."""
        return True

    @property
    def complete(self) -> bool:
        """All kernels, without a budget."""
        return True

    def units(self, shape: tuple[int, ...]) -> int:
        """One per kernel."""
        return prod(shape[:2])

    def size(self, shape: tuple[int, ...]) -> int:
        """Entries."""
        return max(1, min(self.entries, prod(shape[2:])))

    def total(self, shape: tuple[int, ...]) -> int:
        """All weights."""
        return prod(shape)

    def position_bits(self, shape: tuple[int, ...]) -> int:
        """An index per kernel (one value more for those that are gone) and the shapes."""
        return prod(shape[:2]) * self.patterns.bit_length() + self.patterns * prod(shape[2:])

    def refuses(self, shape: tuple[int, ...]) -> str:
        """Kernels must have more than the entries that stay."""
        if len(shape) < 3 or prod(shape[2:]) < self.entries or 0 in shape:
            return f"found shape {shape}, expected a convolution with kernels of at least {self.entries} weights"
        return ""

    def score(self, scores: Tensor, *, rms: bool) -> Tensor:
        """Mean, or root mean square, of what each kernel keeps in its shape."""
        kernels, dead = _kernels(scores, rms)
        shapes, choice = self.choose(kernels)
        kept = kernels.gather(1, shapes[choice].nonzero()[:, 1].view(len(kernels), -1)).sum(1) / self.entries
        return torch.where(dead, -torch.inf, (kept.sqrt() if rms else kept).float())

    def choose(self, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes and which of them each kernel takes.

        Args:
            kernels: worth of each weight, float64 [kernels, kernel size].

        Returns:
            bool [shapes, kernel size], most frequent first; int64 [kernels].
        """
        top = kernels.argsort(dim=1, descending=True, stable=True)[:, : self.entries].sort(dim=1).values
        natural, counts = torch.unique(top, dim=0, return_counts=True)  # in lexicographic order
        frequent = natural[counts.argsort(descending=True, stable=True)[: self.patterns]]
        shapes = torch.zeros(len(frequent), kernels.shape[1], dtype=torch.bool).scatter_(1, frequent, True)
        # A sum over the shape's entries in their order, the same on every machine, which a matrix product is not.
        kept = torch.stack([kernels[:, shape].sum(1) for shape in frequent], 1)  # [kernels, shapes]
        return shapes, kept.argmax(1)

    def pattern(
        self, kept: Tensor, shape: tuple[int, ...], scores: Tensor | None = None, *, rms: bool = False
    ) -> Pattern:
        """The shapes, and an empty one for kernels that are gone."""
        if scores is None:
            raise PlanError("KernelPattern: found no scores, expected those that choose the shapes")
        shapes, choice = self.choose(_kernels(scores, rms)[0])
        if not bool(kept.all()):
            shapes = torch.cat([shapes, torch.zeros(1, shapes.shape[1], dtype=torch.bool)])
            choice = torch.where(kept, choice, len(shapes) - 1)
        return KernelShapes(choice.to(torch.uint8), shapes.to(torch.uint8), shape)


def _kernels(scores: Tensor, rms: bool) -> tuple[Tensor, Tensor]:
    """Worth of each weight, float64 [kernels, size], and which kernels are dead, bool [kernels]."""
    kernels = scores.flatten(2).flatten(0, 1)
    gone = kernels.isinf()
    live = kernels.masked_fill(gone, 0.0).double()
    return (live.square() if rms else live), gone.all(1)
