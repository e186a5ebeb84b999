"""Statistics per group of a weight's live values, and the frame that all quantizers per group share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.encoding.node import Encoding, Value
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Affine, Dense, Grouping, whole
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, MASKED, Method, Rule, Site, live_values

__all__ = ["Group", "Groups", "PerGroup", "ScaleType", "blank_grid", "check_bits", "stored_scale"]

Group = Literal["tensor", "channel"] | int
ScaleType = Literal["float32", "bfloat16", "float16"]


def grouping_of(group: Group, shape: tuple[int, ...]) -> Grouping:
    """The grouping that a setting means for a weight of that shape; vectors are one group."""
    if group == "tensor" or len(shape) < 2:
        return whole(shape)
    columns = max(1, prod(shape[1:]))
    return Grouping(columns, columns if group == "channel" else min(int(group), columns))


@final
@dataclass(frozen=True)
class Groups:
    """Which live value is in which group, and sums and extremes per group.

    Args:
        grouping: in dense coordinates.
        count: number of groups.
        rows: where the live values lie in rows, each cut into groups: how many rows; else 0.
        columns: values per such row.
        size: values per group of a row; the last group may be shorter.
        member: group of each live value, int64 [live]; empty where the rows say it.
    """

    grouping: Grouping
    count: int
    rows: int
    columns: int
    size: int
    member: Tensor

    @classmethod
    def of(cls, group: Group, shape: tuple[int, ...], positions: Tensor | None) -> Self:
        """Groups of a weight.

        Args:
            group: setting of a method.
            shape: of the dense weight.
            positions: int32 [live] of a masked weight, None of a dense one.
        """
        grouping = grouping_of(group, shape)
        count, nothing = grouping.count(prod(shape)), torch.zeros(0, dtype=torch.int64)
        if positions is None:
            rows = prod(shape) // grouping.columns  # whole rows always: columns follow from the shape
            return cls(grouping, count, rows, grouping.columns, grouping.size, nothing)
        if count == 1 and len(positions):
            return cls(grouping, 1, 1, len(positions), len(positions), nothing)
        return cls(grouping, count, 0, 0, 0, grouping.of(positions))

    def _blocks(self, values: Tensor) -> Tensor:
        """Values by group, zeros where the last of a row is shorter: [count, size]."""
        rest = -self.columns % self.size
        rows = values.view(self.rows, self.columns)
        return (F.pad(rows, (0, rest)) if rest else rows).reshape(self.count, self.size)

    def total(self, values: Tensor) -> Tensor:
        """Sum of the values [live] of each group, [count]."""
        if self.rows:
            return self._blocks(values).sum(1)
        return torch.zeros(self.count, dtype=values.dtype).index_add_(0, self.member, values)

    def sizes(self) -> Tensor:
        """Live values of each group, float32 [count]."""
        if self.rows:
            return self._blocks(torch.ones(1).expand(self.rows * self.columns)).sum(1)
        return torch.bincount(self.member, minlength=self.count).float()

    def mean(self, values: Tensor) -> Tensor:
        """Mean of the values [live] of each group, [count]; 0 for an empty one."""
        return self.total(values) / self.sizes().clamp_min(1).to(values.dtype)

    def largest(self, values: Tensor) -> Tensor:
        """Largest of 0 and the values [live] of each group, [count]."""
        if self.rows:
            return self._blocks(values).amax(1).clamp_min(0)
        return torch.zeros(self.count, dtype=values.dtype).scatter_reduce_(0, self.member, values, "amax")

    def spread(self, per_group: Tensor) -> Tensor:
        """Each live value's entry of a tensor [count]; [1] where there is a single group."""
        if self.count == 1:
            return per_group
        if self.rows:
            blocks = per_group.view(self.rows, -1, 1).expand(-1, -1, self.size)
            return blocks.reshape(self.rows, -1)[:, : self.columns].reshape(-1)
        return per_group[self.member]

    def members(self) -> Tensor:
        """Group of each live value, int64 [live]."""
        if not self.rows:
            return self.member
        return self.spread(torch.arange(self.count)).expand(self.rows * self.columns)


@dataclass(frozen=True, kw_only=True)
class PerGroup(Method):
    """A quantizer that looks at each group of a tensor by itself: first its scale, then where each value goes.

    Args:
        group: "tensor", "channel" (per output row), or weights per scale along a row.
    """

    produced: ClassVar[Skeleton]

    group: Group = "channel"

    def __post_init__(self) -> None:
        if not (self.group in ("tensor", "channel") or (isinstance(self.group, int) and self.group >= 1)):
            found = f"group: found {self.group!r}, expected 'tensor', 'channel' or a size ≥ 1"
            raise PlanError(f"{type(self).__name__}: {found}")

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become quantized values, masked ones keep their mask."""
        return (
            Rule(DENSE, lambda _: self.produced),
            Rule(MASKED, lambda s: Skeleton(Masked, (("where", s.at("/where")), ("value", self.produced)))),
        )

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Values that are shared or quantized already cannot be quantized again"

    @abstractmethod
    def fit(self, values: Tensor, groups: Groups, entry: Mapping[str, Any], name: str) -> Value:
        """Scales for the values.

        Args:
            values: float32 [live].
            groups: who is in which group.
            entry: of the plan.
            name: for messages.

        Returns:
            The encoding, with no value placed yet.
        """

    @abstractmethod
    def place(self, values: Tensor, groups: Groups, grid: Value, shape: tuple[int, ...]) -> Value:
        """The values on scales that are there already.

        Args:
            values: float32 [live].
            groups: who is in which group.
            grid: as `fit` or an earlier `place` made it.
            shape: of the result.
        """

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Quantize one site."""
        del shared
        positions, values = live_values(weight)
        groups = Groups.of(self.group, site.shape, positions)
        grid = self.fit(values.float(), groups, entry, site.key)
        return self._placed(site, weight, values.float(), groups, grid)

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """Round anew on the same scales."""
        positions, values = live_values(weight)
        groups = Groups.of(self.group, site.shape, positions)
        inner = grid.value if isinstance(grid, Masked) else grid
        assert isinstance(inner, Value)
        return self._placed(site, weight, values.float(), groups, inner)

    def _placed(self, site: Site, weight: Encoding, values: Tensor, groups: Groups, grid: Value) -> Encoding:
        if isinstance(weight, Masked):
            return Masked(weight.where, self.place(values, groups, grid, tuple(values.shape)))
        return self.place(values, groups, grid, site.shape)


def blank_grid(site: Site, weight: Encoding, group: Group, dtype: ScaleType, *, sparse: bool) -> Encoding:
    """A grid on which every weight is the same symbol, under a mask if ``sparse`` or if the weight has one."""
    sparse = sparse or isinstance(weight, Masked)
    q = torch.zeros(0 if sparse else site.shape, dtype=torch.uint8)
    grouping = grouping_of(group, site.shape)
    scale = Dense(torch.zeros(grouping.count(prod(site.shape)), dtype=getattr(torch, dtype)))
    value = Affine(grouping.columns, grouping.size, q, scale, 8, 4)
    return Masked(no_mask(site.shape), value) if sparse else value


def no_mask(shape: tuple[int, ...]) -> Mask:
    """A mask of which nothing lives."""
    return Mask(torch.zeros((prod(shape) + 7) // 8, dtype=torch.uint8), shape)


def check_bits(method: Method, bits: int, least: int, most: int) -> None:
    """Refuse a number of bits out of range.

    Raises:
        PlanError: names the method.
    """
    if not least <= bits <= most:
        raise PlanError(f"{type(method).__name__}: bits: found {bits}, expected {least} to {most}")


def check_scale_dtype(method: Method, dtype: str) -> None:
    """Refuse a dtype that scales cannot have.

    Raises:
        PlanError: names the method.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise PlanError(f"{type(method).__name__}: scale_dtype: found {dtype!r}, expected float32 or half")


def stored_scale(method: Method, scale: Tensor, dtype: ScaleType, name: str) -> Tensor:
    """Scales as they will be stored: that, not what was meant, decides the rounding; 1 for a group of zeros.

    A scale too small for the dtype becomes its smallest number: the group's weights, smaller still, become zero.

    Raises:
        PlanError: a scale that is too large for the dtype.
    """
    kind = getattr(torch, dtype)
    stored = scale.to(kind)
    if bool((lost := ~torch.isfinite(stored)).any()):
        found = f"found a scale of {float(scale[lost][0]):.3g}, which {dtype} cannot hold"
        raise PlanError(f"{type(method).__name__}: {name}: {found}, expected scale_dtype float32 or bfloat16")
    about = torch.finfo(kind)
    least = about.smallest_normal * (about.eps if kind is torch.float16 else 1.0)  # others' subnormals may be flushed
    stored = torch.where((scale > 0) & (stored <= 0), torch.tensor(least, dtype=kind), stored)
    return torch.where(scale > 0, stored, 1.0)
