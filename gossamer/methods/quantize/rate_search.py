"""Levels for a tensor at a given price of a bit: the step of a uniform grid is searched, centroids start from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from gossamer.methods.quantize.groups import Groups
from gossamer.methods.quantize.rate_levels import Levels, code_lengths, settled

__all__ = ["LARGEST", "SAMPLE", "Found", "Weighed", "completed", "search"]

SAMPLE = 1 << 14  # values that steps are searched with
LARGEST = 127  # steps of a grid on either side of 0
# The step in units of √(λ / weight): 2.94 is best where bits are many, larger ones where they are few.
_START = 2.94
_FARTHEST = 3.0  # octaves from there
_COARSE = 1 << 12  # values of a sample that is not worth a finer search
Power = tuple[float, float]
_WHOLE: Power = (0.0, 0.0)
_BY_SIZE: tuple[Power, ...] = (_WHOLE, (0.5, 0.0), (1.0, 0.0))
_BY_COST: tuple[Power, ...] = ((0.0, 1.0), (0.0, 0.5), (0.5, 0.5))  # where many bits are, (0, 1) is best
_ALIKE = 1.02  # ratio of eases below which groups matter alike
_ROUNDS = 12


@final
@dataclass(frozen=True)
class Weighed:
    """The live values of a tensor with what their errors cost.

    Args:
        values: float64 [live].
        weight: float64 [1] or [live]: what an error of one costs, above 0.
        size: float64 [1] or [live]: root mean square of each value's group over that of all, above 0.
        ease: float64 [1] or [live]: (mean weight of all / that of each value's group)^½.
    """

    values: Tensor
    weight: Tensor
    size: Tensor
    ease: Tensor

    @classmethod
    def alone(cls, values: Tensor, weight: Tensor) -> Weighed:
        """Of one group."""
        one = torch.ones(1, dtype=torch.float64)
        return cls(values, weight, one, one)

    @classmethod
    def of(cls, values: Tensor, weight: Tensor, groups: Groups) -> Weighed:
        """With what the groups differ in."""
        size = ease = torch.ones(1, dtype=torch.float64)
        if groups.count > 1 and len(values):
            many = groups.sizes().clamp_min(1)
            size = _beside(groups.total(values.square()) / many, values.square().mean(), groups)
            if weight.numel() > 1:
                ease = _beside(groups.total(weight) / many, weight.mean(), groups).reciprocal()
                if float(ease.max()) < _ALIKE * float(ease.min()):
                    ease = torch.ones(1, dtype=torch.float64)
        return cls(values, weight, size, ease)

    def sample(self, most: int) -> Weighed:
        """Evenly spaced values, as many as that."""
        if len(self.values) <= most:
            return self
        picked = torch.linspace(0, len(self.values) - 1, most, dtype=torch.float64).long()
        weight, size, ease = (t if t.numel() == 1 else t[picked] for t in (self.weight, self.size, self.ease))
        return Weighed(self.values[picked], weight, size, ease)

    def scales(self, power: Power) -> Tensor:
        """size^a · ease^b, float64 [1] or [live]."""
        return self.size ** power[0] * self.ease ** power[1]

    def scaled(self, step: float, power: Power) -> tuple[Tensor, Tensor, Tensor]:
        """Values in units of their scales step · size^a · ease^b, the weights there, and the scales."""
        scale = step * self.scales(power)
        return self.values / scale, self.weight * scale.square(), scale


def _beside(squares: Tensor, mean: Tensor, groups: Groups) -> Tensor:
    """Root of each group's share of the mean, for each value; 1 where there is no mean."""
    if not float(mean) > 0:
        return torch.ones(1, dtype=torch.float64)
    return groups.spread((squares / mean).sqrt().clamp(1e-3, 1e3).double())


@final
@dataclass(frozen=True)
class Found:
    """What the search brought.

    Args:
        step: of the grid, or the unit of the centroids.
        power: of the groups' sizes and eases in their scales.
        levels: in units of the scales; bits of levels that the sample does not show are finite.
        bits: of a symbol, on the mean of the sample.
        total: objective of the sample.
    """

    step: float
    power: Power
    levels: Levels
    bits: float
    total: float


def search(
    weighed: Weighed, rate: float, steps_for: float, *, grouped: bool, free: int = 0, most: int = SAMPLE
) -> Found:
    """The step with the smallest Σ weight · error² + λ · bits on a sample.

    Args:
        weighed: the tensor.
        rate: λ, above 0.
        steps_for: the λ for which the step is searched; it is then scaled by the root of what λ really is to this one.
            What follows moves steadily with λ, where the best of a few steps jumps.
        grouped: whether groups may have different scales.
        free: centroids wanted instead of a grid, at most; 0: a grid.
        most: values of the sample.

    Cost: some hundred passes over the sample.
    """
    sample = weighed.sample(most)
    best: Found | None = None
    for power in _powers(weighed, grouped, few=most <= _COARSE):
        unit = (sample.weight * sample.scales(power).square()).mean().clamp_min(1e-300)
        start = _START * float((steps_for / unit).sqrt())
        found = _climbed(sample, steps_for, start, _least(weighed, power), power, finer=most > _COARSE)
        if found is not None and (best is None or found.total < best.total):
            best = found
    if best is None:  # nothing but zeros
        best = Found(1.0, _WHOLE, Levels(torch.zeros(1).double(), torch.zeros(1).double()), 0.0, 0.0)
    elif rate != steps_for:
        step = max(best.step * (rate / steps_for) ** 0.5, _least(weighed, best.power))
        best = _settled(sample, rate, step, best.power)
    if free:
        return _freed(sample, rate, best, free)
    return replace(best, levels=completed(best.levels, weighed.scaled(best.step, best.power)[0]))


def _powers(weighed: Weighed, grouped: bool, *, few: bool) -> tuple[Power, ...]:
    """Those that are tried."""
    if not grouped:
        return (_WHOLE,)
    known = weighed.ease.numel() > 1
    if few:
        return _BY_COST[:1] if known else _BY_SIZE[1:2]
    return _BY_SIZE + _BY_COST if known else _BY_SIZE


def _least(weighed: Weighed, power: Power) -> float:
    """The least step with which every value has a level, of all values, not of the sample."""
    if not len(weighed.values):
        return 0.0
    return float((weighed.values / weighed.scales(power)).abs().max()) / LARGEST


def _climbed(sample: Weighed, rate: float, start: float, least: float, power: Power, *, finer: bool) -> Found | None:
    """The best step near ``start``: on and on by half an octave while that helps, then by less and less."""
    tried: dict[float, Found] = {}

    def at(octaves: float) -> Found:
        step = max(start * 2**octaves, least)
        if step not in tried:
            tried[step] = _settled(sample, rate, step, power)
        return tried[step]

    if max(start, least) <= 0:
        return None
    here = 0.0
    for width in (0.5, 0.25, 0.125, 0.0625) if finer else (0.5, 0.25):
        for way in (-width, width):
            while abs(here + way) <= _FARTHEST and at(here + way).total < at(here).total:
                here += way
    return at(here)


def _grid(values: Tensor) -> Levels:
    """All levels that values reach, with bits as rounding to the nearest says."""
    reach = int(values.abs().max().round()) if len(values) else 0
    points = torch.arange(-reach, reach + 1, dtype=torch.float64)
    nearest = values.round().long() + reach
    return Levels(points, code_lengths(torch.bincount(nearest, minlength=len(points)), 0.5))


def _settled(sample: Weighed, rate: float, step: float, power: Power) -> Found:
    values, weight, _ = sample.scaled(step, power)
    levels, index, total = settled(values, weight, rate, _grid(values), free=False, most=_ROUNDS)
    return Found(step, power, levels, levels.bits(index) / max(1, len(values)), total)


def completed(levels: Levels, values: Tensor) -> Levels:
    """With levels for all values, float64 [live] in units of their scales, rare ones too."""
    reach = int(values.abs().max().round()) if len(values) else 0
    reach = max(min(reach, LARGEST), int(levels.points.abs().max()))
    points = torch.arange(-reach, reach + 1, dtype=torch.float64)
    shares = torch.zeros(len(points), dtype=torch.float64)
    shares[(levels.points.long() + reach)] = torch.exp2(-levels.lengths)
    # as many symbols as the sample had, half a one for each that it did not show
    seen = min(len(values), SAMPLE)
    return Levels(points, code_lengths(shares * max(1, seen), 0.5))


def _freed(sample: Weighed, rate: float, found: Found, most: int) -> Found:
    """Centroids that start from the grid's levels, those that are taken most."""
    values, weight, _ = sample.scaled(found.step, found.power)
    lengths = found.levels.lengths.clone()
    lengths[found.levels.points == 0] = 0.0  # zero always stays
    taken = lengths.argsort(stable=True)[:most]
    taken = taken[torch.isfinite(lengths[taken])].sort().values
    start = Levels(found.levels.points[taken], found.levels.lengths[taken].clamp_max(64.0))
    levels, index, total = settled(values, weight, rate, start, free=True, most=_ROUNDS)
    return Found(found.step, found.power, levels, levels.bits(index) / max(1, len(values)), total)
