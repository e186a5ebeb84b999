"""Random numbers of attacks: by seed, purpose and number of the example, so that an example meets the same alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.encoding.random import key_of, words_at

__all__ = ["Keys", "keys_of", "normal", "uniform"]

Keys = npt.NDArray[np.uint64]
"""One per example, uint64 [n]."""


def keys_of(seed: int, purpose: str, numbers: Tensor) -> Keys:
    """A key per example.

    Args:
        seed: any integer.
        purpose: told apart from others, such as an attack's name and restart.
        numbers: int64 [n], which examples of the whole set these are.
    """
    return words_at(np.uint64(key_of(seed, purpose)), numbers.cpu().numpy().astype(np.uint64))


def uniform(keys: Keys, count: int, start: int = 0) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, float32 [n, count].

    Args:
        keys: of the examples.
        count: per example.
        start: number of the first, so that the same key gives further ones.

    Example:
        >>> keys = keys_of(0, "example", torch.arange(2))
        >>> bool((uniform(keys, 4)[:, 1:] == uniform(keys, 3, start=1)).all())
        True
    """
    numbers = np.broadcast_to(np.arange(start, start + count, dtype=np.uint64), (len(keys), count))
    words = words_at(keys[:, None], numbers) >> np.uint64(40)
    return torch.from_numpy(words.astype(np.float32)) * 2.0**-24


def normal(keys: Keys, count: int, start: int = 0) -> Tensor:
    """Standard normal numbers, float32 [n, count]; see `uniform`."""
    u = uniform(keys, count, start).double() + 2.0**-25
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).float()
