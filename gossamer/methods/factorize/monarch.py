"""Monarch: a matrix becomes two block-diagonal ones with a transposition between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import torch

from gossamer.encoding.factors import Monarch as Blocks
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, WEIGHTS, Ask, Plan, Rule, Site, Step, Summary
from gossamer.methods.factorize.family import Factorization
from gossamer.methods.factorize.gauge import signs
from gossamer.methods.factorize.ranks import too_big

__all__ = ["Monarch"]

MONARCH = Skeleton(Blocks, (("left", DENSE), ("right", DENSE)))


@final
@dataclass(frozen=True, kw_only=True)
class Monarch(Factorization):
    """The nearest Monarch matrix: every block w[(l, ·), (k, ·)] becomes left[l, ·, k] · right[k, l, ·].

    For Linear and Embedding weights. It runs as two batched products of small matrices. The blocks do not share a
    number, so the best rank-1 fit of each, by SVD, is the best fit of all. out · k + in · l numbers stay of out · in. A
    layer for which this is not smaller, or whose size is no multiple, stays as it is, and the plan says so.

    Args:
        blocks: l and k, into how many the rows and the columns are divided; one number for both.

    Cost: l · k SVDs of out/l × in/k.

    Exact: the projection is the closest in Frobenius norm; a Monarch matrix is reproduced up to float rounding.

    Example:
        >>> Monarch(blocks=4).blocks
        4

    Source: Dao et al. 2022, arXiv 2204.00595, section 3.3 and theorem 1.
    """

    kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV}
    named_kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV} | {Kind.OTHER}

    blocks: int | tuple[int, int]

    def __post_init__(self) -> None:
        if min(self._division()) < 1:
            raise PlanError(f"Monarch: blocks: found {self.blocks}, expected at least 1")

    def _division(self) -> tuple[int, int]:
        return (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks

    def rules(self) -> tuple[Rule, ...]:
        """Dense matrices become two block-diagonal ones."""
        return (Rule(DENSE, lambda _: MONARCH),)

    def refuses(self, site: Site) -> str:
        """What is no matrix, or cannot be divided into blocks of one size."""
        if len(site.shape) != 2 or min(site.shape) < 1:
            return f"found shape {site.shape}, expected a matrix"
        down, across = self._division()
        if site.shape[0] % down or site.shape[1] % across:
            return f"found shape {site.shape}, expected multiples of {down} rows and {across} columns"
        return ""

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Every layer that becomes smaller."""
        down, across = self._division()
        steps, skipped = [], {}
        for site in sites:
            numbers = site.shape[0] * across + site.shape[1] * down
            reason = too_big(f"{down} by {across} blocks", numbers, prod(site.shape))
            if reason:
                skipped[site.key] = reason
            else:
                steps.append(Step((site.key,), {"blocks": [down, across]}))
        return Plan(tuple(steps), skipped=skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """The best rank-1 fit of every block; both factors share its singular value evenly."""
        w = weight.to_dense().detach()
        down, across = (int(b) for b in entry["blocks"])
        blocks = w.double().view(down, w.shape[0] // down, across, w.shape[1] // across).transpose(1, 2)
        u, s, v = torch.linalg.svd(blocks, full_matrices=False)  # [l, k, s, r], [l, k, r], [l, k, r, b]
        root = (s[..., :1].sqrt() * signs(u[..., :1]))[..., 0, None]  # [l, k, 1]
        left = (u[..., 0] * root).transpose(1, 2)  # [l, s, k]
        right = (v[..., 0, :] * root).transpose(0, 1)  # [k, l, b]
        return Blocks(Dense(left.to(w.dtype).contiguous()), Dense(right.to(w.dtype).contiguous()))
