"""The k best of many scores, exactly and without sorting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PIECE", "Pieces", "best", "rank"]

PIECE = 1 << 20  # scores at a time: they and what is computed from them stay in the processor's cache


def rank(scores: Tensor) -> Tensor:
    """float32 ≥ 0 as int32 of the same order (−1 for scores below zero), so that histograms can be exact.

    Example:
        >>> rank(torch.tensor([-1.0, 0.0, 1.0])).tolist()
        [-1, 0, 1065353216]
    """
    return scores.contiguous().view(torch.int32).clamp_min(-1)


@dataclass(frozen=True)
class Pieces:
    """Ranks of many values, made a piece at a time and never all held.

    Args:
        values: [n].
        ranks: piece of the values → int32 of the same length, −1 for what is dead.
    """

    values: Tensor
    ranks: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.ranks(piece) for piece in torch.split(self.values, PIECE))


def best(pieces: Pieces, keep: int) -> Tensor:
    """The ``keep`` highest ranks, ties to the earlier; the dead (rank −1) never.

    Two histograms, of the upper and of the lower 16 bits, give the lowest rank that is kept, and how many of that rank.

    Returns:
        bool [n], True = kept; fewer than ``keep`` where fewer live.

    Cost: three passes; 1 byte per value.
    """
    count = pieces.values.numel()
    chosen = torch.zeros(count, dtype=torch.bool)
    if keep <= 0 or count == 0:
        return chosen
    upper = torch.zeros(1 << 15, dtype=torch.int64)
    for piece in pieces:
        upper += torch.bincount(_live(piece) >> 16, minlength=1 << 15)
    live = int(upper.sum())
    if keep >= live:
        lowest, ties = 0, live
    else:
        coarse, spare = _cut(upper, keep)
        lower = torch.zeros(1 << 16, dtype=torch.int64)
        for piece in pieces:
            lower += torch.bincount(piece[piece >> 16 == coarse] & 0xFFFF, minlength=1 << 16)
        fine, ties = _cut(lower, spare)
        lowest = coarse << 16 | fine
    at = 0
    for piece in pieces:
        mine = chosen[at : at + piece.numel()]
        torch.gt(piece, lowest, out=mine)
        equal = (piece == lowest).nonzero().squeeze(1)[:ties]
        mine[equal] = True
        ties -= equal.numel()
        at += piece.numel()
    return chosen


def _live(ranks: Tensor) -> Tensor:
    return ranks if int(ranks.min()) >= 0 else ranks[ranks >= 0]


def _cut(histogram: Tensor, keep: int) -> tuple[int, int]:
    """The bin in which the ``keep``-th highest lies, and how many of that bin are kept."""
    tail = histogram.flip(0).cumsum(0).flip(0)
    bin_ = int((tail >= keep).sum()) - 1
    return bin_, keep - int(tail[bin_] - histogram[bin_])
