"""Singular value decomposition of what a layer does to its inputs, not of its weight alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.factors import LowRank
from gossamer.encoding.interpolation import Interpolation
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import (
    DENSE,
    Ask,
    Entry,
    Evidence,
    Plan,
    Rule,
    Shared,
    Site,
    Step,
    Summary,
    check_fraction,
    matches,
)
from gossamer.methods.factorize.family import Factorization, refuses_matrix
from gossamer.methods.factorize.ranks import Curve, enough, spend
from gossamer.methods.factorize.spanning import spanning_rows
from gossamer.methods.factorize.svd import LOWRANK
from gossamer.methods.input_space import UNSEEN, best_product, check_damping, gram_of, root_of, solved_left, weighted

__all__ = ["WhitenedSVD"]

INTERPOLATED = Skeleton(
    LowRank, (("u", Skeleton(Interpolation, (("rest", DENSE), ("rows", Skeleton(Mask))))), ("v", DENSE))
)
_WHOLE = "found bytes for the whole weight in the budget"
_LEAST = 1e-3  # of the mean weight of an output: those that the loss hardly depends on still count a little


@final
@dataclass(frozen=True, kw_only=True)
class WhitenedSVD(Factorization):
    """w ≈ u · v of the lowest error ‖(w − u·v) · Xᵀ‖ over the inputs X that the data show.

    With G = XᵀX = L·Lᵀ that is the truncated SVD of w · L. With ``outputs="fisher"`` row o of w counts √f_o times, f_o
    the mean square of the loss's derivative in output o: errors are then in units of the loss, alike in all layers.

    Args:
        rank: the same for every layer; or pairs of (glob pattern, rank), of which the first match counts and layers
            without one stay as they are; or None.
        energy: smallest rank that keeps this share of ‖w · Xᵀ‖², 0 to 1, or None.
        density: numbers left as a share of the weights, 0 to 1, or None.
        budget_bytes: bytes of all layers together, those that stay as they are included, or None.
        scope: of a density: "uniform": every layer gets it; "global": all together do, as with a budget: bytes go
            where they buy most, and layers may stay as they are.
        outputs: "equal" or "fisher", which needs targets in the data.
        identity: store ``rank`` rows of the product as they are, and the others as combinations of them, with
            coefficients of about 1.5 at most: rank · (out + in − rank) numbers instead of rank · (out + in).
        damping: added to G as a share of its mean diagonal, above 0.

    Cost: a Gram matrix of the inputs per layer; an eigendecomposition of the smaller side when ranks depend on the
    values, and one more to apply.

    Exact: the optimum at its rank for damped G; full rank reproduces the weight up to float rounding. In half
    precision u answers to v as it was rounded, by least squares.

    Example:
        >>> WhitenedSVD(density=0.8).scope
        'global'

    Source: Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3; weighted rows: Hsu et al. 2022, FWSVD, arXiv
    2207.00112, section 3; rows stored as they are: Cheng et al. 2005, On the compression of low rank matrices; Zhao et
    al. 2025, Pivoting factorization, arXiv 2501.19090; how to choose them: Goreinov et al. 2010.
    """

    rank: int | tuple[tuple[str, int], ...] | None = None
    energy: float | None = None
    density: float | None = None
    budget_bytes: int | None = None
    scope: Literal["global", "uniform"] = "global"
    outputs: Literal["equal", "fisher"] = "equal"
    identity: bool = True
    damping: float = 1e-4

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "density", "budget_bytes") if getattr(self, n) is not None]
        if len(given) != 1:
            found = given or "nothing"
            raise PlanError(f"WhitenedSVD: found {found}, expected one of rank, energy, density, budget_bytes")
        ranks = [self.rank] if isinstance(self.rank, int) else [r for _, r in self.rank or ()]
        if any(r < 1 for r in ranks):
            raise PlanError(f"WhitenedSVD: rank: found {self.rank}, expected at least 1")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise PlanError(f"WhitenedSVD: budget_bytes: found {self.budget_bytes}, expected at least 1")
        for name in ("energy", "density"):
            if getattr(self, name) is not None:
                check_fraction(f"WhitenedSVD: {name}", getattr(self, name))
        if self.scope not in ("global", "uniform"):
            raise PlanError(f"WhitenedSVD: scope: found {self.scope!r}, expected global or uniform")
        if self.outputs not in ("equal", "fisher"):
            raise PlanError(f"WhitenedSVD: outputs: found {self.outputs!r}, expected equal or fisher")
        check_damping("WhitenedSVD", self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, and those of the gradient for weighted outputs."""
        return frozenset({"gram", "grad_sq"} if self.outputs == "fisher" else {"gram"})

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become low-rank ones."""
        made = INTERPOLATED if self.identity else LOWRANK
        return (Rule(DENSE, lambda _: made),)

    def refuses(self, site: Site) -> str:
        """Vectors, and grouped convolutions, whose weight is not one matrix."""
        return refuses_matrix(site)

    @property
    def observes(self) -> bool:
        """Always: which layers the data reach is only seen there."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Squares of the singular values of √f · w · L, float64 [min(out, rest)], or nothing: no data reach it.

        Where outputs are alike, as shares of their sum: layers have no common unit then.
        """
        gram = gram_of(f"WhitenedSVD: {site.key}", site.shape, evidence, self.damping)
        if gram is None:
            return {}
        matrix, weights, unit = _matrix(weight), self._weights(site, evidence), 1.0
        if weights is None and self.rank is None:
            unit = 1 / max(float((matrix @ gram * matrix).sum()), torch.finfo(torch.float64).tiny)
        elif weights is not None:
            unit = float(evidence["gram"].diagonal().double().sum()) / len(gram)
        if self.rank is not None:
            return {"energy": torch.zeros(0, dtype=torch.float64)}
        whitened = weighted(matrix, weights) @ root_of(gram)
        small = whitened @ whitened.T if len(whitened) <= whitened.shape[1] else whitened.T @ whitened
        return {"energy": torch.linalg.eigvalsh(small).flip(0).clamp_min(0.0) * unit}

    def _weights(self, site: Site, evidence: Evidence) -> Tensor | None:
        """√f per output, up to one factor for all layers, float64 [out]; None: all alike."""
        if self.outputs == "equal":
            return None
        if "grad_sq" not in evidence:
            raise DataError(f"WhitenedSVD: {site.key}: found no gradients, expected data of (inputs, targets)")
        # Σ (Σ_t g_o·x_i)² over inputs i is Σ_t g_o² · ‖x‖² where steps t are independent.
        moved = evidence["grad_sq"].double().flatten(1).sum(1)
        fisher = moved / evidence["gram"].double().diagonal().sum().clamp_min(torch.finfo(torch.float64).tiny)
        mean = float(fisher.mean())
        return (fisher + _LEAST * mean).sqrt() if mean > 0 else torch.ones_like(fisher)

    # -- how large ---------------------------------------------------------------------------------------------------

    def _nbytes(self, site: Site, rank: Any) -> Any:
        """Bytes at a rank, or at each of many."""
        out, rest, width = site.shape[0], prod(site.shape[1:]), site.spec.dtype.itemsize
        if self.identity:
            return rank * (out + rest - rank) * width + ceil(out / 8)
        return rank * (out + rest) * width

    def _most(self, site: Site) -> int:
        """The highest rank at which it is smaller than the weight, 0 for none."""
        ranks = torch.arange(1, min(site.shape[0], prod(site.shape[1:])) + 1)
        return int((self._nbytes(site, ranks) < _whole(site)).sum())

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """A rank per layer."""
        seen = [s for s in sites if "energy" in summaries[s.key]]
        skipped = {s.key: UNSEEN for s in sites if "energy" not in summaries[s.key]}
        budget = self.budget_bytes
        if self.density is not None and self.scope == "global":
            budget = int(self.density * sum(_whole(s) for s in seen))
        ranks = self._spend(seen, summaries, budget) if budget is not None else {}
        steps = []
        for site in seen:
            most = self._most(site)
            rank = ranks[site.key] if budget is not None else self._rank(site, summaries[site.key]["energy"])
            if rank is None:
                skipped[site.key] = "found no pattern of rank that matches it" if self.rank else _WHOLE
            elif rank > most or not most:
                nbytes = self._nbytes(site, rank)
                skipped[site.key] = f"rank {rank} would take {nbytes} bytes, the weight itself has {_whole(site)}"
            else:
                steps.append(Step((site.key,), {"rank": max(1, rank)}))
        return Plan(tuple(steps), skipped=skipped)

    def _rank(self, site: Site, energy: Tensor) -> int | None:
        if isinstance(self.rank, int):
            return self.rank
        if self.rank is not None:
            return next((r for pattern, r in self.rank if matches(site.spec.names, pattern)), None)
        if self.energy is not None:
            total = float(energy.sum())
            return 1 + (enough(energy.cumsum(0) / total, self.energy) or 0) if total else 1
        ranks = torch.arange(1, min(site.shape[0], prod(site.shape[1:])) + 1)
        return int((self._nbytes(site, ranks) <= (self.density or 0.0) * _whole(site)).sum())

    def _spend(self, sites: Sequence[Site], summaries: Mapping[str, Summary], budget: int) -> dict[str, int | None]:
        """Ranks of the least error together, None: the weight stays as it is; no layer is left without a rank."""
        curves, least = {}, 0
        for site in sites:
            energy, most = summaries[site.key]["energy"], self._most(site)
            levels = torch.arange(1, most + 1)
            nbytes = torch.cat([self._nbytes(site, levels), torch.tensor([_whole(site)])])
            kept = torch.cat([energy.cumsum(0)[:most], energy.sum()[None]])
            curves[site.key] = Curve(nbytes - nbytes[0], kept - kept[0])
            least += int(nbytes[0])
        if budget < least:
            raise PlanError(
                f"WhitenedSVD: found a budget of {budget} bytes, expected at least {least}, rank 1 everywhere"
            )
        shifted = {k: Curve(c.nbytes[1:], c.kept[1:]) for k, c in curves.items()}
        bought = spend(shifted, budget - least)
        return {k: 1 + level if level < len(shifted[k].nbytes) else None for k, level in bought.items()}

    # -- how ---------------------------------------------------------------------------------------------------------

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Factorize at the planned rank."""
        del shared
        rank = int(entry["rank"])
        gram = gram_of(f"WhitenedSVD: {site.key}", site.shape, evidence, self.damping)
        if gram is None:
            raise DataError(f"WhitenedSVD: {site.key}: {UNSEEN}, expected those that it was planned with")
        matrix, dtype, rest = _matrix(weight), weight.to_dense().dtype, weight.dense_shape()[1:]
        u, v = best_product(matrix, gram, rank, self._weights(site, evidence))
        if not self.identity:
            v = v.to(dtype)
            u = u if dtype.itemsize > 2 else solved_left(matrix, v.double(), gram)
            return LowRank(Dense(u.to(dtype).contiguous()), Dense(v.reshape(rank, *rest).contiguous()))
        # Of an orthonormal basis of the columns: no rank is lost there, not even by a weight of zeros.
        basis, turn = torch.linalg.qr(u)  # [out, rank], [rank, rank]
        rows, others = spanning_rows(basis)
        v = (basis[rows] @ (turn @ v)).to(dtype)  # [rank, rank] · [rank, in]
        where = torch.zeros(len(matrix), dtype=torch.bool)
        where[rows] = True
        if dtype.itemsize <= 2:
            others = solved_left(matrix[~where], v.double(), gram)
        left = Interpolation(Dense(others.to(dtype).contiguous()), Mask.of(where))
        return LowRank(left, Dense(v.reshape(rank, *rest).contiguous()))


def _matrix(weight: Encoding) -> Tensor:
    return weight.to_dense().detach().flatten(1).double()


def _whole(site: Site) -> int:
    return prod(site.shape) * site.spec.dtype.itemsize
