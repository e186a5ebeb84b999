"""Several attacks as one: whatever any of them finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.measure.robustness.attack import Attack, Found, Scene

__all__ = ["Worst"]


@final
@dataclass(frozen=True)
class Worst(Attack):
    """The worst case per example over parts that run one after the other, each on what those before did not fool.

    Args:
        label: in tables.
        parts: attacks; each begins from the inputs, as if it ran alone.
    """

    label: str
    parts: tuple[Attack, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts or not all(isinstance(p, Attack) for p in self.parts):
            raise PlanError(f"Worst: found parts {self.parts}, expected attacks, at least one")

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(p.needs_gradients for p in self.parts)

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    @property
    def first(self) -> tuple[Attack, ...]:
        """The parts."""
        return self.parts

    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """Nothing beyond what the parts found."""
        points = scene.inputs if start is None else start
        return Found(points, torch.zeros(len(points), dtype=torch.bool))
