"""Low rank plus sparse: what two thin factors cannot say, a few single weights do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.factors import LowRank
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked, Sum
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Entry, Evidence, Plan, Rule, Shared, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.family import Factorization, refuses_matrix
from gossamer.methods.factorize.svd import LOWRANK
from gossamer.methods.input_space import UNSEEN, best_product, check_inputs, gram_of, output_error

__all__ = ["LowRankPlusSparse"]

SPARSE = Skeleton(Masked, (("where", Skeleton(Mask)), ("value", DENSE)))
SUM = Skeleton(Sum, (("terms.0", LOWRANK), ("terms.1", SPARSE)))


@final
@dataclass(frozen=True, kw_only=True)
class LowRankPlusSparse(Factorization):
    """w ≈ u · v + s: in turn the best rank-r fit of w − s and the largest entries of w − u · v.

    Each half-step is the best answer to the other, so ‖w − u·v − s‖ never grows. It runs as both terms in parallel, s
    on the sparse kernel. A layer for which this would not be smaller stays as it is, and the plan says so.

    With data the error is that of the layer's outputs, ‖(w − u·v − s) · Xᵀ‖ over its inputs X: "scaled" takes inputs
    as independent, of their own sizes each; "gram" also answers to what they have in common in u · v, while s still
    takes the largest entries by |entry| · size of its input. Of all rounds the best is kept, and the answer of "equal"
    where that is better on these inputs.

    Args:
        rank: of u · v.
        density: fraction of weights that s keeps, 0 to 1, at least one; ties go to the earlier weight.
        rounds: of the alternation, at least 1.
        inputs: "equal", "scaled" or "gram"; the last two need data.
        damping: added to the inputs' second moments as a share of their mean, above 0.

    Cost: one SVD per round, O(m·n·min(m, n)).

    Exact: the count of live weights. Full rank needs no s; the optimum found is local.

    Example:
        >>> LowRankPlusSparse(rank=8, density=0.05).rounds
        10

    Source: Zhou and Tao 2011, GoDec, section 2; Zhang and Papyan 2024, OATS, arXiv 2409.13652, section
    2.3 ("scaled").
    """

    parts: ClassVar[str] = "terms"

    rank: int
    density: float
    rounds: int = 10
    inputs: Literal["equal", "scaled", "gram"] = "equal"
    damping: float = 1e-4

    def __post_init__(self) -> None:
        if self.rank < 1 or self.rounds < 1:
            raise PlanError(
                f"LowRankPlusSparse: found rank {self.rank}, rounds {self.rounds}, expected at least 1 of each"
            )
        check_fraction("LowRankPlusSparse: density", self.density)
        check_inputs("LowRankPlusSparse", self.inputs, ("equal", "scaled", "gram"), self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, where they count."""
        return frozenset({"equal": (), "scaled": ("sq",), "gram": ("gram",)}[self.inputs])

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become a low-rank term and a masked one."""
        return (Rule(DENSE, lambda _: SUM),)

    def refuses(self, site: Site) -> str:
        """Vectors, and grouped convolutions, whose weight is not one matrix."""
        return refuses_matrix(site)

    @property
    def observes(self) -> bool:
        """Where inputs count: which layers the data reach is only seen there."""
        return self.inputs != "equal"

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Whether anything is known of its inputs."""
        return {"seen": bool({"gram", "sq"} & set(evidence))}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Live weights per layer."""
        steps, skipped = [], {}
        for site in sites:
            whole, width = prod(site.shape), site.spec.dtype.itemsize
            keep = max(1, round(self.density * whole))
            thin_ones = self.rank * (site.shape[0] + prod(site.shape[1:]))
            nbytes = (thin_ones + keep) * width + ceil(whole / 8)
            if self.inputs != "equal" and not summaries[site.key]["seen"]:
                skipped[site.key] = UNSEEN
            elif nbytes >= whole * width or self.rank > min(site.shape[0], whole // site.shape[0]):
                what = f"rank {self.rank} and {keep} live weights"
                skipped[site.key] = f"{what} would take {nbytes} bytes, the weight itself has {whole * width}"
            else:
                steps.append(Step((site.key,), {"rank": self.rank, "keep": keep, "rounds": self.rounds}))
        return Plan(tuple(steps), skipped=skipped)

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Alternate; where inputs count, from the start that they favour, and never worse on them than without."""
        del shared
        w = weight.to_dense().detach()
        plain = _Alternation(w, int(entry["rank"]), int(entry["keep"]), torch.eye(w[0].numel(), dtype=torch.float64))
        if self.inputs == "equal":
            return plain.run(int(entry["rounds"]))
        where = f"LowRankPlusSparse: {site.key}"
        if self.inputs == "scaled" and "sq" in evidence:
            evidence = {"gram": torch.diag(evidence["sq"])}
        gram = gram_of(where, site.shape, evidence, self.damping)
        if gram is None:
            raise DataError(f"{where}: found no statistics of its inputs, expected data=… that reach this layer")
        found = [_Alternation(w, plain.rank, plain.keep, g).run(int(entry["rounds"])) for g in (gram, plain.gram)]
        return min(found, key=lambda tree: output_error(tree.to_dense().flatten(1) - w.flatten(1), gram))


@final
@dataclass(frozen=True)
class _Alternation:
    """Two half-steps in turn, and the best pair that they came by."""

    w: Tensor
    rank: int
    keep: int
    gram: Tensor

    def run(self, rounds: int) -> Sum:
        """Ends with the sparse term as the best answer to the factors as they are stored."""
        matrix, scale = self.w.flatten(1).double(), self.gram.diagonal().sqrt()
        sparse, best, least = torch.zeros_like(matrix), None, torch.inf
        for _ in range(rounds):
            factors = self._factors(matrix - sparse)
            left = matrix - factors.to_dense().flatten(1).double()
            order = (left.abs() * scale).reshape(-1).argsort(descending=True, stable=True)
            mask = torch.zeros(matrix.numel(), dtype=torch.bool)
            mask[order[: self.keep]] = True
            sparse = torch.where(mask.view_as(matrix), left, 0.0)
            error = output_error(left - sparse, self.gram)
            if error < least:
                best, least = (factors, mask, sparse), error
        assert best is not None
        factors, mask, sparse = best
        values = sparse.reshape(-1)[mask].to(self.w.dtype)
        return Sum((factors, Masked(Mask.of(mask.view(self.w.shape)), Dense(values))))

    def _factors(self, rest: Tensor) -> LowRank:
        u, v = best_product(rest, self.gram, self.rank)
        shape = (self.rank, *self.w.shape[1:])
        return LowRank(Dense(u.to(self.w.dtype).contiguous()), Dense(v.to(self.w.dtype).reshape(shape).contiguous()))
