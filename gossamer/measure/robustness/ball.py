"""Where adversarial inputs may lie: a ball around each input, within the bounds of all inputs."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.measure.robustness.chance import Keys, normal, uniform

__all__ = ["Ball", "Norm"]

Norm = Literal["linf", "l2"]


@final
class Ball:
    """{x' : ‖x' − x‖ ≤ ε, low ≤ x' ≤ high} for every x of a batch.

    Points are put in exactly, not up to rounding. L∞: the box [x − ε, x + ε] ∩ bounds in the inputs' own floats,
    rounded inwards. L2: the nearest point of ball ∩ box, not the nearest of the ball clipped afterwards, which would
    give away norm wherever a pixel is black already: δ = clip(t·z) with t such that ‖δ‖ = ε, found by enlarging the
    set of clipped numbers until it no longer grows; every number is then rounded towards x.

    Args:
        centre: x, float32 or float64 [n, …], within the bounds.
        epsilon: ε ≥ 0, in units of the inputs.
        norm: "linf" or "l2".
        bounds: smallest and largest value of an input.

    Example:
        >>> ball = Ball(torch.tensor([[0.0, 0.5]]), 0.25, "linf", (0.0, 1.0))
        >>> ball.steepest(torch.tensor([[-1.0, 2.0]])).tolist()
        [[0.0, 0.75]]
    """

    def __init__(self, centre: Tensor, epsilon: float, norm: Norm, bounds: tuple[float, float]) -> None:
        self.centre, self.epsilon, self.norm, self.bounds = centre, epsilon, norm, bounds
        wide = centre.double()
        self.low = _at_least((wide - epsilon).clamp_(min=bounds[0]), centre)
        self.high = _at_most((wide + epsilon).clamp_(max=bounds[1]), centre)

    def __len__(self) -> int:
        return len(self.centre)

    def take(self, rows: Tensor) -> Ball:
        """The balls of some examples, by mask or number."""
        made = object.__new__(Ball)
        made.epsilon, made.norm, made.bounds = self.epsilon, self.norm, self.bounds
        made.centre, made.low, made.high = self.centre[rows], self.low[rows], self.high[rows]
        return made

    def inside(self, points: Tensor) -> Tensor:
        """The nearest points of the ball."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(points, self.low), self.high)
        wanted, low, high = self._differences(points.double() - self.centre.double())
        clipped = torch.minimum(torch.maximum(wanted, low), high)
        outside = clipped.square().sum(1) > self.epsilon**2
        if bool(outside.any()):
            scaled = self._scaled(wanted[outside], low[outside], high[outside])
            clipped[outside] = scaled
        return self._back(clipped)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The point of the ball at which ⟨gradient, x'⟩ is largest: the optimum where the loss is linear."""
        if self.norm == "linf":
            away = torch.where(gradient > 0, self.high, self.low)
            return torch.where(gradient == 0, self.centre, away)
        wanted, low, high = self._differences(gradient.double())
        return self._back(self._scaled(wanted, low, high))

    def step(self, points: Tensor, gradient: Tensor, length: Tensor | float) -> Tensor:
        """One step of steepest ascent of that length in the ball's norm, put back in.

        Args:
            points: [n, …].
            gradient: of the loss there.
            length: of the step, a number or [n].
        """
        if isinstance(length, Tensor):
            length = length.to(points.dtype).view(-1, *[1] * (points.dim() - 1))
        if self.norm == "linf":
            return self.inside(points + length * gradient.sign())
        flat = gradient.double().flatten(1)
        size = flat.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        unit = (flat / size[:, None]).view(gradient.shape).to(points.dtype)
        return self.inside(points + length * unit)

    def random(self, keys: Keys) -> Tensor:
        """A random point: uniform in the cube (L∞), or in a random direction with ‖δ‖ = ε (L2), put inside."""
        shape, count = self.centre.shape, math.prod(self.centre.shape[1:])
        if self.norm == "linf":
            away = (2 * uniform(keys, count) - 1).view(shape).to(self.centre)
            return self.inside(self.centre + self.epsilon * away)
        return self.step(self.centre, normal(keys, count).view(shape).to(self.centre), self.epsilon)

    def _differences(self, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is wanted and the room for it below and above, float64 [n, d]."""
        centre = self.centre.double()
        return wanted.flatten(1), (self.low.double() - centre).flatten(1), (self.high.double() - centre).flatten(1)

    def _scaled(self, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """clip(t · wanted) with norm ε, or with every number clipped if even that is shorter."""
        wanted = wanted / wanted.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        room = torch.where(wanted > 0, high, -low).square()
        squares = wanted.square()
        square = torch.zeros_like(squares[:, :1])  # t²
        for _ in range(wanted.shape[1] + 1):
            full = square * squares >= room
            left = self.epsilon**2 - (room * full).sum(1, keepdim=True)
            free = (squares * ~full).sum(1, keepdim=True)
            # Where nothing is free all is clipped; a finite t keeps zeros at zero.
            following = torch.where(free > 0, left.clamp_min(0) / free.clamp_min(1e-300), square)
            if bool((following <= square * (1 + 1e-13)).all()):
                break
            square = torch.maximum(square, following)
        found = wanted * square.sqrt()
        return torch.minimum(torch.maximum(found, low), high)

    def _back(self, difference: Tensor) -> Tensor:
        """x + difference in the inputs' floats, no number farther from x than in ``difference``."""
        difference = difference.view(self.centre.shape)
        wide = self.centre.double()
        points = (wide + difference).to(self.centre.dtype)
        far = (points.double() - wide).abs() > difference.abs()
        points = torch.where(far, torch.nextafter(points, self.centre), points)
        return torch.minimum(torch.maximum(points, self.low), self.high)


def _at_least(wide: Tensor, like: Tensor) -> Tensor:
    rounded = wide.to(like.dtype)
    up = torch.where(rounded.double() < wide, torch.nextafter(rounded, rounded.new_tensor(math.inf)), rounded)
    return torch.minimum(up, like)


def _at_most(wide: Tensor, like: Tensor) -> Tensor:
    rounded = wide.to(like.dtype)
    down = torch.where(rounded.double() > wide, torch.nextafter(rounded, rounded.new_tensor(-math.inf)), rounded)
    return torch.maximum(down, like)
