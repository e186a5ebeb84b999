"""Random choices that depend on a seed, a layer's name and a step alone: the same on every rank and after a restart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.random import uniform_bits

__all__ = ["chosen", "dead_at", "normal", "signs", "uniform_scores"]

_AGAIN = 0x5851F42D4C957F2D  # another key for the second choice


def _uniform(key: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Multiples of 2⁻⁵³ in [0, 1), float64 [count]."""
    return (uniform_bits(key, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chosen(key: int, count: int, among: int) -> Tensor:
    """``count`` distinct numbers of 0 … ``among`` − 1, each set equally likely; int64 [count], ascending.

    Few of many are drawn until enough are distinct, and those too many are taken out at random; many of few are the
    lowest of one draw each.

    Cost: O(count log count) where count ≤ among / 4, else O(among).

    Example:
        >>> chosen(7, 3, 3).tolist()
        [0, 1, 2]
    """
    if count >= among:
        return torch.arange(among)
    if 4 * count > among:
        lowest = np.argpartition(uniform_bits(key, among), count - 1)[:count] if count else np.zeros(0, np.int64)
        return torch.from_numpy(np.sort(lowest))
    # A draw meets an earlier one at most a third of the time.
    draws = count + int(count * count / among) + 16
    while True:
        drawn = np.sort((_uniform(key, draws) * among).astype(np.int64))
        found = drawn[np.flatnonzero(np.diff(drawn, prepend=-1))]
        if len(found) >= count:
            break
        draws += draws // 4
    out = chosen(key ^ _AGAIN, len(found) - count, len(found)).numpy()
    return torch.from_numpy(np.delete(found, out))


def dead_at(ranks: Tensor, live: Tensor) -> Tensor:
    """Positions of the dead weights with these numbers, counted along the flat weight.

    Args:
        ranks: int64 [n], 0 to dead − 1.
        live: ascending positions of the live weights, [live].

    Returns:
        int64 [n].

    Example:
        >>> dead_at(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3])).tolist()
        [1, 4, 5]
    """
    before = live.long() - torch.arange(len(live), device=live.device)  # dead weights in front of each live one
    return ranks + torch.searchsorted(before, ranks, right=True)


def uniform_scores(key: int, count: int) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, float32 [count]."""
    return torch.from_numpy((uniform_bits(key, count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def signs(key: int, count: int) -> Tensor:
    """+1 or −1 with equal chances, float32 [count]."""
    return torch.from_numpy(1.0 - 2.0 * (uniform_bits(key, count) >> np.uint64(63)).astype(np.float32))


def normal(key: int, count: int) -> Tensor:
    """Standard normal, float32 [count], by Box and Muller's transform."""
    half = (count + 1) // 2
    drawn = torch.from_numpy(_uniform(key, 2 * half))
    radius = torch.sqrt(-2 * torch.log1p(-drawn[:half]))
    angle = 2 * torch.pi * drawn[half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count].float()
