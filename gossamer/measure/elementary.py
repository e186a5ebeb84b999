"""Powers, logarithms and sums of which every bit is the same on every machine, for any batch and number of threads.

Libraries' `exp` and `log` differ in the last bit from processor to processor, even from the middle of an array to its
end, and sums depend on how they are cut into threads. Here all is additions, products and divisions of single elements,
which IEEE 754 defines to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LOG2E", "log2_of", "power_of_two", "row_sums"]

LOG2E = 1.4426950408889634
"""log₂ e."""

_LN2 = 0.6931471805599453
_SMALLEST = -1020.0
_TAYLOR = tuple(1 / math.factorial(k) for k in range(13, -1, -1))
_ARTANH = tuple(2 * LOG2E / (2 * k + 1) for k in range(12, -1, -1))
_SQRT_HALF = 0.7071067811865476


def power_of_two(exponents: Tensor) -> Tensor:
    """2^x, to about two units in the last place, by 2^k · exp(r ln 2) with k an integer and |r| ≤ ½.

    Args:
        exponents: float64 of any shape, at most 1000; below -1020 they count as -1020.

    Returns:
        float64 of the same shape.

    Cost: 30 passes over memory.

    Example:
        >>> power_of_two(torch.tensor([0.0, -1.0, -7.5], dtype=torch.float64)).tolist()
        [1.0, 0.5, 0.005524271728019902]
    """
    clipped = exponents.clamp(min=_SMALLEST)
    whole = clipped.round()
    rest = clipped.sub_(whole).mul_(_LN2)
    power = torch.full_like(rest, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        power.mul_(rest).add_(coefficient)
    # 2^k by its bits: what libraries make of it need not be exact.
    return power.mul_(((whole.to(torch.int64) + 1023) << 52).view(torch.float64))


def log2_of(values: Tensor) -> Tensor:
    """log₂ x, to about two units in the last place or 2⁻⁵², by the series of artanh((m - 1) / (m + 1)) with m about 1.

    Args:
        values: float64 of any shape, positive.

    Returns:
        float64 of the same shape; at least 0 for values of at least 1.

    Example:
        >>> log2_of(torch.tensor([1.0, 8.0, 10.0], dtype=torch.float64)).tolist()
        [0.0, 3.0, 3.321928094887362]
    """
    mantissas, exponents = torch.frexp(values)
    low = mantissas < _SQRT_HALF
    mantissas = torch.where(low, mantissas * 2, mantissas)
    exponents = exponents - low.to(exponents.dtype)
    ratio = (mantissas - 1) / (mantissas + 1)
    square = ratio * ratio
    series = torch.full_like(ratio, _ARTANH[0])
    for coefficient in _ARTANH[1:]:
        series.mul_(square).add_(coefficient)
    return series.mul_(ratio).add_(exponents.to(torch.float64))


def row_sums(values: Tensor) -> Tensor:
    """Sums over the last dimension, the second half added to the first until one is left.

    Args:
        values: float64 [n, k], k at least 1; overwritten.

    Returns:
        float64 [n].

    Example:
        >>> row_sums(torch.arange(6, dtype=torch.float64).reshape(2, 3)).tolist()
        [3.0, 12.0]
    """
    width = values.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:width]
        width = half
    return values[:, 0].clone()
