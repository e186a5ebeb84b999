"""One leaf of a tree ⇄ coded bytes: which coder family a tensor belongs to follows from its declaration and dtype."""

from __future__ import annotations

from math import ceil, prod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from gossamer.coding import (
    Coded,
    Effort,
    decode_floats,
    decode_grid,
    decode_mask,
    encode_floats,
    encode_grid,
    encode_mask,
    order0_bits,
)
from gossamer.encoding.node import Codec, Leaf
from gossamer.encoding.patterns import Blocks, Mask, pack_bits, unpack_bits
from gossamer.encoding.values import Grouped
from gossamer.errors import FormatError
from gossamer.store.dtypes import dtype_name, from_bytes, named_dtype, to_bytes

__all__ = ["MASK", "decode_leaf", "encode_leaf", "entropy_bits", "leaf_form"]

MASK = "MASK"  # stands in place of a dtype: a boolean grid that lies packed in memory


def leaf_form(leaf: Leaf) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape at rest; a mask has the shape of its grid."""
    if leaf.codec is Codec.MASK:
        return MASK, cast("Mask | Blocks", leaf.owner).grid_shape()
    return dtype_name(leaf.tensor.dtype), tuple(leaf.tensor.shape)


def grid_of(leaf: Leaf) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The boolean grid of a mask leaf."""
    shape = leaf_form(leaf)[1]
    return unpack_bits(leaf.tensor, prod(shape)).view(shape).numpy()


def encode_leaf(leaf: Leaf, effort: Effort = "best") -> Coded:
    """The fewest bytes found for a leaf, lossless."""
    if leaf.codec is Codec.MASK:
        return encode_mask(grid_of(leaf), workers=torch.get_num_threads(), effort=effort)
    if leaf.tensor.is_floating_point():
        return encode_floats(to_bytes(leaf.tensor), leaf.tensor.element_size(), workers=torch.get_num_threads())
    span = leaf.owner.group_size if isinstance(leaf.owner, Grouped) else None
    return encode_grid(leaf.tensor.numpy(), span=span, workers=torch.get_num_threads(), effort=effort)


def decode_leaf(coded: Coded, form: str, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `encode_leaf`; ``shape`` has been bounded by the caller.

    Raises:
        FormatError: bytes that do not decode to exactly this.
    """
    if form == MASK:
        return pack_bits(torch.from_numpy(decode_mask(coded, shape, workers=torch.get_num_threads())))
    dtype = named_dtype(form)
    if dtype.is_floating_point:
        raw = decode_floats(coded, prod(shape) * dtype.itemsize, dtype.itemsize, workers=torch.get_num_threads())
        return from_bytes(raw, dtype, shape)
    kind = np.dtype(str(dtype).removeprefix("torch."))
    return torch.from_numpy(decode_grid(coded, shape, kind, workers=torch.get_num_threads()))


def entropy_bits(leaf: Leaf) -> float:
    """Order-0 entropy in bits; for floats of their bytes, plane by plane."""
    if leaf.codec is Codec.MASK:
        return order0_bits(grid_of(leaf))
    if leaf.tensor.is_floating_point():
        planes = to_bytes(leaf.tensor).reshape(-1, leaf.tensor.element_size())
        return sum(order0_bits(planes[:, i]) for i in range(planes.shape[1]))
    return order0_bits(leaf.tensor.numpy())


def packed_length(form: str, shape: tuple[int, ...]) -> int:
    """Elements that a leaf of this form takes in memory, for bounding before allocation."""
    if len(shape) > 32:
        raise FormatError(f"found a leaf of {len(shape)} dimensions, expected at most 32")
    return ceil(prod(shape) / 8) if form == MASK else prod(shape)
