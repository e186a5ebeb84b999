"""Weights whose inputs are turned by an orthogonal matrix that a key gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import INPUT_STATISTICS, Encoding, child, computable, require
from gossamer.encoding.random import uniform_bits

__all__ = ["Rotated", "block_of"]

_KEYS = 1 << 64
_LARGEST = 1 << 12


def block_of(columns: int) -> int:
    """The largest power of two, at most 4096, that divides a number of columns."""
    return min(columns & -columns, _LARGEST) if columns else 1


@final
@dataclass(frozen=True, eq=False)
class Rotated(Encoding):
    """w = inner · R, seen as a matrix [out, rest], with an orthogonal R that is made from the key and never stored.

    R = blockdiag(H, …, H) · diag(±1) · P: a permutation, signs, and Hadamard matrices H / √block, so every column of
    ``inner`` mixes ``block`` columns of w in equal parts, and large ones are spread over many.

    Args:
        inner: [out, *rest], such as quantized values.
        block: a power of two that divides Π rest.
        key: of signs and permutation, 0 to 2⁶⁴ − 1; 8 bytes.

    Cost: `to_dense` adds log2(block) times per element. The sums are in one order on every machine.

    Source: Chee et al. 2023, QuIP, arXiv 2307.13304, section 4; Ashkboos et al. 2024, QuaRot, arXiv 2404.00456.
    """

    inner: Encoding = field(metadata=child(weight=True))
    block: int
    key: int

    def __post_init__(self) -> None:
        shape = self.inner.dense_shape()
        require(len(shape) >= 2, self, f"inner of shape {shape}", "[out, *rest]")
        columns = prod(shape[1:])
        good = 1 <= self.block <= _LARGEST and self.block & (self.block - 1) == 0 and columns % self.block == 0
        require(good, self, f"block = {self.block}", f"a power of two up to {_LARGEST} that divides {columns}")
        require(0 <= self.key < _KEYS, self, f"key = {self.key}", "0 to 2⁶⁴ − 1")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the inner weight."""
        return self.inner.dense_shape()

    @cached_property
    def _made(self) -> tuple[Tensor, Tensor]:
        words = uniform_bits(self.key, prod(self.dense_shape()[1:]))
        signs = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float32)
        return torch.from_numpy(np.argsort(words, kind="stable")), torch.from_numpy(signs)

    def turned(self, matrix: Tensor) -> Tensor:
        """matrix · Rᵀ, [rows, columns]: what ``inner`` must be for a weight."""
        order, signs = self._made
        return self._mixed(matrix[:, order.to(matrix.device)] * signs.to(matrix))

    def turned_back(self, matrix: Tensor) -> Tensor:
        """matrix · R, [rows, columns]."""
        order, signs = self._made
        mixed = self._mixed(matrix) * signs.to(matrix)
        return mixed[:, order.argsort().to(matrix.device)]

    def _mixed(self, matrix: Tensor) -> Tensor:
        """Each run of ``block`` columns times the Hadamard matrix, which is its own transpose and inverse."""
        shape, half = matrix.shape, 1
        while half < self.block:
            pairs = matrix.reshape(shape[0], -1, 2, half)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            matrix = torch.stack([first + second, first - second], 2).reshape(shape)
            half *= 2
        return matrix * (1 / math.sqrt(self.block))

    def to_dense(self) -> Tensor:
        """The weight turned back, in float32 for half-precision leaves."""
        shape = self.dense_shape()
        return self.turned_back(computable(self.inner.to_dense()).reshape(shape[0], prod(shape[1:]))).view(shape)

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inner weight sees turned inputs; squares of those follow from products of inputs alone."""
        if field != "inner":
            return {}
        below = {k: v for k, v in evidence.items() if k == "count"}
        if "sum" in evidence:
            below["sum"] = self.turned(evidence["sum"].reshape(1, -1)).reshape(-1)
        if "gram" in evidence:
            gram = evidence["gram"]  # [n, n], or [groups, n, n] of a grouped convolution
            each = [self.turned(self.turned(g).T) for g in gram.reshape(-1, *gram.shape[-2:])]
            below["gram"] = torch.stack(each).view(gram.shape)
            below["sq"] = below["gram"].diagonal(dim1=-2, dim2=-1).clamp_min(0)
        for key in evidence.keys() - INPUT_STATISTICS:
            if key == "grad":
                below[key] = self.turned(evidence[key].flatten(1)).view(self.dense_shape())
        return below
