"""What moves values after every step, beside the optimiser: Deep Rewiring's walk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch

from gossamer.errors import PlanError
from gossamer.train.chance import normal
from gossamer.train.tracked import Tracked

__all__ = ["Drift"]


@final
@dataclass(frozen=True)
class Drift:
    """θ ← θ − η · l1 + √(2 · η · temperature) · ν for θ = |w| in the connection's own sign; ν standard normal.

    Args:
        l1: α, at least 0.
        temperature: T, at least 0.

    Source: Bellec et al. 2018, arXiv 1711.05136, algorithm 1, line 3.
    """

    l1: float = 1e-5
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.l1 < 0 or self.temperature < 0:
            raise PlanError(f"Drift: found l1 {self.l1}, temperature {self.temperature}, expected at least 0")

    def apply(self, layer: Tracked, rate: float, key: int) -> None:
        """One step, in place.

        Args:
            layer: with signs in its memory.
            rate: η, the optimiser's learning rate.
            key: of the noise.
        """
        step = layer.memory["sign"] * (-rate * self.l1)
        if self.temperature:
            step += math.sqrt(2 * rate * self.temperature) * normal(key, layer.live)
        with torch.no_grad():
            layer.layer.values.add_(step)
