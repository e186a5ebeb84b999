"""Taylor pruning: what changes the loss least goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from gossamer.errors import PlanError
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted
from gossamer.methods.prune.scored import statistic

__all__ = ["Taylor"]


@final
@dataclass(frozen=True, kw_only=True)
class Taylor(Budgeted):
    """Keep the weights whose removal would change the loss most, to first order |w · dL/dw|.

    With ``form="fisher"`` the score is w² · Σ (dL/dw)² over batches, the second-order term with the empirical Fisher
    information for the Hessian's diagonal: it does not vanish where gradients of batches cancel. Units of more than one
    weight are ranked by their mean.

    Args:
        form: "first" (needs "grad") or "fisher" (needs "grad_sq").
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: one backward pass per batch for the evidence; inside `Gradual` that of the training steps is used.

    Exact: keep counts. The scores are what a first (or second) order expansion says, not the loss itself.

    Example:
        >>> sorted(Taylor(sparsity=0.5, form="fisher").needs)
        ['grad_sq']

    Source: Molchanov et al. 2019, arXiv 1906.10771, section 3; Theis et al. 2018, arXiv 1801.05787, section 2.2.
    """

    form: Literal["first", "fisher"] = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("first", "fisher"):
            raise PlanError(f"Taylor: form: found {self.form!r}, expected 'first' or 'fisher'")

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, or their squares."""
        return frozenset({"grad" if self.form == "first" else "grad_sq"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w · dL/dw| or w² · Σ (dL/dw)²."""
        name = "grad" if self.form == "first" else "grad_sq"
        found = statistic(self, site, evidence, name, "data=… to compute gradients on")[at]
        weight = values.float()
        return (weight * found).abs() if self.form == "first" else weight * weight * found
