"""Random numbers that depend on a key and a position alone: the same on every machine, in any order, never stored.

Integers modulo 2⁶⁴ only, so that nothing depends on rounding, threads or the version of a library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["key_of", "uniform_bits", "words_at"]

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2⁶⁴ divided by the golden ratio


def key_of(seed: int, *names: object) -> int:
    """A 64-bit key from a seed and names, such as a tensor's and a group's.

    Args:
        seed: any integer; its lower 64 bits count.
        names: told apart also where their texts run together: ("a", "bc") is not ("ab", "c").

    Example:
        >>> key_of(0, "fc1.weight", 1) != key_of(0, "fc1.weight", 2)
        True
    """
    key = _mixed(seed & _WORD)
    for name in names:
        text = str(name).encode()
        for byte in (len(text), *text):
            key = _mixed((key ^ byte) + _STEP & _WORD)
    return key


def uniform_bits(key: int, count: int) -> npt.NDArray[np.uint64]:
    """Random words number 0 to count − 1 of a key, uint64 [count].

    Args:
        key: 0 to 2⁶⁴ − 1.
        count: words wanted; the first ones do not depend on it.

    Example:
        >>> bool((uniform_bits(7, 3) == uniform_bits(7, 9)[:3]).all())
        True

    Source: Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators, the finalizer of SplitMix64.
    """
    return words_at(np.uint64(key), np.arange(count, dtype=np.uint64))


def words_at(keys: npt.NDArray[np.uint64] | np.uint64, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Random words by key and number, uint64 of the shape that both broadcast to; as `uniform_bits` has them.

    Args:
        keys: uint64.
        numbers: uint64, from 0 on.

    Example:
        >>> int(words_at(np.uint64(7), np.array([5], np.uint64))[0]) == int(uniform_bits(7, 6)[5])
        True
    """
    z = (numbers + np.uint64(1)) * np.uint64(_STEP)
    z += keys
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return _array(z)


def _mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
    return z ^ (z >> 31)


def _array(found: Any) -> npt.NDArray[np.uint64]:
    assert isinstance(found, np.ndarray)
    return found
