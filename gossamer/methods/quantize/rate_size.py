"""Bytes of an encoding as the container's coders write it, without the index."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from gossamer.coding import encode_floats, encode_mask, encode_sparse_symbols, encode_symbols
from gossamer.encoding.node import Codec, Encoding, Leaf
from gossamer.encoding.patterns import Blocks, Mask, unpack_bits
from gossamer.encoding.weights import Masked

__all__ = ["coded_bytes"]


def coded_bytes(made: Encoding) -> int:
    """Sum over the leaves, a mask and the symbols at its live positions together where that is smaller.

    Args:
        made: values, or a mask over values.

    Cost: one coding of every leaf.
    """
    leaves = list(made.leaves())
    total = sum(_leaf_bytes(leaf) for leaf in leaves)
    if isinstance(made, Masked) and isinstance(made.where, Mask):
        mask = next(leaf for leaf in leaves if leaf.codec is Codec.MASK)
        symbols = next(leaf for leaf in leaves if leaf.field in ("q", "index"))
        together = encode_sparse_symbols(_grid(mask), symbols.tensor.reshape(-1).numpy()).nbytes
        total -= max(0, _leaf_bytes(mask) + _leaf_bytes(symbols) - together)
    return total


def _grid(leaf: Leaf) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    assert isinstance(leaf.owner, (Mask, Blocks))
    shape = leaf.owner.grid_shape()
    return unpack_bits(leaf.tensor, prod(shape)).view(shape).numpy()


def _leaf_bytes(leaf: Leaf) -> int:
    if leaf.codec is Codec.MASK:
        return encode_mask(_grid(leaf)).nbytes
    if leaf.codec is Codec.FLOATS:
        raw = leaf.tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return encode_floats(raw, leaf.tensor.element_size()).nbytes
    return encode_symbols(leaf.tensor.detach().numpy()).nbytes
