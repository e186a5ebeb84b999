"""An order of a weight's columns in which N:M groups keep more."""

from __future__ import annotations

from functools import cache, reduce
from itertools import combinations
from math import comb

import torch
from torch import Tensor

__all__ = ["kept_score", "permutation"]

_EXHAUSTIVE = 4  # largest m for which all ways of dealing two groups' columns out again are tried
_ROUNDS = 64
_SUMS = 20
_ELEMENTS = 1 << 23  # scores in flight


def kept_score(scores: Tensor, n: int, m: int) -> float:
    """Sum of the scores that N:M keeps, float64.

    Example:
        >>> kept_score(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), 2, 4)
        5.0
    """
    return float(scores.reshape(-1, m).topk(n, dim=1).values.double().sum())


def permutation(scores: Tensor, n: int, m: int) -> Tensor:
    """Order the columns so that the n best of every m consecutive ones are worth more.

    Groups meet in pairs, each with each in turn (64 rounds at most). A pair deals its 2m columns out again in the
    best way of all (m ≤ 4), or makes the best single swap. Pairs of one round share no group, so the kept score rises
    with every change and the search ends when all have met without one.

    Args:
        scores: float32 [rows, columns]; m divides columns.
        n: kept per group.
        m: size of a group.

    Returns:
        int64 [columns]; new column j is old column ``order[j]``. Ascending within groups; the identity where nothing is
        gained.

    Cost: O(rounds · rows · columns · C(2m, m)) for m ≤ 4; needs about 64 MB beside the scores.

    Exact: never keeps less than without; for two groups of at most four it is the optimum.

    Source: Pool and Yu 2021, "Channel permutations for N:M sparsity", NeurIPS, section 3.
    """
    columns = scores.shape[1]
    groups = columns // m
    order = torch.arange(columns)
    if groups < 2 or not 0 < n < m:
        return order
    turned = scores.T.contiguous()  # [columns, rows]
    seats = list(range(groups + groups % 2))  # an odd group sits out against a dummy
    idle = 0
    for _ in range(_ROUNDS):
        half = len(seats) // 2
        met = [(a, b) for a, b in zip(seats[:half], reversed(seats[half:]), strict=True) if max(a, b) < groups]
        changed = _deal(turned, order, torch.tensor([sorted(p) for p in met]), n, m)
        idle = 0 if changed else idle + 1
        if idle >= len(seats) - 1:
            break
        seats = [seats[0], seats[-1], *seats[1:-1]]  # the circle method: everyone meets everyone once
    order = order.view(groups, m).sort(dim=1).values.reshape(-1)
    gained = kept_score(scores[:, order], n, m) > kept_score(scores, n, m)
    return order if gained else torch.arange(columns)


def _deal(turned: Tensor, order: Tensor, pairs: Tensor, n: int, m: int) -> bool:
    """Improve disjoint pairs of groups, in place; whether anything changed."""
    ways = _ways(m)  # [ways, 2m]: positions among the pair's columns
    rows = turned.shape[1]
    inside = torch.arange(m)
    changed = False
    subsets, which = _subsets(m)
    at_once = max(1, _ELEMENTS // max(1, rows * subsets.numel()))
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        places = torch.cat([some[:, :1] * m + inside, some[:, 1:] * m + inside], 1)  # [pairs, 2m]
        mine = order[places]
        found = turned[mine.reshape(-1)].view(*mine.shape, rows)
        each = _kept(found, subsets, n)  # [pairs, subsets]
        worth = each[:, which[:, 0]] + each[:, which[:, 1]]  # [pairs, ways]
        top = worth.max(1)
        # A change must be worth more than rounding; the first way is to leave all as it is.
        better = top.values > worth[:, 0] * (1 + 1e-12)
        choice = torch.where(better, worth.argmax(1), 0)
        order[places.reshape(-1)] = mine.gather(1, ways[choice]).reshape(-1)
        changed = changed or bool(better.any())
    return changed


def _kept(found: Tensor, subsets: Tensor, n: int) -> Tensor:
    """Score that each subset of a pair's columns keeps, float64 [pairs, subsets].

    Args:
        found: float32 [pairs, 2m, rows].
        subsets: int64 [subsets, m].
        n: kept of each subset.
    """
    kept = []
    for subset in subsets:
        members = found[:, subset]  # [pairs, m, rows]
        m = members.shape[1]
        if comb(m, n) > _SUMS:
            best = members.topk(n, dim=1).values.sum(1)
        else:  # the largest of all sums of n is the sum of the n largest, and much faster on a CPU
            sums = (_sum(members, chosen) for chosen in combinations(range(m), n))
            best = reduce(torch.maximum, sums)
        kept.append(best.double().sum(1))
    return torch.stack(kept, 1)


def _sum(members: Tensor, chosen: tuple[int, ...]) -> Tensor:
    return reduce(torch.add, (members[:, i] for i in chosen))


@cache
def _ways(m: int) -> Tensor:
    """Ways of dealing 2m columns to two groups, the present one first; int64 [ways, 2m]."""
    everyone = range(2 * m)
    if m <= _EXHAUSTIVE:  # column 0 stays in the first group: the groups' names do not matter
        firsts = [(0, *rest) for rest in combinations(range(1, 2 * m), m - 1)]
    else:
        firsts = [tuple(range(m))]
        firsts += [tuple(sorted({*range(m)} - {a} | {b})) for a in range(m) for b in range(m, 2 * m)]
    return torch.tensor([[*first, *(c for c in everyone if c not in first)] for first in firsts])


@cache
def _subsets(m: int) -> tuple[Tensor, Tensor]:
    """Distinct groups that the ways of `_ways` make, int64 [subsets, m], and which two each way has, [ways, 2]."""
    numbers: dict[tuple[int, ...], int] = {}
    which = []
    for way in _ways(m).tolist():
        first, second = tuple(way[:m]), tuple(way[m:])
        which.append([numbers.setdefault(first, len(numbers)), numbers.setdefault(second, len(numbers))])
    return torch.tensor(list(numbers)), torch.tensor(which)
