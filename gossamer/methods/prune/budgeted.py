"""Pruning to a budget: how much stays in all, and how that is divided among layers."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.errors import PlanError
from gossamer.methods.base import DERIVED, Ask, Evidence, Method, Plan, Site, Step, Summary, check_fraction
from gossamer.methods.prune.allocate import PerTensor, Sensitivity, erdos_renyi, fill, most, proportional
from gossamer.methods.prune.budget import Budget, Bytes, Elements, Macs, Milliseconds
from gossamer.methods.prune.latency import LatencyTable
from gossamer.methods.prune.ranking import BINS, Pieces, fine, histogram, narrow, tail, wide
from gossamer.methods.prune.scored import Scored
from gossamer.methods.prune.structure import NofM
from gossamer.methods.prune.usage import uses_of

__all__ = ["Budgeted", "Scope"]

Scope = Literal["uniform", "global", "lamp", "er", "erk"] | Sensitivity | PerTensor

_FORMULAS = ("uniform", "global", "lamp", "er", "erk")
_BUDGETS = ("sparsity", "budget_bytes", "macs", "ms")


@dataclass(frozen=True, kw_only=True)
class Budgeted(Scored, ABC):
    """Keep the units of highest score, as many as a budget allows.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1.
        budget_bytes: instead: bytes of all kept values and their positions before entropy coding.
        macs: instead: share of the layers' multiplications that stays, 0 to 1; needs example inputs (`bind`).
        ms: instead: milliseconds of the layers together, by ``latency``.
        latency: measured times, for ``ms``.
        scope: how the budget is divided: "uniform" (one density), "global" (one threshold over all tensors), "lamp"
            (one threshold over s² / Σ s'², the sum over the units of the same tensor with s' ≥ s: a tensor's last units
            are worth the most, which spares small tensors), "er" and "erk" (densities by `erdos_renyi`, those above 1
            capped and the rest raised), a `Sensitivity`, or a `PerTensor`, which says all and takes no budget.
        structure: what lives or dies together. `NofM` takes no budget, `KernelPattern` may do without.
    """

    signed: ClassVar[bool] = False  # whether scores may be negative

    sparsity: float | None = None
    budget_bytes: int | None = None
    macs: float | None = None
    ms: float | None = None
    latency: LatencyTable | None = None
    scope: Scope = "uniform"
    ramped: float = field(default=1.0, metadata=DERIVED)
    weight_uses: tuple[tuple[str, int], ...] | None = field(default=None, metadata=DERIVED)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        given = [b for b in _BUDGETS if getattr(self, b) is not None]
        if not (isinstance(self.scope, (Sensitivity, PerTensor)) or self.scope in _FORMULAS):
            raise PlanError(
                f"{name}: scope: found {self.scope!r}, expected one of {_FORMULAS}, a Sensitivity or a PerTensor"
            )
        if isinstance(self.scope, PerTensor):
            if given or isinstance(self.structure, NofM):
                raise PlanError(f"{name}: found {given or self.structure} beside PerTensor, which says all itself")
        elif self.structure.complete and not given:
            if self.scope != "uniform":
                raise PlanError(f"{name}: found a scope beside {self.structure}, which fixes every layer itself")
        elif isinstance(self.structure, NofM):
            raise PlanError(f"{name}: found {given[0]} or a global scope beside NofM, which fixes both itself")
        elif len(given) != 1:
            raise PlanError(f"{name}: found {given or 'no sparsity'}, expected one of {', '.join(_BUDGETS)}")
        for fraction in ("sparsity", "macs"):
            if getattr(self, fraction) is not None:
                check_fraction(f"{name}: {fraction}", getattr(self, fraction))
        for positive in ("budget_bytes", "ms"):
            if getattr(self, positive) is not None and not getattr(self, positive) > 0:
                raise PlanError(f"{name}: {positive}: found {getattr(self, positive)}, expected a positive number")
        if (self.ms is None) != (self.latency is None):
            raise PlanError(f"{name}: found only one of ms and latency, expected both or none")
        if self.scope == "lamp" and self.signed:
            raise PlanError(f"{name}: scope: found 'lamp', whose squares need scores that are not negative")

    @property
    def runs_network(self) -> bool:
        """To count uses of weights, for ``macs``."""
        return self.macs is not None and self.weight_uses is None

    def bind(self, model: nn.Module, example: Tensor | None) -> Method:
        """Count how often the network uses each weight, for ``macs``."""
        if self.macs is None or self.weight_uses is not None or example is None:
            return self
        return dataclasses.replace(self, weight_uses=uses_of(model, example))

    def at(self, progress: float) -> Method:
        """Cubic ramp from everything to the budget: sparsity · (1 − (1 − progress)³), and the others alike."""
        share = 1 - (1 - progress) ** 3
        if progress == 0.0 and self.structure.complete and self.needs:
            raise PlanError(
                f"{type(self).__name__}: found {self.structure} in a schedule that has no scores at its start, "
                "expected a structure that can start from everything, such as Unstructured()"
            )
        if self.sparsity is not None:
            return dataclasses.replace(self, sparsity=self.sparsity * share)
        if isinstance(self.scope, PerTensor):
            return dataclasses.replace(self, scope=self.scope.scaled(share))
        if any(getattr(self, b) is not None for b in _BUDGETS):
            return dataclasses.replace(self, ramped=share)
        return super().at(progress)

    @property
    def observes(self) -> bool:
        """A threshold over all tensors needs to look first."""
        return self.scope in ("global", "lamp")

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Histogram of the scores' upper 16 bits; in the second round of the lower 16 bits of one bin."""
        if self.scope == "lamp":
            pieces = Pieces.of(_lamp(self.unit_scores(site, weight, evidence)))
        else:
            pieces = self.ranks(site, weight, evidence)
        if ask is None:
            return {"histogram": narrow(histogram(pieces))}
        above, counts = fine(pieces, int(ask.state["bin"]))
        return {"above": above, "histogram": narrow(counts)}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """How many units each site keeps."""
        if isinstance(self.scope, PerTensor):
            return _plan(sites, {s.key: self._share(s, self.scope.of(s)) for s in sites})
        budget = self._budget()
        if budget is None:
            return _plan(sites, {s.key: self.structure.units(s.shape) for s in sites})
        if self.scope in ("global", "lamp"):
            return _coarse(sites, summaries, budget) if ask is None else _threshold(sites, summaries, budget, ask)
        if self.scope == "uniform" and self.sparsity is not None:  # every tensor on its own
            return _plan(sites, {s.key: self._share(s, self.sparsity) for s in sites})
        if isinstance(self.scope, Sensitivity):
            targets = self.scope.targets(sites, budget)
        elif self.scope == "uniform":
            targets = proportional(sites, {s.key: 1.0 for s in sites}, budget)
        else:
            ratios = {s.key: erdos_renyi(s.shape, kernel=self.scope == "erk") for s in sites}
            targets = proportional(sites, ratios, budget)
        return _plan(sites, fill(sites, targets, budget))

    def _share(self, site: Site, sparsity: float) -> int:
        units, size = self.structure.units(site.shape), self.structure.size(site.shape)
        total = self.structure.total(site.shape)
        if total == units * size:
            return units - round(units * sparsity)
        return min(units, (total - round(total * sparsity)) // size)

    def _budget(self) -> Budget | None:
        if self.sparsity is not None:
            return Elements(structure=self.structure, sparsity=self.sparsity)
        if self.budget_bytes is not None:
            return Bytes(structure=self.structure, ramped=self.ramped, budget_bytes=self.budget_bytes)
        if self.macs is not None:
            if self.weight_uses is None:
                raise PlanError(f"{type(self).__name__}: macs: found no example inputs, expected data=…")
            return Macs(structure=self.structure, ramped=self.ramped, macs=self.macs, per_weight=self.weight_uses)
        if self.ms is not None and self.latency is not None:
            return Milliseconds(structure=self.structure, ramped=self.ramped, ms=self.ms, table=self.latency)
        return None


def _plan(sites: Sequence[Site], keep: Mapping[str, int]) -> Plan:
    return Plan(tuple(Step((s.key,), {"keep": keep[s.key]}) for s in sites))


def _coarse(sites: Sequence[Site], summaries: Mapping[str, Summary], budget: Budget) -> Ask:
    """In which bin of the upper 16 bits the threshold lies."""
    wanted = budget.allowed(sites)
    spent = sum(budget.cost(s, tail(wide(summaries[s.key]["histogram"]))) for s in sites)
    assert isinstance(spent, Tensor)
    chosen = max(0, int((spent >= wanted).sum()) - 1)
    return Ask({"bin": chosen, "wanted": min(wanted, spent[0].item())})


def _threshold(sites: Sequence[Site], summaries: Mapping[str, Summary], budget: Budget, ask: Ask) -> Plan:
    """Above the smallest score that is kept at all everything stays, at it as many as are left."""
    wanted = ask.state["wanted"]

    def kept_from(site: Site) -> Tensor:
        counts = torch.zeros(BINS + 1, dtype=torch.int64)
        counts[:-1] = tail(wide(summaries[site.key]["histogram"]))
        return counts + int(summaries[site.key]["above"])

    spent = sum(budget.cost(s, kept_from(s)) for s in sites)  # one after the other: they are 512 KB each
    assert isinstance(spent, Tensor)
    smallest = min(max(0, int((spent >= wanted).sum()) - 1), BINS - 1)
    spare = wanted - spent[smallest + 1].item()
    keep = {}
    for site in sites:
        counts = kept_from(site)
        sure = int(counts[smallest + 1])

        ties = most(partial(_fits, budget, site, sure, spare), int(counts[smallest]) - sure)
        spare -= _extra(budget, site, sure, ties)
        keep[site.key] = sure + ties
    return _plan(sites, keep)


def _extra(budget: Budget, site: Site, sure: int, ties: int) -> float:
    both = budget.cost(site, torch.tensor([sure, sure + ties]))
    return (both[1] - both[0]).item()


def _fits(budget: Budget, site: Site, sure: int, spare: float, ties: int) -> bool:
    return _extra(budget, site, sure, ties) <= spare or ties == 0


def _lamp(scores: Tensor) -> Tensor:
    """s² / Σ s'² over units with s' ≥ s, float32; −∞ stays. Rises with s, so ranks within a tensor stay."""
    order = scores.argsort(descending=True, stable=True)
    squares = scores[order].clamp_min(0).double().square()
    shares = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    lamp = torch.empty_like(scores)
    lamp[order] = shares.float()
    return torch.where(scores.isinf(), -torch.inf, lamp)
