"""The highest of many scores, and sets of positions as masks and back, faster than PyTorch's own operations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.runtime.choice import MOST_OF_GROUP, choice, kth_largest

__all__ = [
    "best_besides",
    "best_magnitudes",
    "best_of_rows",
    "carried",
    "highest",
    "mask_of",
    "places",
    "rejoined",
    "sources",
]

_MANY = 1 << 20
"""Scores from which on a sample says which are too small to be looked at in detail."""

_SAMPLE = 1 << 13
"""Scores of the sample."""


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
    numbers = scores.numpy()
    if count >= len(scores):
        return torch.from_numpy(numbers > -np.inf)
    if count <= 0:
        return torch.zeros(len(scores), dtype=torch.bool)
    least = np.float32(kth_largest(numbers, count))
    chosen = numbers > least
    spare = count - int(np.count_nonzero(chosen))
    if spare and least > -np.inf:
        chosen[np.flatnonzero(numbers == least)[:spare]] = True
    return torch.from_numpy(chosen)


def best_of_rows(
    scores: Tensor,
    count: int,
    which: Tensor | None = None,
    *,
    magnitude: bool = False,
    always: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Flat positions of the ``count`` highest of each row, int64; of equal ones the first.

    Args:
        scores: float32 [rows, columns], contiguous, without signs unless magnitude.
        count: 0 to columns.
        which: int64, numbers of the rows that are looked at, ascending; None: all.
        magnitude: whether magnitudes are compared.
        always: what becomes infinite before: flat positions int64, ascending, and their `row_edges`. The scores may
            be overwritten.

    Returns:
        int64 [rows that are looked at · count], ascending.

    Example:
        >>> best_of_rows(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), 2).tolist()
        [1, 2, 3, 4]
    """
    kernels = choice()
    if kernels is not None and (len(scores) if which is None else len(which)) != 1:
        if which is None and always is None and not magnitude and scores.shape[1] <= MOST_OF_GROUP:
            return kernels.best_of_groups(scores.view(-1), scores.shape[1], count)
        return kernels.best_of_rows(scores, count, which, magnitude=magnitude, always=always)
    if magnitude:
        scores = scores.abs()
    if always is not None:
        scores.view(-1).index_fill_(0, always[0], torch.inf)
    if kernels is not None:
        return kernels.best_of_rows(scores, count, which)
    rows = torch.arange(len(scores)) if which is None else which
    # A stable sort of whole rows would do the same and take ten times as long.
    looked, at = scores[rows], max(0, scores.shape[1] - count)
    if not count or not looked.numel():
        return torch.zeros(0, dtype=torch.int64)
    least = torch.from_numpy(np.partition(looked.numpy(), at, axis=1)[:, at : at + 1])
    taken = looked >= least
    ties = places(taken.sum(1) != count)
    if len(ties):
        above, equal = looked[ties] > least[ties], looked[ties] == least[ties]
        spare = count - above.sum(1, keepdim=True)
        taken[ties] = above | (equal & (equal.cumsum(1) <= spare))
    found = places(taken.reshape(-1))
    columns = scores.shape[1]
    return rows[found // columns] * columns + found % columns


def best_magnitudes(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest magnitudes are, int64 [count], ascending; of equal ones the first.

    Args:
        values: float32 [n], contiguous.
        count: 0 to n.

    Cost: O(n), without a copy of all magnitudes where few are chosen.

    Example:
        >>> best_magnitudes(torch.tensor([1.0, -3.0, 4.0, 2.0]), 2).tolist()
        [1, 2]
    """
    kernels, n = choice(), len(values)
    if kernels is not None and n > _MANY and 4 * count < n:
        # Judged by a sample, at a stride that is no multiple of rows, of what is a little more.
        least = _little_less(np.abs(values[:: (n // _SAMPLE) | 1].numpy()), count / n)
        found, numbers = kernels.above(values, least, magnitude=True)
        if len(found) >= count:
            return found.index_select(0, kernels.best_of_rows(numbers.abs_().view(1, -1), count))
    sizes = values.abs()
    return places(highest(sizes, count)) if kernels is None else kernels.best_of_rows(sizes.view(1, -1), count)


def best_besides(values: Tensor, count: int, besides: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ``count`` largest magnitudes but for some places are, ascending; of equal ones the first.

    What is not a number counts as infinite.

    Args:
        values: float32 [n], contiguous; **become zero at these places**.
        count: 0 to n − the number of these places.
        besides: int64, each once.

    Returns:
        int64 [count], and these magnitudes, float32 [count].

    Example:
        >>> best_besides(torch.tensor([1.0, -3.0, 4.0, 2.0]), 2, torch.tensor([2]))
        (tensor([1, 3]), tensor([3., 2.]))
    """
    values.index_fill_(0, besides, 0.0)
    best = best_magnitudes(values, count)
    sizes = values.index_select(0, best).abs_()
    if count and not bool((sizes > 0).all()):  # zeros are to be told apart; of what is not a number nothing is known
        lowest = values.abs().index_fill_(0, besides, -1.0).nan_to_num_(nan=torch.inf)
        best = places(highest(lowest, count))
        sizes = lowest.index_select(0, best)
    return best, sizes


def _little_less(sample: np.ndarray[tuple[int], np.dtype[np.float32]], share: float) -> float:
    """What a little more than a share, up to a quarter, of all numbers exceeds, judged by a sample of them."""
    k = int(1.2 * share * len(sample)) + 64
    return kth_largest(sample, min(k, len(sample)))


def places(mask: Tensor) -> Tensor:
    """Where a bool mask is true, int64 [n], ascending."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def mask_of(positions: Tensor, size: int) -> Tensor:
    """Bool [size], true at int64 positions."""
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, positions, True)


def rejoined(old: Tensor, kept: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The old positions that are kept and the new ones, ascending; and their `sources` among the old ones.

    Args:
        old: int64, ascending.
        kept: bool [old].
        new: int64, in any order; may hold old ones that are not kept.

    Returns:
        positions, and sources int64: the number of old ones where there is none.

    Example:
        >>> rejoined(torch.tensor([1, 5, 7]), torch.tensor([True, False, False]), torch.tensor([9, 3, 5]))
        (tensor([1, 3, 5, 9]), tensor([0, 3, 1, 3]))
    """
    added = _ascending(new)
    kernels = choice()
    if kernels is not None:
        return kernels.rejoined(old.contiguous(), kept.contiguous(), added)
    # A stable sort merges two runs, which is faster than sorting.
    both = torch.from_numpy(np.sort(np.concatenate([old[kept].numpy(), added.numpy()]), kind="stable"))
    return both, sources(old, both, len(old))


def _ascending(positions: Tensor) -> Tensor:
    """Positions in ascending order, contiguous; one or two ascending runs, as most are, need no sort."""
    numbers = positions.contiguous().numpy()
    ends = np.flatnonzero(numbers[1:] < numbers[:-1]) + 1
    if not len(ends):
        return torch.from_numpy(numbers)
    kernels = choice()
    if len(ends) == 1 and kernels is not None:
        first, second = (torch.from_numpy(run) for run in np.split(numbers, ends))
        return kernels.merged(first, second)
    low, high = int(numbers.min()), int(numbers.max())
    narrow = numbers.astype(np.int32) if low >= 0 and high < 1 << 31 else numbers  # whose sort is faster
    return torch.from_numpy(np.sort(narrow).astype(np.int64))


def carried(was: Tensor, source: Tensor) -> Tensor:
    """``was[source]``, and zero where a source is the number of those that were.

    Args:
        was: [n].
        source: int64, 0 to n.

    Example:
        >>> carried(torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 0])).tolist()
        [2.0, 0.0, 1.0]
    """
    kernels = choice() if was.is_cpu and was.dtype is torch.float32 else None
    if kernels is not None:
        return kernels.carried(was.contiguous(), source.contiguous())
    # Behind the last one lies what new ones start from.
    return torch.cat([was, was.new_zeros(1)]).index_select(0, source)


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
