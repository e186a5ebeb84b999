"""Which topologies are allowed: any, N of every M, the same number in every row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.node import Pattern
from gossamer.encoding.patterns import NM, Mask
from gossamer.errors import PlanError
from gossamer.runtime.choice import row_edges
from gossamer.train.chance import chosen, uniform_scores
from gossamer.train.choose import best_besides, best_magnitudes, best_of_rows, places

__all__ = ["ConstantFanIn", "Free", "NofM", "Structure"]


@dataclass(frozen=True)
class Structure(ABC):
    """A rule that every topology of a layer obeys."""

    keeps_counts: ClassVar[bool] = True  # whether an update leaves the number of live weights exactly as it is

    @abstractmethod
    def count(self, name: str, shape: tuple[int, ...], live: int) -> int:
        """The allowed number of live weights that is meant by ``live``.

        Raises:
            PlanError: none is; names the layer.
        """

    @abstractmethod
    def start(self, shape: tuple[int, ...], live: int, key: int) -> Tensor:
        """A random topology: positions int64 [live], ascending."""

    @abstractmethod
    def fill(self, shape: tuple[int, ...], live: int, before: Tensor, kept: Tensor, scores: Tensor) -> Tensor:
        """A topology with the survivors in it, as far as the rule allows.

        Args:
            shape: of the weight.
            live: allowed number of live weights.
            before: positions that lived before the drop, int64, ascending.
            kept: bool [before], which of them live after it.
            scores: grow scores, float32 [size], whose magnitudes count; they are overwritten.

        Returns:
            positions int64 [live], ascending.
        """

    def pattern(self, mask: Tensor) -> Pattern:
        """How such a mask is encoded."""
        return Mask.of(mask)


@final
@dataclass(frozen=True)
class Free(Structure):
    """Any."""

    def count(self, name: str, shape: tuple[int, ...], live: int) -> int:
        """As asked."""
        del shape
        if live < 1:
            raise PlanError(f"{name}: found a sparsity that leaves no weight, expected at least one: skip the layer")
        return live

    def start(self, shape: tuple[int, ...], live: int, key: int) -> Tensor:
        """All sets of that size are equally likely."""
        return chosen(key, live, prod(shape))

    def fill(self, shape: tuple[int, ...], live: int, before: Tensor, kept: Tensor, scores: Tensor) -> Tensor:
        """The best."""
        del shape
        scores.abs_().index_fill_(0, before.index_select(0, places(kept)), torch.inf)
        return best_magnitudes(scores, live)


@final
@dataclass(frozen=True)
class NofM(Structure):
    """N live of every M consecutive weights along a row, at every time: what is dropped grows within its group.

    Args:
        n: live, 1 to m.
        m: of so many, up to 16.

    Source: Zhou et al. 2021, arXiv 2102.04010 (N:M from scratch); here with drop and growth instead of dense weights.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= 16:
            raise PlanError(f"NofM: found {self.n}:{self.m}, expected 1 ≤ N ≤ M ≤ 16")

    def count(self, name: str, shape: tuple[int, ...], live: int) -> int:
        """N of every M, whatever was asked."""
        row = prod(shape[1:])
        if row % self.m:
            raise PlanError(f"{name}: found rows of {row}, expected a multiple of {self.m} for {self.n}:{self.m}")
        return prod(shape) // self.m * self.n

    def start(self, shape: tuple[int, ...], live: int, key: int) -> Tensor:
        """All are equally likely."""
        del live
        return best_of_rows(uniform_scores(key, prod(shape)).view(-1, self.m), self.n)

    def fill(self, shape: tuple[int, ...], live: int, before: Tensor, kept: Tensor, scores: Tensor) -> Tensor:
        """The best of each group that lost some."""
        del live
        scores.abs_().index_fill_(0, before.index_select(0, places(kept)), torch.inf)
        return best_of_rows(scores.view(-1, self.m), self.n)

    def pattern(self, mask: Tensor) -> Pattern:
        """`NM`."""
        return NM.of(mask, self.n, self.m)


@final
@dataclass(frozen=True)
class ConstantFanIn(Structure):
    """Every row has the same number of live weights, apart from rows that have none: these neurons are ablated.

    A row is ablated when fewer than ``ablate`` of its weights are salient: among the survivors of the drop, or among
    as many dead weights with the highest grow scores of the layer as were dropped. What it had goes to the others in
    equal parts; it does not come back.

    Args:
        ablate: γ, 0 to 1; 0: no neuron is ablated.

    Exact: ⌊budget / rows⌋ per row at the start, ⌊budget / rows that live⌋ later, budget being the number of live
        weights at the start: with ablation the layer may have up to (rows − 1) live weights fewer, never more.

    Source: Lasby et al. 2024 (SRigL), arXiv 2305.02299, section 3 (γ_sal).
    """

    ablate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ablate <= 1:
            raise PlanError(f"ConstantFanIn: found ablate {self.ablate}, expected 0 to 1")

    @property
    def keeps_counts(self) -> bool:  # type: ignore[override]
        """Without ablation."""
        return self.ablate == 0

    def count(self, name: str, shape: tuple[int, ...], live: int) -> int:
        """Rounded to the same number in every row, at least one."""
        per_row = round(live / shape[0])
        if per_row < 1:
            raise PlanError(f"{name}: found {live} live weights for {shape[0]} rows, expected at least one per row")
        return per_row * shape[0]

    def start(self, shape: tuple[int, ...], live: int, key: int) -> Tensor:
        """All are equally likely."""
        return best_of_rows(uniform_scores(key, prod(shape)).view(shape[0], -1), live // shape[0])

    def fill(self, shape: tuple[int, ...], live: int, before: Tensor, kept: Tensor, scores: Tensor) -> Tensor:
        """Ablate, then the best of each row."""
        rows, columns = shape[0], prod(shape[1:])
        survivors = before.index_select(0, places(kept))
        edges = row_edges(survivors, rows, columns)
        alive = row_edges(before, rows, columns).diff() > 0
        if self.ablate:
            best, _ = best_besides(scores, live - len(survivors), survivors)
            salient = edges.diff() + row_edges(best, rows, columns).diff()
            salient[~alive] = -1
            alive &= salient >= max(1.0, self.ablate * live / rows)
            needed = -(-live // columns)  # rows that can hold the budget
            if int(alive.sum()) < needed:
                alive = torch.zeros(rows, dtype=torch.bool)
                alive[salient.argsort(descending=True, stable=True)[:needed]] = True
        which = places(alive)
        always = survivors, edges
        return best_of_rows(scores.view(rows, columns), live // len(which), which, magnitude=True, always=always)
