"""Tucker-2: a convolution becomes a small one between two 1 × 1 ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.factors import Tucker
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, Ask, Evidence, Plan, Rule, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.decompositions import hooi
from gossamer.methods.factorize.family import Factorization, refuses_convolution
from gossamer.methods.factorize.gauge import balanced, signs
from gossamer.methods.factorize.ranks import NOTHING_LEFT, Curve, enough, spend, too_big

__all__ = ["Tucker2"]

TUCKER2 = Skeleton(Tucker, (("core", DENSE), ("factors.0", DENSE), ("factors.1", DENSE)))


@final
@dataclass(frozen=True, kw_only=True)
class Tucker2(Factorization):
    """w ≈ core ×₀ f₀ ×₁ f₁: factors on the two channel dimensions of a convolution, none on its kernel.

    It runs as 1 × 1 (in → r₁), the kernel (r₁ → r₀), 1 × 1 (r₀ → out). A layer for which this would not be smaller
    stays as it is, and the plan says so. Core and factors get the same root mean square.

    Args:
        ranks: (r₀, r₁), output and input channels of the core in every layer, or None. Clipped to what a layer has.
        energy: the cheapest ranks at which the truncated higher-order SVD holds this share of Σ w², 0 to 1, or None.
        budget_bytes: bytes for all cores and factors together, spent where a byte buys most of a layer's energy, or
            None.
        macs: the best ranks at which a layer needs at most this share of its own multiply-adds, 0 to 1, or None.
            Counted at stride 1, where it is also the share of numbers; at stride s the first factor alone counts s²
            times, because it runs before the stride.

    Cost: two eigendecompositions, O(out³ + in³), and out · in pairs of ranks to compare; to apply, up to 50 rounds of
    two SVDs.

    Exact: full ranks reproduce the weight up to float rounding; at ``energy`` at least that share of Σ w² is kept,
    since the iteration only improves on the truncation that was measured.

    Example:
        >>> Tucker2(macs=0.5).macs
        0.5

    Source: Tucker 1966; Kim et al. 2016, arXiv 1511.06530, section 3; De Lathauwer et al. 2000 (HOOI).
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.CONV})
    named_kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.CONV, Kind.OTHER})

    ranks: tuple[int, int] | None = None
    energy: float | None = None
    budget_bytes: int | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("ranks", "energy", "budget_bytes", "macs") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PlanError(f"Tucker2: found {given or 'nothing'}, expected one of ranks, energy, budget_bytes, macs")
        if self.ranks is not None and not _two(self.ranks):
            raise PlanError(f"Tucker2: ranks: found {self.ranks}, expected two numbers of at least 1")
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise PlanError(f"Tucker2: budget_bytes: found {self.budget_bytes}, expected at least 1")
        if self.energy is not None:
            check_fraction("Tucker2: energy", self.energy)
        if self.macs is not None:
            check_fraction("Tucker2: macs", self.macs)

    def rules(self) -> tuple[Rule, ...]:
        """Dense convolutions become a core and two factors."""
        return (Rule(DENSE, lambda _: TUCKER2),)

    def refuses(self, site: Site) -> str:
        """What is no convolution, and grouped ones, whose weight is not one tensor."""
        return refuses_convolution(site)

    @property
    def observes(self) -> bool:
        """Unless the ranks are given."""
        return self.ranks is None

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Pairs of ranks that no cheaper pair beats: ranks [n, 2], numbers [n], kept share of Σ w², float64 [n]."""
        w = weight.to_dense().detach().double()
        spread = w
        for dim in (0, 1):
            flat = w.movedim(dim, 0).flatten(1)
            vectors = torch.linalg.eigh(flat @ flat.T)[1].flip(1)  # [n, n], largest first
            spread = torch.tensordot(vectors, spread, dims=([0], [dim])).movedim(0, dim)
        energy = spread.square().flatten(2).sum(2)  # [out, in]: of every pair of channels of the full core
        kept = energy.cumsum(0).cumsum(1)
        kept = kept / kept[-1, -1] if float(kept[-1, -1]) > 0 else torch.ones_like(kept)
        outs, ins = torch.arange(1, w.shape[0] + 1)[:, None], torch.arange(1, w.shape[1] + 1)
        kernel, numbers = prod(w.shape[2:]), _numbers(w.shape, outs, ins)
        possible = (outs <= ins * kernel) & (ins <= outs * kernel) & (numbers < w.numel())
        pairs = possible.nonzero() + 1
        kept, numbers = kept[possible], numbers[possible]
        order = kept.argsort(descending=True, stable=True)
        order = order[numbers[order].argsort(stable=True)]
        best = kept[order].cummax(0).values
        rises = torch.cat([best[:1] > -1, best[1:] > best[:-1]])
        front = order[rises]
        return {"ranks": pairs[front], "numbers": numbers[front], "kept": kept[front]}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """A pair of ranks per layer."""
        chosen = {s.key: _clipped(self.ranks, s.shape) for s in sites} if self.ranks is not None else {}
        reasons = {}
        if self.budget_bytes is not None:
            chosen, reasons = self._spend(sites, summaries, self.budget_bytes), {s.key: NOTHING_LEFT for s in sites}
        elif self.ranks is None:
            for site in sites:
                level = self._level(site, summaries[site.key])
                if level is None:
                    wanted = f"{self.energy:.3g} of the energy" if self.energy is not None else f"{self.macs:.3g} MACs"
                    reasons[site.key] = f"found no ranks with {wanted} that would be smaller than the weight"
                else:
                    chosen[site.key] = _pair(summaries[site.key], level)
        steps, skipped = [], {}
        for site in sites:
            if site.key not in chosen:
                skipped[site.key] = reasons[site.key]
                continue
            r0, r1 = chosen[site.key]
            reason = too_big(f"ranks {r0} and {r1}", int(_numbers(site.shape, r0, r1)), prod(site.shape))
            if reason:
                skipped[site.key] = reason
            else:
                steps.append(Step((site.key,), {"ranks": [r0, r1]}))
        return Plan(tuple(steps), skipped=skipped)

    def _level(self, site: Site, front: Summary) -> int | None:
        if self.energy is not None:
            return enough(front["kept"], self.energy)
        affordable = int((front["numbers"] <= (self.macs or 0.0) * prod(site.shape)).sum())
        return affordable - 1 if affordable else None

    @staticmethod
    def _spend(sites: Sequence[Site], summaries: Mapping[str, Summary], budget: int) -> dict[str, tuple[int, int]]:
        curves = {s.key: _curve(s, summaries[s.key]) for s in sites}
        return {key: _pair(summaries[key], level - 1) for key, level in spend(curves, budget).items() if level}

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Factorize one site at the planned ranks."""
        w = weight.to_dense().detach()
        core, (f0, f1) = hooi(w.double(), [int(r) for r in entry["ranks"]])
        s0, s1 = signs(f0), signs(f1)
        core = core * s0.view(-1, 1, *[1] * (w.dim() - 2)) * s1.view(1, -1, *[1] * (w.dim() - 2))
        core, f0, f1 = (x.to(w.dtype).contiguous() for x in balanced([core, f0 * s0, f1 * s1]))
        return Tucker(Dense(core), (Dense(f0), Dense(f1), *[None] * (w.dim() - 2)))


def _two(ranks: Sequence[int]) -> bool:
    return len(ranks) == 2 and min(ranks) >= 1


def _numbers(shape: Sequence[int], r0: int | Tensor, r1: int | Tensor) -> Any:
    """Numbers in core and factors; per output position also the multiply-adds at stride 1."""
    return shape[0] * r0 + shape[1] * r1 + prod(shape[2:]) * r0 * r1


def _clipped(ranks: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    """Ranks that the layer can have: neither exceeds its dimension, nor the other one times the kernel."""
    kernel = prod(shape[2:])
    r0, r1 = min(ranks[0], shape[0]), min(ranks[1], shape[1])
    return min(r0, r1 * kernel), min(r1, r0 * kernel)


def _curve(site: Site, front: Summary) -> Curve:
    return Curve(front["numbers"] * site.spec.dtype.itemsize, front["kept"])


def _pair(front: Summary, level: int) -> tuple[int, int]:
    r0, r1 = front["ranks"][level].tolist()
    return r0, r1
