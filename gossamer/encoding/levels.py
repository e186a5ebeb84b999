"""Numbers on fixed uneven levels that a formula gives, so that only indices and a scale per group are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Category, Codec, Encoding, Role, child, computable, leaf, require
from gossamer.encoding.values import Grouped, check_index

__all__ = ["NormalLevels", "PowerLevels", "normal_levels"]

SMALLEST_EXPONENT = -90  # 31 levels further down are still ordinary float32 numbers
_GRAIN = 1 << 20


@cache
def normal_levels(bits: int) -> tuple[float, ...]:
    """Quantiles of the standard normal distribution, scaled into [−1, 1], with an exact zero.

    With n = 2^bits and o = 1 − ¼·(1/n + 1/(n − 1)): n/2 quantiles Φ⁻¹(p) for p evenly spaced from o down to ½ (½ itself
    left out), n/2 − 1 of the same with a minus sign, and 0; all over the largest. For 4 bits this is NF4.

    Rounded to multiples of 2⁻²⁰, so that libraries whose logarithms differ in the last bit give the same numbers.

    Args:
        bits: 2 to 8.

    Returns:
        2^bits numbers, ascending.

    Example:
        >>> [round(x, 3) for x in normal_levels(2)]
        [-1.0, 0.0, 0.436, 1.0]

    Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3 and appendix E.
    """
    from statistics import NormalDist

    half = 1 << (bits - 1)
    outermost = 1 - (1 / (2 * half) + 1 / (2 * half - 1)) / 4
    inverse = NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        return [inverse(outermost + (0.5 - outermost) * i / count) for i in range(count)]

    above, below = side(half), side(half - 1)
    numbers = sorted([*above, 0.0, *(-x for x in below)])
    return tuple(round(x / above[0] * _GRAIN) / _GRAIN for x in numbers)


@final
@dataclass(frozen=True, eq=False)
class NormalLevels(Grouped):
    """Levels dense where normally distributed weights are: w = scale[g] · level[index], g the element's group.

    Args:
        index: uint8, dense shape or [live]; 0 ≤ index < 2**bits.
        scale: `Value` of shape [groups], largest magnitude of each group; trainable.
        bits: 2 to 8; gives the levels, see `normal_levels`.

    Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3.
    """

    index: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    scale: Encoding = field(metadata=child(category=Category.SCALES))
    bits: int = 4

    def __post_init__(self) -> None:
        self.check_grouping()
        require(2 <= self.bits <= 8, self, f"bits = {self.bits}", "2 to 8")
        require(self.index.dtype == torch.uint8, self, f"index of {self.index.dtype}", "uint8")
        require(len(self.scale.dense_shape()) == 1, self, f"scale of shape {self.scale.dense_shape()}", "[groups]")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the index."""
        return tuple(self.index.shape)

    def values(self, positions: Tensor | None) -> Tensor:
        """scale · level, in the scale's dtype or float32 if that is half."""
        scale = computable(self.scale.to_dense())
        levels = torch.tensor(normal_levels(self.bits), dtype=scale.dtype, device=scale.device)
        picked = levels.index_select(0, self.index.reshape(-1).int()).view(self.index.shape)
        return picked * (scale if scale.numel() == 1 else self.spread(scale, self.index, positions))

    def stored_groups(self) -> int:
        """One per scale."""
        return self.scale.dense_shape()[0]

    def leaf_bits(self, field: str) -> int:
        """``bits`` per index; the scale at its own width."""
        return self.index.numel() * self.bits if field == "index" else super().leaf_bits(field)

    def validate(self) -> None:
        """Indices name levels."""
        check_index(self, self.index, 1 << self.bits)


@final
@dataclass(frozen=True, eq=False)
class PowerLevels(Grouped):
    """Signed powers of two: w = ±2^(exponent[g] − depth + k), k = 1 … depth, or 0, with depth = 2^(bits−1) − 1.

    Multiplying by such a weight is a shift. Nothing trains: between two powers there is nothing to move through.

    Args:
        index: uint8, dense shape or [live]; depth stands for 0, depth ± k for ±2^(exponent[g] − depth + k).
        exponent: int8 [groups], of the largest level, −90 to 127.
        bits: 2 to 6.

    Source: Zhou et al. 2017, Incremental Network Quantization, arXiv 1702.03044, section 2.1.
    """

    index: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    exponent: Tensor = field(metadata=leaf(Role.FIXED, Codec.SYMBOLS, Category.SCALES))
    bits: int = 4

    def __post_init__(self) -> None:
        self.check_grouping()
        require(2 <= self.bits <= 6, self, f"bits = {self.bits}", "2 to 6")
        require(self.index.dtype == torch.uint8, self, f"index of {self.index.dtype}", "uint8")
        good = self.exponent.dtype == torch.int8 and self.exponent.dim() == 1
        require(good, self, f"exponent of {self.exponent.dtype} {tuple(self.exponent.shape)}", "int8 [groups]")

    @property
    def depth(self) -> int:
        """Number of different magnitudes."""
        return (1 << (self.bits - 1)) - 1

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the index."""
        return tuple(self.index.shape)

    def values(self, positions: Tensor | None) -> Tensor:
        """The powers, exact in float32."""
        above = [2.0 ** (k - self.depth) for k in range(1, self.depth + 1)]
        table = torch.tensor([*(-x for x in reversed(above)), 0.0, *above], device=self.index.device)
        picked = table.index_select(0, self.index.reshape(-1).int()).view(self.index.shape)
        largest = ((self.exponent.int() + 127) << 23).view(torch.float32)  # float32 with that exponent, exactly
        return picked * (largest if largest.numel() == 1 else self.spread(largest, self.index, positions))

    def stored_groups(self) -> int:
        """One per exponent."""
        return len(self.exponent)

    def leaf_bits(self, field: str) -> int:
        """``bits`` per index; 8 per exponent."""
        return self.index.numel() * self.bits if field == "index" else super().leaf_bits(field)

    def validate(self) -> None:
        """Indices name levels."""
        largest = int(self.index.max()) if self.index.numel() else 0
        require(largest <= 2 * self.depth, self, f"index {largest}", f"at most {2 * self.depth}")
        smallest = int(self.exponent.min()) if self.exponent.numel() else 0
        require(smallest >= SMALLEST_EXPONENT, self, f"exponent {smallest}", f"at least {SMALLEST_EXPONENT}")
