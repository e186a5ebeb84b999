"""The highest of many scores, and sets of positions as masks and back: NumPy's selections, several times PyTorch's, and kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.runtime.choice import choice

__all__ = ["highest", "joined", "mask_of", "places", "sources"]


def highest(scores: Tensor, count: int) -> Tensor:
    """Which are the ``count`` highest, ties to the earlier; −∞ never is.

    Args:
        scores: float32 [n], no NaN.
        count: how many; fewer are chosen where fewer are above −∞.

    Returns:
        bool [n].

    Cost: O(n).

    Example:
        >>> highest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
        [True, True, False, True]
    """
    above_all = scores > -torch.inf
    if count >= len(scores):
        return above_all
    if count <= 0:
        return torch.zeros_like(above_all)
    at = len(scores) - count
    least = float(np.partition(scores.numpy(), at)[at])
    chosen = scores > least
    spare = count - int(np.count_nonzero(chosen.numpy()))
    if spare and least > -torch.inf:
        chosen[places(scores == least)[:spare]] = True
    return chosen


def places(mask: Tensor) -> Tensor:
    """Where a bool mask is true, int64 [n], ascending."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def mask_of(positions: Tensor, size: int) -> Tensor:
    """Bool [size], true at int64 positions."""
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, positions, True)


def joined(ascending: Tensor, others: Tensor) -> Tensor:
    """Both sets of positions in ascending order, int64; the first is so already.

    Example:
        >>> joined(torch.tensor([1, 5]), torch.tensor([9, 3])).tolist()
        [1, 3, 5, 9]
    """
    small = len(ascending) == 0 or max(int(ascending[-1]), int(others.max()) if len(others) else 0) < 1 << 31
    kind = np.int32 if small else np.int64
    tail = np.sort(others.numpy().astype(kind))
    kernels = choice()
    if kernels is not None:
        return kernels.merged(ascending.contiguous(), torch.from_numpy(tail.astype(np.int64)))
    # A stable sort merges two runs, which is faster than sorting.
    merged = np.sort(np.concatenate([ascending.numpy().astype(kind), tail]), kind="stable")
    return torch.from_numpy(merged.astype(np.int64))


def sources(old: Tensor, new: Tensor, missing: int) -> Tensor:
    """The place of each of the ``new`` positions among the ``old``, or ``missing``; all int64, ascending.

    Example:
        >>> sources(torch.tensor([1, 5, 7]), torch.tensor([2, 5]), -1).tolist()
        [-1, 1]
    """
    kernels = choice()
    if kernels is not None:
        return kernels.sources(old.contiguous(), new.contiguous(), missing)
    if not len(old):
        return torch.full((len(new),), missing)
    at = torch.searchsorted(old, new).clamp_(max=len(old) - 1)
    return torch.where(old[at] == new, at, missing)
