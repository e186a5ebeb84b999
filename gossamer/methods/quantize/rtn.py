"""Round to nearest: every weight goes to the closest point of a uniform grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense, Grouping, whole
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, MASKED, Method, Rule, Site, live_values

__all__ = ["RoundToNearest"]

AFFINE = Skeleton(Affine, (("scale", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class RoundToNearest(Method):
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

    bits: int = 8
    group: Literal["tensor", "channel"] | int = "channel"
    symmetric: bool = True
    scale_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise PlanError(f"RoundToNearest: bits: found {self.bits}, expected 2 to 8")
        if not (self.group in ("tensor", "channel") or (isinstance(self.group, int) and self.group >= 1)):
            raise PlanError(f"RoundToNearest: group: found {self.group!r}, expected 'tensor', 'channel' or a size ≥ 1")
        if self.scale_dtype not in ("float32", "bfloat16", "float16"):
            raise PlanError(f"RoundToNearest: scale_dtype: found {self.scale_dtype!r}, expected float32 or half")

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become affine, masked ones keep their mask."""
        return (
            Rule(DENSE, lambda _: AFFINE),
            Rule(MASKED, lambda s: Skeleton(Masked, (("where", s.at("/where")), ("value", AFFINE)))),
        )

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Values that are shared or quantized already cannot be quantized again"

    def _grouping(self, shape: tuple[int, ...]) -> Grouping:
        if self.group == "tensor" or len(shape) < 2:
            return whole(shape)
        columns = max(1, prod(shape[1:]))
        return Grouping(columns, columns if self.group == "channel" else min(int(self.group), columns))

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Quantize one site."""
        positions, values = live_values(weight)
        grouping = self._grouping(site.shape)
        groups = grouping.of(torch.arange(values.numel(), dtype=torch.int32) if positions is None else positions)
        packed = self._quantize(values.float(), groups, grouping, prod(site.shape), site.key)
        if isinstance(weight, Masked):
            return Masked(weight.where, packed)
        return Affine(
            packed.columns, packed.group_size, packed.q.view(site.shape), packed.scale, packed.zero_point, packed.bits
        )

    def _quantize(self, values: Tensor, groups: Tensor, grouping: Grouping, elements: int, name: str) -> Affine:
        count = grouping.count(elements)
        high = torch.zeros(count).scatter_reduce_(0, groups, values, "amax")  # 0 is in every range
        low = torch.zeros(count).scatter_reduce_(0, groups, values, "amin")
        levels = (1 << self.bits) - 1
        if self.symmetric:
            middle = 1 << (self.bits - 1)
            scale = self._scale(torch.maximum(high, -low) / (middle - 1), name)
            q = torch.round(values / scale[groups]) + middle
            zero: Tensor | int = middle
        else:
            scale = self._scale((high - low) / levels, name)
            zero = torch.round(-low / scale).clamp(0, levels).to(torch.uint8)
            q = torch.round(values / scale[groups]) + zero[groups]
        q = q.clamp(0, levels).to(torch.uint8)
        kept = Dense(scale.to(getattr(torch, self.scale_dtype)))
        return Affine(grouping.columns, grouping.size, q, kept, zero, self.bits)

    def _scale(self, scale: Tensor, name: str) -> Tensor:
        # What is stored, not what was meant, decides the rounding; a group of zeros may have any scale but 0.
        stored = scale.to(getattr(torch, self.scale_dtype)).float()
        lost = (scale > 0) & ((stored <= 0) | ~torch.isfinite(stored))
        if bool(lost.any()):
            found = f"found a scale of {float(scale[lost][0]):.3g}, which {self.scale_dtype} cannot hold"
            raise PlanError(f"RoundToNearest: {name}: {found}, expected scale_dtype float32 or bfloat16")
        return torch.where(scale > 0, stored, 1.0)
