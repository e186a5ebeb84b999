"""How many numbers each layer may have: one byte budget for all layers, spent where a byte buys most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["NOTHING_LEFT", "Curve", "concave", "enough", "spend", "too_big"]

NOTHING_LEFT = "found no bytes left for it in the budget, or no rank at which it would be smaller"


@dataclass(frozen=True)
class Curve:
    """What one layer offers: how much of it each level keeps, and what the level costs.

    Args:
        nbytes: int64 [levels], ascending.
        kept: float64 [levels], share of the weight's energy Σ w², 0 to 1, ascending.
    """

    nbytes: Tensor
    kept: Tensor


def spend(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """Greedy: the next level is bought where it adds the largest share of a layer's energy per byte.

    A layer whose next level does not fit is closed: levels are taken in order. Optimal up to the last level of each
    layer if the curves are concave (`concave` makes them so).

    Args:
        curves: per layer; ties go to the earlier one.
        budget: bytes for all layers together.

    Returns:
        Levels bought per layer, 0 for none.

    Cost: O(n log layers) for n levels.

    Example:
        >>> import torch
        >>> line = Curve(torch.tensor([10, 20]), torch.tensor([0.8, 1.0]))
        >>> spend({"a": line, "b": line}, 35)
        {'a': 2, 'b': 1}
    """
    steps = {key: list(zip(c.nbytes.tolist(), c.kept.tolist(), strict=True)) for key, c in curves.items()}
    levels = dict.fromkeys(curves, 0)

    def offer(order: int, key: str) -> tuple[float, int, int, str, int]:
        level = levels[key]
        nbytes, kept = steps[key][level]
        before, had = steps[key][level - 1] if level else (0, 0.0)
        return (had - kept) / (nbytes - before), level, order, key, nbytes - before

    queue = [offer(order, key) for order, key in enumerate(curves) if steps[key]]
    heapq.heapify(queue)
    left = budget
    while queue:
        _, _, order, key, cost = heapq.heappop(queue)
        if cost > left:
            continue
        left -= cost
        levels[key] += 1
        if levels[key] < len(steps[key]):
            heapq.heappush(queue, offer(order, key))
    return levels


def concave(nbytes: Tensor, kept: Tensor) -> list[int]:
    """Levels on the upper hull of a curve that starts at (0, 0): there every byte buys less than the one before.

    Args:
        nbytes: int64 [levels], ascending.
        kept: float64 [levels], ascending.

    Example:
        >>> import torch
        >>> concave(torch.tensor([1, 2, 3]), torch.tensor([0.1, 0.8, 0.9]))
        [1, 2]
    """
    points = [(0, 0.0), *zip(nbytes.tolist(), kept.tolist(), strict=True)]
    hull: list[int] = [0]
    for i in range(1, len(points)):
        while len(hull) > 1 and _below(points[hull[-2]], points[hull[-1]], points[i]):
            hull.pop()
        hull.append(i)
    return [i - 1 for i in hull[1:]]


def _below(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b lies below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) < (c[1] - a[1]) * (b[0] - a[0])


def enough(kept: Tensor, share: float) -> int | None:
    """The first level that keeps a share of the energy, or None.

    Args:
        kept: float64 [levels], ascending.
        share: 0 to 1.
    """
    # A hair of slack: cumulative sums end a rounding error short of the total.
    good = (kept >= share * (1 - 1e-12)).nonzero()
    return int(good[0]) if len(good) else None


def too_big(what: str, numbers: int, whole: int) -> str:
    """Why a layer is not factorized; empty if the factors are smaller than the weight."""
    return f"{what} would take {numbers} numbers, the weight itself has {whole}" if numbers >= whole else ""
