"""Input scales that share the spread of inputs and weights between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.methods.base import check_fraction
from gossamer.methods.quantize.groups import Group
from gossamer.methods.quantize.scaled_inputs import ScaledInputs

__all__ = ["SmoothQuant"]


@final
@dataclass(frozen=True, kw_only=True)
class SmoothQuant(ScaledInputs):
    """w ≈ q · diag(1/a) with a = x^α / max|w|^(1−α) per input column, x the size of the input: nothing is searched.

    α = 0: all columns of the scaled weight are equally large; α = 1: all inputs of it are. Quantizes weights alone; the
    runtime multiplies float inputs, so no input ranges are recorded.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest.
        alpha: 0 to 1.

    Cost: linear, and rows · n² multiplications.

    Example:
        >>> SmoothQuant(bits=8).alpha
        0.5

    Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, section 4; inputs by root mean square, not by maximum.
    """

    bits: int = 8
    group: Group = "channel"
    symmetric: bool = True
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("SmoothQuant: alpha", self.alpha)

    @property
    def ranges(self) -> int:
        """The range of the values."""
        return 1

    def gains(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """The one factor per column."""
        gain = inputs**self.alpha / (weights / weights.max()) ** (1 - self.alpha)
        gain = gain.clamp_min(float(gain.max()) * 1e-6)
        return (gain / torch.sqrt(gain.max() * gain.min()),)
