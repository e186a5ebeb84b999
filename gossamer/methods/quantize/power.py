"""Powers of two: multiplying becomes shifting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor

from gossamer.encoding.levels import SMALLEST_EXPONENT, PowerLevels
from gossamer.encoding.node import Value
from gossamer.encoding.skeleton import Skeleton
from gossamer.errors import PlanError
from gossamer.methods.quantize.groups import Groups, PerGroup, check_bits
from gossamer.methods.quantize.rtn import nothing

__all__ = ["PowerOfTwo"]

# Added to the bits of a float32 it carries into the exponent from the mantissa on at which the next power is nearer:
# 1.5, or the first float32 above the square root of 2.
_CARRY = {"linear": 0x400000, "log": 0x800000 - 0x3504F4}


@final
@dataclass(frozen=True, kw_only=True)
class PowerOfTwo(PerGroup):
    """w ≈ 0 or ±2^k, with 2^(bits−1) − 1 exponents per group, the largest of them next to max|w|.

    Each weight goes to the nearest level; with "log" log2|w| does. What is less than half of the smallest level becomes
    zero. No scale is stored but one byte per group.

    Args:
        bits: 2 to 6.
        group: "tensor", "channel" (per output row), or weights per exponent along a row.
        nearest: "linear" or "log".

    Cost: linear.

    Example:
        >>> PowerOfTwo(bits=4).bits
        4

    Source: Zhou et al. 2017, Incremental Network Quantization, arXiv 1702.03044, section 2.1; Miyashita et al. 2016,
    arXiv 1603.01025, section 3 (log).
    """

    produced: ClassVar[Skeleton] = Skeleton(PowerLevels)

    bits: int = 4
    nearest: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 6)
        if self.nearest not in _CARRY:
            raise PlanError(f"PowerOfTwo: nearest: found {self.nearest!r}, expected 'linear' or 'log'")

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The power next to the largest magnitude."""
        exponent = _exponent(groups.largest(values.abs()), _CARRY[self.nearest]).clamp(SMALLEST_EXPONENT, 127)
        return PowerLevels(groups.grouping.columns, groups.grouping.size, nothing(), exponent.to(torch.int8), self.bits)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest power, or zero."""
        grid = cast(PowerLevels, grid)
        magnitude = values.abs()
        half = groups.spread(grid.exponent.int() - grid.depth)  # exponent of half the smallest level
        step = _exponent(magnitude, _CARRY[self.nearest]) - half
        from_half_on = (_exponent(magnitude, 0) - half + 1).clamp_(max=1)  # 1: at least the smallest level
        step = torch.maximum(step, from_half_on).clamp_(0, grid.depth)
        index = step * torch.sign(values).int() + grid.depth
        return dataclasses.replace(grid, index=index.to(torch.uint8).view(shape))


def _exponent(magnitude: Tensor, carry: int) -> Tensor:
    """Exponent of the power of two at or, with a carry, next to each magnitude, int32; −127 for 0."""
    exponent: Tensor = ((magnitude.contiguous().view(torch.int32) + carry) >> 23) - 127
    return exponent
