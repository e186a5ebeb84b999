"""The k best of many scores, exactly and without sorting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BINS", "DEAD", "PIECE", "Pieces", "best", "fine", "histogram", "narrow", "rank", "tail", "taken", "wide"]

PIECE = 1 << 20  # scores at a time: they and what is computed from them stay in the processor's cache
BINS = 1 << 16
DEAD = -0x7F800000  # rank of −∞, which marks what is dead already; every finite score is above it
_ZERO = 1 << 15  # bin of the scores 0 to 2⁻¹¹⁹: those of negative scores lie below


def rank(scores: Tensor) -> Tensor:
    """Finite float32 as int32 of the same order (−∞, the mark of the dead, as `DEAD`), so that histograms are exact.

    Example:
        >>> rank(torch.tensor([-1.0, -0.0, 0.0, 1.0])).tolist()
        [-1065353216, 0, 0, 1065353216]
    """
    bits = scores.contiguous().view(torch.int32)
    if bits.numel() == 0 or int(bits.min()) >= 0:
        return bits
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@dataclass(frozen=True)
class Pieces:
    """Ranks of many values, made a piece at a time and never all held.

    Args:
        count: number of values.
        ranks: (start, stop) → int32 [stop − start], `DEAD` for what is dead.
    """

    count: int
    ranks: Callable[[int, int], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.ranks(at, min(at + PIECE, self.count)) for at in range(0, self.count, PIECE))

    @classmethod
    def of(cls, scores: Tensor) -> Pieces:
        """The ranks of scores that are held already, float32 [n]."""
        return cls(scores.numel(), lambda start, stop: rank(scores[start:stop]))


def histogram(pieces: Pieces) -> Tensor:
    """How many live ranks have each of the 2¹⁶ values of their upper 16 bits, in ascending order; int64 [2¹⁶]."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for piece in pieces:
        counts += torch.bincount((_live(piece) >> 16) + _ZERO, minlength=BINS)
    return counts


def fine(pieces: Pieces, chosen: int) -> tuple[int, Tensor]:
    """How many ranks lie in bins above ``chosen``, and the histogram of the lower 16 bits of those in it."""
    above, counts = 0, torch.zeros(BINS, dtype=torch.int64)
    for piece in pieces:
        live = _live(piece)
        upper = (live >> 16) + _ZERO
        above += int((upper > chosen).sum())
        counts += torch.bincount(live[upper == chosen] & 0xFFFF, minlength=BINS)
    return above, counts


def narrow(counts: Tensor) -> tuple[int, Tensor]:
    """A histogram for keeping: its first bin in use, and the counts up to the last in the narrowest integers.

    A few KB instead of 512, as one is kept for every tensor of a checkpoint.
    """
    used = counts.nonzero().squeeze(1)
    if not len(used):
        return 0, counts.new_zeros(0)
    first, last = int(used[0]), int(used[-1])
    most = int(counts.max())
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    kind = next(k for k in kinds if most <= torch.iinfo(k).max)
    return first, counts[first : last + 1].to(kind, copy=True)


def wide(kept: tuple[int, Tensor]) -> Tensor:
    """The inverse of `narrow`, int64 [2¹⁶]."""
    first, counts = kept
    full = torch.zeros(BINS, dtype=torch.int64)
    full[first : first + len(counts)] = counts
    return full


def tail(counts: Tensor) -> Tensor:
    """How many lie in each bin or above."""
    return counts.flip(0).cumsum(0).flip(0)


def best(pieces: Pieces, keep: int) -> Tensor:
    """The ``keep`` highest ranks, ties to the earlier; the dead never.

    Two histograms, of the upper and of the lower 16 bits, give the lowest rank that is kept, and how many of that rank.

    Returns:
        bool [n], True = kept; fewer than ``keep`` where fewer live.

    Cost: three passes; 1 byte per value.
    """
    chosen = torch.zeros(pieces.count, dtype=torch.bool)
    if keep <= 0 or pieces.count == 0:
        return chosen
    upper = histogram(pieces)
    if keep >= int(upper.sum()):
        lowest, ties = DEAD, 0
    else:
        coarse, spare = _cut(upper, keep)
        lower, ties = _cut(fine(pieces, coarse)[1], spare)
        lowest = ((coarse - _ZERO) << 16) + lower
    at = 0
    for piece in pieces:
        mine = chosen[at : at + piece.numel()]
        torch.gt(piece, lowest, out=mine)
        if ties:
            equal = (piece == lowest).nonzero().squeeze(1)[:ties]
            mine[equal] = True
            ties -= equal.numel()
        at += piece.numel()
    return chosen


def taken(values: Tensor, positions: Tensor) -> Tensor:
    """``values[positions]``, a piece at a time: PyTorch gathers with positions of 8 bytes."""
    found = values.new_empty(positions.numel())
    for into, piece in zip(torch.split(found, PIECE), torch.split(positions, PIECE), strict=True):
        into.copy_(values.index_select(0, piece))
    return found


def _live(ranks: Tensor) -> Tensor:
    return ranks if ranks.numel() == 0 or int(ranks.min()) > DEAD else ranks[ranks > DEAD]


def _cut(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bin in which the ``keep``-th highest lies, and how many of that bin are kept."""
    above = tail(counts)
    chosen = int((above >= keep).sum()) - 1
    return chosen, keep - int(above[chosen] - counts[chosen])
