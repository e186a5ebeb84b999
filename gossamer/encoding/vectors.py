"""Runs of weights as an index into a table of vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Category, Codec, Encoding, Role, child, computable, leaf, require
from gossamer.encoding.values import check_index, index_bits

__all__ = ["VectorCodebook"]


@final
@dataclass(frozen=True, eq=False)
class VectorCodebook(Encoding):
    """Sub-vectors of a row come from a table: w[r, c·dim : (c + 1)·dim] = table[g, index[r, c]].

    Args:
        index: uint8 [rows, columns / dim], columns = Π rest.
        table: the vectors, [1, entries, dim], or [columns / dim, entries, dim] with one codebook g = c per sub-space;
            1 ≤ entries ≤ 256; trainable.
        rest: shape of the weight after its first dimension.

    Source: Jégou, Douze, Schmid 2011, Product quantization for nearest neighbor search, section II; for the weights of
    networks Gong et al. 2014, arXiv 1412.6115, section 3.3.
    """

    index: Tensor = field(metadata=leaf(Role.INDEX, Codec.SYMBOLS, Category.VALUES))
    table: Encoding = field(metadata=child(category=Category.CODEBOOKS))
    rest: tuple[int, ...]

    def __post_init__(self) -> None:
        require(self.index.dtype == torch.uint8, self, f"index of {self.index.dtype}", "uint8")
        require(self.index.dim() == 2, self, f"index of shape {tuple(self.index.shape)}", "[rows, columns / dim]")
        found = self.table.dense_shape()
        good = len(found) == 3 and 1 <= found[1] <= 256 and found[2] >= 1 and found[0] in (1, self.index.shape[1])
        require(good, self, f"table of shape {found}", "[1 or columns / dim, 1 to 256, dim]")
        columns = self.index.shape[1] * found[2]
        fits = min(self.rest, default=0) >= 1 and prod(self.rest) == columns
        require(fits, self, f"rest {self.rest}", f"{columns} columns in all")

    def dense_shape(self) -> tuple[int, ...]:
        """[rows, *rest]."""
        return (self.index.shape[0], *self.rest)

    def entries(self) -> int:
        """Vectors per codebook."""
        return self.table.dense_shape()[1]

    def to_dense(self) -> Tensor:
        """The vectors in place, in float32 for a half-precision table."""
        table = computable(self.table.to_dense())
        spaces, entries, dim = table.shape
        flat = self.index.int()
        if spaces > 1:
            flat = flat + torch.arange(spaces, dtype=torch.int32, device=flat.device) * entries
        vectors = table.reshape(-1, dim).index_select(0, flat.reshape(-1))  # [rows · columns / dim, dim]
        return vectors.view(self.dense_shape())

    def leaf_bits(self, field: str) -> int:
        """⌈log2 entries⌉ per index; the table at its own width."""
        return index_bits(self.index, self.entries()) if field == "index" else super().leaf_bits(field)

    def validate(self) -> None:
        """Indices point into the table."""
        check_index(self, self.index, self.entries())
