"""How many numbers each layer may have: one byte budget for all layers, spent where a byte buys most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["NOTHING_LEFT", "Curve", "enough", "spend", "too_big"]

NOTHING_LEFT = "found no bytes left for it in the budget, or no rank at which it would be smaller"


@dataclass(frozen=True)
class Curve:
    """What one layer offers: how much of it each level keeps, and what the level costs.

    Args:
        nbytes: int64 [levels], at least 1, strictly ascending.
        kept: float64 [levels], share of the weight's energy Σ w², 0 to 1, ascending.
    """

    nbytes: Tensor
    kept: Tensor


def spend(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """Greedy: what adds the largest share of a layer's energy per byte is bought next, over one level or several.

    Only what fits is on offer. On concave curves this takes level after level, and is optimal up to the last level of
    each layer.

    Args:
        curves: per layer; ties go to the lower level, then to the earlier layer.
        budget: bytes for all layers together.

    Returns:
        Levels bought per layer, 0 for none.

    Cost: O(levels) per purchase.

    Example:
        >>> import torch
        >>> line = Curve(torch.tensor([10, 20]), torch.tensor([0.8, 1.0]))
        >>> spend({"a": line, "b": line}, 35)
        {'a': 2, 'b': 1}
    """
    nbytes = {key: np.concatenate([[0], c.nbytes.numpy()]) for key, c in curves.items()}
    kept = {key: np.concatenate([[0.0], c.kept.numpy()]) for key, c in curves.items()}
    levels = dict.fromkeys(curves, 0)
    left = budget
    queue: list[tuple[float, int, int, str]] = []

    def offer(order: int, key: str) -> None:
        here = levels[key]
        cost = nbytes[key][here + 1 :] - nbytes[key][here]
        fits = int(np.searchsorted(cost, left, side="right"))
        if fits:
            worth = (kept[key][here + 1 :][:fits] - kept[key][here]) / cost[:fits]
            best = int(worth.argmax())
            heapq.heappush(queue, (-float(worth[best]), here + 1 + best, order, key))

    for order, key in enumerate(curves):
        offer(order, key)
    while queue:
        _, level, order, key = heapq.heappop(queue)
        cost = int(nbytes[key][level] - nbytes[key][levels[key]])
        if cost <= left:
            left -= cost
            levels[key] = level
        offer(order, key)
    return levels


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
