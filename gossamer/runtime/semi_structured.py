"""2:4 weights in the compressed layout that PyTorch's semi-structured kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import NM
from gossamer.encoding.weights import Masked, Permuted
from gossamer.errors import CompositionError

__all__ = ["SemiStructured", "to_semi_structured"]

_META = 4  # quadruples per 16-bit word
_TILE = 32  # rows per tile of the metadata


@final
@dataclass(frozen=True)
class SemiStructured:
    """A 2:4 matrix, compressed.

    Args:
        values: [rows, columns / 2], the two kept weights of each group of four, left to right.
        metadata: int16 [rows, columns / 16], their places, two bits each, words in the order of CUTLASS.
        order: int64 [columns] or None: column j of the compressed matrix multiplies input ``order[j]``.
    """

    values: Tensor
    metadata: Tensor
    order: Tensor | None


def to_semi_structured(tree: Encoding, dtype: torch.dtype = torch.float16) -> SemiStructured:
    """Compress a 2:4 weight for ``torch.sparse``'s CUTLASS backend.

    The result is what ``SparseSemiStructuredTensorCUTLASS`` packs. Kept weights that are zero keep their place.

    Args:
        tree: `Masked` over `NM` 2:4, or a `Permuted` of one; seen as a matrix, rows and columns multiples of 32
            (torch itself wants at least 64 columns).
        dtype: float16 or bfloat16. (For float32 the hardware has 1:2 instead.)

    Raises:
        CompositionError: another tree, shape or dtype.

    Cost: linear.

    Exact: rounding to ``dtype`` is all that is lost.

    Source: Mishra et al. 2021, arXiv 2104.08378; the order of the words is `reorder_meta` of NVIDIA CUTLASS.
    """
    order = tree.order.long() if isinstance(tree, Permuted) else None
    inner = tree.inner if isinstance(tree, Permuted) else tree
    if not (isinstance(inner, Masked) and isinstance(inner.where, NM) and (inner.where.n, inner.where.m) == (2, 4)):
        raise CompositionError(f"to_semi_structured: found {type(inner).__name__}, expected Masked over NM 2:4")
    if dtype not in (torch.float16, torch.bfloat16):
        raise CompositionError(f"to_semi_structured: found {dtype}, expected float16 or bfloat16")
    shape = inner.dense_shape()
    rows, columns = shape[0], inner.where.positions().numel() * 2 // max(1, shape[0])
    if rows % _TILE or columns % (8 * _META) or not rows or not columns:
        found = f"{rows} × {columns}"
        raise CompositionError(f"to_semi_structured: found a matrix of {found}, expected multiples of 32 × 32")
    positions = inner.where.positions()
    values = inner.value.values(positions).detach().to(dtype).view(rows, columns // 2)
    places = (positions.long() % 4).view(-1, 2)
    quads = (places[:, 0] | places[:, 1] << 2).view(rows, -1, _META)  # two places of two bits per group of four
    words = (quads << (torch.arange(_META) * 4)).sum(2)
    words = torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)
    metadata = torch.empty_like(words).view(-1)
    metadata[_places(rows, words.shape[1])] = words.view(-1)
    return SemiStructured(values, metadata.view(rows, -1), order)


def _places(rows: int, columns: int) -> Tensor:
    """Where each metadata word goes, int64 [rows · columns].

    Within a tile of 32 rows, row 8a + b goes to 4b + a; of each 2 × 2 square of words the top right and bottom left
    change places; pairs of columns lie together, one row after the other.
    """
    row = torch.arange(rows)[:, None].expand(rows, columns)
    column = torch.arange(columns).expand(rows, columns)
    row = row // _TILE * _TILE + row % 8 * 4 + row % _TILE // 8
    odd_row, odd_column = row % 2, column % 2
    swap = odd_column - odd_row  # 1: top right goes down and left; −1: bottom left goes up and right
    row, column = row + swap, column - swap
    return (column // 2 * rows * 2 + row * 2 + column % 2).reshape(-1)
