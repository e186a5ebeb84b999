"""Auto-PGD: momentum, a step that halves where progress stalls, and returns to the best point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.measure.robustness.attack import Attack, Found, Hunt, Scene
from gossamer.measure.robustness.ball import Ball
from gossamer.measure.robustness.chance import keys_of
from gossamer.measure.robustness.losses import Objective, difference_ratio, likeliest_others, log_odds, targeted_ratio

__all__ = ["APGD"]

_MOMENTUM = 0.75  # α of algorithm 1
_PROGRESS = 0.75  # ρ: share of the steps since the last checkpoint that must have raised the loss


@final
@dataclass(frozen=True)
class APGD(Attack):
    """z = P(x_k + η·sign ∇f(x_k)); x_{k+1} = P(x_k + 0.75·(z − x_k) + 0.25·(x_k − x_{k−1})); η from 2ε on.

    At checkpoints η halves, and x goes back to the best point, if no more than 0.75 of the steps since the last one
    raised the loss, or if neither η nor the best loss has changed since then. Checkpoints come at shares 0.22, 0.41,
    0.57, 0.70, … of the steps, in whole steps. Every example has its own η. The first start is the input itself,
    or where ``warm`` ended, others are random; the first step from the input itself reaches to the end of the ball, as
    that of `FGSM`.

    Args:
        loss: "ce": cross-entropy; "dlr": the difference of logits ratio; "targeted": the targeted DLR, one run for each
            of the likeliest wrong classes.
        steps: gradients per start (and class), ≥ 1.
        restarts: starts, ≥ 1.
        targets: number of wrong classes for "targeted", at most all; the paper takes 9.
        warm: an attack that is run before as part of this one: examples that it fools are done, and the first start
            of the rest is its strongest point. So this attack is at least as strong, by construction. None: as in the
            paper.

    Cost: ``steps`` gradients and one evaluation per start, class and example that is not fooled yet.

    Source: Croce and Hein 2020, arXiv 2003.01690, algorithm 1 and section 4. Here going back to the
    best point also ends the momentum.
    """

    loss: Literal["ce", "dlr", "targeted"] = "ce"
    steps: int = 50
    restarts: int = 1
    targets: int = 9
    warm: Attack | None = None

    def __post_init__(self) -> None:
        if self.loss not in ("ce", "dlr", "targeted"):
            raise PlanError(f"APGD: loss: found {self.loss!r}, expected 'ce', 'dlr' or 'targeted'")
        if min(self.steps, self.restarts, self.targets) < 1:
            found = f"steps {self.steps}, restarts {self.restarts}, targets {self.targets}"
            raise PlanError(f"APGD: found {found}, expected 1 or more")

    @property
    def name(self) -> str:
        """APGD-CE, APGD-DLR or APGD-T."""
        return {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted": "APGD-T"}[self.loss]

    @property
    def first(self) -> tuple[Attack, ...]:
        """The warm start."""
        return () if self.warm is None else (self.warm,)

    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """All starts and classes."""
        hunt = Hunt(scene, scene.inputs if start is None else start)
        ball = scene.ball()
        goals = None
        if self.loss == "targeted":
            logits = scene.probe.logits(scene.inputs)
            goals = likeliest_others(logits, scene.targets, self.targets)
        for restart in range(self.restarts):
            for goal in range(1 if goals is None else goals.shape[1]):
                rows = hunt.left
                if not len(rows):
                    return hunt.end()
                if goals is not None:
                    hunt.begin_again()
                wanted = scene.targets if goals is None else goals[:, goal]
                here = ball.take(rows)
                points = here.centre if start is None else start[rows]
                if restart:
                    keys = keys_of(scene.seed, f"{self.name} {restart} {goal}", scene.numbers[rows])
                    points = here.random(keys)
                self._climb(scene, hunt, here, rows, points, wanted, steepest=start is None and restart == 0)
        return hunt.end()

    def _objective(self, targets: Tensor, goals: Tensor) -> Objective:
        if self.loss == "ce":
            return partial(log_odds, targets=targets)
        if self.loss == "dlr":
            return partial(difference_ratio, targets=targets)
        return partial(targeted_ratio, targets=targets, goals=goals)

    def _climb(
        self, scene: Scene, hunt: Hunt, ball: Ball, rows: Tensor, points: Tensor, goals: Tensor, *, steepest: bool
    ) -> None:
        """One run of algorithm 1 over the examples ``rows``."""
        checkpoints = _checkpoints(self.steps)
        objective = self._objective(scene.targets[rows], goals[rows])
        logits, values, gradient = scene.probe.ascend(points, objective)
        left = hunt.see(rows, points, logits, values)
        track = _Track(rows, points, gradient, values, 2 * scene.epsilon).take(left)
        ball = ball.take(left)
        for step in range(1, self.steps + 1):
            if not len(track.rows):
                return
            if step == 1 and steepest:
                points = ball.steepest(track.gradient)
            else:
                points = ball.step(track.points, track.gradient, track.length)
                if step > 1:
                    moved = track.points + _MOMENTUM * (points - track.points)
                    points = ball.inside(moved + (1 - _MOMENTUM) * (track.points - track.before))
            objective = self._objective(scene.targets[track.rows], goals[track.rows])
            if step == self.steps:
                logits = scene.probe.logits(points)
                hunt.see(track.rows, points, logits, objective(logits))
                return
            logits, values, gradient = scene.probe.ascend(points, objective)
            left = hunt.see(track.rows, points, logits, values)
            track.advance(points, gradient, values)
            if not bool(left.all()):
                track, ball = track.take(left), ball.take(left)
            if step in checkpoints:
                track.check(step - checkpoints[step])


def _checkpoints(steps: int) -> dict[int, int]:
    """Steps at which progress is judged → the checkpoint before: after 22% of the steps, then after ever fewer."""
    found: dict[int, int] = {}
    last, period = 0, max(1, int(0.22 * steps))
    while last + period < steps:
        found[last + period] = last
        last, period = last + period, max(period - max(1, int(0.03 * steps)), int(0.06 * steps), 1)
    return found


class _Track:
    """Where the examples of one run are."""

    def __init__(self, rows: Tensor, points: Tensor, gradient: Tensor, values: Tensor, length: float) -> None:
        self.rows, self.points, self.before, self.gradient, self.values = rows, points, points, gradient, values
        self.best, self.best_gradient, self.best_values = points.clone(), gradient.clone(), values.clone()
        self.length = torch.full_like(values, length)
        self.rises = torch.zeros_like(rows)
        self.halved = torch.ones_like(rows, dtype=torch.bool)  # before the first checkpoint the step counts as new
        self.best_then = values.clone()

    def take(self, left: Tensor) -> _Track:
        """Some of the examples."""
        made = object.__new__(_Track)
        for name, value in vars(self).items():
            setattr(made, name, value[left])
        return made

    def advance(self, points: Tensor, gradient: Tensor, values: Tensor) -> None:
        """The next point."""
        self.rises += values > self.values
        better = values > self.best_values
        self.best[better], self.best_gradient[better] = points[better], gradient[better]
        self.best_values[better] = values[better]
        self.before, self.points, self.gradient, self.values = self.points, points, gradient, values

    def check(self, steps: int) -> None:
        """A checkpoint, that many steps after the one before."""
        stalled = self.rises <= _PROGRESS * steps
        stalled |= ~self.halved & (self.best_values <= self.best_then)
        self.length[stalled] /= 2
        at = stalled.view(-1, *[1] * (self.points.dim() - 1))
        self.points = torch.where(at, self.best, self.points)
        self.before = torch.where(at, self.best, self.before)
        self.gradient = torch.where(at, self.best_gradient, self.gradient)
        self.values = torch.where(stalled, self.best_values, self.values)
        self.halved, self.best_then = stalled, self.best_values.clone()
        self.rises.zero_()
