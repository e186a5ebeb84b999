"""SNIP: connections that the loss is most sensitive to at initialisation stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted, Scope
from gossamer.methods.prune.scored import statistic

__all__ = ["SNIP"]


@final
@dataclass(frozen=True, kw_only=True)
class SNIP(Budgeted):
    """Keep the weights whose connection the loss is most sensitive to, |w · dL/dw|, before training begins.

    The derivative of the loss by a gate c on each connection, at c = 1. The formula is that of `Taylor`; here it is
    taken on a network that was not trained, with normalisations on the statistics of the batch (their running ones say
    nothing yet), and ranked over all layers. At extreme sparsity whole layers may be lost, which is refused:
    `SynFlow` does not lose them.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: one forward and backward pass per batch, on the dense network, once.

    Exact: keep counts. Division by the sum of all scores, as in the paper, changes no order and is left out.

    Example:
        >>> SNIP(sparsity=0.9).scope
        'global'

    Source: Lee, Ajanthan and Torr 2019, arXiv 1810.02340, section 4.1 and algorithm 1.
    """

    scope: Scope = "global"

    @property
    def needs(self) -> frozenset[str]:
        """Gradients at initialisation."""
        return frozenset({"initial_grad"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w · dL/dw|."""
        found = statistic(self, site, evidence, "initial_grad", "data=… to compute gradients on, before training")
        return (values.float() * found[at]).abs()
