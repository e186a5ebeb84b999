"""What is known about a tensor of a network before a byte of it is read."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from math import prod

import torch

__all__ = ["Kind", "TensorSpec"]


class Kind(enum.Enum):
    """What a tensor does in its layer; methods say which kinds they handle."""

    LINEAR = "linear"
    CONV = "conv"
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    NORM = "norm"
    BIAS = "bias"
    BUFFER = "buffer"
    OTHER = "other"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, dtype and kind of one tensor; a tied tensor is one spec with several names.

    Args:
        name: canonical name, the first under which the network lists it.
        shape: as the network has it (not output-first).
        dtype: logical dtype; leaves of its encoding may have others.
        kind: what it does.
        aliases: further names of the same tensor.
        output_first: permutation that brings the output dimension to the front, or () if it is there already.
        groups: groups of a convolution.
        gates: equal parts along the output dimension that are weights of their own (4 in an LSTM, 3 in a GRU).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    aliases: tuple[str, ...] = ()
    output_first: tuple[int, ...] = ()
    groups: int = 1
    gates: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical name and aliases."""
        return (self.name, *self.aliases)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.elements * self.dtype.itemsize
