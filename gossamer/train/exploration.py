"""Weights that get gradients without taking part in the forward pass: Top-KAST's larger backward set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from gossamer.errors import PlanError
from gossamer.train.choose import highest
from gossamer.train.tracked import Tracked

__all__ = ["Exploration"]


@final
@dataclass(frozen=True)
class Exploration:
    """Of the live weights (the backward set B) only the largest take part in the forward pass (the set A).

    A layer's live values are those of B. Between steps the values of B ∖ A are set aside and zeros stand in their
    places: outputs are those of A alone, while gradients, which do not depend on a weight's own value, come for all of
    B. While the optimiser steps they are back.

    Args:
        forward_share: |A| / |B|, above 0, at most 1.
        every: steps for which A stays, ≥ 1.
        decay: λ of the penalty λ · (Σ_A w² + Σ_{B ∖ A} w² / D) / 2, D the density of A.

    Cost: the arithmetic of B also in the forward pass; two more floats per live weight.

    Source: Jayakumar et al. 2020 (Top-KAST), arXiv 2106.03517, section 2.
    """

    forward_share: float
    every: int = 1
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.forward_share <= 1 or self.every < 1 or self.decay < 0:
            raise PlanError(
                f"Exploration: found forward_share {self.forward_share}, every {self.every}, decay {self.decay}, "
                "expected a share above 0, at least 1 step, a decay of at least 0"
            )

    def hide(self, layer: Tracked, step: int) -> None:
        """Choose A anew if it is time, and set the rest aside."""
        values = layer.values
        if step % self.every == 0 or "shown" not in layer.memory:
            shown = highest(values.abs(), max(1, round(self.forward_share * layer.live)))
            layer.memory["shown"] = shown.float()
        aside = torch.where(layer.memory["shown"] > 0, 0.0, values)
        with torch.no_grad():
            layer.layer.values.sub_(aside)  # exactly zero there, unchanged elsewhere
        layer.memory["aside"] = aside

    def show(self, layer: Tracked) -> None:
        """Put it back."""
        aside = layer.memory.pop("aside", None)
        if aside is not None:
            with torch.no_grad():
                layer.layer.values.add_(aside)

    def penalise(self, layer: Tracked) -> None:
        """Add the penalty's gradient, while B ∖ A is still aside."""
        aside, gradient = layer.memory.get("aside"), layer.layer.values.grad
        if self.decay and aside is not None and gradient is not None:
            density = self.forward_share * layer.live / layer.size
            gradient.add_(layer.values, alpha=self.decay).add_(aside, alpha=self.decay / density)
