"""What surrounds convolutions over blocks of images, as LLVM IR: changes of layout, max pooling and means of planes.

`gossamer.runtime.image_code` describes the layout.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.conv_edge import lanes_below
from gossamer.runtime.layout import in_team
from gossamer.runtime.pool_code import larger

__all__ = ["EdgeField", "add_edges", "zero_frame"]

Node = Any  # llvmlite has no type stubs


class EdgeField(IntEnum):
    """Where kernels find what, beside ``layout.Pool`` at 11 to 14; lengths in floats."""

    CHANNELS = 0
    HEIGHT = 1  # of the input
    BREADTH = 2
    FIRST = 3  # the first number that is not of the frame
    BLOCK = 4
    ROW = 5
    LINE = 6
    FRAME = 7  # rows and columns
    IMAGES = 8
    Y_FIRST = 9  # of what pooling writes
    Y_BLOCK = 10
    Y_ROW = 15
    Y_LINE = 16
    OUT_HEIGHT = 17
    OUT_BREADTH = 18
    KERNEL_ROWS = 19
    KERNEL_COLUMNS = 20
    ROW_STRIDE = 21
    COLUMN_STRIDE = 22
    PADDING_ROWS = 23
    PADDING_COLUMNS = 24
    Y_FRAME = 25


def add_edges(module: ir.Module, lanes: int) -> None:
    """Adds ``from_planes`` and ``to_planes(description, blocks, planes, count, threads)``, ``pool`` and ``mean``.

    ``pool(description, x, y, count, threads)`` takes the largest of every window; NaN wins. ``mean(description, x, y,
    count, threads)`` writes [count, channels, lanes].
    """
    _add_conversion(module, lanes, into=True)
    _add_conversion(module, lanes, into=False)
    _add_pool(module, lanes)
    _add_mean(module, lanes)


def _place(e: Emitter, description: Node, base: Node, block: Node, row: Node, fields: tuple[EdgeField, ...]) -> Node:
    first, per_block, per_row = (e.read(description, int(f), I64) for f in fields)
    offset = e.add(first, e.mul(block, per_block), e.mul(row, per_row))
    return e.element(e.at.inttoptr(base, PTR), offset, F32)


_X = (EdgeField.FIRST, EdgeField.BLOCK, EdgeField.ROW)
_Y = (EdgeField.Y_FIRST, EdgeField.Y_BLOCK, EdgeField.Y_ROW)


def _add_conversion(module: ir.Module, lanes: int, *, into: bool) -> None:
    """Image rows of all channels, planes to blocks or back, squares of columns × images at a time."""
    name = "from_planes" if into else "to_planes"
    made = function(module, f"{name}_share", [PTR] + [I64] * 5, exported=False)
    description, blocks, planes, count, part, team = made.args
    e = Emitter(made, lanes)
    channels, high, wide, line, images = (
        e.read(description, int(f), I64)
        for f in (EdgeField.CHANNELS, EdgeField.HEIGHT, EdgeField.BREADTH, EdgeField.LINE, EdgeField.IMAGES)
    )
    plane = e.mul(high, wide)
    units = e.mul(count, high)
    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))
    squares = e.mul(e.div(wide, lanes), lanes)

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, high)
        row = e.sub(u, e.mul(block, high))
        here = _place(e, description, blocks, block, row, _X)
        present = e.least(e.sub(images, e.mul(block, lanes)), lanes)
        live = lanes_below(e, e.constant(0), present)
        if into:
            _frame_of_row(e, description, here, row, e.equal(e.add(u, 1), units))

        def channel(c: Node, _: list[Node]) -> list[Node]:
            columns = e.element(here, e.mul(c, line), F32)
            begin = e.add(e.mul(e.add(e.mul(e.mul(block, lanes), channels), c), plane), e.mul(row, wide))

            def image(i: int) -> Node:
                """Where an image's row begins; one that is missing repeats the first."""
                there = e.at.select(e.less(i, present), e.constant(i), e.constant(0))
                at = e.add(begin, e.mul(there, e.mul(channels, plane)))
                return e.element(e.at.inttoptr(planes, PTR), at, F32)

            rows = [image(i) for i in range(lanes)]

            def square(j: Node, _: list[Node]) -> list[Node]:
                if into:
                    for k, vector in enumerate(e.transpose([e.load(r, j) for r in rows])):
                        kept = e.at.select(live, vector, e.number(0))
                        e.store(kept, columns, e.mul(e.add(j, k), lanes), 4 * lanes)
                    return []
                loaded = [e.load(columns, e.mul(e.add(j, k), lanes), 4 * lanes) for k in range(lanes)]
                # Missing images are written on top of the first, before it.
                for r, vector in reversed(list(zip(rows, e.transpose(loaded), strict=True))):
                    e.store(vector, r, j)
                return []

            def rest(j: Node, _: list[Node]) -> list[Node]:
                if into:
                    value = e.number(0)
                    for i, r in enumerate(rows):
                        value = e.at.insert_element(value, e.read(r, j, F32), ir.Constant(I32, i))
                    e.store(e.at.select(live, value, e.number(0)), columns, e.mul(j, lanes), 4 * lanes)
                    return []
                value = e.load(columns, e.mul(j, lanes), 4 * lanes)
                for i, r in reversed(list(enumerate(rows))):
                    e.write(e.at.extract_element(value, ir.Constant(I32, i)), r, j)
                return []

            e.loop(0, squares, square, step=lanes)
            e.loop(squares, wide, rest)
            return []

        e.loop(0, channels, channel)
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    in_team(module, name, made, 3)


def _frame_of_row(e: Emitter, description: Node, here: Node, row: Node, ends: Node) -> None:
    channels, line, per_row, frame = (
        e.read(description, int(f), I64) for f in (EdgeField.CHANNELS, EdgeField.LINE, EdgeField.ROW, EdgeField.FRAME)
    )
    zero_frame(e, here, row, ends, (channels, line, per_row, frame))


def zero_frame(e: Emitter, here: Node, row: Node, ends: Node, sizes: tuple[Node, Node, Node, Node]) -> None:
    """Zeros before and after the lines of an image row, above a block's first one and below the last of all.

    Args:
        e: writes the function.
        here: the first number of the image row that is not of the frame.
        row: which one of its block it is.
        ends: whether it is the last one of the last block.
        sizes: channels, floats per line and per image row, and columns and rows of the frame.
    """
    channels, line, per_row, frame = sizes
    size = e.mul(frame, e.lanes)
    whole = e.add(e.mul(channels, line), size)

    def zeros(first: Node, count: Node) -> list[Node]:
        def one(i: Node, _: list[Node]) -> list[Node]:
            e.at.store(e.number(0), e.at.gep(here, [e.add(first, i)], source_etype=F32), align=4 * e.lanes)
            return []

        e.loop(0, count, one, step=e.lanes)
        return []

    with e.at.if_then(e.less(0, frame)):
        # What follows the last line is the frame of the next image row.
        e.loop(0, e.add(channels, 1), lambda c, _: zeros(e.sub(e.mul(c, line), size), size))
        with e.at.if_then(e.equal(row, 0)):
            e.loop(0, frame, lambda i, _: zeros(e.sub(e.mul(e.sub(i, frame), per_row), size), whole))
        with e.at.if_then(ends):
            e.loop(0, frame, lambda i, _: zeros(e.sub(e.mul(e.add(i, 1), per_row), size), whole))


def _add_pool(module: ir.Module, lanes: int) -> None:
    made = function(module, "pool_share", [PTR] + [I64] * 5, exported=False)
    description, x, y, count, part, team = made.args
    e = Emitter(made, lanes)
    channels, high, wide, row_size, line, y_line, rows, columns, tall, broad, down, across, above, before = (
        e.read(description, int(f), I64)
        for f in (
            EdgeField.CHANNELS,
            EdgeField.HEIGHT,
            EdgeField.BREADTH,
            EdgeField.ROW,
            EdgeField.LINE,
            EdgeField.Y_LINE,
            EdgeField.OUT_HEIGHT,
            EdgeField.OUT_BREADTH,
            EdgeField.KERNEL_ROWS,
            EdgeField.KERNEL_COLUMNS,
            EdgeField.ROW_STRIDE,
            EdgeField.COLUMN_STRIDE,
            EdgeField.PADDING_ROWS,
            EdgeField.PADDING_COLUMNS,
        )
    )
    units = e.mul(count, rows)
    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))

    def window(o: Node, stride: Node, padding: Node, size: Node, whole: Node) -> tuple[Node, Node]:
        begin = e.sub(e.mul(o, stride), padding)
        end = e.least(e.add(begin, size), whole)
        return e.at.select(e.less(begin, 0), e.constant(0), begin), end

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, rows)
        o = e.sub(u, e.mul(block, rows))
        top, bottom = window(o, down, above, tall, high)
        x_row = _place(e, description, x, block, top, _X)
        y_row = _place(e, description, y, block, o, _Y)
        y_sizes = (channels, y_line, *(e.read(description, int(f), I64) for f in (EdgeField.Y_ROW, EdgeField.Y_FRAME)))
        zero_frame(e, y_row, o, e.equal(e.add(u, 1), units), y_sizes)

        def channel(c: Node, _: list[Node]) -> list[Node]:
            x_line, target = e.element(x_row, e.mul(c, line), F32), e.element(y_row, e.mul(c, y_line), F32)

            def column(j: Node, _: list[Node]) -> list[Node]:
                left, right = window(j, across, before, broad, wide)

                def source(r: Node, carried: list[Node]) -> list[Node]:
                    here = e.element(x_line, e.mul(r, row_size), F32)

                    def tap(k: Node, carried: list[Node]) -> list[Node]:
                        return [larger(e, carried[0], e.load(here, e.mul(k, lanes), 4 * lanes))]

                    return e.loop(left, right, tap, carried)

                (value,) = e.loop(0, e.sub(bottom, top), source, [e.number(float("-inf"))])
                e.store(value, target, e.mul(j, lanes), 4 * lanes)
                return []

            e.loop(0, columns, column)
            return []

        e.loop(0, channels, channel)
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    in_team(module, "pool", made, 3)


def _add_mean(module: ir.Module, lanes: int) -> None:
    made = function(module, "mean_share", [PTR] + [I64] * 5, exported=False)
    description, x, y, count, part, team = made.args
    e = Emitter(made, lanes)
    channels, high, wide, row_size, line = (
        e.read(description, int(f), I64)
        for f in (EdgeField.CHANNELS, EdgeField.HEIGHT, EdgeField.BREADTH, EdgeField.ROW, EdgeField.LINE)
    )
    units = e.mul(count, channels)
    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))
    share = e.at.fdiv(ir.Constant(F32, 1.0), e.at.sitofp(e.mul(high, wide), F32))

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, channels)
        c = e.sub(u, e.mul(block, channels))
        plane = e.element(_place(e, description, x, block, e.constant(0), _X), e.mul(c, line), F32)

        def row(r: Node, carried: list[Node]) -> list[Node]:
            here = e.element(plane, e.mul(r, row_size), F32)
            return e.loop(
                0, wide, lambda j, total: [e.at.fadd(total[0], e.load(here, e.mul(j, lanes), 4 * lanes))], carried
            )

        (total,) = e.loop(0, high, row, [e.number(0)])
        e.store(e.at.fmul(total, e.spread(share)), e.at.inttoptr(y, PTR), e.mul(u, lanes), 4 * lanes)
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    in_team(module, "mean", made, 3)
