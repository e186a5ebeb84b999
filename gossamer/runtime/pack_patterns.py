"""Code that sorts the columns of four rows by which of these are not zero there, as LLVM IR: for `Way.PATTERNS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.group_code import PATTERNS
from gossamer.runtime.pack_parts import buffers, is_live, panels_of, part_of

__all__ = ["add_patterns"]

Node = Any  # llvmlite has no type stubs


def add_patterns(module: ir.Module, lanes: int) -> None:
    """Adds ``count_patterns``, ``patterns_8`` and ``patterns_16``, as `pack_code.pack_kernels` describes them."""
    masks = _masks_function(module, lanes)
    _count_patterns(module, lanes, masks)
    gather = _gather_function(module)
    for kind in (I8, I16):
        _patterns(module, kind, masks, gather)


def _masks_function(module: ir.Module, lanes: int) -> ir.Function:
    """Which of up to four rows, ``stride`` floats apart, are not zero at each of n columns → uint8 [n]."""
    made = function(module, "masks", [PTR, I64, I64, I64, PTR], exported=False)
    first, stride, members, n, out = made.args
    e = Emitter(made, lanes)
    # A row that is not there is read as the first one, and its bit is taken away again.
    real = [e.less(r, members) for r in range(4)]
    rows = [e.at.select(real[r], e.element(first, e.mul(stride, r), F32), first) for r in range(4)]
    allowed: Node = ir.Constant(I8, 0)
    for r in range(4):
        allowed = e.at.or_(allowed, e.at.select(real[r], ir.Constant(I8, 1 << r), ir.Constant(I8, 0)))
    bytes_ = ir.VectorType(I8, lanes)
    spread = ir.Constant(bytes_, ir.Undefined)
    spread = e.at.insert_element(spread, allowed, ir.Constant(I32, 0))
    spread = e.at.shuffle_vector(spread, spread, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def bits(c: Node, *, vector: bool) -> Node:
        kind = bytes_ if vector else I8
        mask: Node = ir.Constant(kind, [0] * lanes if vector else 0)
        for r, row in enumerate(rows):
            bit = ir.Constant(kind, [1 << r] * lanes if vector else 1 << r)
            none = ir.Constant(kind, [0] * lanes if vector else 0)
            mask = e.at.or_(mask, e.at.select(is_live(e, row, c, vector=vector), bit, none))
        return e.at.and_(mask, spread if vector else allowed)

    def some(c: Node, _: list[Node]) -> list[Node]:
        e.at.store(bits(c, vector=True), e.element(out, c, I8), align=1)
        return []

    def one(c: Node, _: list[Node]) -> list[Node]:
        e.write(bits(c, vector=False), out, c)
        return []

    whole = e.mul(e.div(n, lanes), lanes)
    e.loop(0, whole, some, step=lanes)
    e.loop(whole, n, one)
    e.at.ret_void()
    return made


def _fours(
    e: Emitter,
    rows: Node,
    columns: Node,
    width: Node,
    body: Callable[[Node, Node, Node, list[Node]], list[Node]],
    carried: list[Node],
) -> None:
    """Calls ``body(panel, columns in it, group, carried)`` for four rows after the other of every panel."""
    groups = e.div(e.add(rows, 3), 4)

    def panel(p: Node, carried: list[Node]) -> list[Node]:
        _, n = part_of(e, p, columns, width)
        return e.loop(0, groups, lambda g, carried: body(p, n, g, carried), carried)

    e.loop(0, panels_of(e, columns, width), panel, carried)


def _count_patterns(module: ir.Module, lanes: int, masks: ir.Function) -> None:
    made = function(module, "count_patterns", [PTR, I64, I64, I64, PTR, PTR], exported=True)
    weight, rows, columns, width, scratch, counts = made.args
    e = Emitter(made, lanes)
    tally = e.at.alloca(I32, size=16)
    groups = e.div(e.add(rows, 3), 4)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        row = e.mul(g, 4)
        first = e.element(weight, e.add(e.mul(row, columns), e.mul(p, width)), F32)
        e.at.call(masks, [first, columns, e.sub(rows, row), n, scratch])
        for mask in range(16):
            e.write(ir.Constant(I32, 0), tally, mask)

        def one(c: Node, _: list[Node]) -> list[Node]:
            mask = e.wide(scratch, c, I8)
            e.write(e.at.add(e.read(tally, mask, I32), ir.Constant(I32, 1)), tally, mask)
            return []

        e.loop(0, n, one)
        target = e.element(counts, e.mul(e.add(e.mul(p, groups), g), len(PATTERNS)), I16)
        for segment, mask in enumerate(PATTERNS):
            e.write(e.at.trunc(e.read(tally, mask, I32), I16), target, segment)
        return []

    _fours(e, rows, columns, width, group, [])
    e.at.ret_void()


def _gather_function(module: ir.Module) -> ir.Function:
    """Weights of four rows at the columns of each pattern in turn."""
    made = function(module, "gather", [PTR, I64, PTR, PTR, PTR], exported=False)
    first, columns, ordered, have, values = made.args
    e = Emitter(made, 1)
    at: Node = e.constant(0)
    start: Node = e.constant(0)
    for segment, mask in enumerate(PATTERNS):
        members = [e.element(first, e.mul(columns, r), F32) for r in range(4) if mask >> r & 1]

        def column(k: Node, carried: list[Node], members: list[Node] = members) -> list[Node]:
            c = e.wide(ordered, k, I16)
            for i, member in enumerate(members):
                e.write(e.read(member, c, F32), values, e.add(carried[0], i))
            return [e.add(carried[0], len(members))]

        end = e.add(start, e.wide(have, segment, I16))
        (at,) = e.loop(start, end, column, [at])
        start = end
    e.at.ret_void()
    return made


def _patterns(module: ir.Module, kind: Node, masks: ir.Function, gather: ir.Function) -> None:
    made = function(module, f"patterns_{kind.width}", [PTR, I64, I64, I64, PTR, PTR, PTR, PTR], exported=True)
    weight, rows, columns, width, counts, scratch, index, values = made.args
    e = Emitter(made, 1)
    next_of = e.at.alloca(I64, size=16)
    groups = e.div(e.add(rows, 3), 4)
    _, (mask_of, ordered) = buffers(e, scratch, width, 0, 2)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        at, value_at = carried
        row = e.mul(g, 4)
        first = e.element(weight, e.add(e.mul(row, columns), e.mul(p, width)), F32)
        e.at.call(masks, [first, columns, e.sub(rows, row), n, mask_of])
        have = e.element(counts, e.mul(e.add(e.mul(p, groups), g), len(PATTERNS)), I16)
        counted = [e.wide(have, segment, I16) for segment in range(len(PATTERNS))]
        total: Node = e.constant(0)
        for many, mask in zip(counted, PATTERNS, strict=True):
            e.write(total, next_of, mask)
            total = e.add(total, many)
        e.write(total, next_of, 0)  # columns where all four are zero come last, and are not copied

        def one(c: Node, _: list[Node]) -> list[Node]:
            mask = e.wide(mask_of, c, I8)
            place = e.read(next_of, mask, I64)
            e.write(e.at.trunc(c, I16), ordered, place)
            e.write(e.add(place, 1), next_of, mask)
            return []

        def copy(k: Node, _: list[Node]) -> list[Node]:
            column = e.read(ordered, k, I16)
            e.write(column if kind is I16 else e.at.trunc(column, kind), index, e.add(at, k))
            return []

        e.loop(0, n, one)
        e.loop(0, total, copy)
        e.at.call(gather, [first, columns, ordered, have, e.element(values, value_at, F32)])
        taken = [e.mul(many, mask.bit_count()) for many, mask in zip(counted, PATTERNS, strict=True)]
        return [e.add(at, total), e.add(value_at, *taken)]

    _fours(e, rows, columns, width, group, [e.constant(0), e.constant(0)])
    e.at.ret_void()
