"""Mean and variance over checkpoints of one gradient per example, without keeping the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.exemplars.running import told

__all__ = ["GradientMoments"]

_BLOCK = 512


@final
class GradientMoments:
    """Running mean and sum of squared deviations of every input element, by Welford's update.

    mean_t = mean_(t−1) + (S_t − mean_(t−1)) / t;  M_t = M_(t−1) + (S_t − mean_(t−1)) · (S_t − mean_t).
    Arithmetic is in float64, storage in ``dtype``. With float32 each of K checkpoints rounds mean and M once, to 2⁻²⁴
    of themselves, so that a standard deviation is off by at most about K · 2⁻²⁴ · (|mean| + deviation): under 10⁻⁵ of
    them up to K = 150, and much less as roundings cancel. Sums of squares would lose all digits of small variances.

    Args:
        shape: of the inputs, [n, ...].
        dtype: of what is stored: torch.float32 or torch.float64.

    Source: Welford 1962, Technometrics 4(3); Chan, Golub, LeVeque 1983, The American Statistician 37(3).
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise DataError(f"moments: dtype: found {dtype}, expected torch.float32 or torch.float64")
        self.count = 0
        self.mean = torch.zeros(shape, dtype=dtype)
        self.squares = torch.zeros(shape, dtype=dtype)

    def begin(self) -> None:
        """The gradients that `add` gets from now on are those of another checkpoint."""
        self.count += 1

    def add(self, start: int, gradient: Tensor) -> None:
        """Gradients of the examples from number ``start`` on, [b, ...]; each example once per checkpoint."""
        rows = slice(start, start + len(gradient))
        new = gradient.to("cpu", torch.float64)
        mean = self.mean[rows].double()
        before = new - mean
        mean += before / self.count
        self.mean[rows] = mean
        self.squares[rows] += before * (new - mean)

    def deviation(self) -> Tensor:
        """Per example the mean over input elements of √(M / K), float64 [n]."""
        if self.count < 2:
            raise DataError(f"variance of gradients: found {self.count} checkpoints, expected at least 2")
        parts = [part.double().div(self.count).sqrt_().flatten(1).mean(1) for part in torch.split(self.squares, _BLOCK)]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """All there is."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            DataError: that of other inputs.
        """
        for name in ("mean", "squares"):
            found, mine = state.get(name), getattr(self, name)
            if not isinstance(found, Tensor) or found.shape != mine.shape or found.dtype != mine.dtype:
                raise DataError(f"moments: {name}: found {told(found)}, expected {tuple(mine.shape)} of {mine.dtype}")
        if not isinstance(state.get("count"), int) or state["count"] < 0:
            raise DataError(f"moments: count: found {state.get('count')!r}, expected a number of checkpoints")
        self.count = state["count"]
        self.mean.copy_(state["mean"])
        self.squares.copy_(state["squares"])
