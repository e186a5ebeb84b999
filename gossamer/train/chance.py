"""Random choices that depend on a seed, a layer's name and a step alone: the same on every rank and after a restart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.random import uniform_bits

__all__ = ["chosen", "dead", "normal", "signs", "uniform_scores"]

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
    return torch.from_numpy(_drawn(key, count, among, among, None))


def dead(key: int, count: int, live: Tensor, size: int) -> Tensor:
    """``count`` distinct positions where nothing lives, each set equally likely; int64 [count], ascending.

    Args:
        key: of random numbers.
        count: at most the number of dead positions.
        live: ascending positions, int64 [live].
        size: of the weight.

    Example:
        >>> dead(7, 3, torch.tensor([0, 2, 3]), 6).tolist()
        [1, 4, 5]
    """
    room = size - len(live)
    if 2 * room >= size and 4 * count <= room:
        lives = np.zeros(size, np.bool_)
        lives[live.numpy()] = True
        return torch.from_numpy(_drawn(key, count, size, room, lives))
    # By their numbers among the dead: before each live weight there are as many dead ones as its position says.
    ranks = chosen(key, count, room)
    before = live - torch.arange(len(live))
    return ranks + torch.searchsorted(before, ranks, right=True)


def _drawn(
    key: int, count: int, among: int, room: int, taken: np.ndarray[tuple[int], np.dtype[np.bool_]] | None
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Distinct numbers that are not taken; ``room`` of them are not."""
    # A draw meets what is taken or an earlier one.
    draws = int(count * (among / room) * (1 + count / room)) + 16
    while True:
        drawn = np.sort((_uniform(key, draws) * among).astype(np.int64))
        found = drawn[np.flatnonzero(np.diff(drawn, prepend=-1))]
        if taken is not None:
            found = found[~taken[found]]
        if len(found) >= count:
            break
        draws += draws // 4
    out = chosen(key ^ _AGAIN, len(found) - count, len(found)).numpy()
    return np.delete(found, out)


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
