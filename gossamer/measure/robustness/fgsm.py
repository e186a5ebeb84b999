"""The fast gradient sign method: one step to the end of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.measure.robustness.attack import Attack, Found, Hunt, Scene
from gossamer.measure.robustness.losses import log_odds

__all__ = ["FGSM"]


@final
@dataclass(frozen=True)
class FGSM(Attack):
    """x' = argmax over the ball of ⟨∇ₓ loss(x), x'⟩: in L∞ x + ε·sign of the gradient, clipped to the bounds.

    In L2 the exact maximum over ball and bounds together. The loss is cross-entropy.

    Cost: one gradient and one evaluation per example.

    Exact: the worst case of a linear network with two classes.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), model.bias.data.zero_()
        >>> FGSM().run(model, torch.tensor([[0.75, 0.5]]), torch.tensor([0]), 0.25).tolist()
        [[0.5, 0.75]]

    Source: Goodfellow, Shlens, Szegedy 2015, arXiv 1412.6572, section 4.
    """

    @property
    def name(self) -> str:
        """FGSM."""
        return "FGSM"

    def search(self, scene: Scene, start: Tensor | None) -> Found:
        """One step."""
        hunt, targets = Hunt(scene, scene.inputs), scene.targets
        rows = torch.arange(len(targets))
        logits, values, gradient = scene.probe.ascend(scene.inputs, lambda z: log_odds(z, targets))
        hunt.see(rows, scene.inputs, logits, values)
        points = scene.ball().steepest(gradient)
        logits = scene.probe.logits(points)
        hunt.see(rows, points, logits, log_odds(logits, targets))
        return hunt.end()
