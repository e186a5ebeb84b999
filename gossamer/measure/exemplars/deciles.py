"""Errors by tenth of the examples, in the order of a score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.measure.proportions import wilson

__all__ = ["Decile", "deciles", "top_over_bottom"]


@dataclass(frozen=True)
class Decile:
    """One tenth of the examples.

    Args:
        decile: 1 (lowest scores) to 10.
        n: examples in it.
        error: share of wrong answers.
        low: lower end of the 95% Wilson interval of the error.
        high: its upper end.
    """

    decile: int
    n: int
    error: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """As the report shows it."""
        return dict(vars(self))


def deciles(scores: Tensor, wrong: Tensor) -> tuple[Decile, ...]:
    """The error of every tenth of the examples, from the lowest scores to the highest.

    Equal scores stay in the order of the examples; sizes differ by at most one. Intervals are Wilson's at 95%, see
    `gossamer.measure.proportions`.

    Args:
        scores: floats [n], n ≥ 10.
        wrong: bool [n], whether the answer was wrong.

    Raises:
        DataError: fewer than ten examples, shapes that differ, or scores that are not finite.

    Example:
        >>> found = deciles(torch.arange(20.0), torch.arange(20) >= 15)
        >>> [row.error for row in found]
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if scores.dim() != 1 or scores.shape != wrong.shape or wrong.dtype != torch.bool:
        raise DataError(
            f"deciles: found scores {tuple(scores.shape)} and wrong {tuple(wrong.shape)} of {wrong.dtype}, "
            "expected floats [n] and torch.bool [n]"
        )
    if len(scores) < 10:
        raise DataError(f"deciles: found {len(scores)} examples, expected at least 10")
    if not bool(torch.isfinite(scores).all()):
        raise DataError("deciles: found scores that are not finite")
    ordered = wrong[scores.argsort(stable=True)]
    count, rows = len(scores), []
    for i in range(10):
        part = ordered[i * count // 10 : (i + 1) * count // 10]
        errors, n = int(part.sum()), len(part)
        rows.append(Decile(i + 1, n, errors / n, *wilson(errors, n)))
    return tuple(rows)


def top_over_bottom(rows: tuple[Decile, ...]) -> float:
    """Error of the last decile over that of the first; infinite when only the first has none, 1 when both have none."""
    top, bottom = rows[-1].error, rows[0].error
    if bottom > 0:
        return top / bottom
    return math.inf if top > 0 else 1.0
