"""Projected gradient descent: many steps of the gradient's sign, each put back into the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from gossamer.errors import PlanError
from gossamer.measure.robustness.attack import Attack, Found, Hunt, Scene
from gossamer.measure.robustness.chance import keys_of
from gossamer.measure.robustness.losses import log_odds

__all__ = ["PGD"]


@final
@dataclass(frozen=True)
class PGD(Attack):
    """x ← P(x + α·sign ∇ₓ loss(x)), the strongest of all points on the way kept, from several starts.

    The first start is the input itself and its first step reaches to the end of the ball, which is the point of
    `FGSM`: so PGD fools whatever FGSM does, by construction. Step k after it has length
    α = ε·(1 − k/steps). Other starts are random. In L2 the sign is gradient/‖gradient‖. An example that is
    fooled is left at once.

    Args:
        steps: gradients per start, ≥ 1.
        restarts: starts, ≥ 1.

    Cost: ``steps`` gradients and one evaluation per start and example that is not fooled yet.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1.
    """

    steps: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise PlanError(f"PGD: found steps {self.steps}, restarts {self.restarts}, expected 1 or more")

    @property
    def name(self) -> str:
        """PGD."""
        return "PGD"

    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """All starts."""
        ball = scene.ball()
        hunt = Hunt(scene, scene.inputs)
        for restart in range(self.restarts):
            rows = hunt.left
            if not len(rows):
                break
            here = ball.take(rows)
            points = here.centre
            if restart:
                points = here.random(keys_of(scene.seed, f"PGD {restart}", scene.numbers[rows]))
            for step in range(self.steps):
                targets = scene.targets[rows]
                logits, values, gradient = scene.probe.ascend(points, lambda z, y=targets: log_odds(z, y))  # type: ignore[misc]
                left = hunt.see(rows, points, logits, values)
                if not bool(left.all()):
                    rows, points, gradient, here = rows[left], points[left], gradient[left], here.take(left)
                    if not len(rows):
                        break
                if step == 0 and restart == 0:
                    points = here.steepest(gradient)
                else:
                    points = here.step(points, gradient, scene.epsilon * (1 - step / self.steps))
            if len(rows):
                logits = scene.probe.logits(points)
                hunt.see(rows, points, logits, log_odds(logits, scene.targets[rows]))
        return hunt.end()
