"""Penalties that make weights small before they are cut: group lasso and Hoyer's measures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
from torch.linalg import vector_norm

from gossamer.encoding.spec import TensorSpec
from gossamer.errors import PlanError
from gossamer.train.from_dense.base import DenseMethod, Relaxation

__all__ = ["GroupLasso", "Hoyer"]

_SMALLEST = 1e-30  # weights that are all zero have no ratio


@dataclass(frozen=True, kw_only=True)
class _Penalised(DenseMethod, ABC):
    """A method that adds to the loss, and cuts at the end what has become small.

    Gradient steps bring weights near zero, never to it: ``threshold`` says what counts as zero when a network is
    harvested, relative to the root mean square of its layer's weights. Fine-tune afterwards.

    Args:
        strength: λ, factor of the penalty.
        threshold: share of the root mean square of a layer's weights.
    """

    strength: float = 1e-4
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if self.strength < 0 or self.threshold < 0:
            found = f"found strength {self.strength}, threshold {self.threshold}"
            raise PlanError(f"{type(self).__name__}: {found}, expected numbers from 0 on")

    def relaxation(self, spec: TensorSpec, weight: Tensor) -> Relaxation:
        """The weight itself, with a penalty."""
        del weight
        return _Plain(spec, self)

    @abstractmethod
    def measure(self, weight: Tensor) -> Tensor:
        """The penalty of one weight, without λ."""

    def sizes(self, weight: Tensor) -> Tensor:
        """What the threshold is compared with, of the weight's shape or broadcast to it."""
        return weight.abs()


@final
class _Plain(Relaxation):
    def __init__(self, spec: TensorSpec, method: _Penalised) -> None:
        super().__init__(spec)
        self.method = method

    def forward(self, weight: Tensor) -> Tensor:
        """The weight; in eval mode without what counts as zero."""
        return weight if self.training else weight * self.live(weight)

    def penalty(self, weight: Tensor) -> Tensor:
        """λ times the measure."""
        return self.method.strength * self.method.measure(weight)

    def live(self, weight: Tensor) -> Tensor:
        """What is larger than the threshold."""
        limit = self.method.threshold * weight.detach().square().mean().sqrt()
        return (self.method.sizes(weight.detach()) > limit).expand_as(weight).clone()


@final
@dataclass(frozen=True, kw_only=True)
class GroupLasso(_Penalised):
    """λ · Σ over groups of √(group's size) · ‖w_group‖₂: whole rows or columns of a weight become zero.

    Args:
        group: "rows" (outputs, filters) or "columns" (inputs, input channels).
        strength: λ.
        threshold: groups whose root mean square is below this share of the layer's are zero at the end.

    Cost: dense arithmetic and memory in every step; one norm per group.

    Exact: the penalty. Its minimum has groups at exactly zero; gradient descent comes near.

    Example:
        >>> import torch
        >>> round(GroupLasso(group="rows").measure(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() / 5, 4)
        1.4142

    Source: Yuan and Lin 2006, J. R. Stat. Soc. B 68, equation 2.2; Wen et al. 2016, arXiv 1608.03665, section 3.1.
    """

    group: Literal["rows", "columns"] = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in ("rows", "columns"):
            raise PlanError(f"GroupLasso: group: found {self.group!r}, expected rows or columns")

    def _axes(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(d for d in range(weight.dim()) if d != (0 if self.group == "rows" else 1))

    def measure(self, weight: Tensor) -> Tensor:
        """Σ √|g| · ‖w_g‖₂."""
        axes = self._axes(weight)
        size = math.prod(weight.shape[a] for a in axes)
        norms: Tensor = vector_norm(weight, dim=axes)
        return math.sqrt(size) * norms.sum()

    def sizes(self, weight: Tensor) -> Tensor:
        """Root mean squares of groups."""
        return weight.square().mean(self._axes(weight), keepdim=True).sqrt()


@final
@dataclass(frozen=True, kw_only=True)
class Hoyer(_Penalised):
    """λ · (Σ|w|)² / Σw² per weight (or its root): a smooth count of non-zeros that does not depend on their scale.

    n for n weights of one size, 1 for a single one. Its gradient pulls weights below Σw²/Σ|w| towards zero and lets
    larger ones grow, unlike the L1 norm, which shrinks all.

    Args:
        squared: (Σ|w|)²/Σw², whose minima are as those of the count; False: Hoyer's own ratio Σ|w|/√Σw².
        strength: λ.
        threshold: what is below this share of the layer's root mean square is zero at the end.

    Cost: dense arithmetic and memory in every step; two sums per weight.

    Exact: the penalty.

    Example:
        >>> import torch
        >>> Hoyer().measure(torch.tensor([[2.0, -2.0], [0.0, 2.0]])).item()
        3.0

    Source: Yang, Wen and Li 2020, arXiv 1908.09979, equations 2 and 3; Hoyer 2004, JMLR 5, section 3.
    """

    squared: bool = True

    def measure(self, weight: Tensor) -> Tensor:
        """(Σ|w|)² / Σw², or its root."""
        total, squares = weight.abs().sum(), weight.square().sum().clamp_min(_SMALLEST)
        return total.square() / squares if self.squared else total / squares.sqrt()
