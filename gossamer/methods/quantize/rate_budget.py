"""One price of a bit for all tensors, such that the file has the size that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any, final

import numpy as np

from gossamer.errors import PlanError
from gossamer.methods.base import FileFrame

__all__ = ["Curve", "Trial", "best_trial", "close_enough", "next_trial", "starting_rate", "trials_of", "wanted_bytes"]

_CLOSE = 0.003
_TRIALS = 6
_NEAR = 0.08
_SLOPE = -0.5  # of log size over log price, roughly
_RATIO = re.compile(r"(\d+(?:\.\d+)?)x")


def wanted_bytes(name: str, target: str | int, frame: FileFrame) -> float:
    """Bytes of the file that a target means.

    Raises:
        PlanError: a target that is neither a ratio above 1 nor a positive number of bytes.

    Example:
        >>> wanted_bytes("", "8x", FileFrame(8000, 300, 4096, 90))
        1000.0
    """
    if isinstance(target, str):
        found = _RATIO.fullmatch(target)
        if found is None or not float(found.group(1)) > 1:
            raise PlanError(f"{name}: target: found {target!r}, expected a ratio above 1 like '8x', or bytes")
        return frame.dense_bytes / float(found.group(1))
    if isinstance(target, bool) or target < 1:
        raise PlanError(f"{name}: target: found {target!r}, expected a positive number of bytes, or a ratio like '8x'")
    return float(target)


@final
@dataclass(frozen=True)
class Curve:
    """Bytes of one tensor at a few prices.

    Args:
        rates: ascending, ≥ 1 of them.
        sizes: bytes at each.
    """

    rates: Sequence[float]
    sizes: Sequence[float]

    def at(self, rate: float) -> float:
        """Bytes at any price: straight between two on logarithmic scales, level beyond the ends."""
        ends = np.log(np.maximum(self.sizes, 1e-3))
        return float(np.exp(np.interp(log(rate), np.log(self.rates), ends)))


def starting_rate(name: str, curves: Mapping[str, Curve], wanted: float, frame: FileFrame) -> float:
    """The price at which the curves add up to the size wanted; the lowest where even that stays below it.

    Raises:
        PlanError: more bytes than wanted at the highest price.
    """

    def total(rate: float) -> float:
        return frame.total([c.at(rate) for c in curves.values()])

    low, high = min(c.rates[0] for c in curves.values()), max(c.rates[-1] for c in curves.values())
    if total(high) > wanted:
        raise PlanError(
            f"{name}: found a target of {wanted:,.0f} bytes, expected at least {total(high):,.0f}: tensors that it "
            f"does not touch, trees and headers take {frame.fixed_bytes:,}"
        )
    if total(low) <= wanted:
        return low
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if total(middle) <= wanted else (middle, high)
    return high


@final
@dataclass(frozen=True)
class Trial:
    """A price that was tried.

    Args:
        rate: of a bit, by which levels were chosen.
        steps: price that the steps of the grids were searched for. While both move, sizes jump from step to step; near
            the size wanted the steps stay.
        size: bytes of the file, as coded.
    """

    rate: float
    steps: float
    size: float


def close_enough(trials: Sequence[Trial], wanted: float) -> bool:
    """Whether the last trial is within 0.3%, or there were enough of them."""
    return abs(trials[-1].size / wanted - 1) <= _CLOSE or len(trials) >= _TRIALS


def best_trial(trials: Sequence[Trial], wanted: float) -> Trial:
    """The nearest one, those within the size first if they are within 1% too."""

    def far(trial: Trial) -> tuple[bool, float]:
        off = trial.size / wanted - 1
        return not -0.01 <= off <= 0, abs(off)

    return min(trials, key=far)


def next_trial(trials: Sequence[Trial], wanted: float) -> tuple[float, float]:
    """The prices to try next, of bits and for the steps.

    Between neighbouring prices on either side of the size, else beyond the last one along a power law: never a trial
    again, though few weights have few sizes, which need not fall with every price.

    Args:
        trials: so far, at least one.
        wanted: bytes.
    """

    def far(trial: Trial) -> float:
        return abs(log(trial.size / wanted))

    nearest = min(trials, key=far)
    steps = nearest.steps if abs(nearest.size / wanted - 1) <= _NEAR else None
    known = sorted((t for t in trials if steps is None or t.steps == steps), key=lambda t: t.rate)
    around = [(a, b) for a, b in pairwise(known) if a.size > wanted >= b.size and a.rate < b.rate]
    if around:
        above, below = min(around, key=lambda pair: min(map(far, pair)))
        share = log(above.size / wanted) / log(above.size / below.size)
        rate = exp(log(above.rate) + min(0.9, max(0.1, share)) * log(below.rate / above.rate))
    else:
        last, *others = known[:-3:-1] if known[-1].size > wanted else known[:2]
        slope = log(last.size / others[0].size) / log(last.rate / others[0].rate) if others else _SLOPE
        rate = last.rate * exp(min(1.5, max(-1.5, log(wanted / last.size) / min(slope, -0.1))))
    return rate, rate if steps is None else steps


def trials_of(state: Mapping[str, Any]) -> list[Trial]:
    """What earlier rounds tried."""
    return [Trial(float(r), float(t), float(s)) for r, t, s in state["tried"]]
