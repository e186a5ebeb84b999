"""The passes of recurrent layers through compiled kernels, as autograd sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from gossamer.nn.dead import SeenTokens
from gossamer.nn.linear import SparseLinear
from gossamer.runtime.live import Batch, LiveMatrix
from gossamer.runtime.live_cells import Cells, Frame, Passed

__all__ = ["Direction", "direction", "packed", "unpacked"]


@final
@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of one level.

    Args:
        enter: the layer that multiplies the input.
        state: the layer that multiplies the state.
        matrices: the same two, laid out.
        cells: compiled steps.
        frame: of the batch.
        reverse: whether the last step comes first.
    """

    enter: SparseLinear
    state: SparseLinear
    matrices: tuple[LiveMatrix, LiveMatrix]
    cells: Cells
    frame: Frame
    reverse: bool


def packed(rows: Tensor, frame: Frame) -> Tensor:
    """`Frame.pack`, differentiable."""
    made: Tensor = _Packing.apply(rows, frame)  # type: ignore[no-untyped-call]
    return made


def unpacked(tiles: Tensor, frame: Frame, *, batch_first: bool, flat: bool) -> Tensor:
    """`Frame.unpack`, differentiable.

    Args:
        tiles: [steps, tiles, features, tile].
        frame: of the batch.
        batch_first: whether the result lies in memory sample by sample.
        flat: whether the result is [tokens of all steps, features], else [steps, tokens, features].
    """
    made: Tensor = _Unpacking.apply(tiles, frame, batch_first, flat)  # type: ignore[no-untyped-call]
    return made


def direction(x: Tensor, h: Tensor, c: Tensor | None, run: Direction) -> tuple[Tensor, Tensor, Tensor | None]:
    """All steps.

    Args:
        x: [steps, tiles, K, tile].
        h: first state, [tiles, units, tile].
        c: first cell of an LSTM.
        run: what to do.

    Returns:
        states of all steps, the last one, and the last cell.
    """
    parameters = (run.enter.values, run.enter.bias, run.state.values, run.state.bias)
    made: tuple[Tensor, Tensor, Tensor | None] = _Direction.apply(x, h, c, *parameters, run)  # type: ignore[no-untyped-call]
    return made


def _room(features: int, frame: Frame, *, batch_first: bool, flat: bool) -> Tensor:
    if flat:
        return torch.empty(sum(frame.sizes), features)
    if batch_first:
        return torch.empty(frame.sizes[0], frame.steps, features).transpose(0, 1)
    return torch.empty(frame.steps, frame.sizes[0], features)


def _readable(rows: Tensor) -> Tensor:
    """With adjacent elements in each row."""
    rows = rows.resolve_neg()
    return rows if rows.stride(-1) == 1 else rows.contiguous()


class _Packing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, frame: Frame) -> Tensor:
        """Rows to tiles."""
        rows = _readable(rows)
        ctx.frame = frame
        ctx.layout = (rows.dim() == 3 and rows.stride(0) < rows.stride(1), rows.dim() == 2)
        return frame.pack(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Tiles to rows."""
        first, flat = ctx.layout
        room = _room(dy.shape[2], ctx.frame, batch_first=first, flat=flat)
        return ctx.frame.unpack(dy.contiguous(), room), None


class _Unpacking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: Tensor, frame: Frame, batch_first: bool, flat: bool) -> Tensor:
        """Tiles to rows."""
        ctx.frame = frame
        return frame.unpack(tiles.contiguous(), _room(tiles.shape[2], frame, batch_first=batch_first, flat=flat))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Rows to tiles."""
        return ctx.frame.pack(_readable(dy)), None, None, None


class _Direction(torch.autograd.Function):
    """The input's product for all steps, the steps, and the gradients of both weights over all steps at once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        c: Tensor | None,
        enter: Tensor,
        enter_bias: Tensor | None,
        state: Tensor,
        state_bias: Tensor | None,
        run: Direction,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """States of all steps, the last one, and the last cell."""
        frame, (first, second) = run.frame, run.matrices
        x = x.contiguous()
        entered = first.product(enter, _batch(x, frame), enter_bias).data
        entered = entered.view(*x.shape[:2], first.rows, x.shape[3])
        passed = run.cells.forward(frame, entered, (h, c), (second, state, state_bias), reverse=run.reverse)
        ctx.save_for_backward(x, passed.gates, passed.states, passed.kept, enter, state)
        ctx.run, ctx.pair = run, c is not None
        last = 0 if run.reverse else -1
        return _after(passed.states, run), passed.states[last], None if c is None else passed.kept[last]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        x, gates, states, kept, enter, state = ctx.saved_tensors
        run: Direction = ctx.run
        frame, (first, second) = run.frame, run.matrices
        given = (dy.contiguous(), dh, dc if ctx.pair else None)
        passed = Passed(gates, states, kept)
        back = run.cells.backward(frame, passed, given, (second, state), reverse=run.reverse)
        of_gates, of_products = _batch(back.gates, frame), _batch(back.products, frame)
        before, inputs = _batch(_before(states, run), frame), _batch(x, frame)
        needs = ctx.needs_input_grad
        dx = first.transposed_product(enter, of_gates).data.view(x.shape) if needs[0] else None
        found: list[Tensor | None] = []
        for matrix, source, gradient, wanted in (
            (first, inputs, of_gates, needs[3:5]),
            (second, before, of_products, needs[5:7]),
        ):
            dvalues, dbias = None, None
            if wanted[0]:
                dvalues, dbias = matrix.gradient(source, gradient, bias=wanted[1])
            elif wanted[1]:
                dbias = gradient.data.sum(2).sum(0)
            found += [dvalues, dbias]
        if run.enter.watching:
            run.enter.saw(SeenTokens(inputs.data, of_gates.data))
        if run.state.watching:
            run.state.saw(SeenTokens(before.data, of_products.data))
        return dx, back.state, back.cell, *found, None


def _batch(tiles: Tensor, frame: Frame) -> Batch:
    """All steps as one batch."""
    return Batch(tiles.view(-1, *tiles.shape[2:]), sum(frame.sizes))


def _after(states: Tensor, run: Direction) -> Tensor:
    """The states after each step, in the order of the input."""
    return states[:-1] if run.reverse else states[1:]


def _before(states: Tensor, run: Direction) -> Tensor:
    """The states before each step, likewise."""
    return states[1:] if run.reverse else states[:-1]
