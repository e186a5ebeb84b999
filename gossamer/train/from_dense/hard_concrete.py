"""L0 regularisation: every weight has a gate that is exactly zero or one with some probability, and learns it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.train.from_dense.base import DenseMethod, Relaxation

__all__ = ["HardConcrete"]

_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # β, γ, ζ of the paper, section 4
_SHIFT = _TEMPERATURE * math.log(-_LOW / _HIGH)


@final
@dataclass(frozen=True, kw_only=True)
class HardConcrete(DenseMethod):
    """w · z, z a hard concrete gate; the penalty is the expected number of gates that are not zero.

    z = min(1, max(0, s(ζ − γ) + γ)), s = σ((log u − log(1 − u) + log α)/β), u uniform: exactly zero with a probability
    that is differentiable in log α. In eval mode, and in the harvested network, u is left out:
    z = min(1, max(0, σ(log α)(ζ − γ) + γ)).

    Args:
        strength: λ, what one live weight costs; the loss is a mean over samples, so of the order 1/samples.
        start: probability that a gate is open at the start, 0 to 1.
        group: what shares a gate: single "weights", "rows" (outputs) or "columns" (inputs, input channels).

    Cost: dense arithmetic and memory in every step, noise and a second parameter per gate: about twice the parameters
        and optimiser state for single weights.

    Exact: the penalty is the closed form of the expectation. Gates are drawn once per forward pass, not per sample.

    Example:
        >>> HardConcrete(strength=1e-4, group="columns").dense_share(10)
        1.0

    Source: Louizos, Welling and Kingma 2018, arXiv 1712.01312, equations 10 to 13.
    """

    strength: float = 1e-5
    start: float = 0.9
    group: Literal["weights", "rows", "columns"] = "weights"

    def __post_init__(self) -> None:
        if self.strength < 0 or not 0 < self.start < 1 or self.group not in ("weights", "rows", "columns"):
            found = f"found strength {self.strength}, start {self.start}, group {self.group!r}"
            raise PlanError(f"HardConcrete: {found}, expected 0 or more, between 0 and 1, weights, rows or columns")

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """Gates."""
        return _Gates(spec, weight, self)


@final
class _Gates(Relaxation):
    log_alpha: nn.Parameter

    def __init__(self, spec: TensorSpec, weight: Tensor, method: HardConcrete) -> None:
        super().__init__(spec)
        rows, columns, *others = spec.shape
        ones = [1] * len(others)
        shape = {"weights": spec.shape, "rows": (rows, 1, *ones), "columns": (1, columns, *ones)}[method.group]
        self.size = weight.numel() // math.prod(shape)
        self.strength = method.strength
        # P(z ≠ 0) = σ(log α − β log(−γ/ζ)) is ``start``; a little noise tells the gates apart.
        middle = math.log(method.start / (1 - method.start)) + _SHIFT
        self.log_alpha = nn.Parameter(torch.full(shape, middle, dtype=weight.dtype).add_(0.01 * torch.randn(shape)))

    def gates(self) -> Tensor:
        """Drawn in training, the estimate without noise in eval mode."""
        logits: Tensor = self.log_alpha
        if self.training:
            u = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
            logits = (u.log() - (1 - u).log() + logits) / _TEMPERATURE
        return (logits.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """w · z."""
        return weight * self.gates()

    def penalty(self, weight: Tensor) -> Tensor:
        """λ · Σ P(z ≠ 0), every weight of a group counted."""
        del weight
        return self.strength * self.size * (self.log_alpha - _SHIFT).sigmoid().sum()

    def live(self, weight: Tensor) -> Tensor:
        """Whose gate is not zero in eval mode."""
        open_ones = (self.log_alpha.sigmoid() * (_HIGH - _LOW) + _LOW) > 0
        return open_ones.expand_as(weight).clone()
