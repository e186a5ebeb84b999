"""A uniform grid that is trained for few bits: the step is a parameter, the bits of the symbols part of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, MASKED, Rule, Site, live_values
from gossamer.methods.quantize.groups import (
    Group,
    Groups,
    PerGroup,
    ScaleType,
    blank_grid,
    check_scale_dtype,
    stored_scale,
)
from gossamer.methods.quantize.rate_levels import code_lengths
from gossamer.methods.quantize.rtn import AFFINE, nothing

__all__ = ["LearnedRate"]

_UNSEEN = 0.5  # of a symbol: what one counts for that does not occur


@final
@dataclass(frozen=True, kw_only=True)
class LearnedRate(PerGroup):
    """w ≈ s · clamp(round(w / s), −Q, Q), with steps s and weights trained for few bits.

    In `QuantizationAware` training with ``rate`` or ``target`` the loss has λ · Σ ℓ(w / s) per weight: ℓ at whole
    numbers is −log2 of the share of that symbol in the tensor as it is now, straight lines in between. At a fixed
    number of weights Σ ℓ has, by its counts, the derivative of the entropy (the counts' own change adds nothing:
    Σ dp = 0), so every weight is pulled to the neighbouring symbol that is cheaper, by λ · (ℓ_k+1 − ℓ_k) / s, and most
    of them to zero. The error's gradients go straight through the rounding and reach s as in `LearnedStep`; s trains by
    its logarithm. Without training it is rounding to the nearest multiple of ``start`` · root mean square.

    Args:
        levels: Q, largest step on either side of zero, 1 to 127.
        group: "tensor", "channel" (per output row), or weights per step along a row; symbols are counted per tensor.
        start: first step, in units of the root mean square of the group's weights.
        zeros: "level", or "mask": zeros leave the values and become a mask, which runs as a sparse weight.
        scale_dtype: dtype of the steps at rest, and as training computes with them.

    Cost: about 20 operations per weight and step of training.

    Example:
        >>> LearnedRate(levels=3).zeros
        'mask'

    Source: entropy of quantized weights in the loss: Oktay et al. 2020, arXiv 1906.06624, section 2; Wiedemann et al.
    2019, arXiv 1812.07520, section III; steps: Esser et al. 2020, arXiv 1902.08153. The piecewise linear ℓ over the
    counts of the moment is this project's.
    """

    learns: ClassVar[bool] = True
    produced: ClassVar[Skeleton] = AFFINE

    group: Group = "tensor"
    levels: int = 7
    start: float = 1.0
    zeros: Literal["level", "mask"] = "mask"
    scale_dtype: ScaleType = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 127:
            raise PlanError(f"LearnedRate: levels: found {self.levels}, expected 1 to 127")
        if not 0 < self.start < float("inf"):
            raise PlanError(f"LearnedRate: start: found {self.start}, expected a number above 0")
        if self.zeros not in ("level", "mask"):
            raise PlanError(f"LearnedRate: zeros: found {self.zeros!r}, expected 'level' or 'mask'")
        check_scale_dtype(self, self.scale_dtype)

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become values, or a mask over values; masked ones keep their mask or get a smaller one."""
        made = Skeleton(Masked, (("where", Skeleton(Mask)), ("value", AFFINE)))
        if self.zeros == "mask":
            return Rule(DENSE, lambda _: made), Rule(MASKED, lambda _: made)
        return super().rules()

    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """The step that training starts from."""
        start = self.start * groups.mean(values.square()).sqrt()
        scale = Dense(stored_scale(self, start, self.scale_dtype, name))
        bits = max(2, self.levels.bit_length() + 1)
        return Affine(groups.grouping.columns, groups.grouping.size, nothing(), scale, 1 << (bits - 1), bits)

    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The nearest multiple of the step, within the range."""
        grid = cast(Affine, grid)
        step = groups.spread(grid.scale.to_dense().detach().float())
        q = torch.round(values / step).clamp_(-self.levels, self.levels) + cast(int, grid.zero_point)
        return dataclasses.replace(grid, q=q.to(torch.uint8).view(shape))

    def _placed(self, site: Site, weight: Encoding, values: Tensor, groups: Groups, grid: Value) -> Encoding:
        if self.zeros == "level":
            return super()._placed(site, weight, values, groups, grid)
        placed = cast(Affine, self.place(values, groups, grid, tuple(values.shape)))
        live = placed.q != cast(int, placed.zero_point)
        mask = torch.zeros(prod(site.shape), dtype=torch.bool)
        where = weight.where.positions().long() if isinstance(weight, Masked) else slice(None)
        mask[where] = live.reshape(-1)
        packed = dataclasses.replace(placed, q=placed.q[live].reshape(-1))
        return Masked(Mask.of(mask.view(site.shape)), packed)

    def blank(self, site: Site, weight: Encoding) -> Encoding:
        """Symbols that are all the same take no bytes."""
        return blank_grid(site, weight, self.group, self.scale_dtype, sparse=self.zeros == "mask")

    # -- in training -------------------------------------------------------------------------------------------------

    def opened(self, grid: Encoding) -> Encoding:
        """Steps by their logarithms: an optimiser moves them by shares of what they are."""
        inner = _affine(grid)
        return dataclasses.replace(inner, q=nothing(), scale=Dense(inner.scale.to_dense().detach().float().log()))

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """The nearest multiples of the steps as trained."""
        inner = _affine(grid)
        steps = Dense(self._stored(inner.scale.to_dense().detach()))
        positions, values = live_values(weight)
        groups = Groups.of(self.group, site.shape, positions)
        return self._placed(site, weight, values.float(), groups, dataclasses.replace(inner, scale=steps))

    def _stored(self, logarithm: Tensor) -> Tensor:
        kind = getattr(torch, self.scale_dtype)
        return logarithm.exp().clamp(torch.finfo(kind).tiny, torch.finfo(kind).max).to(kind)

    def surrogate(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding:
        """The rounded weight: straight through to the weight, to the steps as in `LearnedStep`."""
        values, steps = self._seen(site, weight, grid)
        rounded = _Round.apply(values, steps, self.levels)  # type: ignore[no-untyped-call]
        if isinstance(weight, Masked):
            return Masked(weight.where, Dense(rounded))
        return Dense(rounded.view(site.shape))

    def symbol_bits(self, site: Site, weight: Encoding, grid: Encoding) -> Tensor | None:
        """Σ −log2 of each symbol's share; its gradients as said above."""
        values, steps = self._seen(site, weight, grid)
        found: Tensor = _Bits.apply(values, steps, self.levels)  # type: ignore[no-untyped-call]
        return found

    def _seen(self, site: Site, weight: Encoding, grid: Encoding) -> tuple[Tensor, Tensor]:
        """Live values [live] and their steps [live] or [1], differentiable."""
        positions = weight.where.positions() if isinstance(weight, Masked) else None
        value = cast(Value, weight.value if isinstance(weight, Masked) else weight)
        values = value.values(positions).float().reshape(-1)
        exact = _affine(grid).scale.to_dense().exp()
        stored = exact + (self._stored(_affine(grid).scale.to_dense().detach()).float() - exact).detach()
        return values, Groups.of(self.group, site.shape, positions).spread(stored)


def _affine(grid: Encoding) -> Affine:
    return cast(Affine, grid.value if isinstance(grid, Masked) else grid)


class _Round(torch.autograd.Function):
    """s · clamp(round(w / s), −Q, Q) for w [live] and s [live] or [1]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, largest: int) -> Tensor:
        ratio = weight / step
        rounded = torch.round(ratio).clamp_(-largest, largest)
        inside = ratio.abs() < largest
        ctx.save_for_backward(inside, rounded.sub(ratio.mul_(inside)))
        ctx.shape = step.shape
        return rounded * step

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None]:
        inside, slope = ctx.saved_tensors
        above = gradients[0]
        of_step = above * slope if ctx.shape == above.shape else torch.dot(above, slope).view(ctx.shape)
        return above * inside, of_step, None


class _Bits(torch.autograd.Function):
    """Bits of the symbols clamp(round(w / s), −Q, Q); between two of them the slope from one to the other."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, largest: int) -> Tensor:
        ratio = weight / step
        symbols = torch.round(ratio).clamp_(-largest, largest).add_(largest).int()
        counts = torch.bincount(symbols, minlength=2 * largest + 1)
        lengths = code_lengths(counts, _UNSEEN).float()
        rises = torch.cat([lengths.diff(), lengths.new_zeros(1)])  # the last one for what lies beyond
        below = torch.floor(ratio).clamp_(-largest - 1, largest).add_(largest).int()
        below = torch.where(below < 0, 2 * largest, below)
        slope = rises.index_select(0, below)
        ctx.save_for_backward(slope, ratio, step)
        return (counts * lengths).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None]:
        slope, ratio, step = ctx.saved_tensors
        of_weight = gradients[0] * slope / step
        of_step = -of_weight * ratio if step.shape == ratio.shape else -torch.dot(of_weight, ratio).view(step.shape)
        return of_weight, of_step, None
