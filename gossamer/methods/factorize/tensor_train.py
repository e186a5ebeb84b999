"""Tensor train: a matrix becomes a chain of small cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt, prod, sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.factors import TensorTrain as Train
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, WEIGHTS, Ask, Evidence, Plan, Rule, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.family import Factorization
from gossamer.methods.factorize.gauge import balanced, signs
from gossamer.methods.factorize.ranks import NOTHING_LEFT, Curve, spend, too_big

__all__ = ["TensorTrain", "even_factors"]

_LENGTH = 3  # two cores factorize little more than an SVD, four and more fit worse at the same size


@final
@dataclass(frozen=True, kw_only=True)
class TensorTrain(Factorization):
    """w[(i₁…i_d), (j₁…j_d)] ≈ G₁[i₁, j₁] · … · G_d[i_d, j_d], by successive truncated SVDs (TT-SVD).

    For Linear and Embedding weights. The numbers of rows and columns are written as products of ``cores`` factors as
    equal as possible, the largest at the two ends (inner cores cost rank², outer ones rank), or as given. A layer
    for which the chain would not be smaller stays as it is, and the plan says so. All cores get the same root mean
    square.

    Args:
        rank: the largest rank of any bond, or None.
        error: ranks such that ‖w − ŵ‖ ≤ error · ‖w‖ (Frobenius), 0 to 1, or None.
        budget_bytes: bytes for all chains together, spent where a byte buys most of a layer's energy, or None.
        cores: length of the chain, at least 2; None: 3, or as many as there are rows.
        rows: factors of the number of rows, in order, or None. Layers of another number of rows stay as they are.
        columns: factors of the number of columns, as many as of the rows, or None. Both or neither.

    Cost: one SVD per bond, O(m·n·min(m, n)) at most, when ranks depend on the values, and as much again to apply.

    Exact: full ranks reproduce the weight up to float rounding; the error is at most the root of the sum of the bonds'
    squared tails, and at most √(cores − 1) times the smallest possible.

    Example:
        >>> TensorTrain(rank=8, rows=(10, 5, 6), columns=(14, 7, 8)).rank
        8

    Source: Oseledets 2011, Tensor-train decomposition, theorem 2.2; Novikov et al. 2015, arXiv 1509.06569; Hrinchuk
    et al. 2020, arXiv 1901.10787 (embeddings).
    """

    parts: ClassVar[str] = "cores"
    kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV}
    named_kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV} | {Kind.OTHER}

    rank: int | None = None
    error: float | None = None
    budget_bytes: int | None = None
    cores: int | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "error", "budget_bytes") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PlanError(f"TensorTrain: found {given or 'nothing'}, expected one of rank, error, budget_bytes")
        for name in ("rank", "budget_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"TensorTrain: {name}: found {value}, expected at least 1")
        if self.error is not None:
            check_fraction("TensorTrain: error", self.error)
        if self.cores is not None and self.cores < 2:
            raise PlanError(f"TensorTrain: cores: found {self.cores}, expected at least 2")
        if self.rows is not None or self.columns is not None:
            rows, columns = self.rows or (), self.columns or ()
            if len(rows) != len(columns) or len(rows) < 2 or min(*rows, *columns) < 1:
                raise PlanError(
                    f"TensorTrain: found rows {self.rows} and columns {self.columns}, expected as many factors of both"
                )
            if self.cores not in (None, len(rows)):
                raise PlanError(f"TensorTrain: cores: found {self.cores}, expected {len(rows)} as in rows")

    def _length(self) -> int:
        return self.cores or (_LENGTH if self.rows is None else len(self.rows))

    def rules(self) -> tuple[Rule, ...]:
        """Dense matrices become a chain of cores."""
        made = Skeleton(Train, tuple((f"cores.{i}", DENSE) for i in range(self._length())))
        return (Rule(DENSE, lambda _: made),)

    def refuses(self, site: Site) -> str:
        """What is no matrix, or not of the rows and columns that were given."""
        if len(site.shape) != 2 or min(site.shape) < 1:
            return f"found shape {site.shape}, expected a matrix"
        if self.rows is not None and self.columns is not None:
            wanted = (prod(self.rows), prod(self.columns))
            if site.shape != wanted:
                return f"found shape {site.shape}, rows and columns multiply to {wanted}"
        return ""

    @property
    def observes(self) -> bool:
        """Unless the rank is given."""
        return self.rank is None

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Squared singular values of the unfolding at every bond, float64 [cores − 1][largest rank]."""
        rows, columns = self._factors(site.shape)
        chain = _interleaved(_matrix(weight).double(), rows, columns)
        sizes = [m * n for m, n in zip(rows, columns, strict=True)]
        unfolded = (chain.reshape(prod(sizes[:k]), -1) for k in range(1, len(sizes)))
        return {"energy": [torch.linalg.svdvals(a).square() for a in unfolded]}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Factors and ranks per layer."""
        shapes = {s.key: self._factors(s.shape) for s in sites}
        if self.rank is not None:
            ranks = {k: _bounded(rows, columns, self.rank) for k, (rows, columns) in shapes.items()}
        elif self.error is not None:
            ranks = {k: _ranks_for(*shapes[k], summaries[k]["energy"], self.error) for k in shapes}
        else:
            ranks = self._spend(sites, shapes, summaries)
        steps, skipped = [], {}
        for site in sites:
            rows, columns = shapes[site.key]
            if site.key not in ranks:
                skipped[site.key] = NOTHING_LEFT
                continue
            mine = ranks[site.key]
            what = f"ranks {', '.join(map(str, mine))} over {_times(rows)} rows and {_times(columns)} columns"
            reason = too_big(what, _numbers(rows, columns, mine), prod(site.shape))
            if reason:
                skipped[site.key] = reason
            else:
                entry = {"rows": list(rows), "columns": list(columns), "ranks": list(mine)}
                steps.append(Step((site.key,), entry))
        return Plan(tuple(steps), skipped=skipped)

    def _factors(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.rows is not None and self.columns is not None:
            return self.rows, self.columns
        return even_factors(shape[0], self._length()), even_factors(shape[1], self._length())

    def _spend(
        self,
        sites: Sequence[Site],
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
        summaries: Mapping[str, Summary],
    ) -> dict[str, tuple[int, ...]]:
        curves, levels = {}, {}
        for site in sites:
            rows, columns = shapes[site.key]
            energy = summaries[site.key]["energy"]
            total = max(float(energy[0].sum()), torch.finfo(torch.float64).tiny)
            offered = []
            for rank in range(1, max(len(e) for e in energy) + 1):
                ranks = _bounded(rows, columns, rank)
                numbers = _numbers(rows, columns, ranks)
                if numbers >= prod(site.shape):
                    break
                # An estimate, as if the bonds lost independently; what is promised (1 − Σ tails) is often nothing.
                kept_here = prod(float(e[:r].sum()) / total for e, r in zip(energy, ranks, strict=True))
                offered.append((numbers * site.spec.dtype.itemsize, kept_here, ranks))
            nbytes = torch.tensor([o[0] for o in offered], dtype=torch.int64)
            curves[site.key] = Curve(nbytes, torch.tensor([o[1] for o in offered], dtype=torch.float64))
            levels[site.key] = [o[2] for o in offered]
        bought = spend(curves, self.budget_bytes or 0)
        return {key: levels[key][level - 1] for key, level in bought.items() if level}

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Factorize one site with the planned factors and ranks."""
        matrix = _matrix(weight)
        rest = _interleaved(matrix.double(), entry["rows"], entry["columns"])
        cores, before = [], 1
        *links, (last_m, last_n) = zip(entry["rows"], entry["columns"], strict=True)
        for (m, n), rank in zip(links, entry["ranks"], strict=True):
            u, s, v = torch.linalg.svd(rest.reshape(before * m * n, -1), full_matrices=False)
            sign = signs(u[:, :rank])
            cores.append((u[:, :rank] * sign).view(before, m, n, rank))
            rest = (s[:rank] * sign)[:, None] * v[:rank]  # [rank, what is left]
            before = rank
        cores.append(rest.view(before, last_m, last_n, 1))
        return Train(tuple(Dense(c.to(matrix.dtype).contiguous()) for c in balanced(cores)))


def even_factors(number: int, count: int) -> tuple[int, ...]:
    """A number as a product of ``count`` factors of the smallest sum, the largest two at the ends.

    Example:
        >>> even_factors(784, 3), even_factors(300, 3), even_factors(7, 2)
        ((14, 7, 8), (10, 5, 6), (7, 1))
    """
    best = min(_products(number, count, 1), key=lambda f: (sum(f), f))
    left: list[int] = []
    right: list[int] = []
    for i, factor in enumerate(sorted(best, reverse=True)):
        (right if i % 2 else left).append(factor)
    return (*left, *reversed(right))


def _products(number: int, count: int, least: int) -> Iterator[tuple[int, ...]]:
    """Ascending factors, none below ``least``."""
    if count == 1:
        yield (number,)
        return
    for first in range(least, isqrt(number) + 1):
        if number % first == 0:
            for others in _products(number // first, count - 1, first):
                yield (first, *others)


def _matrix(weight: Encoding) -> Tensor:
    return weight.to_dense().detach()


def _interleaved(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """[Π m, Π n] → [m₁, n₁, m₂, n₂, …]."""
    d = len(rows)
    return matrix.reshape(*rows, *columns).permute([i + d * side for i in range(d) for side in (0, 1)])


def _bounded(rows: Sequence[int], columns: Sequence[int], rank: int) -> tuple[int, ...]:
    """The rank at every bond, or the largest one that the bond can have."""
    sizes = [m * n for m, n in zip(rows, columns, strict=True)]
    return tuple(min(rank, prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes)))


def _ranks_for(rows: Sequence[int], columns: Sequence[int], energy: Sequence[Tensor], error: float) -> tuple[int, ...]:
    """Smallest ranks of which each loses no more than its share, error / √bonds."""
    ranks, before = [], 1
    for k, squares in enumerate(energy):
        allowed = (error / sqrt(len(energy))) ** 2 * float(squares.sum())
        tails = squares.flip(0).cumsum(0).flip(0)  # what is lost from each rank on
        rank = max(1, int((tails > allowed).sum()))
        before = min(rank, before * rows[k] * columns[k])  # truncated before, the rest cannot have a higher rank
        ranks.append(before)
    return tuple(ranks)


def _numbers(rows: Sequence[int], columns: Sequence[int], ranks: Sequence[int]) -> int:
    links = zip(pairwise((1, *ranks, 1)), rows, columns, strict=True)
    return sum(before * m * n * after for (before, after), m, n in links)


def _times(factors: Sequence[int]) -> str:
    return "·".join(map(str, factors))
