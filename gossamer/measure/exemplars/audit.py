"""What to look at by hand: examples that compression changes and that training found hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.errors import DataError
from gossamer.measure.exemplars.pie import Pie
from gossamer.measure.exemplars.vog import Vog

__all__ = ["Audit", "audit"]

_LISTED = 200


@dataclass(frozen=True)
class Audit:
    """The overlap of two lists of examples.

    Args:
        examples: n, of both measures.
        pies: compression-identified exemplars.
        high: examples with the highest variance of gradients.
        indices: those that are both, highest variance first.
        expected: how many would be both if the lists had nothing to do with each other: pies · high / n.
        p: probability of as large an overlap or a larger one by chance (hypergeometric).
    """

    examples: int
    pies: int
    high: int
    indices: tuple[int, ...]
    expected: float
    p: float

    @property
    def overlap(self) -> int:
        """How many are both."""
        return len(self.indices)

    def to_json(self) -> dict[str, Any]:
        """At most 200 indices; ``ratio`` is None where nothing was expected."""
        return {
            "examples": self.examples,
            "pies": self.pies,
            "high": self.high,
            "overlap": self.overlap,
            "expected": self.expected,
            "ratio": self.overlap / self.expected if self.expected else None,
            "p": self.p,
            "indices": list(self.indices[:_LISTED]),
        }


def audit(pie: Pie, vog: Vog, *, share: float = 0.1) -> Audit:
    """Compression-identified exemplars among the examples with the highest variance of gradients.

    Both lists of the same examples in the same order. Under independence the overlap is hypergeometric:
    P(k) = C(high, k) · C(n − high, pies − k) / C(n, pies).

    Args:
        pie: from `pie`.
        vog: from `vog`.
        share: of the examples that count as high, over 0, up to 1.

    Raises:
        DataError: anything but these two, or measures of different numbers of examples.

    Cost: none to speak of. Exact.

    Example:
        >>> import gossamer.measure as measure
        >>> inputs, targets = torch.randn(40, 4), torch.randint(3, (40,))
        >>> nets = [torch.nn.Linear(4, 3) for _ in range(4)]
        >>> found = audit(
        ...     measure.pie(nets[:2], nets[2:], None, inputs, targets), measure.vog(nets, nets[0], inputs, targets)
        ... )
        >>> found.high, found.expected == found.pies * 4 / 40
        (4, True)
    """
    for name, given, kind in (("pie", pie, Pie), ("vog", vog, Vog)):
        if not isinstance(given, kind):
            raise DataError(f"audit: {name}: found {type(given).__name__}, expected {kind.__name__}")
    examples = len(pie.true)
    if len(vog.scores) != examples:
        raise DataError(f"audit: found {examples} examples in pie and {len(vog.scores)} in vog, expected the same ones")
    high = vog.highest(share)
    is_pie = torch.zeros(examples, dtype=torch.bool)
    is_pie[pie.indices] = True
    both = tuple(high[is_pie[high]].tolist())
    return Audit(
        examples=examples,
        pies=len(pie.indices),
        high=len(high),
        indices=both,
        expected=len(pie.indices) * len(high) / examples,
        p=_at_least(len(both), examples, len(high), len(pie.indices)),
    )


def _at_least(overlap: int, examples: int, high: int, drawn: int) -> float:
    """Upper tail of the hypergeometric distribution."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole, least = log_choose(examples, drawn), max(0, drawn - (examples - high))
    if overlap <= least:
        return 1.0
    terms = [
        math.exp(log_choose(high, k) + log_choose(examples - high, drawn - k) - whole)
        for k in range(overlap, min(high, drawn) + 1)
    ]
    return min(1.0, math.fsum(terms))
