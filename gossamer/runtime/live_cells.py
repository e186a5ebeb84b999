"""One direction of one level of an LSTM or a GRU that trains with live values only: all its steps, forward and back.

Activations of all steps are tiles [steps, tiles, features, tile], so that nothing changes its layout between steps, and
what belongs to all steps at once (the input's product, the gradients of both weights) is one call of the kernels for
matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal, final

import torch
from torch import Tensor

from gossamer.jit.cpu import Processor
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.grouped import describe
from gossamer.runtime.kernels import CellKernels, load
from gossamer.runtime.live import LiveMath, LiveMatrix
from gossamer.runtime.threads import openmp

__all__ = ["Cells", "Frame", "Kind", "Passed", "Returned", "cells"]

Kind = Literal["lstm", "gru"]

_WORTH_A_TEAM = 20_000
"""Units of all tokens from which on starting a team of threads saves time."""


@final
@dataclass(frozen=True)
class Frame:
    """How steps of batches lie in tiles; lanes without a token are zero in what is packed.

    Args:
        sizes: tokens of each step, at least one, never more than in the step before.
        math: kernels.
    """

    sizes: tuple[int, ...]
    math: LiveMath

    @property
    def steps(self) -> int:
        """How many steps."""
        return len(self.sizes)

    def split(self) -> tuple[int, int]:
        """Tiles of a step, and vectors of a tile."""
        return self.math.split(self.sizes[0])

    def empty(self, features: int, steps: int | None = None) -> Tensor:
        """Room for activations, [steps, tiles, features, tile], of undefined content."""
        tiles, vectors = self.split()
        count = self.steps if steps is None else steps
        return self.math.memory.empty(count, tiles, features, vectors * self.math.lanes)

    def pack(self, rows: Tensor) -> Tensor:
        """float32 → tiles.

        Args:
            rows: [steps, tokens, features], or, where steps differ in size, all of them in a row, [tokens of all steps,
                features]; elements of a row are adjacent.
        """
        made = self.empty(rows.shape[-1])
        if self.sizes[-1] <= (made.shape[1] - 1) * made.shape[3]:  # tiles that no token reaches
            made.zero_()
        self._change(rows, made, packing=True)
        return made

    def unpack(self, tiles: Tensor, rows: Tensor) -> Tensor:
        """The way back, into ``rows``, which is returned."""
        self._change(rows, tiles, packing=False)
        return rows

    def _change(self, rows: Tensor, tiles: Tensor, *, packing: bool) -> None:
        _, count, features, tile = tiles.shape
        change, vectors = self.math.pack if packing else self.math.unpack, tile // self.math.lanes
        row, source, target = rows.stride(-2), rows.data_ptr(), tiles.data_ptr()
        tokens = self.sizes[0]
        if rows.dim() == 3 and tokens == count * tile and rows.stride(0) == tokens * row:
            change(source, row, target, tokens * self.steps, features, vectors)
            return
        starts = [0, *accumulate(self.sizes)]
        for t, size in enumerate(self.sizes):
            at = t * rows.stride(0) if rows.dim() == 3 else starts[t] * row
            change(source + 4 * at, row, target + 4 * t * tiles.stride(0), size, features, vectors)


@final
@dataclass(frozen=True, eq=False)
class Passed:
    """What all steps left behind.

    Args:
        gates: after their functions.
        states: [steps + 1, …]: those before the first step too, in the order of the input.
        kept: LSTM: cells, likewise; GRU: the state's products of the new gate.
    """

    gates: Tensor
    states: Tensor
    kept: Tensor


@final
@dataclass(frozen=True, eq=False)
class Returned:
    """Gradients.

    Args:
        gates: of the input's product.
        products: of the state's product; of an LSTM the same tensor.
        state: of the first state.
        cell: of the first cell, None for a GRU.
    """

    gates: Tensor
    products: Tensor
    state: Tensor
    cell: Tensor | None


@final
class Cells(CompiledProduct):
    """The compiled steps of one kind of layer. Immutable.

    Args:
        kind: of the layer.
        kernels: compiled code.

    Exact: sigmoid and tanh to about 1e-7; the order of sums does not depend on the number of threads.
    """

    def __init__(self, kind: Kind, kernels: CellKernels) -> None:
        self.gates = 4 if kind == "lstm" else 3
        self._forward, self._backward = kernels.forward[kind], kernels.backward[kind]
        self._openmp = openmp()
        self._description = describe(self._openmp)
        self._pool: int = self._description.ctypes.data

    def forward(
        self,
        frame: Frame,
        entered: Tensor,
        first: tuple[Tensor, Tensor | None],
        weight: tuple[LiveMatrix, Tensor, Tensor | None],
        *,
        reverse: bool,
    ) -> Passed:
        """All steps.

        Args:
            frame: of the batch.
            entered: the input's products, bias added, [steps, tiles, gates · units, tile]; overwritten.
            first: state and, of an LSTM, cell to begin with, [tiles, units, tile].
            weight: of the state: places, values and bias.
            reverse: whether the last step comes first.
        """
        matrix, values, bias = weight
        h0, c0 = first
        units, (tiles, vectors) = matrix.columns, frame.split()
        states = frame.empty(units, frame.steps + 1)
        kept = frame.empty(units, frame.steps + (c0 is not None))
        scratch = frame.empty(self.gates * units, 1)
        states[-1 if reverse else 0] = h0
        if c0 is not None:
            kept[-1 if reverse else 0] = c0
        ordered = matrix.ordered(values, transposed=False)
        bias_at = 0 if bias is None else bias.data_ptr()
        at, h, k, product = (t.data_ptr() for t in (entered, states, kept, scratch))
        wide, narrow = 4 * entered.stride(0), 4 * states.stride(0)
        sizes = (units, vectors * frame.math.lanes, tiles)
        threads = self._threads(units * frame.sizes[0])
        for t in reversed(range(frame.steps)) if reverse else range(frame.steps):
            old, new = _turn(t, narrow, reverse=reverse)
            ordered.product(h + old, product, bias_at, tiles, vectors)
            before, after = (k + old, k + new) if c0 is not None else (0, k + t * narrow)
            places = (at + t * wide, product, before, after, h + old, h + new)
            self._forward(self._pool, *places, *sizes, frame.sizes[t], threads)
        return Passed(entered, states, kept)

    def backward(
        self,
        frame: Frame,
        passed: Passed,
        gradients: tuple[Tensor, Tensor, Tensor | None],
        weight: tuple[LiveMatrix, Tensor],
        *,
        reverse: bool,
    ) -> Returned:
        """All steps, back.

        Args:
            frame: of the batch.
            passed: from `forward`.
            gradients: of all states, [steps, tiles, units, tile], of the last one and, of an LSTM, of the last cell.
            weight: of the state: places and values.
            reverse: as in `forward`.
        """
        matrix, values = weight
        dy, dh, dc = gradients
        units, (tiles, vectors) = matrix.columns, frame.split()
        carry, cell = dh.clone(), None if dc is None else dc.clone()
        product = torch.zeros_like(carry)
        dgates = frame.empty(self.gates * units)
        dproducts = dgates if cell is not None else frame.empty(self.gates * units)
        ordered = matrix.ordered(values, transposed=True)
        gates, h, k, dy_at = (t.data_ptr() for t in (passed.gates, passed.states, passed.kept, dy))
        wide, narrow = 4 * dgates.stride(0), 4 * dy.stride(0)
        own, ours, theirs = product.data_ptr(), dgates.data_ptr(), dproducts.data_ptr()
        carry_at, cell_at = carry.data_ptr(), 0 if cell is None else cell.data_ptr()
        sizes = (units, vectors * frame.math.lanes, tiles)
        threads = self._threads(units * frame.sizes[0])
        for t in range(frame.steps) if reverse else reversed(range(frame.steps)):
            old, new = _turn(t, narrow, reverse=reverse)
            before, after = (k + old, k + new) if cell is not None else (0, k + t * narrow)
            places = (gates + t * wide, before, after, h + old, own, dy_at + t * narrow, carry_at, cell_at)
            found = theirs + t * wide
            self._backward(
                self._pool, *places, ours + t * wide, 0 if cell is not None else found, *sizes, frame.sizes[t], threads
            )
            ordered.product(found, own, 0, tiles, vectors)
        return Returned(dgates, dproducts, product.add_(carry), cell)

    def _threads(self, units: int) -> int:
        return 1 if units < _WORTH_A_TEAM else self._openmp.threads()


def _turn(t: int, size: int, *, reverse: bool) -> tuple[int, int]:
    """Where the states before and after a step begin, in bytes."""
    return ((t + 1) * size, t * size) if reverse else (t * size, (t + 1) * size)


@cache
def cells(kind: Kind, processor: Processor) -> Cells:
    """Compiled for a processor, which should be that of the products between the steps."""
    return Cells(kind, load(CellKernels, processor, cache_directory()))
