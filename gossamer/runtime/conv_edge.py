"""How planes of a convolution come in and go out, as LLVM IR: shifted copies with zeros around them; rows of outputs.

A kernel reads the input at a distance of its own for every weight. Vectors that begin anywhere cross cache lines and
are loaded at half the rate; so a plane is copied once per distance modulo a vector, and all loads are aligned.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.runtime.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import Activation, activated

__all__ = ["ConvField", "finish_functions", "pack_copies"]

Node = Any  # llvmlite has no type stubs

_COPY_WORDS = 3
_SEGMENT_WORDS = 4


class ConvField(IntEnum):
    """Where kernels find what in the description of a convolution, beside ``layout.Pool`` at 11 to 14.

    Sizes and strides are counted in floats. A band is a run of output rows that is worked on at once.
    """

    ROWS = 0
    CHANNELS = 1
    PANELS = 2
    PANEL_STRIDE = 3  # of X, from panel to panel
    CHUNKS = 4
    STEP = 5  # chunks per block
    STARTS = 6  # as in group_code.Field, and so on to VALUES
    COUNTS = 7
    ORDER = 8
    INDEX = 9  # uint16: distance from the start of the panel, in vectors
    VALUES = 10
    BIAS = 15
    ACTIVATION = 16
    WAY = 17
    BOUNDS = 18  # int64 [CHUNKS + 1]: first row of each chunk
    WIDTH = 19  # vectors per tile
    TILES = 20  # per band
    VECTORS = 21  # per band; the last tile ends there and may overlap the one before
    BANDS = 22
    BAND_STEP = 23  # rows of the input from band to band
    COPIES = 24  # per channel; 0 where X is read as it lies
    COPY = 25  # int64 [COPIES, 3]: first row and column in the input, shift
    COPY_SIZE = 26
    LINE = 27  # floats from row to row within a copy
    LINES = 28  # rows of a copy
    HEIGHT = 29
    BREADTH = 30
    ROW_STRIDE = 31  # of the convolution
    COLUMN_STRIDE = 32
    X_CHANNEL = 33  # floats from channel to channel
    X_IMAGE = 34
    Y_CHANNEL = 35
    Y_IMAGE = 36
    SEGMENTS = 37  # int32 [n, 4]: place in the tile, place in the plane, how many outputs, how many with zeros after
    SEGMENT_STARTS = 38  # int64 [BANDS · TILES + 1]
    SCRATCH = 39  # of one member of the team
    SUMS = 40  # the first so many of them hold sums, the rest holds copies


def pack_copies(module: ir.Module, lanes: int) -> ir.Function:
    """``pack_copies(description, x, copies, band)``: all copies of all channels of a band of one image."""
    rows = {stride: _pack_row(module, lanes, stride) for stride in (1, 2, 0)}
    made = function(module, "pack_copies", [PTR, PTR, PTR, I64], exported=False)
    description, x, copies, band = made.args
    e = Emitter(made, lanes)
    channels, count, size, line, lines, high, wide, down, across, x_channel, band_step = (
        e.read(description, int(f), I64)
        for f in (
            ConvField.CHANNELS,
            ConvField.COPIES,
            ConvField.COPY_SIZE,
            ConvField.LINE,
            ConvField.LINES,
            ConvField.HEIGHT,
            ConvField.BREADTH,
            ConvField.ROW_STRIDE,
            ConvField.COLUMN_STRIDE,
            ConvField.X_CHANNEL,
            ConvField.BAND_STEP,
        )
    )
    table = e.read(description, int(ConvField.COPY), PTR)
    top, content = e.mul(band, band_step), e.sub(size, lanes)

    def channel(c: Node, _: list[Node]) -> list[Node]:
        plane = e.element(x, e.mul(c, x_channel), F32)

        def copy(k: Node, _: list[Node]) -> list[Node]:
            first, left, shift = (e.read(table, e.add(e.mul(k, _COPY_WORDS), i), I64) for i in range(_COPY_WORDS))
            # Rows begin up to a vector early; each overwrites what the one before left beyond its end.
            begin = e.add(e.mul(e.add(e.mul(c, count), k), size), e.sub(lanes, shift))

            def row(r: Node, _: list[Node]) -> list[Node]:
                source = e.add(e.add(first, top), e.mul(r, down))
                target = e.element(copies, e.add(begin, e.mul(r, line)), F32)
                inside = e.at.icmp_unsigned("<", source, high)
                length = e.least(line, e.sub(e.add(content, shift), e.mul(r, line)))
                with e.at.if_else(inside) as (yes, no):
                    with yes:
                        arguments = [target, e.element(plane, e.mul(source, wide), F32), left, wide, length, across]
                        with e.at.if_else(e.equal(across, 1)) as (adjacent, apart):
                            with adjacent:
                                e.at.call(rows[1], arguments)
                            with apart, e.at.if_else(e.equal(across, 2)) as (second, other):
                                with second:
                                    e.at.call(rows[2], arguments)
                                with other:
                                    e.at.call(rows[0], arguments)
                    with no:
                        e.loop(0, length, lambda j, _: _stored(e, e.number(0), target, j), step=lanes)
                return []

            e.loop(0, lines, row)
            return []

        e.loop(0, count, copy)
        return []

    e.loop(0, channels, channel)
    e.at.ret_void()
    return made


def _stored(e: Emitter, value: Node, base: Node, at: Node) -> list[Node]:
    e.store(value, base, at)
    return []


def _pack_row(module: ir.Module, lanes: int, stride: int) -> ir.Function:
    """``target[j] = row[left + j·across]``, zero where the row ends, for j < length rounded up to a vector."""
    made = function(module, f"pack_row_{stride or 'any'}", [PTR, PTR] + [I64] * 4, exported=False)
    target, row, left, wide, length, across = made.args
    e = Emitter(made, lanes)

    def several(j: Node, _: list[Node]) -> list[Node]:
        if stride == 1:
            value = _within(e, row, e.add(left, j), wide)
        elif stride == 2:
            at = e.add(left, e.mul(j, 2))
            pair = [_within(e, row, e.add(at, lanes * i), wide) for i in range(2)]
            value = e.shuffle(pair[0], pair[1], range(0, 2 * lanes, 2))
        else:
            value = e.number(0)
            for i in range(lanes):
                at = e.add(left, e.mul(e.add(j, i), across))
                inside = e.at.icmp_unsigned("<", at, wide)
                found = e.read(row, e.at.select(inside, at, e.constant(0)), F32)
                kept = e.at.select(inside, found, ir.Constant(F32, 0.0))
                value = e.at.insert_element(value, kept, ir.Constant(I32, i))
        return _stored(e, value, target, j)

    e.loop(0, length, several, step=lanes)
    e.at.ret_void()
    return made


def _within(e: Emitter, row: Node, at: Node, wide: Node) -> Node:
    """The vector ``row[at:]``, zero outside [0, wide)."""
    whole = e.at.and_(e.at.icmp_signed(">=", at, e.constant(0)), e.less(e.add(at, e.lanes - 1), wide))
    address = e.at.gep(row, [at], source_etype=F32)  # may lie before the row: lanes there are not read
    (value,) = e.choose(
        whole,
        lambda: [e.at.load(address, align=4, typ=e.vector)],
        lambda: [masked_load(e, address, _lanes_below(e, at, wide))],
    )
    return value


def _lanes_below(e: Emitter, at: Node, end: Node) -> Node:
    """Which lanes i have 0 ≤ at + i < end, for numbers below 2³¹."""
    kind = ir.VectorType(I32, e.lanes)
    each = e.at.add(_every(e, e.at.trunc(at, I32)), ir.Constant(kind, list(range(e.lanes))))
    return e.at.icmp_unsigned("<", each, _every(e, e.at.trunc(e.constant(end), I32)))


def _every(e: Emitter, value: Node) -> Node:
    kind = ir.VectorType(I32, e.lanes)
    one = e.at.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return e.shuffle(one, one, [0] * e.lanes)


def _intrinsic(e: Emitter, name: str, result: Node, arguments: list[Node]) -> Node:
    full = f"llvm.masked.{name}.v{e.lanes}f32.p0"
    return e.made.module.globals.get(full) or ir.Function(e.made.module, ir.FunctionType(result, arguments), full)


def masked_load(e: Emitter, address: Node, mask: Node) -> Node:
    """Lanes of the mask from memory, zeros elsewhere."""
    found = _intrinsic(e, "load", e.vector, [PTR, I32, mask.type, e.vector])
    return e.at.call(found, [address, ir.Constant(I32, 4), mask, e.number(0)])


def masked_store(e: Emitter, value: Node, address: Node, mask: Node) -> None:
    """Lanes of the mask to memory."""
    found = _intrinsic(e, "store", ir.VoidType(), [e.vector, PTR, I32, mask.type])
    e.at.call(found, [value, address, ir.Constant(I32, 4), mask])


def finish_functions(module: ir.Module, lanes: int) -> Callable[[Emitter, Node, list[Node]], None]:
    """Writes the call ``y = f(sums + residual)`` for rows [first, last) and the segments of a tile.

    Returns:
        Takes the emitter, the activation and (description, sums, y, residual or null, segments, how many segments,
        first, last).
    """
    made = {
        (kind, residual): _finish(module, lanes, kind, residual) for kind in Activation for residual in (False, True)
    }

    def call(e: Emitter, activation: Node, arguments: list[Node]) -> None:
        some = e.at.icmp_unsigned("!=", e.at.ptrtoint(arguments[3], I64), e.constant(0))
        for (kind, residual), chosen in made.items():
            right = e.at.and_(e.equal(activation, int(kind)), some if residual else e.at.not_(some))
            with e.at.if_then(right):
                e.at.call(chosen, arguments)

    return call


def _finish(module: ir.Module, lanes: int, kind: Activation, with_residual: bool) -> ir.Function:
    name = f"finish_{kind.name.lower()}{'_plus' if with_residual else ''}"
    made = function(module, name, [PTR] * 5 + [I64] * 3, exported=False)
    description, sums, y, residual, segments, count, first, last = made.args
    e = Emitter(made, lanes)
    tile = e.mul(e.read(description, int(ConvField.WIDTH), I64), lanes)
    y_channel = e.read(description, int(ConvField.Y_CHANNEL), I64)

    def value(source: Node, other: Node | None) -> Node:
        total = source if other is None else e.at.fadd(source, other)
        return total if kind is Activation.NONE else activated(e, total, kind)

    def row(o: Node, _: list[Node]) -> list[Node]:
        sums_row = e.element(sums, e.mul(o, tile), F32)
        y_row, r_row = (e.element(base, e.mul(o, y_channel), F32) for base in (y, residual))

        def segment(s: Node, _: list[Node]) -> list[Node]:
            words = [e.wide(segments, e.add(e.mul(s, _SEGMENT_WORDS), i), I32) for i in range(_SEGMENT_WORDS)]
            place, target, length, full = words
            whole = e.mul(e.div(length, lanes), lanes)

            def one(i: Node, _: list[Node]) -> list[Node]:
                at = e.add(target, i)
                other = e.load(r_row, at) if with_residual else None
                return _stored(e, value(e.load(sums_row, e.add(place, i)), other), y_row, at)

            e.loop(0, whole, one, step=lanes)
            with e.at.if_then(e.less(whole, full)):
                live, written = (_lanes_below(e, e.constant(0), e.sub(end, whole)) for end in (length, full))
                at = e.add(target, whole)
                other = masked_load(e, e.element(r_row, at, F32), live) if with_residual else None
                out = value(e.load(sums_row, e.add(place, whole)), other)
                masked_store(e, e.at.select(live, out, e.number(0)), e.element(y_row, at, F32), written)
            return []

        e.loop(0, count, segment)
        return []

    e.loop(first, last, row)
    e.at.ret_void()
    return made
