"""A uniform grid whose step is a parameter of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense
from gossamer.encoding.weights import Masked
from gossamer.methods.base import Site
from gossamer.methods.quantize.groups import Groups, PerGroup, ScaleType, check_bits, check_scale_dtype, stored_scale
from gossamer.methods.quantize.rtn import AFFINE, nothing

__all__ = ["LearnedStep"]

_LEAST = 1e-8


@final
@dataclass(frozen=True, kw_only=True)
class LearnedStep(PerGroup):
    """w ≈ s · clamp(round(w / s), −Q − 1, Q) with Q = 2^(bits−1) − 1 and a step s that trains with the weights.

    s starts at 2 · mean|w| / √Q. In `QuantizationAware` training, with v = w / s and r = clamp(round(v), −Q − 1, Q):
    ∂ŵ/∂w = 1 where −Q − 1 < v < Q, else 0; ∂ŵ/∂s = r − v there, else r; and the gradient of s is multiplied by
    1 / √(n · Q), n weights per step. Without training it is rounding to nearest that clips the tails.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per step along a row.
        scale_dtype: dtype of the steps at rest; in training they are float32, rounded to it on the way.

    Cost: linear.

    Example:
        >>> LearnedStep(bits=2, group="tensor").bits
        2

    Source: Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, sections 2.1 and 2.2.
    """

    learns: ClassVar[bool] = True
    produced: ClassVar[Skeleton] = AFFINE

    bits: int = 4
    scale_dtype: ScaleType = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self, self.bits, 2, 8)
        check_scale_dtype(self, self.scale_dtype)

    @property
    def _largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The step that training starts from."""
        start = 2 * groups.mean(values.abs()) / sqrt(self._largest)
        scale = Dense(stored_scale(self, start, self.scale_dtype, name))
        middle = 1 << (self.bits - 1)
        return Affine(groups.grouping.columns, groups.grouping.size, nothing(), scale, middle, self.bits)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest multiple of the step, within the range."""
        grid = cast(Affine, grid)
        step = self._stored(grid.scale.to_dense().detach())
        middle = cast(int, grid.zero_point)
        q = (torch.round(values / groups.spread(step.float())) + middle).clamp_(0, 2 * middle - 1)
        return dataclasses.replace(grid, q=q.to(torch.uint8).view(shape), scale=Dense(step))

    def _stored(self, scale: Tensor) -> Tensor:
        """The step as a file will hold it; steps that training drove to zero or below stay just above."""
        least = max(_LEAST, torch.finfo(getattr(torch, self.scale_dtype)).tiny)
        return scale.float().clamp_min(least).to(getattr(torch, self.scale_dtype))

    def surrogate(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding:
        """The rounded weight with the gradients given above."""
        masked = isinstance(weight, Masked)
        positions = weight.where.positions() if isinstance(weight, Masked) else None
        inner = cast(Affine, grid.value if isinstance(grid, Masked) else grid)
        value = cast(Value, weight.value if isinstance(weight, Masked) else weight)
        values = value.values(positions)
        groups = Groups.of(self.group, site.shape, positions)
        step = self._stored(inner.scale.to_dense()).float()
        n = groups.sizes().clamp_min(1)
        step = _ScaledGradient.apply(step, 1 / (n * self._largest).sqrt())  # type: ignore[no-untyped-call]
        spread = groups.spread(step).to(torch.float32)
        rounded = _Round.apply(values.float().reshape(-1), spread, self._largest)  # type: ignore[no-untyped-call]
        if masked:
            return Masked(cast(Masked, weight).where, Dense(rounded))
        return Dense(rounded.view(site.shape))


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return numbers.view_as(numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class _Round(torch.autograd.Function):
    """s · clamp(round(w / s), −Q − 1, Q) for w [live] and s [live] or [1]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, largest: int) -> Tensor:
        ratio = weight / step
        rounded = torch.round(ratio).clamp_(-largest - 1, largest)
        inside = (ratio > -largest - 1) & (ratio < largest)
        ctx.save_for_backward(inside, torch.where(inside, rounded - ratio, rounded))
        ctx.shape = step.shape
        return rounded * step

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None]:
        inside, slope = ctx.saved_tensors
        above = gradients[0]
        of_step = above * slope
        return above * inside, of_step if ctx.shape == above.shape else of_step.sum().view(ctx.shape), None
