"""Depthwise convolutions of planes, or of planes cut into blocks, as LLVM IR.

A channel's plane is copied once into scratch with zeros around it, where it stays in the first two levels of cache;
outputs are then sums of shifted rows. The weight is dense: there are too few weights per channel to leave any out.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.conv_edge import lanes_below, masked_load, masked_store
from gossamer.runtime.epilogue import Activation, activated
from gossamer.runtime.layout import in_team

__all__ = ["STRIDES", "DepthwiseField", "depthwise_kernels"]

Node = Any  # llvmlite has no type stubs

STRIDES = (1, 2)
"""Of both dimensions, for which there is code."""

_UNROLLED = (3, 5)
"""Rows and columns of kernels whose loops are written out."""

_CLIPS = (Activation.NONE, Activation.RELU, Activation.RELU6)


class DepthwiseField(IntEnum):
    """Where the kernel finds what, beside ``layout.Pool`` at 11 to 14; lengths in floats."""

    CHANNELS = 0
    MULTIPLE = 1  # outputs per channel
    KERNEL_ROWS = 2
    KERNEL_COLUMNS = 3
    STRIDE = 4
    PADDING_ROWS = 5
    PADDING_COLUMNS = 6
    HEIGHT = 7
    BREADTH = 8
    OUT_ROWS = 9
    OUT_COLUMNS = 10
    X_TILE = 15  # as in conv_edge.ConvField
    X_BLOCK = 16
    Y_TILE = 17
    Y_BLOCK = 18
    LINE = 19  # of the copy of a plane: a row, and zeros around it
    SCRATCH = 20  # of one member of the team
    WEIGHT = 21  # float32 [CHANNELS · MULTIPLE, KERNEL_ROWS, KERNEL_COLUMNS]
    BIAS = 22  # float32 [CHANNELS · MULTIPLE]
    ACTIVATION = 23


def depthwise_kernels(lanes: int) -> str:
    """LLVM IR of ``depthwise(description, x, y, images, scratch, threads)``: Y = f(W ⊛ X + b), channel by channel.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_depthwise")
    ways = {(size, stride): _rows(module, lanes, size, stride) for size in (*_UNROLLED, 0) for stride in STRIDES}
    finish = {kind: _finish(module, lanes, kind) for kind in Activation if kind not in _CLIPS}
    made = function(module, "depthwise_share", [PTR] + [I64] * 6, exported=False)
    description, x, y, images, scratch, part, team = made.args
    e = Emitter(made, lanes)

    def word(field: DepthwiseField) -> Node:
        return e.read(description, int(field), I64)

    channels, multiple, stride, high, wide = (
        word(f)
        for f in (
            DepthwiseField.CHANNELS,
            DepthwiseField.MULTIPLE,
            DepthwiseField.STRIDE,
            DepthwiseField.HEIGHT,
            DepthwiseField.BREADTH,
        )
    )
    tall, broad, activation = (
        word(f) for f in (DepthwiseField.KERNEL_ROWS, DepthwiseField.KERNEL_COLUMNS, DepthwiseField.ACTIVATION)
    )
    x_tile, x_block, line, own = (
        word(f) for f in (DepthwiseField.X_TILE, DepthwiseField.X_BLOCK, DepthwiseField.LINE, DepthwiseField.SCRATCH)
    )
    x_at, y_at = e.at.inttoptr(x, PTR), e.at.inttoptr(y, PTR)
    held = e.at.inttoptr(e.add(scratch, e.mul(e.mul(part, own), 4)), PTR)

    def store(value: Node, base: Node, at: Node) -> list[Node]:
        e.store(value, base, at)
        return []

    e.loop(0, own, lambda i, _: store(e.number(0), held, i), step=lanes)
    inside = e.element(held, e.add(e.mul(word(DepthwiseField.PADDING_ROWS), line), lanes), F32)
    whole = e.mul(e.div(wide, lanes), lanes)
    units = e.mul(images, channels)
    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))

    def unit(u: Node, _: list[Node]) -> list[Node]:
        image = e.div(u, channels)
        c = e.sub(u, e.mul(image, channels))

        def copied(r: Node, place: list[Node]) -> list[Node]:
            source = e.element(x_at, e.add(*place, e.mul(c, x_tile)), F32)
            target = e.element(inside, e.mul(r, line), F32)
            e.loop(0, whole, lambda j, _: store(e.load(source, j), target, j), step=lanes)
            with e.at.if_then(e.less(whole, wide)):
                rest = masked_load(e, e.element(source, whole, F32), lanes_below(e, whole, wide))
                store(rest, target, whole)  # zeros behind the row are zeros again
            return _next_row(e, place, wide, x_tile, x_block)

        e.loop(0, high, copied, _first_row(e, e.mul(image, e.mul(high, wide)), x_tile, x_block))

        def output(i: Node, _: list[Node]) -> list[Node]:
            o = e.add(e.mul(c, multiple), i)
            for (size, step), way in ways.items():
                right = e.equal(stride, step)
                square = [e.at.and_(e.equal(tall, n), e.equal(broad, n)) for n in _UNROLLED]
                if size:
                    right = e.at.and_(right, square[_UNROLLED.index(size)])
                else:
                    for one in square:
                        right = e.at.and_(right, e.at.not_(one))
                with e.at.if_then(right):
                    e.at.call(way, [description, held, y_at, image, o])
            for kind, finished in finish.items():
                with e.at.if_then(e.equal(activation, int(kind))):
                    e.at.call(finished, [description, y_at, image, o])
            return []

        e.loop(0, multiple, output)
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    in_team(module, "depthwise", made, 4)
    return str(module)


def _first_row(e: Emitter, position: Node, tile: Node, block: Node) -> list[Node]:
    """Where the block of a position begins, and the position within it."""
    which = e.div(position, tile)
    return [e.mul(which, block), e.sub(position, e.mul(which, tile))]


def _next_row(e: Emitter, place: list[Node], wide: Node, tile: Node, block: Node) -> list[Node]:
    """The same for the row below, in one block as all rows; dividing anew would take longer than some rows do."""
    base, within = place[0], e.add(place[1], wide)
    beyond = e.at.icmp_signed(">=", within, tile)
    zero = e.constant(0)
    return [e.add(base, e.at.select(beyond, block, zero)), e.sub(within, e.at.select(beyond, tile, zero))]


def _each_row(
    e: Emitter, description: Node, y: Node, image: Node, o: Node, body: Callable[[Node, Node, Node], None]
) -> None:
    """Calls ``body`` with the number of a row of outputs, where it lies, and how many columns it has."""
    rows, columns, tile, block = (
        e.read(description, int(f), I64)
        for f in (
            DepthwiseField.OUT_ROWS,
            DepthwiseField.OUT_COLUMNS,
            DepthwiseField.Y_TILE,
            DepthwiseField.Y_BLOCK,
        )
    )

    def row(q: Node, place: list[Node]) -> list[Node]:
        body(q, e.element(y, e.add(*place, e.mul(o, tile)), F32), columns)
        return _next_row(e, place, columns, tile, block)

    e.loop(0, rows, row, _first_row(e, e.mul(image, e.mul(rows, columns)), tile, block))


def _rows(module: ir.Module, lanes: int, size: int, stride: int) -> ir.Function:
    """One output's plane from the copy of a channel's plane; kernels of ``size``² or, if that is 0, of any size."""
    made = function(module, f"rows_{size}_{stride}", [PTR, PTR, PTR, I64, I64], exported=False)
    description, held, y, image, o = made.args
    e = Emitter(made, lanes)
    tall, broad, before, line, activation = (
        e.read(description, int(f), I64)
        for f in (
            DepthwiseField.KERNEL_ROWS,
            DepthwiseField.KERNEL_COLUMNS,
            DepthwiseField.PADDING_COLUMNS,
            DepthwiseField.LINE,
            DepthwiseField.ACTIVATION,
        )
    )
    weight = e.element(e.read(description, int(DepthwiseField.WEIGHT), PTR), e.mul(o, e.mul(tall, broad)), F32)
    bias = e.spread(e.read(e.read(description, int(DepthwiseField.BIAS), PTR), o, F32))
    six = e.equal(activation, int(Activation.RELU6))
    clipped = e.at.or_(six, e.equal(activation, int(Activation.RELU)))
    floor = e.spread(e.at.select(clipped, ir.Constant(F32, 0.0), ir.Constant(F32, float("-inf"))))
    ceiling = e.spread(e.at.select(six, ir.Constant(F32, 6.0), ir.Constant(F32, float("inf"))))
    known = [[e.spread(e.read(weight, size * r + k, F32)) for k in range(size)] for r in range(size)]

    def loaded(base: Node, at: Node) -> Node:
        if stride == 1:
            return e.load(base, at)
        pair = [e.load(base, e.add(at, lanes * i)) for i in range(2)]
        return e.shuffle(pair[0], pair[1], range(0, 2 * lanes, 2))

    def row(q: Node, out: Node, columns: Node) -> None:
        base = e.element(held, e.sub(e.add(e.mul(e.mul(q, stride), line), lanes), before), F32)
        whole = e.mul(e.div(columns, lanes), lanes)

        def value(j: Node) -> Node:
            at = e.mul(j, stride)
            total = bias
            if size:
                for r in range(size):
                    here = e.element(base, e.mul(r, line), F32)
                    for k in range(size):
                        total = e.fma(known[r][k], loaded(here, e.add(at, k)), total)
            else:

                def tap_row(r: Node, carried: list[Node]) -> list[Node]:
                    here = e.element(base, e.mul(r, line), F32)

                    def tap(k: Node, carried: list[Node]) -> list[Node]:
                        w = e.spread(e.read(weight, e.add(e.mul(r, broad), k), F32))
                        return [e.fma(w, loaded(here, e.add(at, k)), carried[0])]

                    return e.loop(0, broad, tap, carried)

                (total,) = e.loop(0, tall, tap_row, [total])
            return e.at_most(e.at_least(total, floor), ceiling)

        def several(j: Node, _: list[Node]) -> list[Node]:
            e.store(value(j), out, j)
            return []

        e.loop(0, whole, several, step=lanes)
        with e.at.if_then(e.less(whole, columns)):
            masked_store(e, value(whole), e.element(out, whole, F32), lanes_below(e, whole, columns))

    _each_row(e, description, y, image, o, row)
    e.at.ret_void()
    return made


def _finish(module: ir.Module, lanes: int, kind: Activation) -> ir.Function:
    """f of a whole plane of outputs, in place."""
    made = function(module, f"finish_{kind.name.lower()}", [PTR, PTR, I64, I64], exported=False)
    description, y, image, o = made.args
    e = Emitter(made, lanes)

    def row(q: Node, out: Node, columns: Node) -> None:
        del q
        whole = e.mul(e.div(columns, lanes), lanes)

        def several(j: Node, _: list[Node]) -> list[Node]:
            e.store(activated(e, e.load(out, j), kind), out, j)
            return []

        e.loop(0, whole, several, step=lanes)
        with e.at.if_then(e.less(whole, columns)):
            mask, end = lanes_below(e, whole, columns), e.element(out, whole, F32)
            masked_store(e, activated(e, masked_load(e, end, mask), kind), end, mask)

    _each_row(e, description, y, image, o, row)
    e.at.ret_void()
    return made
