"""Kernels for a layer that trains with live weights only, as LLVM IR: products, and the gradient of the weights.

A matrix [M, K] is cut into chunks of rows and panels of columns. In each such cell a row's non-zeros are one segment.
Segments of a cell lie by length, so that the end of each is foreseen by the processor; the layout holds places only,
and values are brought into its order before they are used: into memory that stays in a cache and that all layers share.

Activations are feature-major tiles [tiles, features, tile], a tile being up to `most_vectors` vectors of tokens.

- *product*: one row of Y in registers while a segment is gone through; per non-zero one scalar meets one row of X.
- *gradient*: one row of dY in registers; per non-zero a dot product with one row of X, four of which are summed across
  lanes together. Sums over tiles stay in the layout's order until the last one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, final

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.dot_code import add_onto, dots_of_segment, row_sum
from gossamer.runtime.layout import in_team
from gossamer.runtime.live_dense_code import add_dense_gradient
from gossamer.runtime.live_layout import add_changes
from gossamer.runtime.live_places import add_places

__all__ = ["LiveField", "live_kernels", "most_vectors"]

Node = Any  # llvmlite has no type stubs

_AHEAD = 4
"""Segments ahead of the one at hand whose rows of activations are asked for; orders are longer by as many."""

_LINE = 16
"""Floats of a cache line."""

_SECOND_CACHE = 1 << 18
"""Bytes of activations that stay in the second-level cache."""

_ANYWAY = 2
"""Vectors of a segment that are copied even where it is shorter: that is faster than to ask."""

_SIDE = 4
"""Values that are moved in one step of a loop."""


class LiveField(IntEnum):
    """Where kernels find what in the description of a layout, beside ``layout.Pool``."""

    ROWS = 0
    COLUMNS = 1
    PANELS = 2
    WIDTH = 3  # columns per panel
    CHUNKS = 4
    STEP = 5  # rows per chunk
    ORDER = 6  # uint32 [CHUNKS, PANELS, rows of the chunk] and a few more: the row of each segment
    COUNTS = 7  # uint16, as ORDER: how many non-zeros it has
    CELLS = 8  # int64 [CHUNKS · PANELS + 1]: the first non-zero of each cell
    INDEX = 9  # uint16 [non-zeros], column within the panel
    PLACES = 10  # of a matrix: uint32, as ORDER: where the segment's values begin among all values.
    #              of a transposed one: uint32 [non-zeros]: where each value is among all values
    STARTS = 15  # int64: the first value of each chunk of a matrix, of each panel of a transposed one; and the end


def most_vectors(lanes: int) -> int:
    """Vectors of tokens per tile for which there is code: as many sums as hide the latency of an addition."""
    return 4 if lanes == 16 else 8


def live_kernels(lanes: int) -> str:
    """LLVM IR of a module with entry points that have a description first and a number of threads last.

    ``multiply(layout, values, x, y, bias, tiles, vectors, threads)`` is Y = W·X + b; bias may be null.

    ``weigh(layout, x, dy, sums, gradient, totals, tiles, vectors, threads)`` is dW = dY·Xᵀ at the live places, in the
    order of the values, and db, the sum of dY over tokens, unless totals is null; ``sums`` is room for one float per
    non-zero.

    ``gather(layout, values, ordered, threads)`` brings values into the order of a matrix's layout, and
    ``gather_transposed`` into that of a transposed matrix's.

    ``weigh_all`` is the dense gradient of some rows: `live_dense_code`.

    ``pack`` and ``unpack`` change the layout of activations: `live_layout`. ``count_places``,
    ``order_segments`` and ``fill_places`` lay out positions: `live_places`.

    Args:
        lanes: floats per vector register, a power of two from 4 on.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_live")
    widths = range(1, most_vectors(lanes) + 1)
    _multiply(module, lanes, {v: _product(module, lanes, v) for v in widths})
    _weigh(module, lanes, {v: _dots(module, lanes, v) for v in widths}, _scatter(module, lanes))
    _gather(module, lanes)
    _gather_transposed(module, lanes)
    add_changes(module, lanes)
    add_dense_gradient(module, lanes)
    add_places(module)
    return str(module)


@final
class _Layout:
    """The fields of a description, as kernels read them."""

    def __init__(self, e: Emitter, description: Node) -> None:
        self.e = e
        self.description = description
        self.rows, self.columns, self.panels, self.width, self.chunks, self.step = (
            self.word(f)
            for f in (
                LiveField.ROWS,
                LiveField.COLUMNS,
                LiveField.PANELS,
                LiveField.WIDTH,
                LiveField.CHUNKS,
                LiveField.STEP,
            )
        )

    def word(self, field: LiveField) -> Node:
        """An integer."""
        return self.e.read(self.description, int(field), I64)

    def address(self, field: LiveField) -> Node:
        """An array."""
        return self.e.read(self.description, int(field), PTR)

    def chunk(self, c: Node) -> tuple[Node, Node]:
        """A chunk's first row, and how many it has."""
        first = self.e.mul(c, self.step)
        return first, self.e.least(self.step, self.e.sub(self.rows, first))

    def segments(self, first: Node, rows: Node, panel: Node) -> Node:
        """Number of the first segment of a cell."""
        return self.e.add(self.e.mul(first, self.panels), self.e.mul(panel, rows))

    def begin(self, c: Node, panel: Node) -> Node:
        """The first non-zero of a cell."""
        return self.e.read(self.address(LiveField.CELLS), self.e.add(self.e.mul(c, self.panels), panel), I64)


def _share(e: Emitter, whole: Node, part: Node, team: Node) -> tuple[Node, Node]:
    """A member's share of so many pieces of work."""
    low, high = (e.div(e.mul(e.add(part, i), whole), team) for i in range(2))
    return low, high


def _one_of(e: Emitter, vectors: Node, made: dict[int, ir.Function], arguments: list[Node]) -> None:
    """Calls the function for tiles of so many vectors."""
    after = e.made.append_basic_block()
    for count, one in made.items():
        yes, no = e.made.append_basic_block(), e.made.append_basic_block()
        e.at.cbranch(e.equal(vectors, count), yes, no)
        e.at.position_at_end(yes)
        e.at.call(one, arguments)
        e.at.branch(after)
        e.at.position_at_end(no)
    e.at.branch(after)
    e.at.position_at_end(after)


def _ask(e: Emitter, base: Node, index: Node, floats: int) -> None:
    """Asks for the cache lines of so many floats."""
    for line in range(0, floats, _LINE):
        e.prefetch(base, e.add(index, line))


def _ask_next_panel(e: Emitter, x_panel: Node, width: Node, done: Node, tile: int) -> None:
    """Asks for a row of the panel of activations after this one, a row per segment: they are used out of order."""
    for line in range(0, tile, _LINE):
        e.prefetch(x_panel, e.add(e.mul(e.add(width, done), tile), line), near=False)


def _product(module: ir.Module, lanes: int, vectors: int) -> ir.Function:
    """The rows of one chunk times one tile."""
    made = function(module, f"product_{vectors}", [PTR] * 5 + [I64], exported=False)
    description, values, x, y, bias, c = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    tile, align = lanes * vectors, lanes * 4
    order, counts, index = (w.address(f) for f in (LiveField.ORDER, LiveField.COUNTS, LiveField.INDEX))
    first, rows = w.chunk(c)
    biased = e.at.not_(e.equal(e.at.ptrtoint(bias, I64), 0))

    def panel(p: Node, _: list[Node]) -> list[Node]:
        x_panel = e.element(x, e.mul(p, e.mul(w.width, tile)), F32)
        opening = e.equal(p, 0)
        from_bias = e.at.and_(opening, biased)
        segment = w.segments(first, rows, p)

        def row(s: Node, carried: list[Node]) -> list[Node]:
            (at,) = carried
            r = e.wide(order, s, I32)
            _ask(e, y, e.mul(e.wide(order, e.add(s, _AHEAD), I32), tile), tile)
            _ask_next_panel(e, x_panel, w.width, e.sub(s, segment), tile)
            y_row = e.element(y, e.mul(r, tile), F32)

            def before() -> list[Node]:
                return e.choose(
                    from_bias, lambda: [e.spread(e.read(bias, r, F32))] * vectors, lambda: [e.number(0)] * vectors
                )

            sums = e.choose(opening, before, lambda: [e.load(y_row, lanes * v, align) for v in range(vectors)])
            end = e.add(at, e.wide(counts, s, I16))

            def one(k: Node, sums: list[Node]) -> list[Node]:
                weight = e.spread(e.read(values, k, F32))
                x_row = e.element(x_panel, e.mul(e.wide(index, k, I16), tile), F32)
                return [e.fma(weight, e.load(x_row, lanes * v, align), s) for v, s in enumerate(sums)]

            # One sum per vector, in the order of columns: a live zero, wherever it is, then changes no bit of a sum.
            # Several sums side by side would be no faster, as the processor has the next row in hand meanwhile.
            sums = e.loop(at, end, one, sums)
            for v, total in enumerate(sums):
                e.store(total, y_row, lanes * v, align)
            return [end]

        e.loop(segment, e.add(segment, rows), row, [w.begin(c, p)])
        return []

    e.loop(0, w.panels, panel)
    e.at.ret_void()
    return made


def _multiply(module: ir.Module, lanes: int, products: dict[int, ir.Function]) -> None:
    """Members take tiles, or where there are few, tiles of chunks.

    What several tiles read stays in the second-level cache: the activations of a block of tiles, for all chunks, or if
    those of one tile are too large, the weights of a chunk, for all tiles.
    """
    made = function(module, "multiply_share", [PTR] + [I64] * 8, exported=False)
    description, values, x, y, bias, tiles, vectors, part, team = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    span = e.mul(vectors, lanes * 4)
    others = [e.at.inttoptr(a, PTR) for a in (values, bias)]

    def unit(c: Node, t: Node) -> None:
        x_tile, y_tile = (
            e.at.inttoptr(e.add(base, e.mul(t, e.mul(size, span))), PTR) for base, size in ((x, w.columns), (y, w.rows))
        )
        _one_of(e, vectors, products, [description, others[0], x_tile, y_tile, others[1], c])

    with e.at.if_else(e.less(tiles, e.mul(team, 2))) as (few, many):
        with few:
            low, high = _share(e, e.mul(w.chunks, tiles), part, team)

            def piece(u: Node, _: list[Node]) -> list[Node]:
                c = e.div(u, tiles)
                unit(c, e.sub(u, e.mul(c, tiles)))
                return []

            e.loop(low, high, piece)
        with many:
            low, high = _share(e, tiles, part, team)
            fitting = e.div(_SECOND_CACHE, e.add(e.mul(w.columns, span), 1))
            block = e.at.select(e.equal(fitting, 0), tiles, fitting)

            def some(t: Node, _: list[Node]) -> list[Node]:
                end = e.least(high, e.add(t, block))

                def chunk(c: Node, _: list[Node]) -> list[Node]:
                    def tile(i: Node, _: list[Node]) -> list[Node]:
                        unit(c, i)
                        return []

                    e.loop(t, end, tile)
                    return []

                e.loop(0, w.chunks, chunk)
                return []

            e.loop(low, high, some, step=block)
    e.at.ret_void()
    in_team(module, "multiply", made, 6)


def _dots(module: ir.Module, lanes: int, vectors: int) -> ir.Function:
    """Dot products of the rows of dY of one chunk with rows of X at the live places, for one tile."""
    made = function(module, f"dots_{vectors}", [PTR] * 5 + [I64] * 2, exported=False)
    description, x, dy, sums, totals, c, more = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    tile, align = lanes * vectors, lanes * 4
    order, counts, index = (w.address(f) for f in (LiveField.ORDER, LiveField.COUNTS, LiveField.INDEX))
    first, rows = w.chunk(c)
    adding = e.at.not_(e.equal(more, 0))
    wanted = e.at.not_(e.equal(e.at.ptrtoint(totals, I64), 0))

    def panel(p: Node, _: list[Node]) -> list[Node]:
        x_panel = e.element(x, e.mul(p, e.mul(w.width, tile)), F32)
        opening = e.at.and_(wanted, e.equal(p, 0))
        segment = w.segments(first, rows, p)

        def row(s: Node, carried: list[Node]) -> list[Node]:
            (at,) = carried
            _ask(e, dy, e.mul(e.wide(order, e.add(s, _AHEAD), I32), tile), tile)
            _ask_next_panel(e, x_panel, w.width, e.sub(s, segment), tile)
            r = e.wide(order, s, I32)
            dy_row = e.element(dy, e.mul(r, tile), F32)
            held = [e.load(dy_row, lanes * v, align) for v in range(vectors)]
            with e.at.if_then(opening):
                add_onto(e, row_sum(e, held), e.element(totals, r, F32), adding)
            count = e.wide(counts, s, I16)

            def read(k: Node) -> Node:
                return e.element(x_panel, e.mul(e.wide(index, k, I16), tile), F32)

            def put(found: Node, k: Node) -> None:
                add_onto(e, found, e.element(sums, k, F32), adding)

            return [dots_of_segment(e, at, count, held, read, put)]

        e.loop(segment, e.add(segment, rows), row, [w.begin(c, p)])
        return []

    e.loop(0, w.panels, panel)
    e.at.ret_void()
    return made


def _weigh(module: ir.Module, lanes: int, dots: dict[int, ir.Function], scatter: ir.Function) -> None:
    """Members take chunks: every gradient is summed by one of them, tile after tile."""
    made = function(module, "weigh_share", [PTR] + [I64] * 9, exported=False)
    description, x, dy, sums, gradient, totals, tiles, vectors, part, team = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    span = e.mul(vectors, lanes * 4)
    low, high = _share(e, w.chunks, part, team)
    sums_at, gradient_at, totals_at = (e.at.inttoptr(a, PTR) for a in (sums, gradient, totals))

    def chunk(c: Node, _: list[Node]) -> list[Node]:
        def tile(t: Node, _: list[Node]) -> list[Node]:
            x_tile, dy_tile = (
                e.at.inttoptr(e.add(base, e.mul(t, e.mul(size, span))), PTR)
                for base, size in ((x, w.columns), (dy, w.rows))
            )
            _one_of(e, vectors, dots, [description, x_tile, dy_tile, sums_at, totals_at, c, t])
            return []

        e.loop(0, tiles, tile)
        e.at.call(scatter, [description, sums_at, gradient_at, c])
        return []

    e.loop(low, high, chunk)
    e.at.ret_void()
    in_team(module, "weigh", made, 7)


def _touch(e: Emitter, base: Node, first: Node, last: Node) -> None:
    """Asks for a range of floats that will be read or written out of order: in order it comes much faster."""

    def line(i: Node, _: list[Node]) -> list[Node]:
        e.prefetch(base, i)
        return []

    e.loop(first, last, line, step=_LINE)


def _copy(e: Emitter, source: Node, target: Node, count: Node, *, beyond: Node | None = None) -> None:
    """Copies floats: whole vectors, then one at a time; or, if ``beyond``, whole vectors that may reach too far.

    Those may reach as far as the next vector's end, but as far as that of the second in any case.
    """

    def vector(i: Node, _: list[Node]) -> list[Node]:
        e.store(e.load(source, i), target, i)
        return []

    def exactly() -> None:
        whole = e.at.and_(count, e.constant(-e.lanes))
        e.loop(0, whole, vector, step=e.lanes)
        e.loop(whole, count, single)

    def single(i: Node, _: list[Node]) -> list[Node]:
        e.write(e.read(source, i, F32), target, i)
        return []

    if beyond is None:
        exactly()
        return
    with e.at.if_else(beyond) as (far, near):
        with far:
            for i in range(_ANYWAY):
                vector(e.constant(e.lanes * i), [])
            e.loop(e.lanes * _ANYWAY, count, vector, step=e.lanes)
        with near:
            exactly()


def _moves(module: ir.Module, lanes: int, name: str, *, scattering: bool) -> ir.Function:
    """Copies the segments of one chunk between the order of the values and that of the layout."""
    made = function(module, name, [PTR] * 3 + [I64], exported=False)
    description, ordered, values, c = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    counts, places, starts = (w.address(f) for f in (LiveField.COUNTS, LiveField.PLACES, LiveField.STARTS))
    first, rows = w.chunk(c)
    last_value = e.read(starts, e.add(c, 1), I64)
    _touch(e, values, e.read(starts, c, I64), last_value)
    segment = w.segments(first, rows, 0)

    def move(s: Node, carried: list[Node]) -> list[Node]:
        (at,) = carried
        count, place = e.wide(counts, s, I16), e.wide(places, s, I32)
        there, here = e.element(values, place, F32), e.element(ordered, at, F32)
        end = e.add(at, count)
        if scattering:
            _copy(e, here, there, count)
        else:
            # What is written too far is overwritten by the next segment, unless that is another member's. As many
            # values lie in a chunk's order as in its layout: one end stands for both.
            most = e.at.select(e.less(count, lanes * (_ANYWAY - 1)), e.constant(lanes * (_ANYWAY - 1)), count)
            inside = [e.less(e.add(i, e.add(most, lanes)), last_value) for i in (place, at)]
            _copy(e, there, here, count, beyond=e.at.and_(*inside))
        return [end]

    e.loop(segment, e.add(segment, e.mul(rows, w.panels)), move, [w.begin(c, e.constant(0))])
    e.at.ret_void()
    return made


def _scatter(module: ir.Module, lanes: int) -> ir.Function:
    return _moves(module, lanes, "scatter_chunk", scattering=True)


def _gather(module: ir.Module, lanes: int) -> None:
    """Members take chunks."""
    one = _moves(module, lanes, "gather_chunk", scattering=False)
    made = function(module, "gather_share", [PTR] + [I64] * 4, exported=False)
    description, values, ordered, part, team = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    low, high = _share(e, w.chunks, part, team)

    def chunk(c: Node, _: list[Node]) -> list[Node]:
        e.at.call(one, [description, *(e.at.inttoptr(a, PTR) for a in (ordered, values)), c])
        return []

    e.loop(low, high, chunk)
    e.at.ret_void()
    in_team(module, "gather", made, 2)


def _gather_transposed(module: ir.Module, lanes: int) -> None:
    """Members take panels of the transposed matrix, which are rows of the matrix: their values lie together."""
    made = function(module, "gather_transposed_share", [PTR] + [I64] * 4, exported=False)
    description, values_word, ordered_word, part, team = made.args
    e = Emitter(made, lanes)
    w = _Layout(e, description)
    places, starts = w.address(LiveField.PLACES), w.address(LiveField.STARTS)
    values, ordered = e.at.inttoptr(values_word, PTR), e.at.inttoptr(ordered_word, PTR)
    low, high = _share(e, w.panels, part, team)

    def panel(p: Node, _: list[Node]) -> list[Node]:
        _touch(e, values, e.read(starts, p, I64), e.read(starts, e.add(p, 1), I64))

        def cell(c: Node, _: list[Node]) -> list[Node]:
            def one(k: Node, _: list[Node]) -> list[Node]:
                e.write(e.read(values, e.wide(places, k, I32), F32), ordered, k)
                return []

            def several(k: Node, _: list[Node]) -> list[Node]:
                for i in range(_SIDE):
                    one(e.add(k, i), [])
                return []

            begin, end = w.begin(c, p), w.begin(c, e.add(p, 1))
            whole = e.add(begin, e.mul(e.div(e.sub(end, begin), _SIDE), _SIDE))
            e.loop(begin, whole, several, step=_SIDE)
            e.loop(whole, end, one)
            return []

        e.loop(0, w.chunks, cell)
        return []

    e.loop(low, high, panel)
    e.at.ret_void()
    in_team(module, "gather_transposed", made, 2)
