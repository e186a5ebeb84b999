"""Movement pruning: weights that training moves towards zero go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted
from gossamer.methods.prune.scored import statistic

__all__ = ["Movement"]


@final
@dataclass(frozen=True, kw_only=True)
class Movement(Budgeted):
    """Keep the weights that training moves away from zero: score −Σ w · dL/dw over training steps.

    It lives inside `Gradual`, which adds up over all steps from its first on; the first update comes after the first
    stretch of steps. A weight that is large but shrinking scores below zero and goes before one that is small and
    growing, which suits fine-tuning of pretrained networks for another task. Where a network has converged on the same
    data, gradients are mostly noise, and so is their sum, most of all for weights that matter: prefer `Magnitude`
    there. Units of more than one weight are ranked by their mean.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`; not "lamp", which needs scores ≥ 0.

    Cost: one product per live weight and training step.

    Exact: keep counts. Dead weights stay dead (the paper lets them come back by training a dense weight), and the sum
    is plain (the paper's experiments train scores with Adam, which evens out how fast they move).

    Example:
        >>> sorted(Movement(sparsity=0.5).needs)
        ['movement']

    Source: Sanh, Wolf and Rush 2020, arXiv 2005.07683, section 3.
    """

    signed: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """What the training steps gather."""
        return frozenset({"movement"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """−Σ w · dL/dw."""
        del values
        return statistic(self, site, evidence, "movement", "to run inside Gradual, whose training steps gather it")[at]
