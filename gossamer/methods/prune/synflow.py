"""SynFlow: pruning at initialisation by the flow through a network, without any data and without losing a layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

from torch import Tensor

from gossamer.errors import PlanError
from gossamer.methods.base import Evidence, Method, Site
from gossamer.methods.prune.budgeted import Budgeted, Scope
from gossamer.methods.prune.scored import statistic

__all__ = ["SynFlow"]


@final
@dataclass(frozen=True, kw_only=True)
class SynFlow(Budgeted):
    """Keep the weights that most flow goes through: |w| · dR/d|w|, R the sum of the outputs for inputs of ones.

    R is taken of the network with the absolute values of all its parameters. Every layer's scores then add up to the
    same R (where biases and normalisations are zero and one, as at initialisation), so a layer's last weights have the
    largest scores of all: pruned in many rounds, no layer is ever emptied while the budget allows one path. After round
    k of n a share (1 − sparsity)^(k/n) of the weights is left, and the flow is computed anew.

    Args:
        steps: n, rounds, ≥ 1; with 1 layers are lost as with other scores.
        sparsity: fraction of weights that become zero, 0 to 1, 1 excluded.
        structure: what lives or dies together; units of more than one weight are ranked by their mean.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: one forward and backward pass of a single input per round, in float64, on the dense network.

    Exact: keep counts. Of the data only the shape of one input is used. Networks whose input are token numbers are
    refused: there are no ones to put in.

    Example:
        >>> method = SynFlow(sparsity=0.99)
        >>> method.passes, round(method.at(0.5).sparsity, 3)
        (100, 0.9)

    Source: Tanaka, Kunin, Yamins and Ganguli 2020, arXiv 2006.05467, section 6 and algorithm 1.
    """

    steps: int = 100
    scope: Scope = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is None or self.sparsity >= 1 or self.steps < 1:
            found = f"found sparsity {self.sparsity}, {self.steps} steps"
            raise PlanError(f"SynFlow: {found}, expected a sparsity below 1 and at least one step")

    @property
    def needs(self) -> frozenset[str]:
        """The derivative of the flow."""
        return frozenset({"flow"})

    @property
    def passes(self) -> int:
        """As many as steps."""
        return self.steps

    def at(self, progress: float) -> Method:
        """Exponential: 1 − (1 − sparsity)^progress."""
        assert self.sparsity is not None
        return dataclasses.replace(self, sparsity=1 - (1 - self.sparsity) ** progress)

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w| · dR/d|w|, in units of R."""
        found = statistic(self, site, evidence, "flow", "data=… to take the shape of an input from")
        return values.float().abs() * found[at]
