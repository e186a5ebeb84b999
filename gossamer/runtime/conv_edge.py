"""How planes of a convolution come in and go out, as LLVM IR: shifted copies with zeros around them; rows of outputs.

A kernel reads the input at a distance of its own for every weight. Vectors that begin anywhere cross cache lines and
are loaded at half the rate; so a plane is copied once per distance modulo a vector, and all loads are aligned.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import Activation, activated

__all__ = [
    "SEGMENT_WORDS",
    "ConvField",
    "finish_functions",
    "lanes_below",
    "lying",
    "masked_load",
    "masked_store",
    "pack_copies",
    "places_of_segments",
]

Node = Any  # llvmlite has no type stubs

_COPY_WORDS = 3
SEGMENT_WORDS = 3


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
    INDEX = 9  # uint16: distance from the start of the panel, in units
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
    X_TILE = 33  # positions per block, which are also the floats from channel to channel
    X_BLOCK = 34  # floats per block
    X_PLANE = 35  # positions per image
    Y_TILE = 36
    Y_BLOCK = 37
    Y_PLANE = 38
    SEGMENTS = 39  # int32 [n, 3]: place in the tile, place in the plane, how many outputs
    SEGMENT_STARTS = 40  # int64 [BANDS · TILES + 1]
    SCRATCH = 41  # of one member of the team
    PLACES = 42  # the first so many of them hold sums; then comes where segments of a tile go,
    SUMS = 43  # and after so many floats copies
    IN_PLACE = 44  # 1 if sums are kept where outputs belong
    NEXT = 45  # 1 if a tile is a whole block: then the next one is fetched while this one is worked on
    UNIT = 47  # of indices, in floats
    FETCHED = 46  # floats of the next block's inputs per group of rows and panel


def lying(e: Emitter, position: Node, tile: Node, block: Node) -> Node:
    """Where in memory a position of the first channel is."""
    which = e.div(position, tile)
    return e.add(e.mul(which, e.sub(block, tile)), position)


def pack_copies(module: ir.Module, lanes: int) -> ir.Function:
    """``pack_copies(description, x, copies, rows, image, band)``: all copies of all channels of a band of one image.

    ``rows`` has room for int64 [COPIES, LINES + 2].
    """
    ways = {stride: _pack(module, lanes, stride) for stride in (1, 2, 0)}
    made = function(module, "pack_copies", [PTR] * 4 + [I64] * 2, exported=False)
    description, x, copies, rows, image, band = made.args
    e = Emitter(made, lanes)
    count, lines, high, wide, down, across, band_step, x_tile, x_block, x_plane = (
        e.read(description, int(f), I64)
        for f in (
            ConvField.COPIES,
            ConvField.LINES,
            ConvField.HEIGHT,
            ConvField.BREADTH,
            ConvField.ROW_STRIDE,
            ConvField.COLUMN_STRIDE,
            ConvField.BAND_STEP,
            ConvField.X_TILE,
            ConvField.X_BLOCK,
            ConvField.X_PLANE,
        )
    )
    table = e.read(description, int(ConvField.COPY), PTR)
    begin = e.mul(image, x_plane)

    def copy(k: Node, _: list[Node]) -> list[Node]:
        mine = e.element(rows, e.mul(k, e.add(lines, 2)), I64)
        first = e.add(e.read(table, e.mul(k, _COPY_WORDS), I64), e.mul(band, band_step))

        def row(r: Node, carried: list[Node]) -> list[Node]:
            source = e.add(first, e.mul(r, down))
            before, low = e.less(source, 0), e.less(source, high)
            inside = e.at.and_(low, e.at.not_(before))
            position = e.add(begin, e.mul(e.at.select(inside, source, e.constant(0)), wide))
            e.write(lying(e, position, x_tile, x_block), mine, e.add(r, 2))
            return [e.add(n, e.at.zext(bit, I64)) for n, bit in zip(carried, (before, low), strict=True)]

        ends = e.loop(0, lines, row, [e.constant(0), e.constant(0)])
        for i, end in enumerate(ends):
            e.write(end, mine, i)
        return []

    e.loop(0, count, copy)
    for stride, way in ways.items():
        right = e.equal(across, stride) if stride else e.less(2, across)
        with e.at.if_then(right):
            e.at.call(way, [description, x, copies, rows])
    e.at.ret_void()
    return made


def _stored(e: Emitter, value: Node, base: Node, at: Node) -> list[Node]:
    e.store(value, base, at)
    return []


def _pack(module: ir.Module, lanes: int, stride: int) -> ir.Function:
    """Copies of all channels; ``rows`` says which rows of a copy lie in the plane, and where.

    Column by column of vectors, for all rows share a column's mask. Rows begin up to a vector early and end up to a
    vector late: the last column is written first, so that each row overwrites what the one before left beyond its end.
    """
    made = function(module, f"pack_stride_{stride or 'any'}", [PTR] * 4, exported=False)
    description, x, copies, rows = made.args
    e = Emitter(made, lanes)
    channels, count, size, line, lines, wide, across, x_channel = (
        e.read(description, int(f), I64)
        for f in (
            ConvField.CHANNELS,
            ConvField.COPIES,
            ConvField.COPY_SIZE,
            ConvField.LINE,
            ConvField.LINES,
            ConvField.BREADTH,
            ConvField.COLUMN_STRIDE,
            ConvField.X_TILE,
        )
    )
    table = e.read(description, int(ConvField.COPY), PTR)
    columns = e.div(e.add(line, lanes - 1), lanes)

    def channel(c: Node, _: list[Node]) -> list[Node]:
        plane = e.element(x, e.mul(c, x_channel), F32)

        def copy(k: Node, _: list[Node]) -> list[Node]:
            left, shift = (e.read(table, e.add(e.mul(k, _COPY_WORDS), i), I64) for i in (1, 2))
            target = e.element(copies, e.add(e.mul(e.add(e.mul(c, count), k), size), e.sub(lanes, shift)), F32)
            end = e.add(e.sub(size, lanes), shift)
            mine = e.element(rows, e.mul(k, e.add(lines, 2)), I64)
            first, last = (e.read(mine, i, I64) for i in range(2))

            def column(n: Node, _: list[Node]) -> list[Node]:
                j = e.mul(e.sub(e.sub(columns, 1), n), lanes)
                until = e.least(lines, e.div(e.add(e.sub(end, j), e.sub(line, 1)), line))
                until = e.at.select(e.less(j, end), until, e.constant(0))
                upper, lower = e.least(first, until), e.least(last, until)

                def zeros(r: Node, _: list[Node]) -> list[Node]:
                    return _stored(e, e.number(0), target, e.add(e.mul(r, line), j))

                def read(take: Callable[[Node], Node]) -> None:
                    def row(r: Node, _: list[Node]) -> list[Node]:
                        source = e.element(plane, e.read(mine, e.add(r, 2), I64), F32)
                        return _stored(e, take(source), target, e.add(e.mul(r, line), j))

                    e.loop(upper, lower, row)

                e.loop(0, upper, zeros)
                _rows_of_column(e, read, left, j, wide, stride, across)
                e.loop(e.at.select(e.less(lower, upper), upper, lower), until, zeros)
                return []

            e.loop(0, columns, column)
            return []

        e.loop(0, count, copy)
        return []

    e.loop(0, channels, channel)
    e.at.ret_void()
    return made


def _rows_of_column(
    e: Emitter,
    read: Callable[[Callable[[Node], Node]], None],
    left: Node,
    j: Node,
    wide: Node,
    stride: int,
    across: Node,
) -> None:
    """Writes the loop that takes ``row[left + across·(j + i)]`` for every lane i, zero outside of [0, wide)."""
    lanes = e.lanes
    if not stride:
        places = [e.add(left, e.mul(e.add(j, i), across)) for i in range(lanes)]
        within = [e.at.icmp_unsigned("<", at, wide) for at in places]

        def gathered(source: Node) -> Node:
            value = e.number(0)
            for i, (at, is_within) in enumerate(zip(places, within, strict=True)):
                found = e.read(source, e.at.select(is_within, at, e.constant(0)), F32)
                kept = e.at.select(is_within, found, ir.Constant(F32, 0.0))
                value = e.at.insert_element(value, kept, ir.Constant(I32, i))
            return value

        read(gathered)
        return
    at = e.add(left, e.mul(j, stride))
    offsets = [e.add(at, lanes * i) for i in range(stride)]
    masks = [lanes_below(e, o, wide) for o in offsets]

    def joined(vectors: list[Node]) -> Node:
        return vectors[0] if stride == 1 else e.shuffle(vectors[0], vectors[1], range(0, 2 * lanes, 2))

    def address(source: Node, offset: Node) -> Node:
        return e.at.gep(source, [offset], source_etype=F32)  # may lie before the row: not read there

    whole = e.at.and_(e.at.icmp_signed(">=", at, e.constant(0)), e.less(e.add(at, stride * lanes - 1), wide))
    with e.at.if_else(whole) as (yes, no):
        with yes:
            read(lambda s: joined([e.load(address(s, o), 0) for o in offsets]))
        with no:
            read(lambda s: joined([masked_load(e, address(s, o), m) for o, m in zip(offsets, masks, strict=True)]))


def lanes_below(e: Emitter, at: Node, end: Node) -> Node:
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


def places_of_segments(module: ir.Module, lanes: int) -> ir.Function:
    """``places(description, segments, places, count, image)``: int64 [count], where outputs of channel 0 go."""
    made = function(module, "places_of_segments", [PTR, PTR, PTR, I64, I64], exported=False)
    description, segments, places, count, image = made.args
    e = Emitter(made, lanes)
    tile, block, plane = (
        e.read(description, int(f), I64) for f in (ConvField.Y_TILE, ConvField.Y_BLOCK, ConvField.Y_PLANE)
    )

    def segment(s: Node, _: list[Node]) -> list[Node]:
        target = e.wide(segments, e.add(e.mul(s, SEGMENT_WORDS), 1), I32)
        e.write(lying(e, e.add(e.mul(image, plane), target), tile, block), places, s)
        return []

    e.loop(0, count, segment)
    e.at.ret_void()
    return made


def finish_functions(module: ir.Module, lanes: int) -> Callable[[Emitter, Node, list[Node]], None]:
    """Writes the call ``y = f(sums + residual)`` for rows [first, last) and the segments of a tile.

    Returns:
        Takes the emitter, the activation and (description, sums, y, residual or null, segments, their places, how many
        segments, first, last).
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
    made = function(module, name, [PTR] * 6 + [I64] * 3, exported=False)
    description, sums, y, residual, segments, places, count, first, last = made.args
    e = Emitter(made, lanes)
    tile = e.mul(e.read(description, int(ConvField.WIDTH), I64), lanes)
    y_channel = e.read(description, int(ConvField.Y_TILE), I64)

    def value(source: Node, other: Node | None) -> Node:
        total = source if other is None else e.at.fadd(source, other)
        return total if kind is Activation.NONE else activated(e, total, kind)

    def row(o: Node, _: list[Node]) -> list[Node]:
        sums_row = e.element(sums, e.mul(o, tile), F32)
        y_row, r_row = (e.element(base, e.mul(o, y_channel), F32) for base in (y, residual))

        def segment(s: Node, _: list[Node]) -> list[Node]:
            place, length = (e.wide(segments, e.add(e.mul(s, SEGMENT_WORDS), i), I32) for i in (0, 2))
            target = e.read(places, s, I64)
            whole = e.mul(e.div(length, lanes), lanes)

            def one(i: Node, _: list[Node]) -> list[Node]:
                at = e.add(target, i)
                other = e.load(r_row, at) if with_residual else None
                return _stored(e, value(e.load(sums_row, e.add(place, i)), other), y_row, at)

            e.loop(0, whole, one, step=lanes)
            with e.at.if_then(e.less(whole, length)):
                live = lanes_below(e, e.constant(0), e.sub(length, whole))
                at = e.add(target, whole)
                other = masked_load(e, e.element(r_row, at, F32), live) if with_residual else None
                out = value(e.load(sums_row, e.add(place, whole)), other)
                masked_store(e, out, e.element(y_row, at, F32), live)
            return []

        e.loop(0, count, segment)
        return []

    e.loop(first, last, row)
    e.at.ret_void()
    return made
