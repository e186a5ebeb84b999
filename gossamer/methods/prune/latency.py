"""Measured milliseconds of layers at several densities, so that a plan can meet a budget of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.errors import PlanError

__all__ = ["LatencyTable"]

Curve = tuple[tuple[float, float], ...]


def check_curve(where: str, points: Curve) -> None:
    """Refuse a curve that is not one.

    Raises:
        PlanError: fewer than two points, or abscissae that do not rise within 0 to 1.
    """
    at = [x for x, _ in points]
    if len(at) < 2 or sorted(set(at)) != at or at[0] < 0 or at[-1] > 1:
        raise PlanError(f"{where}: found points at {at[:8]}, expected at least two, rising within 0 to 1")


def interpolate(points: Curve, x: Tensor) -> Tensor:
    """Piecewise linear through the points, constant beyond the ends; float64, shape of ``x``."""
    xs = torch.tensor([p for p, _ in points], dtype=torch.float64)
    ys = torch.tensor([p for _, p in points], dtype=torch.float64)
    x = x.double().clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


@final
@dataclass(frozen=True)
class LatencyTable:
    """Time of each layer against its density, as measured; `gossamer.runtime.latency_table` makes one.

    Args:
        layers: (tensor name, ((density, milliseconds), …)), densities rising within 0 to 1.

    Example:
        >>> table = LatencyTable((("fc.weight", ((0.1, 1.0), (0.5, 3.0), (1.0, 2.0))),))
        >>> table.ms("fc.weight", torch.tensor([0.25, 0.5])).tolist()
        [1.375, 2.0]
    """

    layers: tuple[tuple[str, Curve], ...]

    def __post_init__(self) -> None:
        for name, points in self.layers:
            check_curve(f"LatencyTable: {name}", points)

    def ms(self, name: str, density: Tensor) -> Tensor:
        """Milliseconds, float64. A layer that a lower density would slow down runs as if it were denser.

        Raises:
            PlanError: a layer that was not measured.
        """
        for layer, points in self.layers:
            if layer == name:
                lowest, kept = float("inf"), []
                for at, ms in reversed(points):  # never slower at a lower density: zeros can be multiplied with
                    lowest = min(lowest, ms)
                    kept.append((at, lowest))
                return interpolate(tuple(reversed(kept)), density)
        known = ", ".join(n for n, _ in self.layers[:4])
        raise PlanError(f"LatencyTable: found no measurement of {name!r}, expected one like those of {known}")
