"""Weights that a generator draws: stored is only which of its draws was taken, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.encoding.gaussian import PER_UNIT, PER_WORD, gaussians
from gossamer.encoding.node import Category, Codec, Encoding, Role, Value, child, computable, leaf, require
from gossamer.encoding.random import key_of, uniform_bits, words_at

__all__ = ["MAX_INDEX_BITS", "Drawn", "Draws"]

MAX_INDEX_BITS = 24  # an encoder looks at 2^bits draws of every weight
_SEEDS = 1 << 64
_MOST = 1 << 31  # elements, so that products of places and blocks stay below 2⁶³
_LONGEST_NAME = 4096
_AT_A_TIME = 1 << 16  # numbers, so that an encoder's stay in the cache

I64 = npt.NDArray[np.int64]


@final
@dataclass(frozen=True)
class Draws:
    """Which weights are drawn together, and the draws of each block: known from the seed, never stored.

    The weights in a random order are cut into blocks whose sizes differ by one at most. Draw number i of a block is
    made of the words number i · ⌈size / 4⌉ onwards of the block's own key.

    Args:
        seed: 0 to 2⁶⁴ − 1.
        name: tells tensors of the same seed apart.
        elements: weights, below 2³¹.
        count: blocks, 1 to elements; 0 for none.
    """

    seed: int
    name: str
    elements: int
    count: int

    @cached_property
    def order(self) -> I64:
        """Flat positions of all weights, block after block, int64 [elements]."""
        return np.argsort(uniform_bits(key_of(self.seed, self.name, "order"), self.elements), kind="stable")

    @cached_property
    def starts(self) -> I64:
        """Where in `order` each block begins, and the last one ends, int64 [count + 1]."""
        return np.arange(self.count + 1, dtype=np.int64) * self.elements // max(1, self.count)

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """Of each block's draws, uint64 [count]."""
        return uniform_bits(key_of(self.seed, self.name, "draws"), self.count)

    def members(self, block: int) -> I64:
        """Flat positions of a block's weights, int64 [size]."""
        return self.order[self.starts[block] : self.starts[block + 1]]

    def of(self, block: int, count: int) -> Iterator[npt.NDArray[np.int16]]:
        """The first ``count`` draws of a block, several at a time, int16 [some, size] in steps of 1/4096.

        Cost: some 4 ns per number.
        """
        size = int(self.starts[block + 1] - self.starts[block])
        words = -(-size // PER_WORD)
        some = max(1, _AT_A_TIME // max(1, size))
        for first in range(0, count, some):
            numbers = np.arange(first * words, min(count, first + some) * words, dtype=np.uint64)
            yield gaussians(words_at(self.keys[block], numbers).reshape(-1, words))[:, :size]

    def one(self, block: int, number: int) -> npt.NDArray[np.int16]:
        """One draw of a block, int16 [size] in steps of 1/4096."""
        size = int(self.starts[block + 1] - self.starts[block])
        words = -(-size // PER_WORD)
        numbers = np.arange(number * words, (number + 1) * words, dtype=np.uint64)
        return gaussians(words_at(self.keys[block], numbers))[:size]

    def drawn(self, index: I64) -> npt.NDArray[np.int16]:
        """The draw of that number from every block, in place: int16 [elements] in steps of 1/4096.

        Args:
            index: int64 [count], from 0 on.

        Cost: O(elements · log elements), for the order.
        """
        sizes = np.diff(self.starts)
        block = np.repeat(np.arange(self.count), sizes)
        place = np.arange(self.elements) - self.starts[block]
        number = (index * -(-sizes // PER_WORD))[block] + place // PER_WORD
        words = words_at(self.keys[block], number.astype(np.uint64))
        found = np.empty(self.elements, dtype=np.int16)
        found[self.order] = gaussians(words[:, None])[np.arange(self.elements), place % PER_WORD]
        return found


@final
@dataclass(frozen=True, eq=False)
class Drawn(Value):
    """w = scale · z, where z are Gaussian numbers that follow from (seed, name, block, index of the block).

    The seed cuts the weight into blocks at random, and each index says which of 2^bits draws from N(0, scale²) its
    block is. Everything but index and scale is integer arithmetic from the seed, the product is one rounding: the
    weights are the same bits on every machine.

    Args:
        index: int32 [blocks], 0 ≤ index < 2^bits; at least one block unless the weight is empty.
        scale: `Value` [1], the prior's standard deviation; trainable.
        weight_shape: of the weight; fewer than 2³¹ elements.
        seed: 0 to 2⁶⁴ − 1.
        name: of the stream of random numbers, told apart from others of the same seed; usually the tensor's.
        bits: of an index, 1 to 24.

    Cost: O(elements · log elements) once per object; 2 bytes per weight are kept.

    Example:
        >>> from gossamer.encoding.values import Dense
        >>> tree = Drawn(torch.tensor([5, 0], dtype=torch.int32), Dense(torch.tensor([0.5])), (4, 8), 1, "fc", 10)
        >>> tree.size_bits(), tuple(tree.to_dense().shape)
        (52, (4, 8))

    Source: Havasi, Peharz, Hernández-Lobato 2019, Minimal random code learning, arXiv 1810.00440, section 3.
    """

    index: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    scale: Encoding = field(metadata=child(category=Category.SCALES))
    weight_shape: tuple[int, ...]
    seed: int
    name: str
    bits: int

    def __post_init__(self) -> None:
        require(min(self.weight_shape, default=1) >= 0, self, f"shape {self.weight_shape}", "no negative size")
        elements, found = prod(self.weight_shape), tuple(self.index.shape)
        require(elements < _MOST, self, f"{elements} elements", f"fewer than {_MOST}")
        require(self.index.dtype == torch.int32, self, f"index of {self.index.dtype}", "int32")
        blocks = found[0] if len(found) == 1 else -1
        good = min(1, elements) <= blocks <= elements
        require(good, self, f"index of shape {found}", f"[blocks] of {elements} weights, none of them empty")
        require(self.scale.dense_shape() == (1,), self, f"scale of shape {self.scale.dense_shape()}", "[1]")
        require(1 <= self.bits <= MAX_INDEX_BITS, self, f"bits = {self.bits}", f"1 to {MAX_INDEX_BITS}")
        require(0 <= self.seed < _SEEDS, self, f"seed = {self.seed}", "0 to 2⁶⁴ − 1")
        length = len(self.name)
        require(length <= _LONGEST_NAME, self, f"a name of {length} characters", f"at most {_LONGEST_NAME}")

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight_shape

    def draws(self) -> Draws:
        """Which weights are drawn together."""
        return Draws(self.seed, self.name, prod(self.weight_shape), self.index.numel())

    @cached_property
    def _steps(self) -> Tensor:
        return torch.from_numpy(self.draws().drawn(self.index.cpu().numpy().astype(np.int64))).view(self.weight_shape)

    def values(self, positions: Tensor | None) -> Tensor:
        """The numbers drawn times the scale, in the scale's dtype or float32 if that is half."""
        del positions
        scale = computable(self.scale.to_dense())
        return (self._steps.to(scale.device, scale.dtype) / PER_UNIT * scale).view(self.weight_shape)

    def leaf_bits(self, field: str) -> int:
        """``bits`` per block; the scale at its own width."""
        return self.index.numel() * self.bits if field == "index" else super().leaf_bits(field)

    def validate(self) -> None:
        """Indices are below 2^bits."""
        least, most = (int(self.index.min()), int(self.index.max())) if self.index.numel() else (0, 0)
        require(least >= 0, self, f"index {least}", "0 or more")
        require(most < 1 << self.bits, self, f"index {most}", f"below {1 << self.bits}")
