"""Max pooling of planes, or of planes cut into blocks, as LLVM IR."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.conv_edge import lanes_below, lying, masked_load, masked_store
from gossamer.runtime.layout import in_team

__all__ = ["PoolField", "add_picking", "add_pooling", "larger"]

Node = Any  # llvmlite has no type stubs


class PoolField(IntEnum):
    """Where the kernel finds what, beside ``layout.Pool`` at 11 to 14; lengths in floats."""

    CHANNELS = 0
    KERNEL_ROWS = 1
    KERNEL_COLUMNS = 2
    STRIDE = 3  # 1 or 2, of both dimensions
    PADDING_ROWS = 4
    PADDING_COLUMNS = 5
    HEIGHT = 6
    BREADTH = 7
    OUT_ROWS = 8
    OUT_COLUMNS = 9
    LINE = 10  # of the scratch row, with what surrounds it
    X_TILE = 15  # as in conv_edge.ConvField
    X_BLOCK = 16
    Y_TILE = 17
    Y_BLOCK = 18
    SCRATCH = 19  # of one member of the team
    FLOOR = 20  # bits of a float32 that outputs are not below


def add_pooling(module: ir.Module, lanes: int) -> None:
    """Adds ``pool(description, x, y, images, scratch, threads)``: the largest of every window; NaN wins."""
    made = function(module, "pool_share", [PTR] + [I64] * 6, exported=False)
    description, x, y, images, scratch, part, team = made.args
    e = Emitter(made, lanes)
    channels, tall, broad, stride, above, before, high, wide, rows, columns, line = (
        e.read(description, i, I64) for i in range(PoolField.LINE + 1)
    )
    x_tile, x_block, y_tile, y_block, own = (
        e.read(description, int(f), I64)
        for f in (PoolField.X_TILE, PoolField.X_BLOCK, PoolField.Y_TILE, PoolField.Y_BLOCK, PoolField.SCRATCH)
    )
    x_at, y_at = e.at.inttoptr(x, PTR), e.at.inttoptr(y, PTR)
    held = e.at.inttoptr(e.add(scratch, e.mul(e.mul(part, own), 4)), PTR)
    lowest = e.number(float("-inf"))
    floor = e.spread(e.at.bitcast(e.at.trunc(e.read(description, int(PoolField.FLOOR), I64), I32), F32))

    def store(value: Node, base: Node, at: Node) -> list[Node]:
        e.store(value, base, at)
        return []

    e.loop(0, line, lambda j, _: store(lowest, held, j), step=lanes)
    # Rows of planes follow each other in memory, or, in blocks, the same row of all channels does.
    lines = e.mul(channels, rows)
    by_rows = e.less(x_tile, e.mul(high, wide))
    inner = e.at.select(by_rows, channels, rows)
    first, last = (e.div(e.mul(e.add(part, i), e.mul(images, lines)), team) for i in range(2))

    def unit(u: Node, _: list[Node]) -> list[Node]:
        image = e.div(u, lines)
        place = e.sub(u, e.mul(image, lines))
        slow = e.div(place, inner)
        fast = e.sub(place, e.mul(slow, inner))
        c, o = e.at.select(by_rows, fast, slow), e.at.select(by_rows, slow, fast)
        top = e.sub(e.mul(o, stride), above)
        begin = e.at.select(e.less(top, 0), e.constant(0), top)
        end = e.least(e.add(top, tall), high)

        def address(r: Node) -> Node:
            position = e.add(e.mul(image, e.mul(high, wide)), e.mul(r, wide))
            return e.element(x_at, e.add(lying(e, position, x_tile, x_block), e.mul(c, x_tile)), F32)

        def source(r: Node, _: list[Node]) -> list[Node]:
            here, opening = address(r), e.equal(r, begin)
            whole = e.mul(e.div(wide, lanes), lanes)

            def with_others(value: Node, j: Node) -> Node:
                (found,) = e.choose(
                    opening, lambda: [value], lambda: [larger(e, e.load(held, e.add(before, j)), value)]
                )
                return found

            e.loop(0, whole, lambda j, _: store(with_others(e.load(here, j), j), held, e.add(before, j)), step=lanes)
            with e.at.if_then(e.less(whole, wide)):
                mask = lanes_below(e, whole, wide)
                value = with_others(masked_load(e, e.element(here, whole, F32), mask), whole)
                masked_store(e, value, e.element(held, e.add(before, whole), F32), mask)
            return []

        e.loop(begin, end, source)
        position = e.add(e.mul(image, e.mul(rows, columns)), e.mul(o, columns))
        out = e.element(y_at, e.add(lying(e, position, y_tile, y_block), e.mul(c, y_tile)), F32)

        def largest(j: Node) -> Node:
            def tap(k: Node, carried: list[Node]) -> list[Node]:
                at = e.add(e.mul(j, stride), k)

                def second() -> list[Node]:
                    pair = [e.load(held, e.add(at, lanes * i)) for i in range(2)]
                    return [e.shuffle(pair[0], pair[1], range(0, 2 * lanes, 2))]

                (value,) = e.choose(e.equal(stride, 1), lambda: [e.load(held, at)], second)
                return [larger(e, carried[0], value)]

            (value,) = e.loop(0, broad, tap, [floor])
            return value

        whole = e.mul(e.div(columns, lanes), lanes)
        e.loop(0, whole, lambda j, _: store(largest(j), out, j), step=lanes)
        with e.at.if_then(e.less(whole, columns)):
            masked_store(e, largest(whole), e.element(out, whole, F32), lanes_below(e, whole, columns))
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    in_team(module, "pool", made, 4)


def add_picking(module: ir.Module, lanes: int) -> None:
    """Adds ``pick(description, x, y, images, threads)``: every second row and column of planes cut into blocks."""
    made = function(module, "pick_share", [PTR] + [I64] * 5, exported=False)
    description, x, y, images, part, team = made.args
    e = Emitter(made, lanes)
    channels, high, wide, rows, columns, x_tile, x_block, y_tile, y_block = (
        e.read(description, int(f), I64)
        for f in (
            PoolField.CHANNELS,
            PoolField.HEIGHT,
            PoolField.BREADTH,
            PoolField.OUT_ROWS,
            PoolField.OUT_COLUMNS,
            PoolField.X_TILE,
            PoolField.X_BLOCK,
            PoolField.Y_TILE,
            PoolField.Y_BLOCK,
        )
    )
    x_at, y_at = e.at.inttoptr(x, PTR), e.at.inttoptr(y, PTR)
    whole = e.mul(e.div(columns, lanes), lanes)
    whole = e.at.select(e.less(wide, e.mul(whole, 2)), e.sub(whole, lanes), whole)  # what is read lies in the row
    units = e.mul(images, rows)

    def unit(u: Node, _: list[Node]) -> list[Node]:
        image = e.div(u, rows)
        o = e.sub(u, e.mul(image, rows))
        source = lying(e, e.add(e.mul(image, e.mul(high, wide)), e.mul(o, e.mul(wide, 2))), x_tile, x_block)
        target = lying(e, e.mul(u, columns), y_tile, y_block)

        def channel(c: Node, _: list[Node]) -> list[Node]:
            here = e.element(x_at, e.add(source, e.mul(c, x_tile)), F32)
            there = e.element(y_at, e.add(target, e.mul(c, y_tile)), F32)

            def several(j: Node, _: list[Node]) -> list[Node]:
                pair = [e.load(here, e.add(e.mul(j, 2), lanes * i)) for i in range(2)]
                e.store(e.shuffle(pair[0], pair[1], range(0, 2 * lanes, 2)), there, j)
                return []

            def single(j: Node, _: list[Node]) -> list[Node]:
                e.write(e.read(here, e.mul(j, 2), F32), there, j)
                return []

            e.loop(0, whole, several, step=lanes)
            e.loop(whole, columns, single)
            return []

        e.loop(0, channels, channel)
        return []

    e.loop(e.div(e.mul(part, units), team), e.div(e.mul(e.add(part, 1), units), team), unit)
    e.at.ret_void()
    in_team(module, "pick", made, 3)


def larger(e: Emitter, a: Node, b: Node) -> Node:
    """max(a, b) per lane, NaN if either is."""
    return e.at.select(e.at.fcmp_unordered("uno", a, a), a, e.at.select(e.at.fcmp_ordered(">", a, b), a, b))
