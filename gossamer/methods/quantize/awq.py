"""Input scales searched on the layer's own error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.methods.quantize.groups import Group
from gossamer.methods.quantize.scaled_inputs import ScaledInputs

__all__ = ["AWQ"]


@final
@dataclass(frozen=True, kw_only=True)
class AWQ(ScaledInputs):
    """w ≈ q · diag(1/a) with a = x^α, x the size of each input, and the α that minimises the layer's error.

    α runs from 0 (nothing is scaled) to 1 in ``steps`` steps; for each the ranges of the groups are searched too, and
    what has the smallest tr((W − Ŵ)·G·(W − Ŵ)ᵀ) is kept. Weights of large inputs keep more digits, but nothing makes
    up for errors: cheaper than `GPTQ`, and less exact.

    Args:
        bits: 2 to 8.
        group: "tensor", "channel" (per output row), or weights per scale along a row.
        symmetric: grid centred at zero (no zero points stored).
        scale_dtype: dtype of the scales at rest.
        steps: of α, ≥ 1.
        candidates: ranges tried per group; 1: always that of the values.

    Cost: per step one search of ranges and rows · n² multiplications.

    Example:
        >>> AWQ(bits=4).steps
        12

    Source: Lin et al. 2023, AWQ, arXiv 2306.00978, section 3.2; inputs by root mean square, not by mean magnitude.
    """

    group: Group = 128
    steps: int = 12
    candidates: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.candidates < 1:
            found = f"steps, candidates: found {self.steps}, {self.candidates}"
            raise PlanError(f"AWQ: {found}, expected at least 1")

    @property
    def ranges(self) -> int:
        """As set."""
        return self.candidates

    def gains(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """x^α, its middle at 1."""
        del weights
        powers = [inputs ** (i / self.steps) for i in range(self.steps + 1)]
        return tuple(p / torch.sqrt(p.max() * p.min()) for p in powers)
