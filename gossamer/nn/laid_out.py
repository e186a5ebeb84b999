"""Positions laid out for compiled kernels, for as long as they stay what they are."""

from __future__ import annotations

from functools import cache
from typing import final

import torch
from torch import Tensor

from gossamer.runtime.cpu import unavailable
from gossamer.runtime.live import LiveMatrix, live_math

__all__ = ["LaidOut", "compiled"]


@cache
def compiled() -> bool:
    """Whether kernels can be compiled here; ``gossamer.runtime.cpu.unavailable()`` says why not."""
    return unavailable() is None


@final
class LaidOut:
    """A matrix for kernels, and the positions that it was made of.

    Args:
        shape: (M, K).
        positions: of the live values.
        before: what was laid out for an earlier content of the same tensor: then somebody writes into it (as
            DistributedDataParallel does with every buffer), and a copy is kept to see whether that changes anything.
    """

    __slots__ = ("_copy", "_positions", "_version", "matrix")

    def __init__(self, shape: tuple[int, ...], positions: Tensor, before: LaidOut | None) -> None:
        rows, columns = shape
        self.matrix = LiveMatrix((rows, columns), positions.numpy(), live_math())
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
