"""Weights made from a seed: which stored value stands where, or how unstored values follow from stored ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import Category, Encoding, child, computable, require
from gossamer.encoding.random import uniform_bits
from gossamer.encoding.ridge import kernel_basis, spread

__all__ = ["Hashed", "KernelBasis", "hashed_places"]

_KEYS = 1 << 64
_LANDMARKS = 2048  # bounds the work per element that a file can ask for
_AXES = 8  # each takes a coordinate per position, also one of a single position
_TINY = 1e-30  # below it float32 comes near its denormals, which some processors round to zero


def hashed_places(key: int, elements: int, entries: int) -> Tensor:
    """Where in [table, −table] each weight finds its value, int32 [elements].

    Bit 0 of a random word is the sign, its upper 32 bits choose the entry: place = entry + sign bit · entries.
    """
    words = uniform_bits(key, elements)
    entry = (words >> np.uint64(32)) * np.uint64(entries) >> np.uint64(32)
    negative = (words & np.uint64(1)) * np.uint64(entries)
    return torch.from_numpy((entry + negative).astype(np.int32))


@final
@dataclass(frozen=True, eq=False)
class Hashed(Encoding):
    """w[i] = sign(i) · table[h(i)]: a hash decides which of a few stored values each weight is, and its sign.

    Neither positions nor signs are stored: both are integers modulo 2⁶⁴ computed from the key.

    Args:
        table: stored values [entries], 1 ≤ entries < 2³⁰; trainable.
        weight_shape: shape of the weight.
        key: of the hash, 0 to 2⁶⁴ − 1; 8 bytes.

    Source: Chen et al. 2015, HashedNets, arXiv 1504.04788, section 4.
    """

    table: Encoding = field(metadata=child(category=Category.CODEBOOKS))
    weight_shape: tuple[int, ...]
    key: int

    def __post_init__(self) -> None:
        found = self.table.dense_shape()
        good = len(found) == 1 and 1 <= found[0] < 1 << 30
        require(good, self, f"table of shape {found}", "[entries], at least one")
        require(0 <= self.key < _KEYS, self, f"key = {self.key}", "0 to 2⁶⁴ − 1")
        require(min(self.weight_shape, default=1) >= 0, self, f"shape {self.weight_shape}", "no negative size")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    @cached_property
    def _places(self) -> Tensor:
        return hashed_places(self.key, prod(self.weight_shape), self.table.dense_shape()[0])

    def to_dense(self) -> Tensor:
        """Signed table entries in place, in float32 for a half-precision table."""
        table = computable(self.table.to_dense())
        places = self._places.to(table.device)
        return torch.cat([table, -table]).index_select(0, places).view(self.weight_shape)


@final
@dataclass(frozen=True, eq=False)
class KernelBasis(Encoding):
    """V = (K_αα + λI)⁻¹ K_α,all of a squared-exponential kernel: predicts a row at all positions from its values at α.

    k(p, q) = exp(−Σ_axis (p − q)² / 2σ²). Nothing of it is stored: the landmarks α follow from the key, V from α, σ
    and λ by float64 operations that are the same on every machine, rounded to float32 at the end.

    Args:
        landmarks: number of positions whose values are known, 1 to min(positions, 2048).
        grid: positions along each axis of the input, such as (28, 28); at most 8 axes.
        sigma: per axis the kernel's length in grid steps, 0 or 0.01 to 1000; 0: nothing is shared along this axis.
        ridge: λ, 1e-9 to 1e6.
        key: of the landmarks, 0 to 2⁶⁴ − 1.
        rest: shape of the weight after its first dimension, Π rest = Π grid.

    Cost: O(landmarks² · positions) once per object; `to_dense` keeps its result.

    Source: Denil et al. 2013, Predicting parameters in deep learning, arXiv 1306.0543, section 3.
    """

    landmarks: int
    grid: tuple[int, ...]
    sigma: tuple[float, ...]
    ridge: float
    key: int
    rest: tuple[int, ...]

    def __post_init__(self) -> None:
        require(len(self.grid) <= _AXES, self, f"a grid of {len(self.grid)} axes", f"at most {_AXES}")
        points = prod(self.grid)
        good = bool(self.grid) and min(self.grid) >= 1 and min(self.rest, default=0) >= 1 and prod(self.rest) == points
        require(good, self, f"grid {self.grid} for inputs {self.rest}", "as many positions, at least one")
        top = min(points, _LANDMARKS)
        require(1 <= self.landmarks <= top, self, f"{self.landmarks} landmarks", f"1 to {top}")
        scales = len(self.sigma) == len(self.grid) and all(s == 0 or 0.01 <= s <= 1000 for s in self.sigma)
        require(scales, self, f"sigma {self.sigma}", f"{len(self.grid)} numbers, 0 or 0.01 to 1000")
        require(1e-9 <= self.ridge <= 1e6 and math.isfinite(self.ridge), self, f"ridge {self.ridge}", "1e-9 to 1e6")
        require(0 <= self.key < _KEYS, self, f"key = {self.key}", "0 to 2⁶⁴ − 1")

    def dense_shape(self) -> tuple[int, ...]:
        """[landmarks, *rest]."""
        return (self.landmarks, *self.rest)

    def positions(self) -> Tensor:
        """α, the landmarks as flat positions of the input, int64 [landmarks], ascending."""
        return torch.from_numpy(spread(self.grid, self.sigma, self.landmarks, self.key))

    @cached_property
    def _basis(self) -> Tensor:
        exact = kernel_basis(self.grid, self.sigma, self.ridge, self.positions().numpy())
        exact[np.abs(exact) < _TINY] = 0.0
        return torch.from_numpy(exact.astype(np.float32)).view(self.dense_shape())

    def to_dense(self) -> Tensor:
        """V, float32, computed once."""
        return self._basis
