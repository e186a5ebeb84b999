"""What kernels are told: arrays of 64-bit integers, with the addresses of the OpenMP runtime among them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gossamer.runtime.layout import Pool
from gossamer.runtime.threads import OpenMP

__all__ = ["blank", "described"]

Array = npt.NDArray[Any]
Field = TypeVar("Field", bound=IntEnum)


def blank(words: int, pool: OpenMP) -> Array:
    """A description that holds the addresses of the OpenMP runtime and nothing else yet.

    Args:
        words: its length.
        pool: where threads come from.
    """
    made = np.zeros(words, np.int64)
    for slot, address in zip(Pool, pool.addresses or (0, 0, 0, 0), strict=True):
        made[slot] = address
    return made


def described(fields: type[Field], numbers: Mapping[Field, int], pool: OpenMP) -> Array:
    """A description with numbers in some of its fields, zero in others.

    Args:
        fields: all places that the kernel reads, beside `Pool`.
        numbers: by their places.
        pool: where threads come from.
    """
    made = blank(max(*fields, *Pool) + 1, pool)
    for place, number in numbers.items():
        made[place] = number
    return made
