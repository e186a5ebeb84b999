"""When the topology changes, what share of the live weights is exchanged, and how many live afterwards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from gossamer.errors import PlanError

__all__ = ["Constant", "Cosine", "Cubic", "Developmental", "Linear", "Never", "Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Steps count from 1: step s is over when the optimiser has made its s-th step.

    Args:
        every: steps from one update to the next, ≥ 1 (ΔT).
        end: last step after which an update may come, ≥ 1.
    """

    every: int
    end: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.every < 1 or self.end < 1:
            raise PlanError(f"{name}: found every {self.every}, end {self.end}, expected at least 1")

    def due(self, step: int) -> bool:
        """Whether an update follows this step."""
        return 0 < step <= self.end and step % self.every == 0

    @abstractmethod
    def exchanged(self, step: int) -> float:
        """Share of the live weights that the update after this step drops and grows anew, 0 to 1."""

    def density(self, step: int, final: float) -> float:
        """Density from the update after this step on; here always the final one.

        Args:
            step: 0 (before training) or one after which an update is due.
            final: density that the method was asked for.
        """
        del step
        return final

    @property
    def constant_density(self) -> bool:
        """Whether the density is the final one from the start."""
        return True


@final
@dataclass(frozen=True, kw_only=True)
class Never(Schedule):
    """The topology stays as it is."""

    every: int = 1
    end: int = 1

    def due(self, step: int) -> bool:
        """No."""
        del step
        return False

    def exchanged(self, step: int) -> float:
        """Nothing."""
        del step
        return 0.0


@dataclass(frozen=True, kw_only=True)
class _Exchange(Schedule):
    """Drop and grow the same number at every update.

    Args:
        fraction: share of the live weights at the first update, 0 to 1 (α).
    """

    fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise PlanError(f"{type(self).__name__}: found fraction {self.fraction}, expected above 0, at most 1")
        if self.every > self.end:
            raise PlanError(
                f"{type(self).__name__}: found every {self.every}, end {self.end}, expected an update before the end"
            )

    def due(self, step: int) -> bool:
        """Not where a decay has come to its end."""
        return super().due(step) and self.exchanged(step) > 0


@final
@dataclass(frozen=True, kw_only=True)
class Constant(_Exchange):
    """Always the same share.

    Example:
        >>> Constant(every=100, end=1000, fraction=0.3).exchanged(500)
        0.3

    Source: Mocanu et al. 2018, arXiv 1707.04780 (ζ).
    """

    def exchanged(self, step: int) -> float:
        """``fraction``."""
        del step
        return self.fraction


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(_Exchange):
    """fraction / 2 · (1 + cos(π · step / end)).

    Example:
        >>> round(Cosine(every=100, end=1000, fraction=0.3).exchanged(500), 6)
        0.15

    Source: Evci et al. 2020, arXiv 1911.11134, section 3 (2).
    """

    def exchanged(self, step: int) -> float:
        """As above."""
        return self.fraction / 2 * (1 + math.cos(math.pi * min(1.0, step / self.end)))


@final
@dataclass(frozen=True, kw_only=True)
class Linear(_Exchange):
    """fraction · (1 − step / end).

    Example:
        >>> round(Linear(every=100, end=1000, fraction=0.3).exchanged(900), 6)
        0.03

    Source: Dettmers and Zettlemoyer 2019, arXiv 1907.04840, section 3.1 (cosine and linear decay did equally well).
    """

    def exchanged(self, step: int) -> float:
        """As above."""
        return self.fraction * max(0.0, 1 - step / self.end)


@final
@dataclass(frozen=True, kw_only=True)
class Cubic(Schedule):
    """Density falls from ``start`` along a cubic ramp: final + (start − final) · (1 − progress)³; nothing grows.

    Args:
        begin: step from which on it falls, ≥ 0.
        start: density before, above 0, at most 1.

    Example:
        >>> round(Cubic(every=10, begin=0, end=100).density(50, 0.1), 6)
        0.2125

    Source: Zhu and Gupta 2017, arXiv 1710.01878, section 3 (1).
    """

    begin: int = 0
    start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.begin < self.end and 0 < self.start <= 1):
            raise PlanError(
                f"Cubic: found begin {self.begin}, end {self.end}, start {self.start}, "
                "expected 0 ≤ begin < end and a density above 0"
            )

    def due(self, step: int) -> bool:
        """Counted from ``begin``; always at the end, so that the final density is reached."""
        if step == self.end:
            return True
        return self.begin < step < self.end and (step - self.begin) % self.every == 0

    def exchanged(self, step: int) -> float:
        """Nothing."""
        del step
        return 0.0

    def density(self, step: int, final: float) -> float:
        """As above."""
        progress = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return final if progress == 1.0 else final + (self.start - final) * (1 - progress) ** 3

    @property
    def constant_density(self) -> bool:
        """No."""
        return False


@final
@dataclass(frozen=True, kw_only=True)
class Developmental(Schedule):
    """Sparse start, densification to a peak, heavy pruning, then a stable density under continuous rewiring.

    Density is linear from ``start`` · final to ``peak`` · final until ``dense_at`` (growth alone), falls cubically to
    the final density until ``mature_at`` (pruning alone), and stays; from there on ``rewired`` of the connections are
    exchanged at every update.

    Args:
        start: density at birth relative to the final one, above 0.
        peak: largest density relative to the final one, ≥ 1; no layer goes above 1.
        dense_at: step at which the peak is reached.
        mature_at: step at which the final density is reached.
        rewired: share of the connections exchanged per update afterwards, 0 to 0.4.

    Example:
        >>> life = Developmental(every=10, end=1000, start=0.5, peak=4.0, dense_at=200, mature_at=600)
        >>> [round(life.density(s, 0.1), 3) for s in (0, 200, 600, 900)]
        [0.05, 0.4, 0.1, 0.1]

    Source: Hoefler et al. 2021, arXiv 2102.00554, section 1.1.1 (the brain's development).
    """

    start: float = 0.5
    peak: float = 3.0
    dense_at: int
    mature_at: int
    rewired: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = 0 < self.dense_at < self.mature_at <= self.end
        if not (ordered and self.start > 0 and self.peak >= max(1.0, self.start) and 0 <= self.rewired <= 0.4):
            raise PlanError(
                f"Developmental: found start {self.start}, peak {self.peak}, dense_at {self.dense_at}, mature_at "
                f"{self.mature_at}, end {self.end}, rewired {self.rewired}, expected 0 < start ≤ peak, peak ≥ 1, "
                "0 < dense_at < mature_at ≤ end, rewired of 0 to 0.4"
            )

    def due(self, step: int) -> bool:
        """Also exactly at the turns."""
        return super().due(step) or step in (self.dense_at, self.mature_at)

    def exchanged(self, step: int) -> float:
        """Nothing until maturity."""
        return self.rewired if step > self.mature_at else 0.0

    def density(self, step: int, final: float) -> float:
        """As above."""
        start, peak = min(1.0, self.start * final), min(1.0, self.peak * final)
        if step <= self.dense_at:
            return start + (peak - start) * max(0, step) / self.dense_at
        left = max(0.0, (self.mature_at - step) / (self.mature_at - self.dense_at))
        return final + (peak - final) * left**3

    @property
    def constant_density(self) -> bool:
        """No."""
        return False


def densities(schedule: Schedule, final: float, steps: int) -> list[tuple[int, float]]:
    """Stretches of steps with one density: (number of steps, density), together ``steps``."""
    at = [0, *(s for s in range(1, steps) if schedule.due(s)), steps]
    return [(b - a, schedule.density(a, final)) for a, b in pairwise(at)]
