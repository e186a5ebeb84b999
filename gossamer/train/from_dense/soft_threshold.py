"""Soft threshold reparameterisation: every layer learns how far its weights are shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.train.from_dense.base import DenseMethod, Relaxation

__all__ = ["SoftThreshold"]


@final
@dataclass(frozen=True, kw_only=True)
class SoftThreshold(DenseMethod):
    """sign(w) · max(0, |w| − σ(s)), with one learned s per layer: sparsity of each layer is found by the loss.

    The penalty decay/2 · Σ w² + threshold_decay/2 · s² pulls s up from its start towards 0, and with it the threshold;
    what the layer needs pulls it down. (In the paper both are the optimiser's weight decay, with one factor: leave that
    at 0 here.) Sparsity is a result, not a setting: ``start`` and ``threshold_decay`` steer it.

    Args:
        start: s at the start, below 0; the threshold is σ(start).
        decay: L2 penalty on weights.
        threshold_decay: L2 penalty on s; None: ``decay``.

    Cost: dense arithmetic and memory in every step; one parameter per layer.

    Exact: the harvested weights are the shrunken ones, those that the layers see in training.

    Example:
        >>> SoftThreshold(start=-8.0).dense_share(10)
        1.0

    Source: Kusupati et al. 2020, arXiv 2002.03231, section 3, equations 2 to 5.
    """

    start: float = -8.0
    decay: float = 5e-4
    threshold_decay: float | None = None

    def __post_init__(self) -> None:
        if self.start >= 0 or self.decay < 0 or (self.threshold_decay or 0) < 0:
            found = f"found start {self.start}, decay {self.decay}, threshold_decay {self.threshold_decay}"
            raise PlanError(f"SoftThreshold: {found}, expected a start below 0 and decays from 0 on")

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """A threshold."""
        return _Threshold(spec, weight, self)


@final
class _Threshold(Relaxation):
    s: nn.Parameter

    def __init__(self, spec: TensorSpec, weight: Tensor, method: SoftThreshold) -> None:
        super().__init__(spec)
        self.decay = method.decay
        self.threshold_decay = method.decay if method.threshold_decay is None else method.threshold_decay
        self.s = nn.Parameter(torch.tensor(method.start, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The shrunken weight."""
        return weight.sign() * (weight.abs() - self.s.sigmoid()).relu()

    def penalty(self, weight: Tensor) -> Tensor:
        """decay/2 · Σ w² + threshold_decay/2 · s²."""
        return 0.5 * (self.decay * weight.square().sum() + self.threshold_decay * self.s.square())

    def live(self, weight: Tensor) -> Tensor:
        """What is above the threshold."""
        return weight.abs() > self.s.sigmoid()
