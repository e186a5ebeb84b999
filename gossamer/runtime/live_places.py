"""What brings the places of live values into the order of the kernels, for a matrix and its transpose, as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.runtime.emit import I16, I32, I64, PTR, Emitter, function

__all__ = ["add_places"]

Node = Any  # llvmlite has no type stubs


def add_places(module: ir.Module) -> None:
    """Adds ``count_places`` and ``fill_places``, which go through the live values of a matrix in their order.

    Both begin with (positions int64 [live], starts int64 [rows + 1], rows, columns, width, height): starts are where
    rows begin, width is that of a panel of columns, height that of a panel of rows, or of columns of the transpose.

    ``count_places(…, counts, transposed)``: uint32 [rows, panels] and [columns, panels of rows], from zero.

    ``fill_places(…, next, index, transposed_next, transposed_index, places)``: int64 [rows, panels] and [columns,
    panels of rows], where the layout of each segment goes on, are counted up; index uint16 [live] is the column within
    the panel, places uint32 [live] is which value it is.
    """
    _count(module)
    _fill(module)


def _each(
    e: Emitter, common: list[Node], body: Callable[[Node, Node, Node, Node, Node], None], rows: Node, height: Node
) -> None:
    """Calls ``body(number, row, column, panel of columns, panel of rows)`` for each live value."""
    positions, starts, columns, width = common

    def row(r: Node, _: list[Node]) -> list[Node]:
        before, above = e.mul(r, columns), e.div(r, height)

        def one(k: Node, _: list[Node]) -> list[Node]:
            column = e.sub(e.read(positions, k, I64), before)
            body(k, r, column, e.div(column, width), above)
            return []

        e.loop(e.read(starts, r, I64), e.read(starts, e.add(r, 1), I64), one)
        return []

    e.loop(0, rows, row)


def _panels(e: Emitter, size: Node, width: Node) -> Node:
    return e.div(e.add(size, e.sub(width, 1)), width)


def _count(module: ir.Module) -> None:
    made = function(module, "count_places", [PTR, PTR] + [I64] * 4 + [PTR] * 2, exported=True)
    positions, starts, rows, columns, width, height, counts, transposed = made.args
    e = Emitter(made, 1)
    across, down = _panels(e, columns, width), _panels(e, rows, height)

    def one(_: Node, r: Node, column: Node, panel: Node, above: Node) -> None:
        for base, at in (
            (counts, e.add(e.mul(r, across), panel)),
            (transposed, e.add(e.mul(column, down), above)),
        ):
            e.write(e.at.add(e.read(base, at, I32), ir.Constant(I32, 1)), base, at)

    _each(e, [positions, starts, columns, width], one, rows, height)
    e.at.ret_void()


def _fill(module: ir.Module) -> None:
    made = function(module, "fill_places", [PTR, PTR] + [I64] * 4 + [PTR] * 5, exported=True)
    positions, starts, rows, columns, width, height, following, index, t_following, t_index, places = made.args
    e = Emitter(made, 1)
    across, down = _panels(e, columns, width), _panels(e, rows, height)

    def taken(base: Node, at: Node) -> Node:
        place = e.read(base, at, I64)
        e.write(e.add(place, 1), base, at)
        return place

    def one(k: Node, r: Node, column: Node, panel: Node, above: Node) -> None:
        place = taken(following, e.add(e.mul(r, across), panel))
        e.write(e.at.trunc(e.sub(column, e.mul(panel, width)), I16), index, place)
        t_place = taken(t_following, e.add(e.mul(column, down), above))
        e.write(e.at.trunc(e.sub(r, e.mul(above, height)), I16), t_index, t_place)
        e.write(e.at.trunc(k, I32), places, t_place)

    _each(e, [positions, starts, columns, width], one, rows, height)
    e.at.ret_void()
