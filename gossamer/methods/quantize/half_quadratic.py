"""A grid fitted to most weights rather than to the few large ones, without data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from gossamer.encoding.node import Value, computable
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense
from gossamer.errors import PlanError
from gossamer.methods.quantize.groups import (
    Group,
    Groups,
    PerGroup,
    ScaleType,
    check_bits,
    check_scale_dtype,
    stored_scale,
)
from gossamer.methods.quantize.rtn import AFFINE, RoundToNearest

__all__ = ["HQQ"]

_STARTS = (1.0, 0.8, 0.6, 0.45)  # of the range of a group: the sum has many minima


@final
@dataclass(frozen=True, kw_only=True)
class HQQ(PerGroup):
    """w ≈ scale · (q − zero_point) with the scale and zero point of each group that make Σ |w − ŵ|^p small, p < 1.

    The sum is halved: with e standing for the errors, in turn e becomes the errors w − ŵ shrunk towards zero,
    e = sign(r) · max(|r| − |r|^(p−1) / β, 0) in units of the scale, and scale and zero point become those that fit
    w − e best; β grows each time. Zero points are whole numbers. Of all rounds, from four ranges, the first of which is
    rounding to nearest, each group keeps the one with the smallest sum.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored); only the scale is fitted then.
        scale_dtype: dtype of the scales at rest.
        p: above 0, at most 1.
        iterations: from each start, ≥ 1.

    Cost: 4 · iterations roundings. No data.

    Example:
        >>> HQQ(bits=4).p
        0.7

    Source: Badri and Shaji 2023, Half-Quadratic Quantization, mobiusml.github.io/hqq_blog; here zero points are whole
    numbers, the scale is fitted too, and there are several starts.
    """

    produced: ClassVar[Skeleton] = AFFINE

    bits: int = 4
    group: Group = 64
    symmetric: bool = False
    scale_dtype: ScaleType = "float32"
    p: float = 0.7
    iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)
        if not 0 < self.p <= 1:
            raise PlanError(f"HQQ: p: found {self.p}, expected above 0, at most 1")
        if self.iterations < 1:
            raise PlanError(f"HQQ: iterations: found {self.iterations}, expected at least 1")

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The best of all rounds, per group."""
        grid = cast(Affine, self._rounding().fit(values, groups, entry, name))
        widest, middle = computable(grid.scale.to_dense()), self._zeros(grid)
        best = torch.full((groups.count,), torch.inf), widest, middle
        for share in _STARTS:
            scale = computable(stored_scale(self, widest * share, self.scale_dtype, name))
            best = self._descended(values, groups, scale, middle, best, name)
        stored = Dense(best[1].to(getattr(torch, self.scale_dtype)))
        points = grid.zero_point if self.symmetric else best[2].to(torch.uint8)
        return dataclasses.replace(grid, scale=stored, zero_point=points)

    def _descended(
        self,
        values: Tensor,
        groups: Groups,
        scale: Tensor,
        zero: Tensor,
        best: tuple[Tensor, Tensor, Tensor],
        name: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Smallest sums, their scales and zero points, each [groups], after the rounds from one start."""
        least, best_scale, best_zero = best
        beta, levels = 10.0, (1 << self.bits) - 1
        for _ in range(self.iterations + 1):
            each, places = groups.spread(scale), groups.spread(zero)
            steps = torch.round(values / each).add_(places).clamp_(0, levels) - places
            off = values / each - steps
            error = groups.total((off * each).abs() ** self.p)
            better = error < least
            least = torch.where(better, error, least)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
            kept = off.sign() * (off.abs() - off.abs().clamp_min(1e-12) ** (self.p - 1) / beta).clamp_min(0)
            target = (off + steps - kept) * each
            if not self.symmetric:
                shift = torch.round(groups.mean(steps - target / each))
                zero = (zero + shift).clamp(0, levels)
                steps = steps - groups.spread(shift)
            power = groups.total(steps * steps)
            fitted = groups.total(steps * target) / power.clamp_min(1)
            fitted = torch.where((power > 0) & (fitted > scale / 2) & (fitted < scale * 2), fitted, scale)
            scale = computable(stored_scale(self, fitted, self.scale_dtype, name))
            beta *= 1.05
        return least, best_scale, best_zero

    def _zeros(self, grid: Affine) -> Tensor:
        if isinstance(grid.zero_point, Tensor):
            return grid.zero_point.float()
        return torch.full((grid.stored_groups(),), float(grid.zero_point))

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest grid point."""
        return self._rounding().place(values, groups, grid, shape)

    def _rounding(self) -> RoundToNearest:
        return RoundToNearest(bits=self.bits, group=self.group, symmetric=self.symmetric, scale_dtype=self.scale_dtype)
