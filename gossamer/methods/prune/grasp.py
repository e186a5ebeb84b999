"""GraSP: what carries the gradient at initialisation stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted, Scope
from gossamer.methods.prune.scored import statistic

__all__ = ["GraSP"]


@final
@dataclass(frozen=True, kw_only=True)
class GraSP(Budgeted):
    """Keep the weights whose removal would shrink the gradient's norm most: score w · (H g), before training begins.

    g is the gradient of the loss, H its Hessian. To first order, removing weight i alone changes ½‖g‖² by
    −w_i · (H g)_i. Scores have a sign: what is removed first are weights without which the gradient would be larger.
    The loss is that of the outputs divided by 200, which keeps the softmax of an untrained network away from its ends
    (paper, section 4); normalisations use the statistics of the batch.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together; units of more than one weight are ranked by their mean.
        scope: how the budget is divided among tensors, see `Budgeted`; not "lamp", which needs scores ≥ 0.

    Cost: two passes over the batches, the second differentiated twice, on the dense network, once.

    Exact: keep counts. The score is first order: it does not see what removing two weights together does.

    Example:
        >>> GraSP(sparsity=0.9).signed
        True

    Source: Wang, Zhang and Grosse 2020, arXiv 2002.07376, section 4, equations 8 and 9.
    """

    signed: ClassVar[bool] = True

    scope: Scope = "global"

    @property
    def needs(self) -> frozenset[str]:
        """The Hessian times the gradient, at initialisation."""
        return frozenset({"hessian_grad"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """w · (H g)."""
        found = statistic(self, site, evidence, "hessian_grad", "data=… to compute gradients on, before training")
        return values.float() * found[at]
