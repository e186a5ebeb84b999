"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.budgeted import Budgeted

__all__ = ["Magnitude"]


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude(Budgeted):
    """Keep the weights (or rows, columns, blocks) of largest magnitude, exactly as many as asked for.

    Of n units, n − round(sparsity · n) stay; ties go to the earlier unit, and to the earlier tensor. Units of more than
    one weight are ranked by their root mean square. What is dead already stays dead.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`;
            none for `NofM`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: three passes over the tensor and 1 byte of memory per weight ("lamp" sorts); globally two passes more with a
    summary of 2¹⁶ counts per tensor.

    Exact: keep counts, also on ties and constants. Of single weights always; of rows, columns and blocks in units, the
    number of weights differs where units at the edges are smaller. `NofM` keeps exactly N of M: where a group has fewer
    live weights than N, dead ones come back with the value zero.

    Example:
        >>> Magnitude(sparsity=0.9).at(0.5).sparsity
        0.7875

    Source: Han et al. 2015, arXiv 1506.02626; Lee et al. 2021 (LAMP), arXiv 2010.07611, section 3; Zhu and Gupta
    2017, arXiv 1710.01878 (the cubic schedule of `at`).
    """

    rms: ClassVar[bool] = True

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w|."""
        del site, at, evidence
        return values.float().abs()
