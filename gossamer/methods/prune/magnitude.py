"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import (
    DENSE,
    MASKED,
    Ask,
    Evidence,
    Method,
    Plan,
    Rule,
    Site,
    Step,
    Summary,
    check_fraction,
    live_values,
)
from gossamer.methods.prune.ranking import PIECE, Pieces, best, rank
from gossamer.methods.prune.structure import NofM, Structure, Unstructured

__all__ = ["Magnitude"]

_FINE = 1 << 16


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Keep the weights (or rows, columns, blocks) of largest magnitude, exactly as many as asked for.

    Of n units, n − round(sparsity · n) stay; ties go to the earlier unit, and to the earlier tensor. Units of more than
    one weight are ranked by their root mean square. What is dead already stays dead.

    Args:
        sparsity: fraction of weights that become zero, 0 to 1; not given for `NofM`, which fixes it.
        structure: what lives or dies together.
        scope: "uniform" (this sparsity in every tensor), "global" (one threshold over all tensors), or "lamp" (one
            threshold over s² / Σ s'², the sum over the units of the same tensor with s' ≥ s: a tensor's last units
            are worth the most, which spares small tensors).

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

    sparsity: float | None = None
    structure: Structure = field(default_factory=Unstructured)
    scope: Literal["uniform", "global", "lamp"] = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.structure, Structure):
            raise PlanError(
                f"Magnitude: structure: found {self.structure!r}, expected one such as Rows() or Block(4, 1)"
            )
        if isinstance(self.structure, NofM):
            if self.sparsity is not None or self.scope != "uniform":
                raise PlanError("Magnitude: found a sparsity or a global scope beside NofM, which fixes both itself")
        elif self.sparsity is None:
            raise PlanError("Magnitude: found no sparsity, expected a number from 0 to 1")
        else:
            check_fraction("Magnitude: sparsity", self.sparsity)
        if self.scope not in ("uniform", "global", "lamp"):
            raise PlanError(f"Magnitude: scope: found {self.scope!r}, expected 'uniform', 'global' or 'lamp'")

    def at(self, progress: float) -> Method:
        """Cubic ramp: sparsity · (1 − (1 − progress)³)."""
        if self.sparsity is None:
            return super().at(progress)
        return dataclasses.replace(self, sparsity=self.sparsity * (1 - (1 - progress) ** 3))

    def rules(self) -> tuple[Rule, ...]:
        """Dense or already pruned weights become masked."""
        return Rule(DENSE, self._masked), Rule(MASKED, self._masked)

    def _masked(self, found: Skeleton) -> Skeleton:
        where = Skeleton(self._kind_over(found.at("/where").kind if found.kind is Masked else None))
        return Skeleton(Masked, (("where", where), ("value", DENSE)))

    def _kind_over(self, old: type[Encoding] | None) -> type[Encoding]:
        # A structure over a different one is an intersection: only a free mask can hold it.
        kind = self.structure.pattern_kind()
        return kind if old in (None, kind) or isinstance(self.structure, NofM) else Mask

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Prune before sharing or quantizing: those keep the mask, but pruning cannot rank shared values"

    def refuses(self, site: Site) -> str:
        """Shapes that the structure cannot partition."""
        return self.structure.refuses(site.shape)

    @property
    def observes(self) -> bool:
        """A threshold over all tensors needs to look first."""
        return self.scope != "uniform"

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Histogram of the scores' upper 16 bits; in the second round of the lower 16 bits of one bin."""
        del evidence
        units, pieces = self._ranked(site, weight)
        if ask is None:
            histogram = sum((torch.bincount(p >> 16, minlength=1 << 15) for p in pieces), torch.zeros(1 << 15).long())
            return {"histogram": histogram, "units": units}
        chosen, above, fine = int(ask.state["bin"]), 0, torch.zeros(_FINE, dtype=torch.int64)
        for piece in pieces:
            upper = piece >> 16
            above += int((upper > chosen).sum())
            fine += torch.bincount(piece[upper == chosen] & 0xFFFF, minlength=_FINE)
        return {"above": above, "histogram": fine}

    def _ranked(self, site: Site, weight: Encoding) -> tuple[int, Iterator[Tensor]]:
        """Number of units, and the ranks of the live ones piece by piece, so that no copy of the weight is made."""
        if isinstance(self.structure, Unstructured) and self.scope != "lamp":
            live = live_values(weight)[1]
            return self.structure.units(site.shape), (rank(p.float().abs()) for p in torch.split(live, PIECE))
        scores = self.structure.score(self._scores(site, weight))
        ranks = rank(_lamp(scores) if self.scope == "lamp" else scores)
        return ranks.numel(), (p[p >= 0] for p in torch.split(ranks, PIECE))

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """How many units each site keeps."""
        if self.scope == "uniform":
            return Plan(tuple(Step((s.key,), {"keep": self._share(self.structure.units(s.shape))}) for s in sites))
        sizes = {s.key: self.structure.size(s.shape) for s in sites}
        if ask is None:
            total = sum(int(summaries[k]["units"]) * sizes[k] for k in sizes)
            wanted = self._share(total)
            tail = torch.zeros(1 << 15, dtype=torch.int64)
            for key, size in sizes.items():
                tail += _tail(summaries[key]["histogram"]) * size
            return Ask({"bin": max(0, int((tail >= wanted).sum()) - 1), "wanted": min(wanted, int(tail[0]))})
        return Plan(self._fine(sites, sizes, summaries, int(ask.state["wanted"])))

    def _share(self, units: int) -> int:
        return units - round(units * self.sparsity) if self.sparsity is not None else units

    @staticmethod
    def _fine(
        sites: Sequence[Site], sizes: Mapping[str, int], summaries: Mapping[str, Summary], wanted: int
    ) -> tuple[Step, ...]:
        tails = {}
        for key in sizes:
            tail = torch.zeros(_FINE + 1, dtype=torch.int64)
            tail[:-1] = _tail(summaries[key]["histogram"])
            tails[key] = tail + int(summaries[key]["above"])
        together = torch.zeros(_FINE + 1, dtype=torch.int64)
        for key, tail in tails.items():
            together += tail * sizes[key]
        # Smallest score that is kept at all; above it everything stays, at it as many as are left.
        smallest = min(max(0, int((together >= wanted).sum()) - 1), _FINE - 1)
        spare = wanted - int(together[smallest + 1])
        steps = []
        for site in sites:
            tail = tails[site.key]
            ties = min(max(0, spare) // sizes[site.key], int(tail[smallest] - tail[smallest + 1]))
            spare -= ties * sizes[site.key]
            steps.append(Step((site.key,), {"keep": int(tail[smallest + 1]) + ties}))
        return tuple(steps)

    def _scores(self, site: Site, weight: Encoding) -> Tensor:
        positions, values = live_values(weight)
        magnitudes = values.float().abs()
        if positions is None:
            return magnitudes.view(site.shape)
        scores = torch.full(site.shape, -1.0)
        scores.view(-1)[positions.long()] = magnitudes
        return scores

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Keep the ``entry["keep"]`` best units."""
        dense = weight.to_dense().detach()
        if isinstance(self.structure, NofM):
            kept = self.structure.best(self._scores(site, weight))
            where = self.structure.pattern(kept, site.shape)
        elif isinstance(self.structure, Unstructured) and isinstance(weight, Dense):
            magnitudes = Pieces(dense.reshape(-1), lambda piece: rank(piece.float().abs()))
            where = self.structure.pattern(best(magnitudes, int(entry["keep"])), site.shape)
        else:
            scores = self._scores(site, weight)
            where = self.structure.pattern(
                best(Pieces(self.structure.score(scores), rank), int(entry["keep"])), site.shape
            )
            old = type(weight.where) if isinstance(weight, Masked) else None
            if self._kind_over(old) is not type(where):
                where = Mask.of(where.mask() & (scores >= 0))
        return Masked(where, Dense(dense.reshape(-1).index_select(0, where.positions())))


def _lamp(scores: Tensor) -> Tensor:
    """s² / Σ s'² over units with s' ≥ s, float32; dead units stay −1. Rises with s, so ranks within a tensor stay."""
    order = scores.argsort(descending=True, stable=True)
    squares = scores[order].clamp_min(0).double().square()
    shares = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    lamp = torch.empty_like(scores)
    lamp[order] = shares.float()
    return torch.where(scores < 0, -1.0, lamp)


def _tail(histogram: Tensor) -> Tensor:
    """How many lie in each bin or above."""
    return histogram.flip(0).cumsum(0).flip(0)
