"""Kernels for sparse convolutions over blocks of images, one image per lane of a vector, as LLVM IR.

A block of as many images as a vector has lanes lies as [image rows, channels, columns, images]. What an output row
needs of all channels is one run of memory, and a weight reads whole aligned vectors at one distance from every output:
neither shifted copies nor ragged tiles are needed. A tile is a few adjacent columns of an image row. Padding is a frame
of zeros that belongs to the tensor: columns before each channel's line, which also end the line before, and rows before
each block, which also end the block before.

The non-zeros of a group of rows are gone through as in `gossamer.runtime.group_code`, panel of channels by panel of
channels; sums wait between panels where the outputs belong. Residual and activation are applied in registers. While one
tile is worked on, what the next one reads and writes is fetched: most of these tensors exceed all caches.

Every call computes one layer and writes its whole output. Positions are data: the same code serves every weight.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Group, Way, height, segments_of, steps_of
from gossamer.runtime.image_edge_code import add_edges, zero_frame
from gossamer.runtime.layout import in_team

__all__ = ["STRIDES", "WIDEST", "ImageField", "image_kernels"]

Node = Any  # llvmlite has no type stubs

WIDEST = 7
"""Columns per tile at most: with the rows of a group they fill the registers, and rows of 7, 14, 28 and 56 exactly."""

STRIDES = (1, 2)
"""Steps between the columns of a tile for which there is code."""

AHEAD = 4
"""Groups whose outputs are brought near before they are needed."""

_LINE = 64  # bytes of a line of the caches, or half of one


class ImageField(IntEnum):
    """Where kernels find what, beside ``layout.Pool`` at 11 to 14; lengths in floats where nothing else is said.

    A tensor begins with the frame before its first block. Lines are from channel to channel, rows from image row to
    image row, as they lie in memory.
    """

    ROWS = 0
    PANELS = 1
    PANEL_STRIDE = 2  # of X, from panel to panel
    CHUNKS = 3
    WIDTH = 4  # columns per tile
    COLUMNS = 5  # of the output; the last tile ends there and may overlap the one before
    STARTS = 6  # as in group_code.Field, and so on to VALUES
    COUNTS = 7
    ORDER = 8
    INDEX = 9  # uint16: distance from the start of the panel, in vectors
    VALUES = 10
    BIAS = 15
    ACTIVATION = 16
    TILES = 17  # per image row
    STRIDE = 18  # of columns
    HEIGHT = 19  # image rows of the output
    X_FIRST = 20  # what the first weight of the first output reads
    X_BLOCK = 21
    X_ROW = 22  # from what an output row reads to what the next one does
    X_LINE = 23
    Y_FIRST = 24  # the first output
    Y_BLOCK = 25
    Y_ROW = 26
    Y_LINE = 27
    Y_FRAME = 28  # vectors of zeros before a line, and rows before a block
    R_FIRST = 29  # the same of the residual
    R_BLOCK = 30
    R_ROW = 31
    R_LINE = 32
    CHANNELS = 33  # per panel
    FRESH = 34  # of the image rows that an output row reads, where those begin that the one before did not read
    FRESH_ROW = 35
    FRESH_ROWS = 36
    STREAMED = 37  # 1 if outputs go past the caches, and sums of several panels wait elsewhere
    SCRATCH = 38  # where the sums of one member of a team wait


def image_kernels(lanes: int) -> str:
    """LLVM IR of a module with several entry points.

    ``convolve(description, x, y, residual, blocks, scratch, threads)`` is Y = f(W ⊛ X + b + residual); the residual may
    be null. ``ImageField`` says what the description holds. `image_edge_code` adds the others.

    Args:
        lanes: floats per vector register, a power of two; also the images of a block.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_images")
    products = {(stride, n): _product(module, lanes, stride, n) for stride in STRIDES for n in range(1, WIDEST + 1)}
    frame = _frame_function(module, lanes)
    made = function(module, "convolve_share", [PTR] + [I64] * 7, exported=False)
    description, x, y, residual, blocks, scratch, part, team = made.args
    e = Emitter(made, lanes)

    def word(field: ImageField) -> Node:
        return e.read(description, int(field), I64)

    high, tiles, width, columns, panels, stride, panel_stride, x_per_row, y_per_row, r_per_row = (
        word(f)
        for f in (
            ImageField.HEIGHT,
            ImageField.TILES,
            ImageField.WIDTH,
            ImageField.COLUMNS,
            ImageField.PANELS,
            ImageField.STRIDE,
            ImageField.PANEL_STRIDE,
            ImageField.X_ROW,
            ImageField.Y_ROW,
            ImageField.R_ROW,
        )
    )
    product = e.constant(0)
    for (step, n), one in products.items():
        right = e.at.and_(e.equal(stride, step), e.equal(width, n))
        product = e.at.select(right, e.at.ptrtoint(one, I64), product)
    call = e.foreign(product, ir.VoidType(), [PTR] * 5 + [I64] * 5)
    own = e.at.inttoptr(e.add(scratch, e.mul(part, e.mul(word(ImageField.SCRATCH), 4))), PTR)
    streamed = e.equal(word(ImageField.STREAMED), 1)
    sums_line = e.at.select(streamed, e.mul(width, lanes), word(ImageField.Y_LINE))
    none, units, column_bytes = e.equal(residual, 0), e.mul(blocks, high), 4 * lanes
    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))

    def place(base: Node, block: Node, row: Node, fields: tuple[ImageField, ImageField], per_row: Node) -> Node:
        begin, per_block = (word(f) for f in fields)
        return e.add(base, e.mul(4, e.add(begin, e.mul(block, per_block), e.mul(row, per_row))))

    def unit(u: Node, _: list[Node]) -> list[Node]:
        block = e.div(u, high)
        row = e.sub(u, e.mul(block, high))
        x_row = place(x, block, row, (ImageField.X_FIRST, ImageField.X_BLOCK), x_per_row)
        y_row = place(y, block, row, (ImageField.Y_FIRST, ImageField.Y_BLOCK), y_per_row)
        r_row = place(residual, block, row, (ImageField.R_FIRST, ImageField.R_BLOCK), r_per_row)
        ends = e.at.zext(e.equal(e.add(u, 1), units), I64)
        e.at.call(frame, [description, e.at.inttoptr(y_row, PTR), row, ends])

        def tile(t: Node, _: list[Node]) -> list[Node]:
            def column(t: Node) -> Node:
                return e.mul(e.least(e.mul(t, width), e.sub(columns, width)), column_bytes)

            along = column(t)
            more = e.less(e.add(t, 1), tiles)
            next_along = e.at.select(more, column(e.add(t, 1)), e.constant(0))

            def ahead(step: Node, per_row: Node) -> Node:
                """Bytes from what this tile uses to what the next one does, which may lie in the next image row."""
                after = e.at.select(more, e.constant(0), e.mul(per_row, 4))
                return e.add(e.mul(e.sub(next_along, along), step), after)

            x_tile = e.add(x_row, e.mul(along, stride))
            y_tile = e.at.inttoptr(e.add(y_row, along), PTR)
            r_tile = e.at.inttoptr(e.at.select(none, e.constant(0), e.add(r_row, along)), PTR)
            sums = e.at.select(streamed, own, y_tile)
            later = [ahead(stride, x_per_row), ahead(e.constant(1), y_per_row), ahead(e.constant(1), r_per_row)]

            def panel(p: Node, _: list[Node]) -> list[Node]:
                x_panel = e.at.inttoptr(e.add(x_tile, e.mul(p, e.mul(panel_stride, 4))), PTR)
                e.at.call(call, [description, x_panel, y_tile, r_tile, sums, sums_line, p, *later])
                return []

            e.loop(0, panels, panel)
            return []

        e.loop(0, tiles, tile)
        return []

    e.loop(first, last, unit)
    with e.at.if_then(streamed):
        e.at.fence("seq_cst")  # stores past the caches are not ordered otherwise
    e.at.ret_void()
    in_team(module, "convolve", made, 5)
    add_edges(module, lanes)
    return str(module)


def _frame_function(module: ir.Module, lanes: int) -> ir.Function:
    """``frame(description, y, row, last)``: zeros around an image row whose first output is at ``y``."""
    made = function(module, "frame_of_row", [PTR, PTR, I64, I64], exported=False)
    description, y, row, last = made.args
    e = Emitter(made, lanes)
    rows, frame, line, per_row = (
        e.read(description, int(f), I64)
        for f in (ImageField.ROWS, ImageField.Y_FRAME, ImageField.Y_LINE, ImageField.Y_ROW)
    )
    zero_frame(e, y, row, e.equal(last, 1), (rows, line, per_row, frame))
    e.at.ret_void()
    return made


class _Columns(Group):
    """A group whose vectors are columns of images, every one or every second one."""

    def __init__(self, e: Emitter, pointers: tuple[Node, Node, Node], x: Node, stride: int) -> None:
        super().__init__(e, *pointers, x, I16, e.lanes, segments_of(Way.SLICED))
        self.stride = stride

    def vector(self, address: Node, v: int) -> Node:
        """Column ``v`` of the tile."""
        return self.e.load(address, self.e.lanes * v * self.stride, self.e.lanes * 4)


def _product(module: ir.Module, lanes: int, stride: int, width: int) -> ir.Function:
    """One panel of W times one tile: added to what Y holds, or b + … in the first; the last adds R and clips."""
    made = function(module, f"columns_{stride}_{width}", [PTR] * 5 + [I64] * 5, exported=False)
    description, x, y, residual, sums_at, sums_line, panel, x_ahead, y_ahead, r_ahead = made.args
    e = Emitter(made, lanes)
    rows, align = height(Way.SLICED, lanes), lanes * 4
    starts, counts, order, index, values, bias = (
        e.read(description, int(f), PTR)
        for f in (
            ImageField.STARTS,
            ImageField.COUNTS,
            ImageField.ORDER,
            ImageField.INDEX,
            ImageField.VALUES,
            ImageField.BIAS,
        )
    )
    activation, panels, chunks, line, r_line = (
        e.read(description, int(f), I64)
        for f in (ImageField.ACTIVATION, ImageField.PANELS, ImageField.CHUNKS, ImageField.Y_LINE, ImageField.R_LINE)
    )
    opening, closing = e.equal(panel, 0), e.equal(panel, e.sub(panels, 1))
    kept = e.at.and_(opening, e.equal(e.read(description, int(ImageField.STREAMED), I64), 0))
    streaming = e.at.and_(closing, e.equal(e.read(description, int(ImageField.STREAMED), I64), 1))
    waiting = e.at.not_(e.at.and_(opening, streaming))  # memory that nobody has written is slow to ask for
    adding = e.at.and_(closing, e.at.icmp_unsigned("!=", e.at.ptrtoint(residual, I64), e.constant(0)))
    clipping = e.at.and_(closing, e.at.icmp_unsigned("!=", activation, e.constant(int(Activation.NONE))))
    six = e.equal(activation, int(Activation.RELU6))
    ceiling = e.at.select(six, ir.Constant(F32, 6.0), ir.Constant(F32, float("inf")))
    entry = e.mul(panel, e.mul(chunks, 3))
    begin, at, value_at = (e.read(starts, e.add(entry, i), I64) for i in range(3))
    end = e.read(starts, e.add(entry, e.mul(chunks, 3)), I64)
    steps = _Columns(e, (counts, index, values), x, stride)
    inputs = _Inputs(e, description, e.add(e.at.ptrtoint(x, I64), x_ahead), e.sub(end, begin), width * stride)

    def fetch_outputs(ids: list[Node]) -> None:
        for base, step, ahead, wanted in ((sums_at, line, y_ahead, kept), (residual, r_line, r_ahead, adding)):
            with e.at.if_then(wanted):
                for i in ids:
                    later = e.at.gep(base, [e.add(e.mul(i, e.mul(step, 4)), ahead)], source_etype=I8)
                    _fetch(e, later, width)

    def bring_near(g: Node) -> None:
        """Outputs of a group to come, and what is added to them, from the second-level cache to the first."""
        later = [e.wide(order, e.add(e.mul(e.add(g, AHEAD), rows), r), I32) for r in range(rows)]
        with e.at.if_then(waiting):
            for i in later:
                _fetch(e, e.element(sums_at, e.mul(i, sums_line), F32), width, nearest=True)
        with e.at.if_then(adding):
            for i in later:
                _fetch(e, e.element(residual, e.mul(i, r_line), F32), width, nearest=True)

    def group(g: Node, carried: list[Node]) -> list[Node]:
        at, value_at, channel = carried
        channel = inputs.fetch(channel)
        if lanes <= 8:  # longer vectors leave the processor fewer instructions to look beyond: it finds these itself
            bring_near(g)
        ids = [e.wide(order, e.add(e.mul(g, rows), r), I32) for r in range(rows)]
        fetch_outputs(ids)
        outs = [e.element(sums_at, e.mul(i, sums_line), F32) for i in ids]
        flat = e.choose(
            opening,
            lambda: [s for i in ids for s in [e.spread(e.read(bias, i, F32))] * width],
            lambda: [e.load(out, lanes * v, align) for out in outs for v in range(width)],
        )
        sums = [flat[r * width : (r + 1) * width] for r in range(rows)]
        sums, at, value_at = steps_of(Way.SLICED)(steps, g, sums, at, value_at)
        flat = [s for one in sums for s in one]

        def plus() -> list[Node]:
            others = [e.element(residual, e.mul(i, r_line), F32) for i in ids]
            addends = [e.load(other, lanes * v, align) for other in others for v in range(width)]
            return [e.at.fadd(s, a) for s, a in zip(flat, addends, strict=True)]

        def clipped() -> list[Node]:
            return [e.at_most(e.at_least(s, e.number(0)), e.spread(ceiling)) for s in flat]

        flat = e.choose(adding, plus, lambda: flat)
        flat = e.choose(clipping, clipped, lambda: flat)
        sums = [flat[r * width : (r + 1) * width] for r in range(rows)]
        # A row that stands for none repeats the first: its place is written before the first row's sums are.
        with e.at.if_else(streaming) as (past, into):
            with past:
                for i, one in reversed(list(zip(ids, sums, strict=True))):
                    for v, s in enumerate(one):
                        e.stream(s, e.element(y, e.mul(i, line), F32), lanes * v)
            with into:
                for out, one in reversed(list(zip(outs, sums, strict=True))):
                    for v, s in enumerate(one):
                        # Another alignment than above, or LLVM merges the two and forgets which go past the caches.
                        e.store(s, out, lanes * v, align // 2)
        return [at, value_at, channel]

    e.loop(begin, end, group, [at, value_at, e.constant(0)])
    e.at.ret_void()
    return made


class _Inputs:
    """Fetches what the next tile reads and no tile before it has read, some channels of the panel per group."""

    def __init__(self, e: Emitter, description: Node, later: Node, groups: Node, vectors: int) -> None:
        self.e, self.vectors = e, vectors
        self.line, self.channels, fresh, self.row, self.rows = (
            e.read(description, int(f), I64)
            for f in (
                ImageField.X_LINE,
                ImageField.CHANNELS,
                ImageField.FRESH,
                ImageField.FRESH_ROW,
                ImageField.FRESH_ROWS,
            )
        )
        self.base = e.add(later, e.mul(fresh, 4))
        count = e.at.select(e.less(groups, 1), e.constant(1), groups)
        self.per_group = e.div(e.add(self.channels, e.sub(count, 1)), count)

    def fetch(self, first: Node) -> Node:
        """The channels from ``first`` on that are one group's share; returns where the next group's begin."""
        e = self.e
        end = e.add(first, self.per_group)

        def channel(c: Node, _: list[Node]) -> list[Node]:
            def row(r: Node, _: list[Node]) -> list[Node]:
                offset = e.add(e.mul(c, self.line), e.mul(r, self.row))
                _fetch(e, e.at.inttoptr(e.add(self.base, e.mul(offset, 4)), PTR), self.vectors)
                return []

            e.loop(0, self.rows, row)
            return []

        e.loop(first, e.least(end, self.channels), channel)
        return end


def _fetch(e: Emitter, address: Node, vectors: int, *, nearest: bool = False) -> None:
    for offset in range(0, 4 * e.lanes * vectors, _LINE):
        e.prefetch(address, offset, I8, near=nearest)
