"""What kept units cost, and how much may be spent: in weights, bytes, multiplications or milliseconds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.methods.base import Site
from gossamer.methods.prune.latency import LatencyTable
from gossamer.methods.prune.structure import Structure

__all__ = ["Budget", "Bytes", "Elements", "Macs", "Milliseconds"]


@dataclass(frozen=True, kw_only=True)
class Budget(ABC):
    """A cost per number of kept units, and a limit.

    Args:
        structure: what a unit is.
        ramped: share of the way from everything to the limit, 0 to 1.
    """

    structure: Structure
    ramped: float = 1.0

    @abstractmethod
    def cost(self, site: Site, kept: Tensor) -> Tensor:
        """What so many units cost; rises with ``kept``.

        Args:
            site: where.
            kept: units, int64 or float64 of any shape.
        """

    @abstractmethod
    def limit(self, full: float) -> float:
        """Most that may be spent, given what everything costs."""

    def allowed(self, sites: Sequence[Site]) -> float:
        """Most that may be spent at this point of the ramp.

        Raises:
            PlanError: not even keeping nothing would be cheap enough.
        """
        everything = [torch.tensor(self.structure.units(s.shape)) for s in sites]
        full = sum(self.cost(s, n).item() for s, n in zip(sites, everything, strict=True))
        least = sum(self.cost(s, torch.zeros_like(n)).item() for s, n in zip(sites, everything, strict=True))
        limit = self.limit(full)
        if limit < least:
            raise PlanError(
                f"{type(self).__name__}: found a budget of {limit:g}, expected at least {least:g}, due with no weight "
                "kept at all"
            )
        return limit if self.ramped == 1.0 else full - self.ramped * (full - limit)


@final
@dataclass(frozen=True, kw_only=True)
class Elements(Budget):
    """Total − round(sparsity · total) weights."""

    sparsity: float

    def cost(self, site: Site, kept: Tensor) -> Tensor:
        """Weights."""
        return kept * self.structure.size(site.shape)

    def allowed(self, sites: Sequence[Site]) -> float:
        """Exact, in integers."""
        total = sum(self.structure.total(s.shape) for s in sites)
        return int(self.limit(total))

    def limit(self, full: float) -> float:
        """Rounded to whole weights."""
        return full - round(full * self.sparsity)


@final
@dataclass(frozen=True, kw_only=True)
class Bytes(Budget):
    """Bits of kept values and of positions, before entropy coding."""

    budget_bytes: int

    def cost(self, site: Site, kept: Tensor) -> Tensor:
        """Bits."""
        width = site.spec.dtype.itemsize * 8
        return kept * (self.structure.size(site.shape) * width) + self.structure.position_bits(site.shape)

    def limit(self, full: float) -> float:
        """Never more than everything."""
        return min(full, self.budget_bytes * 8)


@final
@dataclass(frozen=True, kw_only=True)
class Macs(Budget):
    """Multiplications of kept weights with inputs.

    Args:
        macs: share of the dense ones that may stay.
        per_weight: (tensor name, how often each of its weights is used).
    """

    macs: float
    per_weight: tuple[tuple[str, int], ...]

    def cost(self, site: Site, kept: Tensor) -> Tensor:
        """Multiplications.

        Raises:
            PlanError: a tensor of which it is not known how often its weights are used.
        """
        for name, times in self.per_weight:
            if name == site.spec.name:
                return kept * (self.structure.size(site.shape) * times)
        raise PlanError(
            f"macs: {site.spec.name}: found a layer that the example inputs do not run, expected skip= of it"
        )

    def limit(self, full: float) -> float:
        """A share of everything."""
        return full * self.macs


@final
@dataclass(frozen=True, kw_only=True)
class Milliseconds(Budget):
    """Measured time of the layers, added up."""

    ms: float
    table: LatencyTable

    def cost(self, site: Site, kept: Tensor) -> Tensor:
        """Milliseconds."""
        density = kept.double() * self.structure.size(site.shape) / max(1, self.structure.total(site.shape))
        share = prod(site.shape) / max(1, site.spec.elements)  # a gate is a part of the tensor that was measured
        return self.table.ms(site.spec.name, density) * share

    def limit(self, full: float) -> float:
        """Never more than everything."""
        return min(full, self.ms)
