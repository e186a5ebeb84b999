"""What a nat costs, in units of the loss, raised and lowered until as many are used as there should be."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

__all__ = ["Prices"]

_RATE = 0.3  # of what adds up, per update; gradient steps take some tens of updates to answer
_AT_ONCE = 2.0  # of the present excess, so that what adds up does not swing
_LEAST, _MOST = math.log(1e-14), math.log(1e4)


@final
class Prices:
    """A price for each of several amounts, proportional and integral control of its logarithm.

    With the excess e = log(found / wanted): log price = start + Σ rate · clamp(e, ±1) + 2 · e.

    Args:
        start: price to begin with.
        count: amounts.

    Example:
        >>> prices = Prices(1.0, 2)
        >>> prices.update(torch.tensor([1.0, 4.0]), 2.0)
        >>> bool(prices.each[0] < 1 < prices.each[1])
        True
    """

    def __init__(self, start: float, count: int) -> None:
        self.summed = torch.full((count,), math.log(start), dtype=torch.float64)
        self.each = self.summed.exp()

    def update(self, found: Tensor, wanted: float) -> None:
        """Answer to what is used now.

        Args:
            found: float64 [count].
            wanted: of each, > 0.
        """
        excess = (found / wanted).clamp(1e-3, 1e3).log()
        self.summed = (self.summed + _RATE * excess.clamp(-1, 1)).clamp(_LEAST, _MOST)
        self.each = (self.summed + _AT_ONCE * excess).clamp(_LEAST, _MOST).exp()

    def state(self) -> dict[str, Tensor]:
        """For `take`."""
        return {"summed": self.summed, "each": self.each}

    def take(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.summed, self.each = state["summed"], state["each"]
