"""Sparse activations: of every sample only the k largest go on."""

from __future__ import annotations

from math import prod
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError, PlanError

__all__ = ["KWinners"]


class _Top(torch.autograd.Function):
    """x where it is among the k largest of its row, 0 elsewhere; the backward pass keeps positions, not activations."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, k: int) -> Tensor:
        values, at = rows.topk(k, dim=1, sorted=False)
        ctx.save_for_backward(at)
        return torch.zeros_like(rows).scatter_(1, at, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        (at,) = ctx.saved_tensors
        (dy,) = gradients
        return torch.zeros_like(dy).scatter(1, at, dy.gather(1, at)), None


@final
class KWinners(nn.Module):
    """The k largest activations of each sample stay, all others become zero; in training and after.

    y_i = x_i if x_i is among the k largest of its group, else 0. The derivative is exact wherever no two activations
    tie for the last place: dy_i/dx_i is 1 for winners, 0 for the others. Put it in the place of an activation function
    (negative winners stay negative) or after a ReLU.

    Args:
        density: share of activations that win, above 0, at most 1; at least one wins.
        over: what competes: "sample" everything of a sample, "channels" the channels (dimension 1) of each place.

    Cost: a selection per group; nothing after it becomes faster by itself.

    Exact: exactly k activations of each group can be other than zero; of equal ones any may win.

    Example:
        >>> KWinners(0.5)(torch.tensor([[3.0, -1.0, 2.0, 0.5]])).tolist()
        [[3.0, 0.0, 2.0, 0.0]]

    Source: Makhzani and Frey 2014, arXiv 1312.5663, section 2.1; Ahmad and Scheinkman 2019, arXiv 1903.11257, section 3
        (without its boosting of units that rarely win).
    """

    def __init__(self, density: float, over: Literal["sample", "channels"] = "sample") -> None:
        super().__init__()
        if not 0 < density <= 1:
            raise PlanError(f"KWinners: density: found {density}, expected a number above 0, at most 1")
        if over not in ("sample", "channels"):
            raise PlanError(f"KWinners: over: found {over!r}, expected sample or channels")
        self.density, self.over = density, over

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] → the same shape; "channels": [n, channels, ...]."""
        if x.dim() < 2:
            raise DataError(f"KWinners: found activations of shape {tuple(x.shape)}, expected [samples, ...]")
        turned = x if self.over == "sample" else x.movedim(1, -1)
        size = prod(x.shape[1:]) if self.over == "sample" else x.shape[1]
        if not x.numel():
            return x
        k = max(1, round(self.density * size))
        rows: Tensor = _Top.apply(turned.reshape(-1, size), k)  # type: ignore[no-untyped-call]
        made = rows.view(turned.shape)
        return made if self.over == "sample" else made.movedim(-1, 1)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"density={self.density}, over={self.over!r}"
