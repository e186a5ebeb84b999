"""What a method of sparse training is: a drop score, a grow score, a schedule, and where the live weights go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import prod
from numbers import Real
from typing import final

from gossamer.errors import PlanError
from gossamer.train.allocation import Allocation, ErdosRenyi
from gossamer.train.drift import Drift
from gossamer.train.drop import DropScore, Magnitude
from gossamer.train.exploration import Exploration
from gossamer.train.grow import GrowScore
from gossamer.train.schedule import Schedule, densities
from gossamer.train.scope import ByStrength, BySurvivors, PerLayer, Scope
from gossamer.train.structure import Free, Structure

__all__ = ["Parts", "PruneAndGrow", "SparseTraining"]


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """The independent choices that make up a method.

    Args:
        schedule: when the topology changes, and by how much.
        drop: which live weights go.
        grow: which dead ones come; None: none ever, the live set only shrinks.
        allocation: of live weights among layers at the start.
        scope: of updates: within layers or across them.
        structure: that every topology has.
        drift: what happens to values after every step, beside the optimiser.
        exploration: weights that get gradients without taking part in the forward pass.
        counts_explored: keep one bit per weight that says whether it ever lived.
    """

    schedule: Schedule
    drop: DropScore = field(default_factory=Magnitude)
    grow: GrowScore | None = None
    allocation: Allocation = field(default_factory=ErdosRenyi)
    scope: Scope = field(default_factory=PerLayer)
    structure: Structure = field(default_factory=Free)
    drift: Drift | None = None
    exploration: Exploration | None = None
    counts_explored: bool = False

    def __post_init__(self) -> None:
        schedule, name = self.schedule, type(self.schedule).__name__
        if self.grow is None and any(schedule.exchanged(s) for s in (1, schedule.every, schedule.end - 1)):
            raise PlanError(f"{name}: found a schedule that exchanges weights without a grow score, expected one")
        if isinstance(self.scope, BySurvivors) and not schedule.constant_density:
            raise PlanError(f"BySurvivors: found {name}, expected a schedule of constant density")
        structured = not isinstance(self.structure, Free)
        if structured and not (isinstance(self.scope, PerLayer) and schedule.constant_density):
            kind = type(self.structure).__name__
            raise PlanError(
                f"{kind}: found {name} and {type(self.scope).__name__}, expected constant density, PerLayer"
            )
        if isinstance(self.scope, ByStrength) and not (self.grow is not None and self.grow.tells_strength):
            raise PlanError("ByStrength: found a grow score without strengths of layers, expected Momentum")

    @property
    def keeps_counts(self) -> bool:
        """Whether every layer's number of live weights is the same after every step."""
        return self.schedule.constant_density and self.scope.keeps_counts and self.structure.keeps_counts


@dataclass(frozen=True, kw_only=True)
class SparseTraining(ABC):
    """A method of sparse training, for `sparsify` and `Sparsifier`.

    Args:
        only: glob patterns of layers' names or their weights' ("fc*", "fc1.weight"); empty: every Linear.
        skip: glob patterns of layers to leave dense.
        seed: of everything random; the numbers depend on it, the layer's name and the step alone.
        rescale: multiply what each row keeps at the start by √(columns / live in the row), so that outputs have the
            variance that the dense layer's initialisation gave them (Evci et al. 2022, arXiv 2010.03533, section 3).
            None: where the start is random and sparse.
    """

    only: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()
    seed: int = 0
    rescale: bool | None = None

    @property
    @abstractmethod
    def final_sparsity(self) -> float:
        """Share of zeros among all weights of the layers, at the end."""

    @abstractmethod
    def parts(self) -> Parts:
        """What it is made of.

        Raises:
            PlanError: settings that make no sense.
        """

    def live_counts(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], step: int = 0) -> list[int]:
        """Live weights per layer.

        Args:
            names: of the layers.
            shapes: of their weights.
            step: 0, or after which an update is due.

        Raises:
            PlanError: a layer that would be empty, or that the structure does not fit.
        """
        parts = self.parts()
        total = sum(prod(s) for s in shapes)
        density = parts.schedule.density(step, 1 - self.final_sparsity)
        live = max(0, total - round(total * (1 - density)))
        counts = parts.allocation.counts(shapes, live)
        return [parts.structure.count(*each) for each in zip(names, shapes, counts, strict=True)]

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            PlanError: says which.
        """
        self.check_numbers()
        for setting, found in (("only", self.only), ("skip", self.skip)):
            if not isinstance(found, (str, tuple)):
                kind = type(found).__name__
                raise PlanError(
                    f"{type(self).__name__}: {setting}: found a {kind}, expected a pattern or a tuple of them"
                )
        self.parts()
        if not 0 <= self.final_sparsity < 1:
            raise PlanError(f"{type(self).__name__}: found sparsity {self.final_sparsity}, expected 0 to 1, 1 excluded")

    def check_numbers(self) -> None:
        """Refuse settings that should be numbers and are not, such as "0.9" from a command line.

        Raises:
            PlanError: says which.
        """
        for each in fields(self):
            found = getattr(self, each.name)
            if each.type in ("float", "int") and (not isinstance(found, Real) or isinstance(found, bool)):
                raise PlanError(f"{type(self).__name__}: {each.name}: found {found!r}, expected a number")

    def mean_density(self, steps: int) -> float:
        """Mean share of weights that live over ``steps`` steps: what arithmetic is in proportion to."""
        stretches = densities(self.parts().schedule, 1 - self.final_sparsity, steps)
        return sum(n * d for n, d in stretches) / max(1, steps)

    def dense_share(self, steps: int) -> float:
        """Share of ``steps`` steps in which every weight lives; 0 of methods that are sparse from the start."""
        stretches = densities(self.parts().schedule, 1 - self.final_sparsity, steps)
        return sum(n for n, d in stretches if d >= 1) / max(1, steps)


@final
@dataclass(frozen=True, kw_only=True)
class PruneAndGrow(SparseTraining):
    """Any combination of parts.

    Args:
        sparsity: share of zeros, 0 to 1, 1 excluded.
        made_of: the parts.

    Example:
        >>> from gossamer.train import drop, grow, schedule
        >>> method = PruneAndGrow(
        ...     sparsity=0.9,
        ...     made_of=Parts(
        ...         schedule=schedule.Linear(every=100, end=5000, fraction=0.2),
        ...         drop=drop.Movement(),
        ...         grow=grow.Random(),
        ...     ),
        ... )
        >>> method.live_counts(["fc"], [(100, 100)])
        [1000]
    """

    sparsity: float
    made_of: Parts

    def __post_init__(self) -> None:
        self.check()

    @property
    def final_sparsity(self) -> float:
        """As asked; N of M as N of M."""
        return self.sparsity

    def parts(self) -> Parts:
        """As given."""
        return self.made_of
