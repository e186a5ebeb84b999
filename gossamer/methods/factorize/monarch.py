"""Monarch: a matrix becomes two block-diagonal ones with a transposition between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.factors import Monarch as Blocks
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, WEIGHTS, Ask, Entry, Evidence, Plan, Rule, Shared, Site, Step, Summary
from gossamer.methods.factorize.family import Factorization
from gossamer.methods.factorize.gauge import signs
from gossamer.methods.factorize.ranks import too_big
from gossamer.methods.input_space import UNSEEN, check_inputs, gram_of, output_error, root_of, solved_left

__all__ = ["Monarch"]

MONARCH = Skeleton(Blocks, (("left", DENSE), ("right", DENSE)))


@final
@dataclass(frozen=True, kw_only=True)
class Monarch(Factorization):
    """The nearest Monarch matrix: every block w[(l, ·), (k, ·)] becomes left[l, ·, k] · right[k, l, ·].

    For Linear and Embedding weights. It runs as two batched products of small matrices. The blocks do not share a
    number, so the best rank-1 fit of each, by SVD, is the best fit of all. out · k + in · l numbers stay of out · in. A
    layer for which this is not smaller, or whose size is no multiple, stays as it is, and the plan says so.

    With inputs="gram" the error is that of the layer's outputs: blocks are fitted on their own inputs, then left
    answers to right by least squares over all inputs; the projection in Frobenius norm, answered to likewise, where
    that is better.

    Args:
        blocks: l and k, into how many the rows and the columns are divided; one number for both.
        inputs: "equal", or "gram", which needs data.
        damping: added to the inputs' second moments as a share of their mean, above 0.

    Cost: l · k SVDs of out/l × in/k; with data twice, and l systems of k unknowns.

    Exact: the projection is the closest in Frobenius norm; a Monarch matrix is reproduced up to float rounding.

    Example:
        >>> Monarch(blocks=4).blocks
        4

    Source: Dao et al. 2022, arXiv 2204.00595, section 3.3 and theorem 1.
    """

    kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV}
    named_kinds: ClassVar[frozenset[Kind]] = WEIGHTS - {Kind.CONV} | {Kind.OTHER}

    blocks: int | tuple[int, int]
    inputs: Literal["equal", "gram"] = "equal"
    damping: float = 1e-4

    def __post_init__(self) -> None:
        check_inputs("Monarch", self.inputs, ("equal", "gram"), self.damping)
        if min(self._division()) < 1:
            raise PlanError(f"Monarch: blocks: found {self.blocks}, expected at least 1")

    def _division(self) -> tuple[int, int]:
        return (self.blocks, self.blocks) if isinstance(self.blocks, int) else self.blocks

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, where they count."""
        return frozenset({"gram"} if self.inputs == "gram" else ())

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

    @property
    def observes(self) -> bool:
        """Where inputs count: which layers the data reach is only seen there."""
        return self.inputs != "equal"

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Whether anything is known of its inputs."""
        return {"seen": "gram" in evidence}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Every layer that becomes smaller."""
        down, across = self._division()
        steps, skipped = [], {}
        for site in sites:
            numbers = site.shape[0] * across + site.shape[1] * down
            reason = too_big(f"{down} by {across} blocks", numbers, prod(site.shape))
            if self.inputs != "equal" and not summaries[site.key]["seen"]:
                reason = UNSEEN
            if reason:
                skipped[site.key] = reason
            else:
                steps.append(Step((site.key,), {"blocks": [down, across]}))
        return Plan(tuple(steps), skipped=skipped)

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """The best rank-1 fit of every block; where inputs count, then ``left`` as the best answer to ``right``."""
        del shared
        down, across = (int(b) for b in entry["blocks"])
        w = weight.to_dense().detach()
        matrix, columns = w.double(), w.shape[1] // across
        plain = torch.eye(columns, dtype=torch.float64).expand(across, -1, -1)
        if self.inputs == "equal":
            return _stored(*_rank_one(matrix, down, plain), w.dtype)
        gram = gram_of(f"Monarch: {site.key}", site.shape, evidence, self.damping)
        if gram is None:
            raise DataError(f"Monarch: {site.key}: found no statistics of its inputs, expected data that reach it")
        own = gram.view(across, columns, across, columns).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        found = []
        for blocks in (own, plain):
            _, right = _rank_one(matrix, down, blocks)
            made = _stored(_answer(matrix, right.to(w.dtype).double(), gram), right, w.dtype)
            found.append((output_error(made.to_dense() - w, gram), made))
        return min(found, key=lambda pair: pair[0])[1]


def _stored(left: Tensor, right: Tensor, dtype: torch.dtype) -> Blocks:
    return Blocks(Dense(left.to(dtype).contiguous()), Dense(right.to(dtype).contiguous()))


def _rank_one(matrix: Tensor, down: int, grams: Tensor) -> tuple[Tensor, Tensor]:
    """Best rank-1 fit of each block on inputs of its own; both factors share its singular value evenly.

    Args:
        matrix: float64 [l·s, k·b].
        down: l.
        grams: float64 [k, b, b].

    Returns:
        [l, s, k] and [k, l, b].
    """
    across = len(grams)
    blocks = matrix.view(down, len(matrix) // down, across, -1).transpose(1, 2)  # [l, k, s, b]
    roots = torch.stack([root_of(g) for g in grams])
    u, s, v = torch.linalg.svd(blocks @ roots, full_matrices=False)  # [l, k, s, r], [l, k, r], [l, k, r, b]
    root = (s[..., :1].sqrt() * signs(u[..., :1]))[..., 0, None]  # [l, k, 1]
    left = (u[..., 0] * root).transpose(1, 2)  # [l, s, k]
    right = (v[..., :1, :] * root[..., None]).transpose(0, 1)  # [k, l, 1, b]
    right = torch.linalg.solve_triangular(roots[:, None], right, upper=False, left=False)  # right · root⁻¹
    return left, right[:, :, 0]


def _answer(matrix: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """The left of the least error on all inputs, given right [k, l, b]; float64 [l, s, k]."""
    down = right.shape[1]
    found = []
    for rows, block in zip(matrix.view(down, len(matrix) // down, -1), right.transpose(0, 1), strict=True):
        spread: Tensor = torch.block_diag(*block)  # type: ignore[no-untyped-call]  # [k, k·b]
        found.append(solved_left(rows, spread, gram))
    return torch.stack(found)
