"""Low rank plus sparse: what two thin factors cannot say, a few single weights do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar, final

import torch

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked, Sum
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Ask, Plan, Rule, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.family import Factorization, refuses_matrix
from gossamer.methods.factorize.svd import LOWRANK, thin

__all__ = ["LowRankPlusSparse"]

SPARSE = Skeleton(Masked, (("where", Skeleton(Mask)), ("value", DENSE)))
SUM = Skeleton(Sum, (("terms.0", LOWRANK), ("terms.1", SPARSE)))


@final
@dataclass(frozen=True, kw_only=True)
class LowRankPlusSparse(Factorization):
    """w ≈ u · v + s: in turn the best rank-r fit of w − s and the largest entries of w − u · v.

    Each half-step is the best answer to the other, so ‖w − u·v − s‖ never grows. It runs as both terms in parallel, s
    on the sparse kernel. A layer for which this would not be smaller stays as it is, and the plan says so.

    Args:
        rank: of u · v.
        density: fraction of weights that s keeps, 0 to 1, at least one; ties go to the earlier weight.
        rounds: of the alternation, at least 1.

    Cost: one SVD per round, O(m·n·min(m, n)).

    Exact: the count of live weights. Full rank needs no s; the optimum found is local.

    Example:
        >>> LowRankPlusSparse(rank=8, density=0.05).rounds
        10

    Source: Zhou and Tao 2011, GoDec, section 2; Zhang and Papyan 2024, OATS, arXiv 2409.13652 (there weighted by
    activations, here not).
    """

    parts: ClassVar[str] = "terms"

    rank: int
    density: float
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.rank < 1 or self.rounds < 1:
            raise PlanError(
                f"LowRankPlusSparse: found rank {self.rank}, rounds {self.rounds}, expected at least 1 of each"
            )
        check_fraction("LowRankPlusSparse: density", self.density)

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become a low-rank term and a masked one."""
        return (Rule(DENSE, lambda _: SUM),)

    def refuses(self, site: Site) -> str:
        """Vectors, and grouped convolutions, whose weight is not one matrix."""
        return refuses_matrix(site)

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Live weights per layer."""
        steps, skipped = [], {}
        for site in sites:
            whole, width = prod(site.shape), site.spec.dtype.itemsize
            keep = max(1, round(self.density * whole))
            thin_ones = self.rank * (site.shape[0] + prod(site.shape[1:]))
            nbytes = (thin_ones + keep) * width + ceil(whole / 8)
            if nbytes >= whole * width or self.rank > min(site.shape[0], whole // site.shape[0]):
                what = f"rank {self.rank} and {keep} live weights"
                skipped[site.key] = f"{what} would take {nbytes} bytes, the weight itself has {whole * width}"
            else:
                steps.append(Step((site.key,), {"rank": self.rank, "keep": keep, "rounds": self.rounds}))
        return Plan(tuple(steps), skipped=skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Alternate, and end with the sparse term as the best answer to the factors as they are stored."""
        w = weight.to_dense().detach()
        matrix, rank = w.flatten(1).double(), int(entry["rank"])
        sparse = torch.zeros_like(matrix)
        for _ in range(int(entry["rounds"])):
            factors = thin(matrix - sparse, rank, w.shape[1:]).map_leaves(lambda leaf: leaf.tensor.to(w.dtype))
            left = matrix - factors.to_dense().flatten(1).double()
            best = left.abs().reshape(-1).argsort(descending=True, stable=True)[: int(entry["keep"])]
            mask = torch.zeros(matrix.numel(), dtype=torch.bool)
            mask[best] = True
            sparse = torch.where(mask.view_as(matrix), left, 0.0)
        values = sparse.reshape(-1)[mask].to(w.dtype)
        return Sum((factors, Masked(Mask.of(mask.view(w.shape)), Dense(values))))
