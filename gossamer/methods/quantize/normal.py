"""Levels at the quantiles of a normal distribution, as in NF4."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from gossamer.encoding.levels import NormalLevels, normal_levels
from gossamer.encoding.node import Value, computable
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.methods.base import DENSE
from gossamer.methods.quantize.groups import (
    Group,
    Groups,
    PerGroup,
    ScaleType,
    check_bits,
    check_scale_dtype,
    stored_scale,
)
from gossamer.methods.quantize.rtn import nothing

__all__ = ["NormalFloat"]


@final
@dataclass(frozen=True, kw_only=True)
class NormalFloat(PerGroup):
    """w ≈ scale · level with scale = max|w| of the group and the nearest of 2^bits levels that a formula gives.

    If the weights of a group are normal, every level is used about equally often. The levels contain 0, −1 and 1 and
    are not stored; see `gossamer.encoding.levels.normal_levels`.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        scale_dtype: dtype of the scales at rest and in training.

    Cost: n · bits comparisons.

    Example:
        >>> NormalFloat(bits=4).group
        64

    Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3.
    """

    produced: ClassVar[Skeleton] = Skeleton(NormalLevels, (("scale", DENSE),))

    bits: int = 4
    group: Group = 64
    scale_dtype: ScaleType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The largest magnitude."""
        scale = Dense(stored_scale(self, groups.largest(values.abs()), self.scale_dtype, name))
        return NormalLevels(groups.grouping.columns, groups.grouping.size, nothing(), scale, self.bits)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest level."""
        grid = cast(NormalLevels, grid)
        levels = torch.tensor(normal_levels(grid.bits))
        relative = values / groups.spread(computable(grid.scale.to_dense().detach()))
        index = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2)
        return dataclasses.replace(grid, index=index.to(torch.uint8).view(shape))
