"""Rounding that lets later weights make up for the errors of earlier ones, measured on the layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import Entry, Evidence, Shared, Site
from gossamer.methods.quantize.grid import Grid, Rounding, descend, fitted, refit
from gossamer.methods.quantize.groups import (
    Group,
    Groups,
    PerGroup,
    ScaleType,
    check_bits,
    check_scale_dtype,
    grouping_of,
    stored_scale,
)
from gossamer.methods.quantize.inputs import matrix_shape, seen_grams
from gossamer.methods.quantize.rtn import AFFINE, RoundToNearest
from gossamer.methods.second_order import damped, inverse_factor, row_errors, sweep

__all__ = ["GPTQ", "affine_of", "live_mask"]

_PIECE = 1 << 22  # entries of a matrix worked on at once: rows do not depend on each other


@final
@dataclass(frozen=True, kw_only=True)
class GPTQ(PerGroup):
    """w ≈ scale · (q − zero_point) that minimises tr((W − Ŵ)·G·(W − Ŵ)ᵀ), G = Σ x·xᵀ over the layer's inputs.

    1. The range of each group: of ``candidates`` the one with the smallest Σ_j c_j·(w_j − nearest)², where
       c_j = 1 / U_jj² is what an error in column j costs once the columns after it have made up for it.
    2. One column after the other is rounded, and those still to come take up its error (GPTQ). With ``act_order``
       columns of large inputs come first; groups stay runs of neighbouring columns.
    3. ``rounds`` times: coordinate descent on the codes, then the scales anew by least squares; descent once more.
    4. Per row the better of this and plain rounding to nearest: never worse than that on the objective.

    Pruned weights stay zero and their error is made up for, so `prune.SparseGPT` and then this makes weights that are
    sparse and quantized. Where the data show no inputs, squared inputs or plain squared error take the place of G.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest.
        act_order: columns of large inputs first.
        damp: share of G's mean diagonal that is added to its diagonal, 0 to 1.
        candidates: ranges tried per group; 1: always that of the values.
        rounds: of descent and least squares, ≥ 0.
        sweeps: over all columns in each descent, ≥ 0.

    Cost: about (2 + 3 · sweeps · (rounds + 1)) · rows · n² multiplications in float32, n inputs, and n³ once.

    Example:
        >>> GPTQ(bits=4, group=128).needs == {"gram", "sq", "count"}
        True

    Source: Frantar et al. 2022, GPTQ, arXiv 2210.17323, section 3.3; Nair and Suggala 2024, CDQuant, arXiv 2406.17542.
    """

    produced: ClassVar[Skeleton] = AFFINE

    bits: int = 4
    group: Group = 128
    symmetric: bool = False
    scale_dtype: ScaleType = "float32"
    act_order: bool = True
    damp: float = 0.01
    candidates: int = 15
    rounds: int = 1
    sweeps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)
        if not 0 <= self.damp <= 1:
            raise PlanError(f"GPTQ: damp: found {self.damp}, expected 0 to 1")
        for name, least in (("candidates", 1), ("rounds", 0), ("sweeps", 0)):
            if getattr(self, name) < least:
                raise PlanError(f"GPTQ: {name}: found {getattr(self, name)}, expected at least {least}")

    @property
    def needs(self) -> frozenset[str]:
        """Products of inputs; their squares for layers that have no more."""
        return frozenset({"gram", "sq", "count"})

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Quantize with what is known of the inputs."""
        del entry, shared
        shape = matrix_shape(site.shape)
        matrix = weight.to_dense().detach().double().reshape(shape)
        keep = live_mask(weight, shape)
        grams, diagonal = seen_grams(f"GPTQ: {site.key}", site, evidence)
        if self._shares(site):  # one scale for all rows, so one decision over all of them
            grams = grams.sum(0, keepdim=True)
        height = shape[0] // len(grams)
        step = height if self._shares(site) else min(height, max(1, _PIECE // shape[1]))
        pieces = []
        for number, gram in enumerate(grams):
            inputs = _Inputs.of(gram, self.damp, self.act_order, diagonal)
            for start in range(number * height, (number + 1) * height, step):
                part = slice(start, min(start + step, (number + 1) * height))
                pieces.append(self._piece(site, matrix[part], None if keep is None else keep[part], inputs))
        q, scale, zero = (torch.cat(found) for found in zip(*pieces, strict=True))
        return affine_of(self, site, weight, q, scale.reshape(-1), zero.reshape(-1))

    def _shares(self, site: Site) -> bool:
        return self.group == "tensor" or len(site.shape) < 2

    def _piece(self, site: Site, matrix: Tensor, keep: Tensor | None, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [rows, n], scales and zeros [rows, groups] of some rows."""

        def store(scale: Tensor) -> Tensor:
            return stored_scale(self, scale, self.scale_dtype, site.key).to(scale.dtype)

        def settled(start: Tensor, grid: Grid) -> Tensor:
            if inputs.diagonal:
                return grid.values(grid.steps(live))
            moved = descend(light, inputs.light, start.float(), grid.to(torch.float32), small, passes=self.sweeps)
            return grid.values(grid.steps(moved.double()))

        light, small = matrix.float(), None if keep is None else keep.float()
        live = matrix if keep is None else matrix * keep
        columns = matrix.shape[1]
        size = columns if self._shares(site) else min(grouping_of(self.group, site.shape).size, columns)
        plain, grid = (
            fitted(
                matrix,
                inputs.cost,
                keep,
                size=size,
                bits=self.bits,
                symmetric=self.symmetric,
                shared=self._shares(site),
                candidates=candidates,
                store=store,
            )
            for candidates in (1, self.candidates)
        )
        if inputs.diagonal:
            found = grid.values(grid.steps(live))
        else:
            order = inputs.order
            found = torch.empty_like(light)
            settle = Rounding(grid.to(torch.float32), small, order)
            found[:, order] = sweep(light[:, order], inputs.factor, settle)
            found = settled(found, grid)
        for _ in range(self.rounds):
            steps = grid.steps(found)
            grid = refit(matrix, inputs.damped, found, grid, store)
            found = settled(grid.values(steps), grid)
        rounded = plain.values(plain.steps(live))
        better = row_errors(matrix - rounded, inputs.gram), row_errors(matrix - found, inputs.gram)
        plainly = (better[0].sum() < better[1].sum()).view(1) if self._shares(site) else better[0] < better[1]
        grid, found = grid.pick(plainly, plain), torch.where(plainly[:, None], rounded, found)
        q = grid.steps(found) + grid.spread(grid.zero, columns)
        return q, grid.scale.T, grid.zero.T

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """A grid over the range of each group, for training."""
        return self._rounding().fit(values, groups, entry, name)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest grid point, for training."""
        return self._rounding().place(values, groups, grid, shape)

    def _rounding(self) -> RoundToNearest:
        return RoundToNearest(bits=self.bits, group=self.group, symmetric=self.symmetric, scale_dtype=self.scale_dtype)


@final
@dataclass(frozen=True)
class _Inputs:
    """A Gram matrix and what follows from it for all rows that it holds for.

    Args:
        gram: float64 [n, n].
        diagonal: whether it is diagonal; then there is nothing to make up for.
        damped: positive definite.
        order: int64 [n], in which the columns are rounded.
        light: the damped one in float32: which code is best needs no more.
        factor: see `inverse_factor`, in that order, float32; empty if diagonal.
        cost: float64 [n], what an error in each column costs.
    """

    gram: Tensor
    diagonal: bool
    damped: Tensor
    order: Tensor
    light: Tensor
    factor: Tensor
    cost: Tensor

    @classmethod
    def of(cls, gram: Tensor, damp: float, act_order: bool, diagonal: bool) -> _Inputs:
        """Factorise."""
        n = len(gram)
        large = gram.diagonal().argsort(descending=True, stable=True)
        order = large if act_order else torch.arange(n)
        solid = damped(gram, damp)
        dead = solid.diagonal() <= 0  # without damping: an input that is always zero
        solid = solid + torch.diag(dead.double()) if bool(dead.any()) else solid
        if diagonal:
            return cls(gram, True, solid, order, solid.float(), gram.new_empty(0, 0), solid.diagonal())
        factor = inverse_factor(gram[order][:, order], damp)
        cost = torch.empty(n, dtype=gram.dtype).index_copy_(0, order, factor.diagonal().square().reciprocal())
        return cls(gram, False, solid, order, solid.float(), factor.float(), cost / cost.mean())


def live_mask(weight: Encoding, shape: tuple[int, int]) -> Tensor | None:
    """1 where a masked weight is live, float64 [rows, n]; None of a dense one."""
    return weight.where.mask().double().reshape(shape) if isinstance(weight, Masked) else None


def affine_of(method: Any, site: Site, weight: Encoding, q: Tensor, scale: Tensor, zero: Tensor) -> Encoding:
    """The encoding of codes, packed where the weight is masked.

    Args:
        method: with group, bits, symmetric and scale_dtype.
        site: whose.
        weight: dense or masked, as it was.
        q: whole numbers from 0 to 2^bits − 1, [rows, n].
        scale: [groups].
        zero: whole numbers [groups]; all the same if symmetric.
    """
    grouping = grouping_of(method.group, site.shape)
    codes = q.to(torch.uint8).reshape(site.shape)
    stored = Dense(scale.to(getattr(torch, method.scale_dtype)).contiguous())
    points: Tensor | int = 1 << (method.bits - 1) if method.symmetric else zero.to(torch.uint8).contiguous()
    if isinstance(weight, Masked):
        packed = codes.reshape(-1)[weight.where.positions().long()]
        return Masked(weight.where, Affine(grouping.columns, grouping.size, packed, stored, points, method.bits))
    return Affine(grouping.columns, grouping.size, codes, stored, points, method.bits)
