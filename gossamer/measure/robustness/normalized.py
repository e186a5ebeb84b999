"""A network for normalised inputs as one for pixels, so that ε and bounds mean pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError

__all__ = ["Normalized"]


@final
class Normalized(nn.Module):
    """model((x − mean) / deviation).

    Args:
        model: takes normalised inputs.
        mean: per channel (dimension 1), or one number.
        deviation: the same; above 0.

    Example:
        >>> Normalized(nn.Identity(), 0.5, 0.25)(torch.ones(1, 1)).tolist()
        [[2.0]]
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: float | Sequence[float], deviation: float | Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("deviation", torch.as_tensor(deviation, dtype=torch.float32), persistent=False)
        if self.mean.dim() > 1 or self.mean.shape != self.deviation.shape or not bool((self.deviation > 0).all()):
            raise DataError(f"found mean {mean}, deviation {deviation}, expected as many of both, deviations above 0")

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, channels, …] → what the model makes of them."""
        shape = (-1, *[1] * (x.dim() - 2)) if self.mean.dim() else ()
        outputs: Tensor = self.model((x - self.mean.view(shape)) / self.deviation.view(shape))
        return outputs
