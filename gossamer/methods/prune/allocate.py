"""How a budget is divided among layers when not by one threshold: evenly, by Erdős–Rényi, by measured sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import final

import torch

from gossamer.errors import PlanError
from gossamer.methods.base import Site, check_fraction
from gossamer.methods.prune.budget import Budget
from gossamer.methods.prune.latency import Curve, check_curve

__all__ = ["PerTensor", "Sensitivity", "erdos_renyi", "fill", "proportional"]


@final
@dataclass(frozen=True)
class Sensitivity:
    """How much the loss rises with each tensor's sparsity; `gossamer.sensitivity.sensitivity` measures it.

    Args:
        curves: (tensor name, ((sparsity, loss increase), …)), sparsities rising within 0 to 1.

    Example:
        >>> Sensitivity((("fc.weight", ((0.5, 0.1), (0.9, 0.7))),)).curves[0][0]
        'fc.weight'
    """

    curves: tuple[tuple[str, Curve], ...]

    def __post_init__(self) -> None:
        for name, points in self.curves:
            check_curve(f"Sensitivity: {name}", points)

    def curve(self, name: str) -> Curve:
        """The curve of one tensor, from sparsity 0 with no loss.

        Raises:
            PlanError: a tensor that was not measured.
        """
        for tensor, points in self.curves:
            if tensor == name:
                return points if points[0][0] == 0.0 else ((0.0, 0.0), *points)
        known = ", ".join(n for n, _ in self.curves[:4])
        raise PlanError(f"Sensitivity: found no curve of {name!r}, expected one like those of {known}")

    def targets(self, sites: Sequence[Site], budget: Budget) -> dict[str, float]:
        """Units to keep of each site, fractional: the least total loss (of the curves' lower convex hulls) in budget.

        Every hull is a chain of segments that trade loss for cost; the cheapest per cost are taken first, the last
        one in part. For convex curves and linear costs this is the optimum.

        Raises:
            PlanError: the budget asks for more than was measured.
        """
        hulls = {s.key: _hull(self._traded(s, budget)) for s in sites}
        left = sum(hull[0][0] for hull in hulls.values()) - budget.allowed(sites)
        segments = [
            ((b[1] - a[1]) / (a[0] - b[0]), i, order, key)
            for order, (key, hull) in enumerate(hulls.items())
            for i, (a, b) in enumerate(pairwise(hull))
        ]
        sparsity = {key: hull[0][2] for key, hull in hulls.items()}
        for _, i, _, key in sorted(segments):
            if left <= 0:
                break
            a, b = hulls[key][i], hulls[key][i + 1]
            share = min(1.0, left / (a[0] - b[0]))
            sparsity[key] = a[2] + share * (b[2] - a[2])
            left -= share * (a[0] - b[0])
        if left > 1e-6 * max(1.0, abs(budget.allowed(sites))):
            reached = max(points[-1][0] for _, points in self.curves)
            raise PlanError(
                f"Sensitivity: found curves up to sparsity {reached:g}, expected some that reach the budget"
            )
        return {s.key: _units(s, budget, 1 - sparsity[s.key]) for s in sites}

    def _traded(self, site: Site, budget: Budget) -> list[tuple[float, float, float]]:
        """(cost, loss, sparsity) along the curve, cost falling."""
        points = []
        share = prod(site.shape) / max(1, site.spec.elements)  # a gate is a part of the tensor that was measured
        for sparsity, loss in self.curve(site.spec.name):
            kept = torch.tensor(_units(site, budget, 1 - sparsity), dtype=torch.float64)
            points.append((budget.cost(site, kept).item(), loss * share, sparsity))
        return points


@final
@dataclass(frozen=True)
class PerTensor:
    """The sparsity of each tensor, decided beforehand, so that blocks can be pruned one after the other.

    `gossamer.drive.allocate` makes one: a threshold over the whole network at once.

    Args:
        sparsities: (name of a tensor, or of one of its gates such as "lstm.weight_ih_l0#/members.0", fraction of its
            weights that become zero).

    Example:
        >>> PerTensor((("fc.weight", 0.5),)).scaled(0.5).sparsities
        (('fc.weight', 0.25),)
    """

    sparsities: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        for name, sparsity in self.sparsities:
            check_fraction(f"PerTensor: {name}", sparsity)

    def of(self, site: Site) -> float:
        """The sparsity of one site, by its own name or that of its tensor.

        Raises:
            PlanError: a tensor that is not listed.
        """
        known = dict(self.sparsities)
        for name in (site.key, site.spec.name):
            if name in known:
                return known[name]
        some = ", ".join(n for n, _ in self.sparsities[:4])
        raise PlanError(f"PerTensor: found no sparsity of {site.key!r}, expected one like those of {some}")

    def scaled(self, share: float) -> PerTensor:
        """All sparsities times a factor."""
        return PerTensor(tuple((name, sparsity * share) for name, sparsity in self.sparsities))


def _hull(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Lower convex hull over falling cost: loss per saved cost never falls along it."""
    hull: list[tuple[float, float, float]] = []
    for point in points:
        if hull and point[0] >= hull[-1][0]:  # saves nothing
            continue
        while len(hull) >= 2:
            (c0, l0, _), (c1, l1, _) = hull[-2], hull[-1]
            if (l1 - l0) * (c0 - point[0]) < (point[1] - l0) * (c0 - c1):
                break
            hull.pop()
        hull.append(point)
    return hull


def erdos_renyi(shape: tuple[int, ...], *, kernel: bool) -> float:
    """Relative density of a layer: (n_in + n_out [+ kh + kw]) / (n_in · n_out [· kh · kw]).

    Args:
        shape: [out, in, *kernel]; without an input dimension n_in = 1.
        kernel: whether the kernel's sizes count (ERK).

    Source: Mocanu et al. 2018, arXiv 1707.04780 (ER); Evci et al. 2020, arXiv 1911.11134, section 3 (ERK).

    Example:
        >>> erdos_renyi((300, 100), kernel=True)
        0.013333333333333334
    """
    sizes = shape if kernel else shape[:2]
    sizes = sizes if len(sizes) > 1 else (*sizes, 1)
    return sum(sizes) / max(1, prod(sizes))


def proportional(sites: Sequence[Site], ratios: Mapping[str, float], budget: Budget) -> dict[str, float]:
    """Units to keep of each site, fractional: density min(1, t · ratio), at the largest t within the budget."""
    allowed = budget.allowed(sites)

    def units(t: float) -> dict[str, float]:
        return {s.key: _units(s, budget, min(1.0, t * ratios[s.key])) for s in sites}

    def cost(t: float) -> float:
        kept = units(t)
        return sum(budget.cost(s, torch.tensor(kept[s.key], dtype=torch.float64)).item() for s in sites)

    low, high = 0.0, 1.0 / min(ratios.values())
    if cost(high) <= allowed:
        return units(high)
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle)
    return units(low)


def fill(sites: Sequence[Site], targets: Mapping[str, float], budget: Budget) -> dict[str, int]:
    """Whole units near fractional targets: rounded down, then one more each, largest remainders first, while it fits.

    Single weights under a sparsity meet the total exactly.
    """
    # Targets come out of a bisection: a hair below a whole number is that number.
    keep = {s.key: int(targets[s.key] + 1e-6) for s in sites}

    def cost(site: Site, units: int) -> float:
        return budget.cost(site, torch.tensor(units)).item()

    left = budget.allowed(sites) - sum(cost(s, keep[s.key]) for s in sites)
    order = sorted(range(len(sites)), key=lambda i: (keep[sites[i].key] - targets[sites[i].key], i))
    for site in [sites[i] for i in order] if left > 0 else []:
        more = cost(site, keep[site.key] + 1) - cost(site, keep[site.key])
        if keep[site.key] < budget.structure.units(site.shape) and more <= left:
            keep[site.key] += 1
            left -= more
    return keep


def _units(site: Site, budget: Budget, density: float) -> float:
    structure = budget.structure
    wanted = density * structure.total(site.shape) / structure.size(site.shape)
    return min(float(structure.units(site.shape)), wanted)


def most(fits: Callable[[int], bool], limit: int) -> int:
    """Largest n ≤ limit that fits, where all smaller ones do; 0 fits."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
