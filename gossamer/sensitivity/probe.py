"""What is tried on one layer alone: a kind of compression at several levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, final

from gossamer.errors import PlanError
from gossamer.methods.base import Method
from gossamer.methods.factorize import SVD, WhitenedSVD
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize.groups import Group
from gossamer.methods.quantize.rtn import RoundToNearest

__all__ = ["Kind", "Probe", "bits", "rank_at", "ranks", "sparsities"]

Kind = Literal["sparsity", "bits", "rank"]


@final
@dataclass(frozen=True)
class Probe:
    """A method at several levels; `sparsities`, `bits` and `ranks` make the usual ones.

    Args:
        kind: what a level is: the share of weights that become zero, bits per weight, or a share of the full rank.
        levels: rising.
        make: (level, shape of the weight [out, *in]) → method; of a recurrent layer the shape is that of one gate.

    Example:
        >>> from gossamer.methods.quantize import HQQ
        >>> Probe("bits", (3, 4), lambda bits, shape: HQQ(bits=int(bits))).levels
        (3, 4)
    """

    kind: Kind
    levels: tuple[float, ...]
    make: Callable[[float, tuple[int, ...]], Method]

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise PlanError(f"{self.kind}: levels: found {self.levels}, expected different numbers, rising")


def sparsities(
    levels: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99), *, method: Callable[[float], Method] | None = None
) -> Probe:
    """Pruning to each sparsity, above 0 and up to 1; without a method the smallest single weights go.

    Raises:
        PlanError: levels that do not rise or lie elsewhere.

    Example:
        >>> sparsities((0.5, 0.9)).kind
        'sparsity'
    """
    found = tuple(float(level) for level in levels)
    if any(not 0 < level <= 1 for level in found):
        raise PlanError(f"sparsity: levels: found {found}, expected numbers above 0 and up to 1")
    return Probe("sparsity", found, lambda level, shape: method(level) if method else Magnitude(sparsity=level))


def bits(
    levels: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    group: Group = "channel",
    method: Callable[[int], Method] | None = None,
) -> Probe:
    """Quantization to each number of bits, 2 to 8; without a method by rounding to the nearest.

    Args:
        levels: rising.
        group: of rounding: "tensor", "channel", or weights per scale along a row.
        method: bits → method, instead.

    Raises:
        PlanError: levels that do not rise or lie elsewhere.

    Example:
        >>> bits((2, 4)).levels
        (2, 4)
    """
    found = tuple(levels)
    if any(level not in range(2, 9) for level in found):
        raise PlanError(f"bits: levels: found {found}, expected whole numbers from 2 to 8")
    make = method if method is not None else lambda level: RoundToNearest(bits=level, group=group)
    make(int(found[0]) if found else 8)  # a group that makes no sense is refused here
    return Probe("bits", found, lambda level, shape: make(int(level)))


def ranks(levels: Sequence[float] = (0.125, 0.25, 0.5, 0.75), *, whitened: bool = True) -> Probe:
    """Two factors of each share of the full rank, above 0 and below 1.

    Args:
        levels: rising.
        whitened: by what the data show of the layer's inputs; else by the weight alone, and only at ranks at which two
            factors are smaller than the weight.

    Raises:
        PlanError: levels that do not rise or lie elsewhere.

    Example:
        >>> ranks((0.25,)).make(0.25, (8, 100)).rank
        2
    """
    found = tuple(float(level) for level in levels)
    if any(not 0 < level < 1 for level in found):
        raise PlanError(f"rank: levels: found {found}, expected shares of the full rank, above 0 and below 1")

    def make(level: float, shape: tuple[int, ...]) -> Method:
        rank = rank_at(level, shape)
        return WhitenedSVD(rank=rank) if whitened else SVD(rank=rank)

    return Probe("rank", found, make)


def rank_at(share: float, shape: tuple[int, ...]) -> int:
    """The rank that is this share of the full one, at least 1.

    Args:
        share: 0 to 1.
        shape: of the weight [out, *in].
    """
    return max(1, round(share * min(shape[0], prod(shape[1:]))))
