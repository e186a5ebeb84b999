"""Three values per group: −s, 0, +s."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor

from gossamer.encoding.node import Value, computable
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense
from gossamer.errors import PlanError
from gossamer.methods.quantize.groups import Groups, PerGroup, ScaleType, check_scale_dtype, stored_scale
from gossamer.methods.quantize.rtn import AFFINE, nothing

__all__ = ["Ternary"]


@final
@dataclass(frozen=True, kw_only=True)
class Ternary(PerGroup):
    """w ≈ s · t with t ∈ {−1, 0, 1}: t = sign(w) where |w| ≥ Δ, and s the mean of |w| there.

    With a number, Δ = threshold · mean|w| over the live values of the group (at most max|w|, so that no group dies);
    0.7 nearly minimises the error for normally distributed weights, a larger one leaves more zeros, which code
    smaller. With "optimal", Δ minimises Σ (w − s·t)²: of the k largest magnitudes with sum a(k), the k with the largest
    a(k)² / k.

    Args:
        threshold: > 0, or "optimal".
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        scale_dtype: dtype of the scales at rest and in training.

    Cost: linear; "optimal" sorts.

    Example:
        >>> Ternary(threshold="optimal", group="tensor").group
        'tensor'

    Source: Li, Zhang, Liu 2016, Ternary Weight Networks, arXiv 1605.04711, section 2.
    """

    produced: ClassVar[Skeleton] = AFFINE

    threshold: float | Literal["optimal"] = 0.7
    scale_dtype: ScaleType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale_dtype(self, self.scale_dtype)
        threshold: object = self.threshold
        if threshold != "optimal" and not (isinstance(threshold, (int, float)) and 0 < threshold < 1e6):
            raise PlanError(f"Ternary: threshold: found {self.threshold!r}, expected a number above 0 or 'optimal'")

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The mean magnitude of what stays."""
        magnitude = values.abs()
        if self.threshold == "optimal":
            scale = optimal_scale(magnitude, groups)
        else:
            chosen = (magnitude >= groups.spread(self._threshold(magnitude, groups))).to(magnitude.dtype)
            scale = groups.total(magnitude * chosen) / groups.total(chosen).clamp_min(1)
        kept = Dense(stored_scale(self, scale, self.scale_dtype, name))
        return Affine(groups.grouping.columns, groups.grouping.size, nothing(), kept, 1, 2)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """Signs where the magnitude reaches the threshold."""
        grid = cast(Affine, grid)
        if self.threshold == "optimal":
            # At the optimum exactly what is nearer to s than to 0 stays.
            threshold = computable(grid.scale.to_dense().detach()) / 2
        else:
            threshold = self._threshold(values.abs(), groups)
        # |w| / Δ reaches 1 exactly where |w| reaches Δ, also in floating point.
        q = (values / groups.spread(threshold)).trunc_().clamp_(-1, 1).add_(1)
        return dataclasses.replace(grid, q=q.to(torch.uint8).view(shape))

    def _threshold(self, magnitude: Tensor, groups: Groups) -> Tensor:
        """Δ of each group, above 0."""
        threshold = torch.minimum(groups.mean(magnitude) * cast(float, self.threshold), groups.largest(magnitude))
        return torch.where(threshold > 0, threshold, 1.0)


def optimal_scale(magnitude: Tensor, groups: Groups) -> Tensor:
    """Mean of the k largest magnitudes of each group with the k that leaves the smallest squared error.

    Args:
        magnitude: float32 [live], ≥ 0.
        groups: who is in which group.

    Returns:
        float32 [groups]; 0 for a group of zeros.
    """
    member = groups.members()
    order = magnitude.argsort(descending=True, stable=True)
    order = order[member[order].argsort(stable=True)]  # by group, the largest first
    sums = magnitude[order].double().cumsum(0)
    sizes = groups.sizes().long()
    start = sizes.cumsum(0) - sizes
    before = torch.cat([torch.zeros(1, dtype=torch.float64), sums])[start]
    of = member[order]
    sums = sums - before[of]
    count = torch.arange(1, len(order) + 1) - start[of]
    # Σ w² does not depend on the choice, so the smallest error has the largest (Σ chosen |w|)² / count.
    gain = sums.square() / count
    best = torch.full((groups.count,), -1.0, dtype=torch.float64).scatter_reduce_(0, of, gain, "amax")
    hit = gain == best[of]  # of several equally good ones the smallest, which has the largest mean
    scale = torch.zeros(groups.count, dtype=torch.float64)
    return scale.scatter_reduce_(0, of[hit], (sums / count)[hit], "amax").float()
