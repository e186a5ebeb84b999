"""Tying: two similar layers share one weight, the second with a small correction or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.factors import LowRank
from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of, uniform_bits
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Sum
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Evidence, Method, Plan, Rule, Site, Step, Summary
from gossamer.methods.input_space import best_product, check_inputs, gram_of, root_of

__all__ = ["Tie"]

_BUCKETS = 1 << 12
_KEY = key_of(0, "Tie")
CORRECTED = Skeleton(Sum, (("terms.0", DENSE), ("terms.1", Skeleton(LowRank, (("u", DENSE), ("v", DENSE))))))


@final
@dataclass(frozen=True, kw_only=True)
class Tie(Method):
    """Share one weight between two layers of one shape: second := first + u · v, or both := their mean at rank 0.

    u · v is the correction of lowest Frobenius error at its rank. Trained as one weight and stored once; a later
    method changes the shared weight once, and unties it where only= or skip= reach one of the two alone.

    With inputs="gram" correction and mean are those of the lowest error of the layers' outputs over the inputs that the
    data show.

    Pairs are named, or found: layers whose distance ‖a − b‖ / √(‖a‖² + ‖b‖²) is at most ``threshold`` (0: equal,
    about 1: unrelated), closest first, each layer in one pair at most. Distances of found pairs are estimated from
    sketches of 4096 sums of sign · w to about 2% of themselves, so that no two layers are in memory together.

    Args:
        pairs: (first, second) names of tensors.
        threshold: 0 to 2, or None: only the named pairs.
        rank: of the correction; 0: none.
        inputs: "equal", or "gram", which needs data.
        damping: added to the inputs' second moments as a share of their mean, above 0.

    Cost: one pass over the weights, one SVD per pair if rank > 0.

    Exact: equal layers stay as they are, bit for bit.

    Example:
        >>> Tie(pairs=(("layers.0.weight", "layers.1.weight"),), rank=4).rank
        4

    Source: Inan, Khosravi, Socher 2017, arXiv 1611.01462, and Lan et al. 2020, ALBERT, arXiv 1909.11942 (tied from the
    start); the sketch: Charikar, Chen, Farach-Colton 2002, Finding frequent items in data streams.
    """

    leaves_some: ClassVar[bool] = True

    pairs: tuple[tuple[str, str], ...] = ()
    threshold: float | None = None
    rank: int = 0
    inputs: Literal["equal", "gram"] = "equal"
    damping: float = 1e-4

    def __post_init__(self) -> None:
        if bool(self.pairs) == (self.threshold is not None):
            raise PlanError(f"Tie: found pairs {self.pairs} and threshold {self.threshold}, expected one of the two")
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise PlanError(f"Tie: threshold: found {self.threshold}, expected a number from 0 to 2")
        if self.rank < 0:
            raise PlanError(f"Tie: rank: found {self.rank}, expected at least 0")
        if any(len(pair) != 2 for pair in self.pairs):
            raise PlanError(f"Tie: pairs: found {self.pairs!r}, expected pairs of names")
        names = [name for pair in self.pairs for name in pair]
        if len(set(names)) != len(names):
            raise PlanError(f"Tie: pairs: found {sorted(n for n in set(names) if names.count(n) > 1)} twice")

        check_inputs("Tie", self.inputs, ("equal", "gram"), self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, where they count."""
        return frozenset({"gram"} if self.inputs == "gram" else ())

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become the shared one, or a sum of it and a correction."""
        return (Rule(DENSE, lambda skeleton: CORRECTED if self.rank else skeleton),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Tie plain weights first: what prunes, factorizes or quantizes later changes a shared weight once"

    def refuses(self, site: Site) -> str:
        """Layers that are in no named pair, and corrections that would not be smaller than the weight."""
        if self.pairs and not any(name in site.spec.names for pair in self.pairs for name in pair):
            return "found it in none of the pairs"
        if self.inputs == "gram" and (site.spec.groups != 1 or len(site.shape) < 2):
            return f"found shape {site.shape} in {site.spec.groups} groups, expected a matrix of inputs of its own"
        if self.rank and len(site.shape) < 2:
            return f"found shape {site.shape}, expected a matrix"
        cost, whole = self.rank * (site.shape[0] + prod(site.shape[1:])) if self.rank else 0, prod(site.shape)
        if cost >= whole:
            return f"a correction of rank {self.rank} would take {cost} numbers, the weight itself has {whole}"
        return ""

    @property
    def observes(self) -> bool:
        """To find pairs."""
        return self.threshold is not None

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Sums of sign · w, each weight in one of 4096 by a hash of its position: float64 [4096], and ‖w‖²."""
        w = weight.to_dense().detach().double().reshape(-1).numpy()
        words = uniform_bits(_KEY, len(w))
        signed = np.where(words & np.uint64(1), -w, w)
        buckets = (words >> np.uint64(52)).astype(np.int64)
        sketch = np.bincount(buckets, weights=signed, minlength=_BUCKETS)
        return {"sketch": torch.from_numpy(sketch), "square": float(np.square(w).sum())}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """One step per pair."""
        pairs = self._pairs_named(sites) if self.pairs else self._pairs_found(sites, summaries)
        taken = {key for pair in pairs for key in pair}
        skipped = {s.key: "found no layer like it" for s in sites if s.key not in taken}
        return Plan(tuple(Step(pair, {"rank": self.rank}) for pair in pairs), skipped=skipped)

    def _pairs_named(self, sites: Sequence[Site]) -> list[tuple[str, str]]:
        pairs = []
        for names in self.pairs:
            both = [next((s for s in sites if name in s.spec.names), None) for name in names]
            if both == [None, None] and (self.only or self.skip):
                continue  # left out by the recipe
            missing = [name for name, site in zip(names, both, strict=True) if site is None]
            first, second = both
            if first is None or second is None or first is second:
                raise PlanError(f"Tie: {names}: found no weight of its own for {missing or names[1]!r} to tie")
            if (first.shape, first.spec.dtype) != (second.shape, second.spec.dtype):
                raise PlanError(
                    f"Tie: {second.key}: found {second.shape} {second.spec.dtype}, expected {first.shape} "
                    f"{first.spec.dtype} as {first.key} has"
                )
            pairs.append((first.key, second.key))
        return pairs

    def _pairs_found(self, sites: Sequence[Site], summaries: Mapping[str, Summary]) -> list[tuple[str, str]]:
        assert self.threshold is not None
        close = []
        for i, first in enumerate(sites):
            for j, second in enumerate(sites[:i]):
                if (first.shape, first.spec.dtype) == (second.shape, second.spec.dtype):
                    distance = _distance(summaries[first.key], summaries[second.key])
                    if distance <= self.threshold:
                        close.append((distance, j, i))
        pairs: list[tuple[str, str]] = []
        taken: set[int] = set()
        for _, a, b in sorted(close):
            if a not in taken and b not in taken:
                taken |= {a, b}
                pairs.append((sites[a].key, sites[b].key))
        return pairs

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        """The same object for both, in a sum with its correction for the second."""
        first, second = (weights[site.key].to_dense().detach() for site in sites)
        rank = int(entry["rank"])
        grams: list[Tensor | None] = [None, None]
        if self.inputs == "gram":
            grams = [gram_of(f"Tie: {s.key}", s.shape, evidence.get(s.key, {}), self.damping, sums=True) for s in sites]
            unseen = [s.key for s, g in zip(sites, grams, strict=True) if g is None]
            if unseen:
                raise DataError(f"Tie: {unseen[0]}: found no statistics of its inputs, expected data that reach it")
        if rank == 0:
            both = Dense(_middle(first, second, *grams).to(first.dtype))
            return {site.key: both for site in sites}
        common = Dense(first.clone())
        correction = _correction(second.double() - first.double(), rank, grams[1], first.dtype)
        return {sites[0].key: common, sites[1].key: Sum((common, correction))}


def _middle(first: Tensor, second: Tensor, here: Tensor | None, there: Tensor | None) -> Tensor:
    """The mean, or the w of the least ‖(first − w)·Xᵀ‖² + ‖(second − w)·Yᵀ‖² over the inputs of both."""
    a, b = first.double(), second.double()
    if torch.equal(a, b):
        return a
    if here is None or there is None:
        return (a + b) / 2
    seen = a.flatten(1) @ here + b.flatten(1) @ there  # [out, in] · [in, in]
    return torch.cholesky_solve(seen.T, root_of(here + there)).T.reshape(a.shape)


def _correction(difference: Tensor, rank: int, gram: Tensor | None, dtype: torch.dtype) -> LowRank:
    matrix = difference.flatten(1)
    rank = min(rank, *matrix.shape)
    if gram is None:
        gram = torch.eye(matrix.shape[1], dtype=torch.float64)
    left, right = (x.to(dtype).contiguous() for x in best_product(matrix, gram, rank))
    return LowRank(Dense(left), Dense(right.reshape(rank, *difference.shape[1:])))


def _distance(a: Summary, b: Summary) -> float:
    square = float((a["sketch"] - b["sketch"]).square().sum())
    both = float(a["square"] + b["square"])
    return math.sqrt(square / both) if both else 0.0
