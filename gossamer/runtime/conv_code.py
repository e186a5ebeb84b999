"""Kernels for convolutions with zeros in their weights, as LLVM IR.

A tile is a few vectors of adjacent outputs of a plane whose rows lie one after another; a weight of kernel row i and
column j reads the input at a distance that is the same for all of them. So a convolution is a sparse × dense product
whose indices are such distances, over one tile after the other; nothing is unfolded. The non-zeros of a group of rows
are gone through as in `gossamer.runtime.group_code`, panel of channels by panel of channels; sums of a tile wait in a
buffer between panels. Then residual and activation are applied and whole rows are written.

Planes lie one after another, or cut into blocks of positions, [blocks, channels, positions], where several small images
share a block and what a pointwise convolution reads and writes is one run of memory. Pointwise convolutions add to
their outputs where they lie, and apply residual and activation in registers.

Every call computes one layer and writes its whole output. Positions are data: the same code serves every weight.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.conv_edge import (
    SEGMENT_WORDS,
    ConvField,
    finish_functions,
    pack_copies,
    places_of_segments,
)
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Group, Way, height, segments_of, steps_of
from gossamer.runtime.layout import in_team
from gossamer.runtime.pool_code import add_picking, add_pooling

__all__ = ["AHEAD", "convolution_kernels", "widths"]

Node = Any  # llvmlite has no type stubs

AHEAD = 4
"""Groups whose outputs are fetched before they are needed."""


def widths(way: Way, lanes: int) -> tuple[int, ...]:
    """Vectors per tile for which there is code: what registers have room for."""
    if way is not Way.SLICED and lanes == 8:
        return (1, 2)
    if way is not Way.SLICED:
        return (1, 2, 3, 4) if way is Way.PATTERNS else (1, 2, 3, 4, 6)
    return (1, 2, 3, 4, 7) if lanes == 8 else (1, 2, 3, 4, 6, 7)


def convolution_kernels(lanes: int) -> str:
    """LLVM IR of a module with three entry points.

    ``convolve(description, x, y, residual, images, scratch, threads)`` is Y = f(W ⊛ X + b + residual); the residual may
    be null, and where sums are kept in place and tiles do not overlap it may be Y. ``ConvField`` says what the
    description holds. And ``pool`` and ``pick``, of `gossamer.runtime.pool_code`.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_convolution")
    pack = pack_copies(module, lanes)
    places = places_of_segments(module, lanes)
    finish = finish_functions(module, lanes)
    products = {(way, v): _product(module, lanes, way, v) for way in Way for v in widths(way, lanes)}
    made = function(module, "convolve_share", [PTR] + [I64] * 7, exported=False)
    description, x, y, residual, images, scratch, part, team = made.args
    e = Emitter(made, lanes)

    def word(field: ConvField) -> Node:
        return e.read(description, int(field), I64)

    tiles, bands, chunks, copies, way, width = (
        word(f)
        for f in (
            ConvField.TILES,
            ConvField.BANDS,
            ConvField.CHUNKS,
            ConvField.COPIES,
            ConvField.WAY,
            ConvField.WIDTH,
        )
    )
    panels, panel_stride, step = word(ConvField.PANELS), word(ConvField.PANEL_STRIDE), word(ConvField.STEP)
    activation, vectors, y_tile = word(ConvField.ACTIVATION), word(ConvField.VECTORS), word(ConvField.Y_TILE)
    bounds, segments, segment_starts = (
        e.read(description, int(f), PTR) for f in (ConvField.BOUNDS, ConvField.SEGMENTS, ConvField.SEGMENT_STARTS)
    )
    own = e.at.inttoptr(e.add(scratch, e.mul(e.mul(part, word(ConvField.SCRATCH)), 4)), PTR)
    held = e.element(own, word(ConvField.SUMS), F32)
    starts = e.element(own, word(ConvField.PLACES), F32)
    x_at, y_at, r_at = (e.at.inttoptr(word, PTR) for word in (x, y, residual))
    keeps = e.at.zext(e.equal(residual, y), I64)
    none = e.at.or_(e.equal(residual, 0), e.equal(residual, y))
    direct, in_place = e.equal(copies, 0), e.equal(word(ConvField.IN_PLACE), 1)
    row = e.at.select(in_place, y_tile, e.mul(width, lanes))
    units = e.mul(e.mul(images, bands), tiles)
    # Members take tiles; where that would leave some of them idle for long, they take rows of the weight.
    even = e.equal(e.at.urem(units, team), 0)
    by_tiles = e.at.or_(e.at.or_(even, e.less(chunks, team)), e.less(e.mul(team, 4), units))

    def share(whole: Node, divided: Node) -> list[Node]:
        ends = (e.div(e.mul(e.add(part, i), whole), team) for i in range(2))
        return [e.at.select(divided, b, e.constant(o)) for b, o in zip(ends, (0, whole), strict=True)]

    first_unit, last_unit = share(units, by_tiles)
    first_chunk, last_chunk = share(chunks, e.at.not_(by_tiles))

    def unit(u: Node, carried: list[Node]) -> list[Node]:
        item = e.div(u, tiles)
        tile, image = e.sub(u, e.mul(item, tiles)), e.div(item, bands)
        band = e.sub(item, e.mul(image, bands))
        with e.at.if_then(e.at.not_(e.at.or_(direct, e.equal(item, carried[0])))):
            e.at.call(pack, [description, x_at, held, starts, image, band])
        begin = e.mul(e.least(e.mul(tile, width), e.sub(vectors, width)), lanes)
        lying = e.element(x_at, e.mul(image, word(ConvField.X_BLOCK)), F32)
        x_tile = e.element(e.at.select(direct, lying, e.element(held, lanes, F32)), begin, F32)
        offset = e.add(e.mul(image, word(ConvField.Y_BLOCK)), begin)
        sums = e.at.select(in_place, e.element(y_at, offset, F32), own)
        added = e.at.select(e.at.or_(none, e.at.not_(in_place)), e.constant(0), e.add(residual, e.mul(offset, 4)))
        place = e.add(e.mul(band, tiles), tile)
        segment, segment_end = (e.read(segment_starts, e.add(place, i), I64) for i in range(2))
        mine, count = e.element(segments, e.mul(segment, SEGMENT_WORDS), I32), e.sub(segment_end, segment)
        with e.at.if_then(e.at.not_(in_place)):
            e.at.call(places, [description, mine, starts, count, image])

        def block(c: Node, _: list[Node]) -> list[Node]:
            end = e.least(e.add(c, step), last_chunk)

            def panel(p: Node, _: list[Node]) -> list[Node]:
                x_panel = e.element(x_tile, e.mul(p, panel_stride), F32)
                after = made.append_basic_block()
                for (kind, v), product in products.items():
                    right = e.at.and_(e.equal(way, int(kind)), e.equal(width, v))
                    yes, no = made.append_basic_block(), made.append_basic_block()
                    e.at.cbranch(right, yes, no)
                    e.at.position_at_end(yes)
                    ends = [row, p, c, end, keeps]
                    e.at.call(product, [description, x_panel, sums, e.at.inttoptr(added, PTR), *ends])
                    e.at.branch(after)
                    e.at.position_at_end(no)
                e.at.branch(after)
                e.at.position_at_end(after)
                return []

            e.loop(0, panels, panel)
            with e.at.if_then(e.at.not_(in_place)):
                rows = [e.read(bounds, i, I64) for i in (c, end)]
                finish(e, activation, [description, own, y_at, r_at, mine, starts, count, *rows])
            return []

        with e.at.if_then(e.less(segment, segment_end)):
            e.loop(first_chunk, last_chunk, block, step=step)
        return [item]

    e.loop(first_unit, last_unit, unit, [e.constant(-1)])
    e.at.ret_void()
    in_team(module, "convolve", made, 5)
    add_pooling(module, lanes)
    add_picking(module, lanes)
    return str(module)


def _product(module: ir.Module, lanes: int, way: Way, vectors: int) -> ir.Function:
    """One panel of W, rows of the chunks [first, last), times one tile: added to the sums, or b + … in the first.

    Sums are ``row`` floats apart. Where they are the outputs, the last panel clips them, after the residual is added
    that may be null. If the sums ``keep`` what lies there, the first panel adds to it, too.
    """
    made = function(module, f"{way.name.lower()}_{vectors}", [PTR] * 4 + [I64] * 5, exported=False)
    description, x, sums_at, residual, row, panel, first, last, keeps = made.args
    e = Emitter(made, lanes)
    rows, align = height(way, lanes), lanes * 4
    starts, counts, order, index, values, bias = (
        e.read(description, int(f), PTR)
        for f in (
            ConvField.STARTS,
            ConvField.COUNTS,
            ConvField.ORDER,
            ConvField.INDEX,
            ConvField.VALUES,
            ConvField.BIAS,
        )
    )

    def word(field: ConvField) -> Node:
        return e.read(description, int(field), I64)

    chunks, activation = word(ConvField.CHUNKS), word(ConvField.ACTIVATION)
    opening = e.equal(panel, 0)
    ending = e.equal(panel, e.sub(word(ConvField.PANELS), 1))
    closing = e.at.and_(e.equal(word(ConvField.IN_PLACE), 1), ending)
    adding = e.at.and_(closing, e.at.icmp_unsigned("!=", e.at.ptrtoint(residual, I64), e.constant(0)))
    infinite = ir.Constant(F32, float("inf"))
    six = e.equal(activation, int(Activation.RELU6))
    lowered = e.at.and_(closing, e.at.or_(six, e.equal(activation, int(Activation.RELU))))
    floor = e.at.select(lowered, ir.Constant(F32, 0.0), ir.Constant(F32, float("-inf")))
    ceiling = e.at.select(e.at.and_(closing, six), ir.Constant(F32, 6.0), infinite)
    # Where vectors are long all of them are aligned.
    unit = word(ConvField.UNIT) if lanes <= 8 else lanes
    steps = Group(e, counts, index, values, x, I16, unit, segments_of(way), align=4 if lanes <= 8 else align)

    x_block, y_block, fetched = word(ConvField.X_BLOCK), word(ConvField.Y_BLOCK), word(ConvField.FETCHED)
    coming = e.equal(word(ConvField.NEXT), 1)
    origin = e.read(starts, e.mul(e.mul(panel, chunks), 3), I64)

    def next_block(g: Node) -> None:
        """A group's share of the next block's inputs, outputs and what is added to them: memory is far away."""
        done = e.sub(g, origin)
        inputs = e.add(x_block, e.mul(done, fetched))

        def line(i: Node, _: list[Node]) -> list[Node]:
            e.prefetch(x, e.add(inputs, i), F32, near=False)
            return []

        e.loop(0, fetched, line, step=16)
        outputs = e.add(y_block, e.mul(done, rows * vectors * lanes))
        for base, wanted in ((sums_at, opening), (residual, adding)):
            with e.at.if_then(wanted):
                for v in range(0, rows * vectors * lanes, 16):
                    e.prefetch(base, e.add(outputs, v), F32, near=False)

    def prefetched(g: Node) -> None:
        """Outputs of the group after the next, and what is added to them, on their way to the first-level cache."""
        later = [e.wide(order, e.add(e.mul(e.add(g, AHEAD), rows), r), I32) for r in range(rows)]
        for base, wanted in ((sums_at, None), (residual, adding)):
            with e.at.if_then(wanted if wanted is not None else closing):
                for i in later:
                    line = e.element(base, e.mul(i, row), F32)
                    for v in range(0, vectors, max(1, 16 // lanes)):
                        e.prefetch(line, lanes * v, F32)

    def group(g: Node, carried: list[Node]) -> list[Node]:
        at, value_at = carried
        with e.at.if_then(coming):
            next_block(g)
        with e.at.if_then(e.at.and_(closing, e.at.not_(coming))):
            prefetched(g)
        ids = [e.wide(order, e.add(e.mul(g, rows), r), I32) for r in range(rows)]
        outs = [e.element(sums_at, e.mul(i, row), F32) for i in ids]

        def kept() -> list[Node]:
            return [e.load(out, lanes * v, align) for out in outs for v in range(vectors)]

        def shifts() -> list[Node]:
            return [s for i in ids for s in [e.spread(e.read(bias, i, F32))] * vectors]

        def both() -> list[Node]:
            return [e.at.fadd(s, b) for s, b in zip(kept(), shifts(), strict=True)]

        def first_sums() -> list[Node]:
            return e.choose(e.equal(keeps, 0), shifts, both)

        flat = e.choose(opening, first_sums, kept)
        sums = [flat[r * vectors : (r + 1) * vectors] for r in range(rows)]
        sums, at, value_at = steps_of(way)(steps, g, sums, at, value_at)
        flat = [s for one in sums for s in one]
        others = [e.element(residual, e.mul(i, row), F32) for i in ids]
        addends = [(other, v) for other in others for v in range(vectors)]

        def plus() -> list[Node]:
            return [e.at.fadd(s, e.load(o, lanes * v, align)) for s, (o, v) in zip(flat, addends, strict=True)]

        def clipped() -> list[Node]:
            low, high = e.spread(floor), e.spread(ceiling)
            raised = [e.at_least(s, low) for s in flat]
            return e.choose(six, lambda: [e.at_most(s, high) for s in raised], lambda: raised)

        flat = e.choose(adding, plus, lambda: flat)
        flat = e.choose(closing, clipped, lambda: flat)
        sums = [flat[r * vectors : (r + 1) * vectors] for r in range(rows)]
        # A row that stands for none repeats the first: its place is written before the first row's sums are.
        for out, one in reversed(list(zip(outs, sums, strict=True))):
            for v, s in enumerate(one):
                e.store(s, out, lanes * v, align)
        return [at, value_at]

    def chunk(c: Node, _: list[Node]) -> list[Node]:
        entry = e.mul(e.add(e.mul(panel, chunks), c), 3)
        begin, at, value_at, end = (e.read(starts, e.add(entry, i), I64) for i in range(4))
        e.loop(begin, end, group, [at, value_at])
        return []

    e.loop(first, last, chunk)
    e.at.ret_void()
    return made
