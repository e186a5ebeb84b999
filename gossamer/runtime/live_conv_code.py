"""Kernels for convolutions that train with live weights only, as LLVM IR: products, and the gradient of the weights.

Activations lie in blocks of as many images as a vector has lanes, [blocks, rows, channels, columns, images], in a frame
of zeros (`live_planes_code` brings them there). Every position is a whole aligned vector, so that a weight reads whole
vectors at one distance from every output, whatever its place in the kernel. A tile is a few columns of an image row.

A weight is a matrix [rows, channels · taps], cut into chunks of rows and panels of channels. In each such cell a row's
non-zeros are one segment. Segments of a cell lie by length, so that the end of each is foreseen by the processor.

- *product*: one row of a tile of Y in registers while a segment is gone through; per non-zero one scalar meets a tile
  of X. The gradient of the input is the same with the transposed weight, which reads dY; where a convolution steps over
  columns, it is one product for each place between two steps, and outputs lie apart.
- *gradient*: one row of a tile of dY in registers; per non-zero a dot product with a tile of X, four of which are
  summed across lanes together. Sums over tiles stay in the order of the segments.

Every call computes one layer and writes its whole output. Positions are data: the same code serves every weight.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, final

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I32, I64, PTR, Emitter, function
from gossamer.runtime.dot_code import add_onto, dots_of_segment
from gossamer.runtime.layout import in_team
from gossamer.runtime.live_planes_code import add_planes

__all__ = ["STRIDES", "WIDEST", "ConvField", "live_conv_kernels"]

Node = Any  # llvmlite has no type stubs

WIDEST = 8
"""Columns per tile at most: as many sums as hide the latency of an addition."""

STRIDES = (1, 2)
"""Steps between the columns of a tile for which there is code."""

_AHEAD = 4
"""Segments ahead of the one at hand whose outputs are asked for; orders are longer by as many."""

_LINE = 64
"""Bytes of a cache line."""


class ConvField(IntEnum):
    """Where kernels find what in a description, beside ``layout.Pool``; distances in bytes.

    X is what a product reads and Y what it writes; in the gradient of the weights, Y is what was written then.
    """

    ROWS = 0
    PANELS = 1
    CHUNKS = 2
    STEP = 3  # rows per chunk
    ORDER = 4  # uint32 [CHUNKS, PANELS, rows of the chunk] and a few more: the row of each segment
    COUNTS = 5  # uint32, as ORDER: how many non-zeros it has
    CELLS = 6  # int64 [CHUNKS · PANELS + 1]: the first non-zero of each cell
    INDEX = 7  # uint32 [non-zeros]: distance from the start of the panel
    PANEL_STRIDE = 8  # of X, from panel to panel
    HEIGHT = 9  # image rows of Y
    TILES = 10  # per image row; all are WIDTH wide but the last
    WIDTH = 15
    LAST = 16
    STRIDE = 17  # columns of X per column of Y
    X_BLOCK = 18  # from block to block
    X_ROW = 19  # from what an image row of Y reads to what the next one does
    Y_BLOCK = 20
    Y_ROW = 21
    Y_LINE = 22  # from channel to channel
    Y_COLUMN = 23
    X_LINE = 24  # from channel to channel
    X_FRESH = 25  # from what the first tap reads to the last image row that any tap reads
    X_FIRST = 26  # what the first tap of the first output reads
    Y_FIRST = 27  # the first output
    VALUES_FIRST = 28  # of the ordered values
    PHASES = 29  # products that one call computes, which are described one after the other; of this size:
    WORDS = 30


def live_conv_kernels(lanes: int) -> str:
    """LLVM IR of a module with four entry points, each with a description first and a number of threads last.

    ``multiply(layout, values, x, y, bias, blocks, threads)`` is Y = W ⊛ X + b; bias may be null.

    ``weigh(layout, x, dy, sums, blocks, threads)`` is dW at the live places, in the order of the layout.

    ``pack`` and ``unpack`` change the layout of activations: `live_planes_code`.

    Args:
        lanes: floats per vector register, a power of two from 4 on; also the images of a block.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_live_conv")
    shapes = [(stride, width) for stride in STRIDES for width in range(1, WIDEST + 1)]
    _multiply(module, lanes, {shape: _product(module, lanes, *shape) for shape in shapes})
    _weigh(module, lanes, {shape: _dots(module, lanes, *shape) for shape in shapes})
    add_planes(module, lanes)
    return str(module)


@final
class _Layout:
    """The fields of a description, as kernels read them."""

    def __init__(self, e: Emitter, description: Node) -> None:
        self.e, self.description = e, description
        self.rows, self.panels, self.chunks, self.step = (
            self.word(f) for f in (ConvField.ROWS, ConvField.PANELS, ConvField.CHUNKS, ConvField.STEP)
        )

    def word(self, field: ConvField) -> Node:
        """An integer."""
        return self.e.read(self.description, int(field), I64)

    def address(self, field: ConvField) -> Node:
        """An array."""
        return self.e.read(self.description, int(field), PTR)

    def fetch(self, x_panel: Node, ahead: Node, channel: Node, vectors: int) -> None:
        """Asks for what the next tile reads of a channel and no tile before it has read."""
        e = self.e
        distance = e.add(ahead, self.word(ConvField.X_FRESH), e.mul(channel, self.word(ConvField.X_LINE)))
        for byte in range(0, vectors * 4 * e.lanes, _LINE):
            e.prefetch(x_panel, e.add(distance, byte), I8, near=False)

    def cell(self, c: Node, panel: Node) -> tuple[Node, Node, Node]:
        """Of a cell: number of the first segment, how many there are, and the first non-zero."""
        e = self.e
        first = e.mul(c, self.step)
        rows = e.least(self.step, e.sub(self.rows, first))
        begin = e.read(self.address(ConvField.CELLS), e.add(e.mul(c, self.panels), panel), I64)
        return e.add(e.mul(first, self.panels), e.mul(panel, rows)), rows, begin

    def chosen(self, made: dict[tuple[int, int], ir.Function], arguments: list[Node]) -> tuple[Node, Node]:
        """The functions for a tile and for the last tile of an image row."""
        e, stride, found = self.e, self.word(ConvField.STRIDE), []
        for field in (ConvField.WIDTH, ConvField.LAST):
            width, address = self.word(field), e.constant(0)
            for (step, n), one in made.items():
                right = e.at.and_(e.equal(stride, step), e.equal(width, n))
                address = e.at.select(right, e.at.ptrtoint(one, I64), address)
            found.append(e.foreign(address, ir.VoidType(), arguments))
        return found[0], found[1]


@final
class _Tiles:
    """All tiles of an image row, one after the other."""

    def __init__(self, e: Emitter, w: _Layout, functions: tuple[Node, Node]) -> None:
        self.e, self.functions = e, functions
        self.height, self.last = w.word(ConvField.HEIGHT), e.sub(w.word(ConvField.TILES), 1)
        width = w.word(ConvField.WIDTH)
        self.x_step = e.mul(width, e.mul(w.word(ConvField.STRIDE), 4 * e.lanes))
        self.y_step = e.mul(width, w.word(ConvField.Y_COLUMN))
        self.x_block, self.x_row, self.x_first, self.y_block, self.y_row, self.y_first = (
            w.word(f)
            for f in (
                ConvField.X_BLOCK,
                ConvField.X_ROW,
                ConvField.X_FIRST,
                ConvField.Y_BLOCK,
                ConvField.Y_ROW,
                ConvField.Y_FIRST,
            )
        )

    def call(self, block: Node, row: Node, x: Node, y: Node, arguments: Any) -> None:
        """Calls ``function(*arguments(x, y, ahead, tile))`` for the tiles of an image row of a block.

        ``ahead`` is the distance from what a tile reads to what the next one does, perhaps in the next image row.
        """
        e = self.e
        x_row = e.add(x, self.x_first, e.mul(block, self.x_block), e.mul(row, self.x_row))
        y_row = e.add(y, self.y_first, e.mul(block, self.y_block), e.mul(row, self.y_row))

        def at(t: Node, ahead: Node) -> list[Node]:
            found = [e.add(x_row, e.mul(t, self.x_step)), e.add(y_row, e.mul(t, self.y_step))]
            return list(arguments(*(e.at.inttoptr(a, PTR) for a in found), ahead, t))

        def tile(t: Node, _: list[Node]) -> list[Node]:
            e.at.call(self.functions[0], at(t, self.x_step))
            return []

        e.loop(0, self.last, tile)
        e.at.call(self.functions[1], at(self.last, e.sub(self.x_row, e.mul(self.last, self.x_step))))


def _share(e: Emitter, whole: Node, part: Node, team: Node) -> tuple[Node, Node]:
    """A member's share of so many pieces of work."""
    low, high = (e.div(e.mul(e.add(part, i), whole), team) for i in range(2))
    return low, high


def _bytes(e: Emitter, base: Node, distance: Node) -> Node:
    return e.at.gep(base, [e.constant(distance)], source_etype=I8)


def _product(module: ir.Module, lanes: int, stride: int, width: int) -> ir.Function:
    """All rows of one tile."""
    made = function(module, f"product_{stride}_{width}", [PTR] * 5 + [I64], exported=False)
    description, values, x, y, bias, ahead = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    align = lanes * 4
    order, counts, index = (w.address(f) for f in (ConvField.ORDER, ConvField.COUNTS, ConvField.INDEX))
    line, column, panel_stride = (w.word(f) for f in (ConvField.Y_LINE, ConvField.Y_COLUMN, ConvField.PANEL_STRIDE))
    biased = e.at.not_(e.equal(e.at.ptrtoint(bias, I64), 0))

    def panel(p: Node, _: list[Node]) -> list[Node]:
        x_panel = _bytes(e, x, e.mul(p, panel_stride))
        opening = e.equal(p, 0)
        from_bias = e.at.and_(opening, biased)

        def chunk(c: Node, _: list[Node]) -> list[Node]:
            segment, rows, begin = w.cell(c, p)

            def row(s: Node, carried: list[Node]) -> list[Node]:
                (at,) = carried
                r = e.wide(order, s, I32)
                later = _bytes(e, y, e.mul(e.wide(order, e.add(s, _AHEAD), I32), line))
                for v in range(0, width * align, _LINE):
                    e.prefetch(later, v, I8)
                w.fetch(x_panel, ahead, e.add(e.mul(c, w.step), e.sub(s, segment)), width * stride)
                outs, out = [], _bytes(e, y, e.mul(r, line))
                for _v in range(width):
                    outs.append(out)
                    out = _bytes(e, out, column)

                def before() -> list[Node]:
                    return e.choose(
                        from_bias, lambda: [e.spread(e.read(bias, r, F32))] * width, lambda: [e.number(0)] * width
                    )

                sums = e.choose(opening, before, lambda: [e.load(out, 0, align) for out in outs])
                end = e.add(at, e.wide(counts, s, I32))

                def one(k: Node, sums: list[Node]) -> list[Node]:
                    weight = e.spread(e.read(values, k, F32))
                    read = _bytes(e, x_panel, e.wide(index, k, I32))
                    return [e.fma(weight, e.load(read, lanes * stride * v, align), s) for v, s in enumerate(sums)]

                # In the order of columns, as in `live_code`: a live zero changes no bit.
                sums = e.loop(at, end, one, sums)
                for total, out in zip(sums, outs, strict=True):
                    e.store(total, out, 0, align)
                return [end]

            e.loop(segment, e.add(segment, rows), row, [begin])
            return []

        e.loop(0, w.chunks, chunk)
        return []

    e.loop(0, w.panels, panel)
    e.at.ret_void()
    return made


def _multiply(module: ir.Module, lanes: int, products: dict[tuple[int, int], ir.Function]) -> None:
    """Members take image rows, those of all phases that lie side by side."""
    made = function(module, "multiply_share", [PTR] + [I64] * 7, exported=False)
    description, values, x, y, bias, blocks, part, team = made.args
    e = Emitter(made, lanes)
    first = _Layout(e, description)
    height, phases, size = (first.word(f) for f in (ConvField.HEIGHT, ConvField.PHASES, ConvField.WORDS))
    low, high = _share(e, e.mul(blocks, height), part, team)
    bias_at = e.at.inttoptr(bias, PTR)

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, height)
        row = e.sub(u, e.mul(block, height))

        def phase(i: Node, _: list[Node]) -> list[Node]:
            mine = e.element(description, e.mul(i, size), I64)
            w = _Layout(e, mine)
            with e.at.if_then(e.less(row, w.word(ConvField.HEIGHT))):
                tiles = _Tiles(e, w, w.chosen(products, [PTR] * 5 + [I64]))
                values_at = e.at.inttoptr(e.add(values, w.word(ConvField.VALUES_FIRST)), PTR)
                tiles.call(
                    block,
                    row,
                    x,
                    y,
                    lambda x_tile, y_tile, ahead, _: [mine, values_at, x_tile, y_tile, bias_at, ahead],
                )
            return []

        e.loop(0, phases, phase)
        return []

    e.loop(low, high, unit)
    e.at.ret_void()
    in_team(module, "multiply", made, 5)


def _dots(module: ir.Module, lanes: int, stride: int, width: int) -> ir.Function:
    """Dot products of rows of dY with X at the live places of the cells [low, high), for one tile."""
    made = function(module, f"dots_{stride}_{width}", [PTR] * 4 + [I64] * 4, exported=False)
    description, x, dy, sums, low, high, more, ahead = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    align = lanes * 4
    order, counts, index = (w.address(f) for f in (ConvField.ORDER, ConvField.COUNTS, ConvField.INDEX))
    line, panel_stride = w.word(ConvField.Y_LINE), w.word(ConvField.PANEL_STRIDE)
    adding = e.at.not_(e.equal(more, 0))

    def cell(u: Node, _: list[Node]) -> list[Node]:
        c = e.div(u, w.panels)
        p = e.sub(u, e.mul(c, w.panels))
        x_panel = _bytes(e, x, e.mul(p, panel_stride))
        segment, rows, begin = w.cell(c, p)

        def row(s: Node, carried: list[Node]) -> list[Node]:
            (at,) = carried
            later = _bytes(e, dy, e.mul(e.wide(order, e.add(s, _AHEAD), I32), line))
            for v in range(0, width * align, _LINE):
                e.prefetch(later, v, I8)
            w.fetch(x_panel, ahead, e.add(e.mul(c, w.step), e.sub(s, segment)), width * stride)
            dy_row = _bytes(e, dy, e.mul(e.wide(order, s, I32), line))
            held = [e.load(dy_row, lanes * v, align) for v in range(width)]
            count = e.wide(counts, s, I32)

            def read(k: Node) -> Node:
                return _bytes(e, x_panel, e.wide(index, k, I32))

            def put(found: Node, k: Node) -> None:
                add_onto(e, found, e.element(sums, k, F32), adding)

            return [dots_of_segment(e, at, count, held, read, put, step=stride)]

        e.loop(segment, e.add(segment, rows), row, [begin])
        return []

    e.loop(low, high, cell)
    e.at.ret_void()
    return made


def _weigh(module: ir.Module, lanes: int, dots: dict[tuple[int, int], ir.Function]) -> None:
    """Members take cells: every gradient is summed by one of them, tile after tile."""
    made = function(module, "weigh_share", [PTR] + [I64] * 6, exported=False)
    description, x, dy, sums, blocks, part, team = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    tiles = _Tiles(e, w, w.chosen(dots, [PTR] * 4 + [I64] * 4))
    low, high = _share(e, e.mul(w.chunks, w.panels), part, team)
    sums_at = e.at.inttoptr(sums, PTR)

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, tiles.height)
        tiles.call(
            block,
            e.sub(u, e.mul(block, tiles.height)),
            x,
            dy,
            lambda x_tile, dy_tile, ahead, t: [description, x_tile, dy_tile, sums_at, low, high, e.add(u, t), ahead],
        )
        return []

    e.loop(0, e.mul(blocks, tiles.height), unit)
    e.at.ret_void()
    in_team(module, "weigh", made, 4)
