"""Gaussian numbers from random bits, bit for bit the same on every machine.

A number is one of 65,536 quantiles of the normal distribution, chosen by 16 random bits and rounded to a multiple of
2⁻¹²: an integer. The quantiles follow from IEEE additions, multiplications and divisions of float64 in an order
written down here; no function of a library decides a bit.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from gossamer.encoding.ridge import exponential

__all__ = ["PER_UNIT", "PER_WORD", "gaussians", "quantiles"]

PER_UNIT = 4096  # steps of the integers in one standard deviation
PER_WORD = 4  # numbers made of one random word

_HALF = 1 << 15
_LARGEST = 4.5  # beyond the outermost quantile, 4.32
_TERMS = 96  # of a series whose terms shrink by x² / (2n + 1): below 2⁻⁶⁰ for x ≤ 4.5
_ROOT_OF_TWO_PI = float.fromhex("0x1.40d931ff62706p+1")


@cache
def quantiles() -> npt.NDArray[np.int16]:
    """Φ⁻¹((j + ½) / 65536) · 4096, rounded, for j = 0 … 65535: int16 [65536], ascending, odd about its middle.

    An integer k is right where Φ((k − ½) / 4096) < (j + ½) / 65536 < Φ((k + ½) / 4096); Φ(x) − ½ is
    e^(−x²/2) / √(2π) · (x + x³/3 + x⁵/(3·5) + …).

    Cost: once per process, some 20 ms and 128 KiB.

    Example:
        >>> [round(int(quantiles()[j]) / PER_UNIT, 2) for j in (0, 16384, 49151, 65535)]
        [-4.32, -0.67, 0.67, 4.32]
    """
    between = np.arange(1, round(2 * PER_UNIT * _LARGEST), 2, dtype=np.float64) / (2 * PER_UNIT)
    square = between * between
    series = np.ones_like(between)
    for n in range(_TERMS, 0, -1):
        series = 1.0 + series * square / (2 * n + 1)
    above_half = exponential(-0.5 * square) * between * series / _ROOT_OF_TWO_PI
    wanted = np.arange(1, 2 * _HALF, 2, dtype=np.float64) / (4 * _HALF)
    upper = np.searchsorted(above_half, wanted).astype(np.int16)
    found = np.concatenate([-upper[::-1], upper])
    found.setflags(write=False)
    return found


def gaussians(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int16]:
    """Four numbers from each random word, the lowest 16 bits first.

    Args:
        words: uint64 [..., n].

    Returns:
        int16 [..., 4 n], normal with standard deviation 4096.

    Example:
        >>> gaussians(np.array([0xFFFF_8000_7FFF_0000], np.uint64)).tolist()
        [-17715, 0, 0, 17715]
    """
    fields = np.ascontiguousarray(words).astype("<u8", copy=False).view("<u2")
    found: npt.NDArray[np.int16] = quantiles().take(fields, mode="clip")
    return found
