"""Sparse variational dropout: weights drown in noise that the network learns to put up with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.train.from_dense.base import DenseMethod, Relaxation

__all__ = ["VariationalDropout", "negative_kl"]

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695  # the paper's fit, equation 14
_TINY = 1e-16


def negative_kl(log_alpha: Tensor) -> Tensor:
    """−KL(N(θ, αθ²) ‖ the log-uniform prior), elementwise, up to a constant that makes it 0 for α → ∞.

    An approximation by a formula with three fitted numbers, off by less than 0.01 anywhere.

    Args:
        log_alpha: of any shape.

    Example:
        >>> bool(negative_kl(torch.tensor(20.0)).abs() < 1e-4)
        True

    Source: Molchanov, Ashukha and Vetrov 2017, arXiv 1701.05369, equation 14.
    """
    return _K1 * (_K2 + _K3 * log_alpha).sigmoid() - 0.5 * nn.functional.softplus(-log_alpha) - _K1


@final
@dataclass(frozen=True, kw_only=True)
class VariationalDropout(DenseMethod):
    """Weights θ + σ·ε with a learned σ each; where α = σ²/θ² is large, the weight is noise and goes.

    The penalty is ``strength`` · Σ KL; with strength 1/samples the loss (a mean over samples) is the variational bound.
    Raise it from zero over the first epochs, or start from a trained network: from scratch at full strength layers
    give up everything. In eval mode weights are θ where log α < ``threshold``, zero elsewhere.

    Args:
        strength: factor of the KL term.
        start: log σ² at the start.
        threshold: log α from which on a weight is zero; 3 in the paper, a dropout rate of 95%.

    Cost: dense arithmetic and memory in every step, noise, and twice the parameters and optimiser state.

    Exact: nothing; the KL term is within 0.01 per weight. The paper samples a layer's outputs (the local
        reparameterisation), which gives every sample noise of its own; here weights are drawn once per forward pass,
        which works for any layer and has gradients of larger variance.

    Example:
        >>> VariationalDropout(strength=1 / 60000).dense_share(10)
        1.0

    Source: Molchanov, Ashukha and Vetrov 2017, arXiv 1701.05369, sections 4.1 to 4.4 (additive noise).
    """

    strength: float = 1e-5
    start: float = -10.0
    threshold: float = 3.0

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise PlanError(f"VariationalDropout: strength: found {self.strength}, expected 0 or more")

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """Noise."""
        return _Noise(spec, weight, self)


@final
class _Noise(Relaxation):
    log_variance: nn.Parameter

    def __init__(self, spec: TensorSpec, weight: Tensor, method: VariationalDropout) -> None:
        super().__init__(spec)
        self.strength, self.threshold = method.strength, method.threshold
        self.log_variance = nn.Parameter(torch.full_like(weight, method.start))

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log σ² − log θ², bounded so that gradients are."""
        return (self.log_variance - (weight.square() + _TINY).log()).clamp(-10, 10)

    def forward(self, weight: Tensor) -> Tensor:
        """θ + σ·ε, or in eval mode what is left of θ."""
        if self.training:
            return weight + (0.5 * self.log_variance).exp() * torch.randn_like(weight)
        return weight * self.live(weight)

    def penalty(self, weight: Tensor) -> Tensor:
        """strength · Σ KL."""
        return -self.strength * negative_kl(self.log_alpha(weight)).sum()

    def live(self, weight: Tensor) -> Tensor:
        """Where log α is below the threshold."""
        return self.log_alpha(weight) < self.threshold
