"""Round to nearest on a uniform grid per tensor, channel or group."""

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
from gossamer.methods.base import DENSE
from gossamer.methods.quantize.groups import Groups, PerGroup, ScaleType, check_bits, check_scale_dtype, stored_scale

__all__ = ["AFFINE", "RoundToNearest", "nothing"]

AFFINE = Skeleton(Affine, (("scale", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class RoundToNearest(PerGroup):
    """w ≈ scale · (q − zero_point) with the grid spanning the values of each group.

    Symmetric: scale = max|w| / (2^(bits−1) − 1), zero_point = 2^(bits−1). Otherwise scale = (max − min) / (2^bits − 1)
    over a range that includes 0, zero_point = round(−min / scale). Pruned weights stay zero and cost nothing.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest and in training.

    Cost: linear. |error| ≤ scale / 2 per weight (plus the rounding of the scale itself).

    Example:
        >>> RoundToNearest(bits=4, group=128).bits
        4

    Source: Jacob et al. 2018, arXiv 1712.05877, section 2; Nagel et al. 2021, arXiv 2106.08295, section 2.
    """

    produced: ClassVar[Skeleton] = AFFINE

    bits: int = 8
    symmetric: bool = True
    scale_dtype: ScaleType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """A grid over the range of each group."""
        high, low = groups.largest(values), -groups.largest(-values)  # 0 is in every range
        levels = (1 << self.bits) - 1
        if self.symmetric:
            middle = 1 << (self.bits - 1)
            scale = stored_scale(self, torch.maximum(high, -low) / (middle - 1), self.scale_dtype, name)
            zero: Tensor | int = middle
        else:
            scale = stored_scale(self, (high - low) / levels, self.scale_dtype, name)
            zero = torch.round(-low / scale.float()).clamp(0, levels).to(torch.uint8)
        return Affine(groups.grouping.columns, groups.grouping.size, nothing(), Dense(scale), zero, self.bits)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest grid point."""
        grid = cast(Affine, grid)
        q = torch.round(values / groups.spread(computable(grid.scale.to_dense().detach())))
        zero = grid.zero_point
        q += groups.spread(zero).to(q.dtype) if isinstance(zero, Tensor) else zero
        return dataclasses.replace(grid, q=q.clamp_(0, (1 << grid.bits) - 1).to(torch.uint8).view(shape))


def nothing() -> Tensor:
    """The symbols of a grid on which no value has been placed yet."""
    return torch.zeros(0, dtype=torch.uint8)
