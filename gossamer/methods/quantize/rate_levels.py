"""Entropy-constrained choices: each number goes where error + price · bits is least, the bits follow from the choices.

Bits are −log2 of a symbol's share among all symbols of the leaf: what a static order-0 coder takes for it. Choosing
with the bits as they are, and counting anew, never raises the sum of both; it is repeated until it no longer falls.

Source: Chou, Lookabaugh, Gray 1989, Entropy-constrained vector quantization, IEEE Trans. ASSP 37(1), section III.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

__all__ = ["Levels", "ascending", "cheapest", "code_lengths", "settled"]

_PIECE = 1 << 18
_ENOUGH = 1e-4  # a fall of the objective, as a share of it, below which it has settled


def code_lengths(counts: Tensor, extra: float = 0.0) -> Tensor:
    """−log2((count + extra) / Σ), float64 [k]; infinite for what has no share.

    Args:
        counts: [k], ≥ 0, with a sum above 0.
        extra: added to every count: a sample says little of what is rare.

    Example:
        >>> code_lengths(torch.tensor([1, 2, 1])).tolist()
        [2.0, 1.0, 2.0]
    """
    shares = counts.double() + extra
    return -torch.log2(shares / shares.sum())


def cheapest(values: Tensor, price: Tensor, points: Tensor, lengths: Tensor) -> Tensor:
    """argmin over k of (value − point_k)² + price · length_k, int64 [n]; exact, ties to the smaller point.

    Args:
        values: float64 [n].
        price: float64 [1], or [n]: of a bit, in the unit of squared values, ≥ 0.
        points: float64 [k], ascending.
        lengths: float64 [k], at least one finite.

    Cost: one price: O(n · log k), thresholds from the lower envelope of k lines. A price for each: O(n · k), or where
    bits are cheap beside the distance of points O(n · m), m the points near enough to a value to be worth it.

    Example:
        >>> points = torch.tensor([0.0, 1.0]).double()
        >>> value, bits = torch.tensor([0.6]).double(), torch.tensor([1.0, 5.0]).double()
        >>> cheapest(value, torch.zeros(1).double(), points, bits).item()
        1
        >>> cheapest(value, torch.tensor([0.1]).double(), points, bits).item()
        0
    """
    known = torch.isfinite(lengths).nonzero().squeeze(1)
    if price.numel() == 1:
        kept, edges = _envelope(points[known].tolist(), (price * lengths[known]).tolist())
        return known[torch.tensor(kept)[torch.bucketize(values, torch.tensor(edges, dtype=torch.float64))]]
    near, bits = points[known], lengths[known]
    if len(values) * len(near) <= _PIECE:  # few: all at once
        costs = (values[:, None] - near).square_().addcmul_(price[:, None], bits)
        return known[costs.argmin(1)]
    found = torch.empty(len(values), dtype=torch.int64)
    for start in range(0, len(values), _PIECE):
        part = slice(start, start + _PIECE)
        found[part] = _cheapest_of(values[part], price[part], near, bits)
    return known[found]


def _cheapest_of(values: Tensor, price: Tensor, points: Tensor, lengths: Tensor) -> Tensor:
    """The same for a price each and finite lengths."""
    nearest = torch.bucketize(values, (points[1:] + points[:-1]) / 2)
    within = values.clamp(float(points[0]), float(points[-1]))
    off = (within - points[nearest]).abs()
    # What is better than the nearest point lies at most so far from it: (d − off)² ≤ off² + what its bits cost more.
    more = price * (lengths[nearest] - lengths.min())
    farthest = float((off + (off.square() + more).sqrt()).max()) if len(values) else 0.0
    gap = float(points.diff().min()) if len(points) > 1 else 0.0
    reach = len(points) if gap <= 0 else min(len(points), int(farthest / gap * (1 + 1e-9)))
    least = torch.full_like(values, torch.inf)
    best = torch.zeros(len(values), dtype=torch.int64)
    if 3 * (2 * reach + 1) >= len(points):  # picking points one by one takes three times as long
        for k in range(len(points)):
            cost = (values - points[k]).square_().add_(price, alpha=float(lengths[k]))
            better = cost < least
            least, best = torch.where(better, cost, least), best.masked_fill_(better, k)
        return best
    for step in range(-reach, reach + 1):
        index = (nearest + step).clamp_(0, len(points) - 1)
        cost = (values - points[index]).square_().addcmul_(price, lengths[index])
        better = cost < least
        least, best = torch.where(better, cost, least), torch.where(better, index, best)
    return best


def _envelope(points: list[float], fees: list[float]) -> tuple[list[int], list[float]]:
    """The points that are ever best, and the values between which each of them is.

    (v − c)² + f is least where the line c² + f − 2·c·v is: only lines on the lower envelope count, in order of slope.
    """
    kept: list[int] = []
    edges: list[float] = []
    for k, (point, fee) in enumerate(zip(points, fees, strict=True)):
        while kept:
            last = kept[-1]
            gap = point - points[last]
            if gap <= 0:  # the same point twice: the cheaper one
                edge = -torch.inf if fee < fees[last] else torch.inf
            else:
                edge = (point + points[last]) / 2 + (fee - fees[last]) / (2 * gap)
            if edge == torch.inf or not edges or edge > edges[-1]:
                break
            kept.pop()
            edges.pop()
        if not kept:
            kept.append(k)
        elif edge == -torch.inf:
            kept[-1] = k
        elif edge != torch.inf:
            kept.append(k)
            edges.append(edge)
    return kept, edges


@final
@dataclass(frozen=True)
class Levels:
    """Which values there are, and what each costs.

    Args:
        points: float64 [k], ascending, in units of a weight's scale; one of them is 0.
        lengths: float64 [k], bits.
    """

    points: Tensor
    lengths: Tensor

    def place(self, values: Tensor, price: Tensor) -> Tensor:
        """Index of the cheapest, see `cheapest`."""
        return cheapest(values, price, self.points, self.lengths)

    def counts(self, index: Tensor) -> Tensor:
        """How often each occurs, int64 [k]."""
        return torch.bincount(index, minlength=len(self.points))

    def bits(self, index: Tensor) -> float:
        """Of all symbols together."""
        counts = self.counts(index)
        used = counts > 0
        return float((counts[used] * self.lengths[used]).sum())

    def recounted(self, index: Tensor, extra: float = 0.0) -> Levels:
        """The same points with bits as the symbols say."""
        return replace(self, lengths=code_lengths(self.counts(index), extra))


def settled(
    values: Tensor, weight: Tensor, rate: float, levels: Levels, *, free: bool, most: int
) -> tuple[Levels, Tensor, float]:
    """Choose and count in turn until Σ weight · (value − point)² + rate · bits no longer falls.

    Args:
        values: float64 [n], in units of their scales.
        weight: float64 [1] or [n], above 0, of a squared error of one.
        rate: λ, of a bit.
        levels: to start from.
        free: points other than 0 move to the weighted means of what they stand for.
        most: rounds, at least 1.

    Returns:
        Levels, index int64 [n], and the objective, with the bits of exactly these symbols.
    """
    price = rate / weight
    best: tuple[Levels, Tensor, float] | None = None
    for _ in range(most):
        index = levels.place(values, price)
        if free:
            levels, index = ascending(_moved(levels, values, weight, index), index)
        levels = levels.recounted(index)
        wrong = (values - levels.points[index]).square_()
        error = float(wrong.sum() * weight) if weight.numel() == 1 else float(wrong @ weight)
        total = error + rate * levels.bits(index)
        if best is not None and not total < best[2] * (1 - _ENOUGH):
            return (levels, index, total) if total < best[2] else best
        best = levels, index, total
    assert best is not None
    return best


def _moved(levels: Levels, values: Tensor, weight: Tensor, index: Tensor) -> Levels:
    mass = torch.zeros_like(levels.points).index_add_(0, index, weight.expand(len(values)))
    total = torch.zeros_like(levels.points).index_add_(0, index, values * weight)
    moves = (mass > 0) & (levels.points != 0)
    points = torch.where(moves, total / mass.clamp_min(torch.finfo(mass.dtype).tiny), levels.points)
    return replace(levels, points=points)


def ascending(levels: Levels, index: Tensor) -> tuple[Levels, Tensor]:
    """Points in order, those that nothing takes left out (never 0), and the index anew."""
    used = (levels.counts(index) > 0) | (levels.points == 0)
    order = used.nonzero().squeeze(1)
    order = order[levels.points[order].argsort(stable=True)]
    number = torch.zeros(len(used), dtype=torch.int64)
    number[order] = torch.arange(len(order))
    return Levels(levels.points[order], levels.lengths[order]), number[index]
