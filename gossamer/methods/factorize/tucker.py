"""Tucker-2: a convolution becomes a small one between two 1 × 1 ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.factors import Tucker
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Entry, Evidence, Plan, Rule, Shared, Site, Step, Summary, check_fraction
from gossamer.methods.factorize.decompositions import hooi
from gossamer.methods.factorize.family import Factorization, refuses_convolution
from gossamer.methods.factorize.gauge import balanced, signs
from gossamer.methods.factorize.ranks import NOTHING_LEFT, Curve, enough, spend, too_big
from gossamer.methods.input_space import UNSEEN, check_inputs, gram_of, output_error, root_of, solved_left

__all__ = ["Tucker2"]

TUCKER2 = Skeleton(Tucker, (("core", DENSE), ("factors.0", DENSE), ("factors.1", DENSE)))


@final
@dataclass(frozen=True, kw_only=True)
class Tucker2(Factorization):
    """w ≈ core ×₀ f₀ ×₁ f₁: factors on the two channel dimensions of a convolution, none on its kernel.

    It runs as 1 × 1 (in → r₁), the kernel (r₁ → r₀), 1 × 1 (r₀ → out). A layer for which this would not be smaller
    stays as it is, and the plan says so. Core and factors get the same root mean square.

    With inputs="gram" energy and error are those of the layer's outputs over the inputs X of the data: ranks are chosen
    and factors found with the channels' second moments, as if the kernel's places were alike and independent; the core
    then is the least-squares answer to its factors over X. The plain factors, with the core that answers to them, where
    those are better.

    Args:
        ranks: (r₀, r₁), output and input channels of the core in every layer, or None. Clipped to what a layer has.
        energy: the cheapest ranks at which the truncated higher-order SVD holds this share of Σ w², 0 to 1, or None.
        budget_bytes: bytes for all cores and factors together, spent where a byte buys most of a layer's energy, or
            None.
        macs: the best ranks at which a layer needs at most this share of its own multiply-adds, 0 to 1, or None.
            Counted at stride 1, where it is also the share of numbers; at stride s the first factor alone counts s²
            times, because it runs before the stride.
        inputs: "equal", or "gram", which needs data.
        damping: added to the inputs' second moments as a share of their mean, above 0.

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
    inputs: Literal["equal", "gram"] = "equal"
    damping: float = 1e-4

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
        check_inputs("Tucker2", self.inputs, ("equal", "gram"), self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, where they count."""
        return frozenset({"gram"} if self.inputs == "gram" else ())

    def rules(self) -> tuple[Rule, ...]:
        """Dense convolutions become a core and two factors."""
        return (Rule(DENSE, lambda _: TUCKER2),)

    def refuses(self, site: Site) -> str:
        """What is no convolution, and grouped ones, whose weight is not one tensor."""
        return refuses_convolution(site)

    @property
    def observes(self) -> bool:
        """Unless the ranks are given; with data always, as which layers they reach is only seen there."""
        return self.ranks is None or self.inputs == "gram"

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Pairs of ranks that no cheaper pair beats: ranks [n, 2], numbers [n], kept share of Σ w², float64 [n].

        Nothing where inputs count and the data do not reach it.
        """
        w = weight.to_dense().detach().double()
        if self.inputs == "gram":
            gram = self._gram(site, evidence)
            if gram is None:
                return {}
            w = torch.tensordot(w, _channel_root(gram, site.shape), dims=([1], [0])).movedim(-1, 1)
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
        everywhere = sites
        if self.inputs == "gram":
            sites = [s for s in everywhere if "kept" in summaries[s.key]]
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
        steps, skipped = [], {s.key: UNSEEN for s in everywhere if s not in sites}
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

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Factorize at the planned ranks; where inputs count, then the core as the best answer to its factors."""
        del shared
        ranks = [int(r) for r in entry["ranks"]]
        w = weight.to_dense().detach()
        if self.inputs == "equal":
            return _stored(*_decomposed(w.double(), ranks, None), w.dtype)
        gram = self._gram(site, evidence)
        if gram is None:
            raise DataError(f"Tucker2: {site.key}: {UNSEEN}, expected those that it was planned with")
        found = []
        for root in (_channel_root(gram, w.shape), None):
            core, f0, f1 = _decomposed(w.double(), ranks, root)
            made = _stored(_answer(w.double(), core, f0, f1, gram), f0, f1, w.dtype)
            found.append((output_error((made.to_dense() - w).flatten(1), gram), made))
        return min(found, key=lambda pair: pair[0])[1]

    def _gram(self, site: Site, evidence: Evidence) -> Tensor | None:
        return gram_of(f"Tucker2: {site.key}", site.shape, evidence, self.damping)


def _channel_root(gram: Tensor, shape: Sequence[int]) -> Tensor:
    """L of L·Lᵀ = mean over the kernel's places of the channels' Gram matrix, float64 [in, in]."""
    places = prod(shape[2:])
    return root_of(gram.view(shape[1], places, shape[1], places).diagonal(dim1=1, dim2=3).mean(-1))


def _decomposed(w: Tensor, ranks: Sequence[int], root: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Core and factors of w, or of w times a root along its input channels, taken back from the factor."""
    seen = w if root is None else torch.tensordot(w, root, dims=([1], [0])).movedim(-1, 1)
    core, (f0, f1) = hooi(seen, ranks)
    if root is not None:
        f1 = torch.linalg.solve_triangular(root.T, f1, upper=True)  # root⁻ᵀ · f1
    s0, s1 = signs(f0), signs(f1)
    return core * s0.view(-1, 1, *[1] * (w.dim() - 2)) * s1.view(1, -1, *[1] * (w.dim() - 2)), f0 * s0, f1 * s1


def _answer(w: Tensor, core: Tensor, f0: Tensor, f1: Tensor, gram: Tensor) -> Tensor:
    """The core of the least ‖(w − core ×₀ f₀ ×₁ f₁) · Xᵀ‖ for f₀ with orthonormal columns."""
    spread = torch.kron(f1.T.contiguous(), torch.eye(prod(w.shape[2:]), dtype=w.dtype))  # [r₁·k, in·k]
    return solved_left(f0.T @ w.flatten(1), spread, gram).view_as(core)


def _stored(core: Tensor, f0: Tensor, f1: Tensor, dtype: torch.dtype) -> Tucker:
    core, f0, f1 = (x.to(dtype).contiguous() for x in balanced([core, f0, f1]))
    return Tucker(Dense(core), (Dense(f0), Dense(f1), *[None] * (core.dim() - 2)))


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
