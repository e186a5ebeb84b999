"""Positions laid out for compiled kernels, for as long as they stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

from gossamer.jit.cpu import unavailable

__all__ = ["LaidOut", "compiled"]


@cache
def compiled() -> bool:
    """Whether kernels can be compiled here; ``gossamer.jit.cpu.unavailable()`` says why not."""
    return unavailable() is None


Kind = TypeVar("Kind")


@final
class LaidOut(Generic[Kind]):
    """Positions in the order of kernels, and the tensor that they were made of.

    Args:
        make: lays positions out.
        positions: of the live values.
        before: what was laid out for an earlier content of the same tensor: then somebody writes into it (as
            DistributedDataParallel does with every buffer), and a copy is kept to see whether that changes anything.
    """

    __slots__ = ("_copy", "_positions", "_version", "made")

    def __init__(self, make: Callable[[Tensor], Kind], positions: Tensor, before: LaidOut[Kind] | None) -> None:
        self.made = make(positions)
        self._positions = positions
        self._version = positions._version
        written = before is not None and before._positions is positions
        self._copy = positions.clone() if written else None

    def serves(self, positions: Tensor) -> bool:
        """Whether positions are those that were laid out."""
        if positions is not self._positions:
            return False
        if positions._version == self._version:
            return True
        if self._copy is None or not torch.equal(positions, self._copy):
            return False
        self._version = positions._version
        return True
