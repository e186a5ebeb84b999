"""Truncated singular value decomposition: a weight becomes the product of two thin ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.encoding.factors import LowRank
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Ask, Evidence, Plan, Rule, Site, Step, Summary, check_fraction, matches
from gossamer.methods.factorize.family import Factorization, refuses_matrix
from gossamer.methods.factorize.gauge import signs
from gossamer.methods.factorize.language import is_language_model, measure_unseen
from gossamer.methods.factorize.ranks import NOTHING_LEFT, Curve, enough, spend, too_big

__all__ = ["LOWRANK", "SVD", "thin"]

LOWRANK = Skeleton(LowRank, (("u", DENSE), ("v", DENSE)))


@final
@dataclass(frozen=True, kw_only=True)
class SVD(Factorization):
    """w ≈ u · v of the lowest Frobenius error at its rank; u and v share the singular values evenly.

    A convolution [out, in, kh, kw] becomes a kh × kw one with ``rank`` channels and a 1 × 1 one. A layer for which two
    factors would not be smaller than one weight stays as it is, and the plan says so.

    Args:
        rank: the same for every layer, or None.
        energy: smallest rank that holds this share of Σ σ², 0 to 1, or None.
        budget_bytes: bytes for all factors together, spent where a byte buys most of a layer's energy, or None.

    Cost: one SVD, O(m·n·min(m, n)), when ranks depend on the values, and one more to apply.

    Exact: full rank reproduces the weight up to float rounding. It ignores what reaches the layers: on a language model
    it warns, where data are given with what that costs there, measured on the first batch. Use `WhitenedSVD`.

    Example:
        >>> SVD(energy=0.9).energy
        0.9

    Source: Eckart and Young 1936; Denil et al. 2013, arXiv 1306.0543, section 2.
    """

    rank: int | None = None
    energy: float | None = None
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "budget_bytes") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PlanError(f"SVD: found {given or 'nothing'}, expected one of rank, energy, budget_bytes")
        if self.rank is not None and self.rank < 1:
            raise PlanError(f"SVD: rank: found {self.rank}, expected at least 1")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise PlanError(f"SVD: budget_bytes: found {self.budget_bytes}, expected at least 1")
        if self.energy is not None:
            check_fraction("SVD: energy", self.energy)

    @property
    def uses_example(self) -> bool:
        """To measure what it loses on a language model."""
        return True

    def bind(self, model: nn.Module, example: Tensor | None) -> SVD:
        """The same method.

        Warns:
            UserWarning: the network is a language model.
        """
        if is_language_model(model):
            found = None if example is None else measure_unseen(model, example, self._meant, self._likely)
            if found is None:
                how = "give data to have it measured"
            else:
                share = f"{found.plain:.0%} of the outputs' norm where WhitenedSVD loses {found.whitened:.0%}"
                how = f"at these ranks it loses {share} (medians of {found.layers} layers on the first batch)"
            warnings.warn(
                f"SVD: found a language model, whose inputs are far from independent: {how}. Use factorize.WhitenedSVD",
                stacklevel=2,
            )
        return self

    def _meant(self, name: str) -> bool:
        return not matches([name], self.skip) and (not self.only or matches([name], self.only))

    def _likely(self, matrix: Tensor) -> int:
        """The rank that the settings give; for a budget, which is for all layers, that of half the numbers."""
        if self.rank is not None:
            return self.rank
        if self.energy is not None:
            return _rank_for(torch.linalg.svdvals(matrix).square(), self.energy)
        return matrix.numel() // (2 * sum(matrix.shape))

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become low-rank ones."""
        return (Rule(DENSE, lambda _: LOWRANK),)

    def refuses(self, site: Site) -> str:
        """Vectors, and grouped convolutions, whose weight is not one matrix."""
        return refuses_matrix(site)

    @property
    def observes(self) -> bool:
        """Unless the rank is given."""
        return self.rank is None

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Singular values, float64 [min(out, rest)]."""
        return {"energy": torch.linalg.svdvals(_matrix(weight).double()).square()}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """A rank per layer."""
        if self.rank is not None:
            ranks = {s.key: self.rank for s in sites}
        elif self.energy is not None:
            ranks = {s.key: _rank_for(summaries[s.key]["energy"], self.energy) for s in sites}
        else:
            ranks = spend({s.key: _curve(s, summaries[s.key]["energy"]) for s in sites}, self.budget_bytes or 0)
        steps, skipped = [], {}
        for site in sites:
            rank = ranks[site.key]
            reason = NOTHING_LEFT if rank == 0 else too_big(f"rank {rank}", rank * _cost(site), prod(site.shape))
            if reason:
                skipped[site.key] = reason
            else:
                steps.append(Step((site.key,), {"rank": rank}))
        return Plan(tuple(steps), skipped=skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Factorize one site at the planned rank."""
        return thin(_matrix(weight), int(entry["rank"]), weight.dense_shape()[1:])


def thin(matrix: Tensor, rank: int, rest: tuple[int, ...]) -> LowRank:
    """The best product of two factors that share the singular values evenly.

    Args:
        matrix: [out, Π rest].
        rank: at most the smaller side.
        rest: dimensions of the weight after the first.
    """
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)  # [out, k], [k], [k, rest]
    root = s[:rank].sqrt() * signs(u[:, :rank])
    left = (u[:, :rank] * root).to(matrix.dtype).contiguous()
    right = (root[:, None] * v[:rank]).to(matrix.dtype)
    return LowRank(Dense(left), Dense(right.reshape(rank, *rest).contiguous()))


def _matrix(weight: Encoding) -> Tensor:
    return weight.to_dense().detach().flatten(1)


def _cost(site: Site) -> int:
    """Numbers per unit of rank."""
    return site.shape[0] + prod(site.shape[1:])


def _curve(site: Site, energy: Tensor) -> Curve:
    worth = min(len(energy), (prod(site.shape) - 1) // _cost(site))  # ranks that are smaller than the weight
    ranks = torch.arange(1, worth + 1)
    share = energy / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Curve(ranks * (_cost(site) * site.spec.dtype.itemsize), share.cumsum(0)[:worth])


def _rank_for(energy: Tensor, share: float) -> int:
    total = float(energy.sum())
    return 1 + (enough(energy.cumsum(0) / total, share) or 0) if total else 1
