"""Random numbers from a seed for a while, those of the program afterwards as if nothing had been."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, number: int = 0, *, repeat: bool = True) -> Iterator[None]:
    """Within: the global generators of PyTorch, NumPy and Python start from (seed, number).

    Args:
        seed: of the whole.
        number: of the part; other parts draw other numbers.
        repeat: let PyTorch use only algorithms that give the same bits each time; where an operation has none, PyTorch
            raises a RuntimeError.

    Example:
        >>> with seeded(0):
        ...     first = torch.rand(3)
        >>> with seeded(0):
        ...     bool(torch.rand(3).eq(first).all())
        True
    """
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little") >> 1
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 — the global one is what code out there may draw from
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.manual_seed(start)
        random.seed(start)
        np.random.seed(start & 0xFFFFFFFF)  # noqa: NPY002
        if repeat:
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
