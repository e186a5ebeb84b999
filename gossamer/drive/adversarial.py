"""Training on the worst inputs nearby: an objective for any loop, for `Tune` and for sparse training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.drive.distil import soft_loss
from gossamer.errors import DataError, PlanError
from gossamer.measure.robustness.ball import Ball, Norm
from gossamer.measure.robustness.probe import undisturbed

__all__ = ["Adversarial", "divergence"]


@final
@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """min over weights of the mean of max over ‖x' − x‖ ≤ ε of the loss; the maximum by projected gradient ascent.

    Without ``trades`` the loss is loss(f(x'), y), with x' from ``steps`` steps that raise it. With ``trades`` = β it is
    loss(f(x), y) + β · KL(f(x) ‖ f(x')), with x' from steps that raise the divergence: β buys robustness with accuracy.
    Weights have no gradients and normalisations use their running statistics while x' is sought.

    Args:
        epsilon: radius, in units of the inputs; > 0.
        steps: gradients per batch, ≥ 1. One with ``step`` 1.25 is fast adversarial training.
        step: length of one as a share of ε; None: 2.5 / steps.
        norm: "linf" or "l2".
        bounds: smallest and largest value of an input.
        trades: β, or None.

    Cost: a training step takes ``steps`` forward and backward passes more; with ``trades`` two forward passes on top.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.randint(3, (8,))
        >>> objective = Adversarial(epsilon=0.1, steps=3)
        >>> bool(objective.loss(model, x, y) > F.cross_entropy(model(x), y))
        True

    Source: Madry et al. 2018, arXiv 1706.06083; Zhang et al. 2019, TRADES, arXiv 1901.08573, equation 5; Wong, Rice,
    Kolter 2020, arXiv 2001.03994.
    """

    epsilon: float
    steps: int = 7
    step: float | None = None
    norm: Norm = "linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    trades: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", tuple(self.bounds))
        if not 0 < self.epsilon < float("inf") or self.steps < 1 or (self.step is not None and not self.step > 0):
            found = f"epsilon {self.epsilon}, steps {self.steps}, step {self.step}"
            raise PlanError(f"Adversarial: found {found}, expected numbers above 0, steps from 1 on")
        if self.norm not in ("linf", "l2"):
            raise PlanError(f"Adversarial: norm: found {self.norm!r}, expected 'linf' or 'l2'")
        bounds: tuple[float, ...] = self.bounds  # a recipe file may hold any number of them
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise PlanError(f"Adversarial: bounds: found {self.bounds}, expected two numbers, the first smaller")
        if self.trades is not None and not 0 < self.trades < float("inf"):
            raise PlanError(f"Adversarial: trades: found {self.trades}, expected a number above 0, or None")

    def inputs(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> Tensor:
        """x', from a random start in the ball (PyTorch's random numbers); the model is left as it was.

        Args:
            model: any network with one output tensor.
            inputs: floats [n, …] within the bounds.
            targets: as the loss takes them.
            loss: (outputs, targets) → scalar.

        Raises:
            DataError: inputs that are no floats or out of bounds.
        """
        given: object = inputs  # of a batch, which may hold anything
        if not isinstance(given, Tensor) or given.dtype not in (torch.float32, torch.float64):
            what = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
            raise DataError(f"Adversarial: found inputs of {what}, expected float32 or float64")
        low, high = float(inputs.min()), float(inputs.max())
        if not self.bounds[0] <= low <= high <= self.bounds[1]:
            found = f"found inputs from {low:.6g} to {high:.6g}"
            raise DataError(f"Adversarial: {found}, expected {self.bounds[0]:.6g} to {self.bounds[1]:.6g}: say bounds=")
        length = self.epsilon * (2.5 / self.steps if self.step is None else self.step)
        with undisturbed(model):
            ball = Ball(inputs.detach(), self.epsilon, self.norm, self.bounds)
            points = ball.inside(ball.centre + self._away(ball.centre))
            reference = model(ball.centre).detach() if self.trades is not None else None
            for _ in range(self.steps):
                leaf = points.detach().requires_grad_()
                with torch.enable_grad():
                    outputs = model(leaf)
                    value = loss(outputs, targets) if reference is None else divergence(reference, outputs)
                    (gradient,) = torch.autograd.grad(value, leaf)
                points = ball.step(points, gradient, length)
        return points

    def loss(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> Tensor:
        """The loss to minimise, differentiable in the weights; see the class."""
        points = self.inputs(model, inputs, targets, loss)
        if self.trades is None:
            value: Tensor = loss(model(points), targets)
            return value
        clean = model(inputs)
        return loss(clean, targets) + self.trades * divergence(clean, model(points))

    def _away(self, centre: Tensor) -> Tensor:
        if self.norm == "linf":
            return self.epsilon * (2 * torch.rand_like(centre) - 1)
        away = torch.randn_like(centre)
        size = away.flatten(1).norm(dim=1).view(-1, *[1] * (centre.dim() - 1))
        made: Tensor = self.epsilon * torch.rand_like(size) * away / size
        return made


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(other)), mean over the batch."""
    return soft_loss(other, clean, 1.0, dim=1)
