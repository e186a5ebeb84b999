"""Entropy-constrained vector quantization: codes, what each costs, and how many of them are worth their place.

A vector goes to the code of the least error + λ · bits; codes move to the means of what they stand for, bits follow
from the counts. Neither step raises the sum of both, and what does not lower it is not kept.

Source: Chou, Lookabaugh, Gray 1989, Entropy-constrained vector quantization, IEEE Trans. ASSP 37(1), section III. That
a code pays for its place in the table is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2
from typing import final

import torch
from torch import Tensor

from gossamer.methods.quantize.rate_levels import code_lengths

__all__ = ["Codes", "Placed", "Vectors", "grown", "settled", "spaced", "thinned"]

_PIECE = 1 << 18  # costs held at a time
_ENOUGH = 1e-4  # a fall of the objective, as a share of it, below which it has settled
_FAR = 1 << 12  # vectors that are looked at for codes of their own
_ROUNDS = 4  # of settling after codes went or came
_FINE = 0.2  # of the root mean squared error: numbers of a table in such steps add 0.3% to the error


@final
@dataclass(frozen=True)
class Vectors:
    """Runs of weights with what their errors cost.

    Args:
        values: float64 [n, dim].
        weight: float64 [1, 1] or [n, dim]: what an error of one costs, above 0.
    """

    values: Tensor
    weight: Tensor

    def pick(self, index: Tensor) -> Vectors:
        """Some of them."""
        return Vectors(self.values[index], self.weight if self.alike else self.weight[index])

    @property
    def alike(self) -> bool:
        """Whether all errors cost the same."""
        return self.weight.numel() == 1

    def errors(self, placed: Tensor) -> Tensor:
        """Σ_j weight_j · (value_j − placed_j)² of each, float64 [n].

        Args:
            placed: float64 [n, dim].
        """
        return ((self.values - placed).square_() * self.weight).sum(1)


@final
@dataclass(frozen=True)
class Codes:
    """Which vectors there are, and what each costs.

    Args:
        points: float64 [k, dim].
        lengths: float64 [k], bits, finite.
    """

    points: Tensor
    lengths: Tensor

    def costs(self, vectors: Vectors, rate: float, part: slice) -> Tensor:
        """Error + λ · bits of each vector in each code, up to a number per vector, float64 [part, k].

        Σ w·(v − c)² = Σ w·v² − 2·Σ w·v·c + Σ w·c², of which the first does not depend on the code.
        """
        values, points = vectors.values[part], self.points
        if vectors.alike:
            fees = points.square().sum(1) + rate / vectors.weight.reshape(()) * self.lengths
            return torch.addmm(fees, values, points.T, alpha=-2)  # [part, dim] · [dim, k]
        weight = vectors.weight[part]
        seen = torch.cat([weight, weight * values], 1)
        return torch.addmm(rate * self.lengths, seen, torch.cat([points.square(), -2 * points], 1).T)

    def place(self, vectors: Vectors, rate: float) -> Tensor:
        """The cheapest code of each vector, int64 [n]; the first of equals."""
        return torch.cat([self.costs(vectors, rate, part).argmin(1) for part in self._parts(vectors)])

    def margins(self, vectors: Vectors, rate: float) -> Tensor:
        """What error + λ · bits rise by without each code if its vectors go to their second best, float64 [k]."""
        total = torch.zeros(len(self.points), dtype=torch.float64)
        for part in self._parts(vectors):
            least = self.costs(vectors, rate, part).topk(2, 1, largest=False)
            total.index_add_(0, least.indices[:, 0], least.values[:, 1] - least.values[:, 0])
        return total * vectors.weight.reshape(()) if vectors.alike else total

    def moved(self, vectors: Vectors, index: Tensor) -> tuple[Codes, Tensor]:
        """Codes at the weighted means of what they stand for, with bits by their counts; those of nothing are dropped.

        Args:
            vectors: all.
            index: code of each, int64 [n].

        Returns:
            The codes, and the index in them.
        """
        counts = torch.bincount(index, minlength=len(self.points))
        used = counts > 0
        total = torch.zeros_like(self.points).index_add_(0, index, vectors.values * vectors.weight)
        if vectors.alike:
            mass = (counts * vectors.weight.reshape(()))[:, None]
        else:
            mass = torch.zeros_like(self.points).index_add_(0, index, vectors.weight)
        number = used.cumsum(0) - 1
        return Codes(total[used] / mass[used], code_lengths(counts[used])), number[index]

    def without(self, gone: Tensor) -> Codes:
        """Some codes fewer."""
        keep = torch.ones(len(self.points), dtype=torch.bool).index_fill_(0, gone, False)
        return Codes(self.points[keep], self.lengths[keep])

    def _parts(self, vectors: Vectors) -> list[slice]:
        step = max(1, _PIECE // len(self.points))
        return [slice(start, start + step) for start in range(0, len(vectors.values), step)]


@final
@dataclass(frozen=True)
class Placed:
    """Vectors in codes.

    Args:
        codes: with the bits of exactly these choices.
        index: code of each vector, int64 [n].
        total: Σ error + λ · (bits of all choices + table · codes).
    """

    codes: Codes
    index: Tensor
    total: float

    @property
    def bits(self) -> float:
        """Of all choices."""
        return float(self.codes.lengths[self.index].sum())


def placed(vectors: Vectors, codes: Codes, index: Tensor, rate: float, table: float) -> Placed:
    """Choices with what they amount to."""
    bits = float(codes.lengths[index].sum()) + table * len(codes.points)
    return Placed(codes, index, float(vectors.errors(codes.points[index]).sum()) + rate * bits)


def settled(vectors: Vectors, codes: Codes, rate: float, table: float, most: int) -> Placed:
    """Choose, move and count in turn until error + λ · bits no longer falls.

    Args:
        vectors: n ≥ 1.
        codes: to start from.
        rate: λ, of a bit, ≥ 0.
        table: bits that a code takes for itself.
        most: rounds, at least 1.
    """
    best: Placed | None = None
    for _ in range(most):
        codes, index = codes.moved(vectors, codes.place(vectors, rate))
        now = placed(vectors, codes, index, rate, table)
        if best is not None and not now.total < best.total * (1 - _ENOUGH):
            return now if now.total < best.total else best
        best = now
    assert best is not None
    return best


def thinned(vectors: Vectors, found: Placed, rate: float, table: float) -> Placed:
    """Without the codes that save less than their place in the table takes, as long as that lowers the sum."""
    while len(found.codes.points) > 1:
        margins = found.codes.margins(vectors, rate)
        order = margins.argsort(stable=True)
        cheap = int((margins < rate * table).sum())
        if not cheap:
            break
        some = min(cheap, max(1, len(order) // 4))  # at once, as those that stay become more frequent
        now = settled(vectors, found.codes.without(order[:some]), rate, table, _ROUNDS)
        if some > 1 and not now.total < found.total:
            now = settled(vectors, found.codes.without(order[:1]), rate, table, _ROUNDS)
        if not now.total < found.total:
            break
        found = now
    return found


def grown(vectors: Vectors, found: Placed, rate: float, table: float, most: int) -> Placed:
    """With codes of their own for vectors so far off that this is cheaper, if it lowers the sum.

    A codebook that was made for a sample has not seen the few largest vectors. The farthest one is taken, then the
    farthest from all codes so far, until none is worth the bits of a symbol that occurs once.

    Args:
        vectors: all.
        found: where they are.
        rate: λ.
        table: bits that a code takes for itself.
        most: codes.
    """
    own = log2(max(2, len(vectors.values)))
    fee = rate * (own - found.codes.lengths[found.index] + table)
    errors = vectors.errors(found.codes.points[found.index]) - fee
    farthest = errors.topk(min(_FAR, len(errors)))
    far, left = vectors.pick(farthest.indices), farthest.values
    new: list[Tensor] = []
    while len(found.codes.points) + len(new) < most and float(left.max()) > 0:
        point = far.values[int(left.argmax())]
        new.append(point)
        left = torch.minimum(left, far.errors(point[None]) - rate * table)
    if not new:
        return found
    lengths = torch.cat([found.codes.lengths, found.codes.lengths.new_full((len(new),), own)])
    codes = Codes(torch.cat([found.codes.points, torch.stack(new)]), lengths)
    now = settled(vectors, codes, rate, table, _ROUNDS)
    return now if now.total < found.total else found


def spaced(vectors: Vectors, found: Placed, rate: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes as they are stored, and every vector in the cheapest of them.

    Their numbers become multiples of a power of two far below the error, so that their last bits are zeros and the file
    takes about 8 bits for each; a code that nothing takes any more is dropped.

    Args:
        vectors: all.
        found: where they are.
        rate: λ.
        dtype: of the table.

    Returns:
        Points [k, dim] of that dtype, index int64 [n].
    """
    lost = vectors.errors(found.codes.points[found.index]).sum()
    mass = vectors.weight.sum() * (vectors.values.numel() if vectors.alike else 1)
    step = _FINE * float((lost / mass).sqrt())
    points = found.codes.points
    if step > 0:
        step = 2.0 ** floor(log2(step))
        points = (points / step).round() * step
    stored = points.to(dtype)
    index = Codes(stored.double(), found.codes.lengths).place(vectors, rate)
    used = torch.bincount(index, minlength=len(stored)) > 0
    return stored[used], (used.cumsum(0) - 1)[index]
