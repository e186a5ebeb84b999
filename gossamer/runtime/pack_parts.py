"""What the code of all packers is made of: panels, scratch memory, which weights are not zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I32, Emitter

__all__ = ["buffers", "is_live", "panels_of", "part_of", "scratch_bytes", "summed"]

Node = Any  # llvmlite has no type stubs


def scratch_bytes(width: int) -> int:
    """Bytes of scratch memory that the functions need for panels of so many columns."""
    return 26 * _room(width)


def _room(width: int) -> int:
    return (width + 16) // 16 * 16


def buffers(e: Emitter, scratch: Node, width: Node, floats: int, shorts: int) -> tuple[list[Node], list[Node]]:
    """Parts of the scratch memory, as many as asked for, each with room for a panel and one more."""
    room = e.mul(e.div(e.add(width, 16), 16), 16)
    wide = [e.element(scratch, e.mul(room, 4 * i), I8) for i in range(floats)]
    narrow = [e.element(scratch, e.mul(room, 4 * floats + 2 * i), I8) for i in range(shorts)]
    return wide, narrow


def panels_of(e: Emitter, columns: Node, width: Node) -> Node:
    """How many; one even without columns."""
    many = e.div(e.add(columns, e.sub(width, 1)), width)
    return e.at.select(e.equal(many, 0), e.constant(1), many)


def part_of(e: Emitter, panel: Node, columns: Node, width: Node) -> tuple[Node, Node]:
    """First column of a panel, and how many it has."""
    first = e.mul(panel, width)
    return first, e.least(width, e.sub(columns, first))


def is_live(e: Emitter, row: Node, column: Node, *, vector: bool) -> Node:
    """A bit per weight; NaN counts."""
    zero = e.number(0.0) if vector else ir.Constant(F32, 0.0)
    return e.at.fcmp_unordered("!=", e.load(row, column) if vector else e.read(row, column, F32), zero)


def summed(e: Emitter, n: Node, body: Callable[[Node, list[Node], bool], list[Node]], blank: list[Node]) -> Node:
    """Sum of what the body adds up over whole vectors of columns, in lanes of 32 bits, then over the rest."""
    whole = e.mul(e.div(n, e.lanes), e.lanes)
    (sums,) = e.loop(0, whole, lambda c, carried: body(c, carried, True), blank, e.lanes)
    total: Node = ir.Constant(I32, 0)
    for lane in range(e.lanes):
        total = e.at.add(total, e.at.extract_element(sums, ir.Constant(I32, lane)))
    (total,) = e.loop(whole, n, lambda c, carried: body(c, carried, False), [total])
    return total
