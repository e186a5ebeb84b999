"""CP: a convolution becomes a sum of outer products, run as two 1 × 1 convolutions around depthwise ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import torch

from gossamer.encoding.factors import CP as Factors
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Ask, Plan, Rule, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.decompositions import parallel_factors
from gossamer.methods.factorize.family import Factorization, refuses_convolution
from gossamer.methods.factorize.gauge import signs
from gossamer.methods.factorize.ranks import too_big

__all__ = ["CP"]

CP2D = Skeleton(Factors, tuple((f"factors.{i}", DENSE) for i in range(4)))


@final
@dataclass(frozen=True, kw_only=True)
class CP(Factorization):
    """w[o, i, y, x] ≈ Σ_r f₀[o, r] · f₁[i, r] · f₂[y, r] · f₃[x, r], by alternating least squares.

    It runs as 1 × 1 (in → rank), depthwise kh × 1, depthwise 1 × kw, 1 × 1 (rank → out). The smallest convolutions of
    all; ranks beyond a few dozen are hard to fit, and fine-tuning needs a low learning rate. A layer for which this
    would not be smaller stays as it is, and the plan says so.

    Args:
        rank: the same for every layer, or None.
        macs: the largest rank at which a layer needs at most this share of its own multiply-adds, 0 to 1, or None.
            Counted at stride 1, where it is also the share of numbers.

    Cost: up to 100 rounds of O(rank · out · in · kernel).

    Exact: never promised; the optimum found is local. Deterministic: it starts from singular vectors and, where the
    rank exceeds a dimension, from a generator of its own. Components are ordered by size, all factors but the first
    have a positive largest entry, and a component's columns share one root mean square.

    Example:
        >>> CP(rank=8).rank
        8

    Source: Lebedev et al. 2015, arXiv 1412.6553, section 3.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.CONV})
    named_kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.CONV, Kind.OTHER})

    rank: int | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.macs is None):
            raise PlanError(f"CP: found rank {self.rank} and macs {self.macs}, expected one of them")
        if self.rank is not None and self.rank < 1:
            raise PlanError(f"CP: rank: found {self.rank}, expected at least 1")
        if self.macs is not None:
            check_fraction("CP: macs", self.macs)

    def rules(self) -> tuple[Rule, ...]:
        """Dense convolutions become factors, one per dimension (three in one dimension, four in two)."""
        return (Rule(DENSE, lambda _: CP2D),)

    def refuses(self, site: Site) -> str:
        """What is no convolution, and grouped ones, whose weight is not one tensor."""
        return refuses_convolution(site)

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """A rank per layer."""
        steps, skipped = [], {}
        for site in sites:
            whole, per_rank = prod(site.shape), sum(site.shape)
            rank = self.rank if self.rank is not None else int((self.macs or 0.0) * whole) // per_rank
            reason = too_big(f"rank {rank}", rank * per_rank, whole)
            if rank == 0:
                reason = f"rank 1 would take {per_rank} multiply-adds per position, {self.macs} of {whole} were asked"
            if reason:
                skipped[site.key] = reason
            else:
                steps.append(Step((site.key,), {"rank": rank}))
        return Plan(tuple(steps), skipped=skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Factorize one site at the planned rank."""
        w = weight.to_dense().detach()
        factors = parallel_factors(w.double(), int(entry["rank"]))
        norms = torch.stack([f.norm(dim=0) for f in factors])  # [dims, rank]
        order = norms.prod(0).argsort(descending=True, stable=True)
        factors, norms = [f[:, order] for f in factors], norms[:, order]
        turned = torch.stack([signs(f) for f in factors[1:]])
        turned = torch.cat([turned.prod(0)[None], turned])
        # Per component one root mean square in all factors, so that one learning rate suits them all.
        sizes = norms / torch.tensor([f.shape[0] for f in factors]).sqrt()[:, None]
        middle = sizes.clamp_min(torch.finfo(torch.float64).tiny).log().mean(0).exp()
        scale = turned * torch.where(sizes > 0, middle / sizes, 0.0)
        return Factors(tuple(Dense((f * s).to(w.dtype).contiguous()) for f, s in zip(factors, scale, strict=True)))
