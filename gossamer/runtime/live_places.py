"""What brings the places of live values into the order of the kernels, for a matrix and its transpose, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team

__all__ = ["add_places"]

Node = Any  # llvmlite has no type stubs


def add_places(module: ir.Module) -> None:
    """Adds ``count_places``, ``order_segments`` and ``fill_places``, to be called in this order.

    The first and the last begin with (pool, positions int64 [live], starts int64 [rows + 1], rows, columns, width,
    height): starts are where rows begin, width is that of a panel of columns, height that of a panel of rows, or of
    columns of the transpose. Members take panels of rows: nobody else writes what they write.

    ``count_places(…, counts, transposed, threads)``: uint32 [rows, panels] and [panels of rows, columns], from
    zero.

    ``order_segments(counts, rows, panels, row_stride, panel_stride, step, room, order, lengths, cells, following, at,
    places)``: of a layout whose counts lie so many numbers apart; room is int64 [longest segment + 1], order uint32 and
    lengths uint16 are [segments], cells int64 [chunks · panels + 1], following uint32 lies as counts do and says where
    each segment begins. Where values come row by row, ``at`` int64 [rows] says where rows begin, is overwritten, and
    places uint32 [segments] become where segments begin among these values; else ``at`` is null.

    ``fill_places(…, counts, following, index, transposed_following, transposed_index, places, threads)``: the
    transposed following is counted up, and so are the starts; index uint16 [live] is the column within the panel,
    places uint32 [live] is which value it is.
    """
    _count(module)
    _order(module)
    _fill(module)


def _panels(e: Emitter, size: Node, width: Node) -> Node:
    return e.div(e.add(size, e.sub(width, 1)), width)


def _share(e: Emitter, rows: Node, height: Node, part: Node, team: Node) -> tuple[Node, Node]:
    """A member's panels of rows."""
    down = _panels(e, rows, height)
    low, high = (e.div(e.mul(e.add(part, i), down), team) for i in range(2))
    return low, high


def _count(module: ir.Module) -> None:
    made = function(module, "count_places_share", [PTR] + [I64] * 10, exported=False)
    _, positions, starts, rows, columns, width, height, counts, transposed, part, team = made.args
    e = Emitter(made, 1)
    positions, starts, counts, transposed = (e.at.inttoptr(a, PTR) for a in (positions, starts, counts, transposed))
    across = _panels(e, columns, width)
    low, high = _share(e, rows, height, part, team)

    def up(base: Node, at: Node) -> None:
        e.write(e.at.add(e.read(base, at, I32), ir.Constant(I32, 1)), base, at)

    def panel(above: Node, _: list[Node]) -> list[Node]:
        mine = e.element(transposed, e.mul(above, columns), I32)
        first = e.mul(above, height)

        def row(r: Node, _: list[Node]) -> list[Node]:
            before, own = e.mul(r, columns), e.element(counts, e.mul(r, across), I32)
            end = e.read(starts, e.add(r, 1), I64)

            # One counter for neighbours, in memory, would have each wait for the one before.
            def segment(p: Node, carried: list[Node]) -> list[Node]:
                (begin,) = carried
                bound = e.add(before, e.least(columns, e.mul(e.add(p, 1), width)))

                def inside(at: list[Node]) -> Node:
                    (k,) = at
                    no = ir.Constant(ir.IntType(1), 0)
                    return e.choose(e.less(k, end), lambda: [e.less(e.read(positions, k, I64), bound)], lambda: [no])[0]

                def one(at: list[Node]) -> list[Node]:
                    (k,) = at
                    up(mine, e.sub(e.read(positions, k, I64), before))
                    return [e.add(k, 1)]

                (stop,) = e.repeat([begin], inside, one)
                e.write(e.at.trunc(e.sub(stop, begin), I32), own, p)
                return [stop]

            e.loop(0, across, segment, [e.read(starts, r, I64)])
            return []

        e.loop(first, e.least(rows, e.add(first, height)), row)
        return []

    e.loop(low, high, panel)
    e.at.ret_void()
    in_team(module, "count_places", made, 8)


def _order(module: ir.Module) -> None:
    """A chunk's segments of one panel are sorted by falling length by counting; equal ones stay in order."""
    made = function(module, "order_segments", [PTR] + [I64] * 5 + [PTR] * 7, exported=True)
    counts, rows, panels, row_stride, panel_stride, step, room, order, lengths, cells, following, at, places = made.args
    e = Emitter(made, 1)
    placing = e.at.not_(e.equal(e.at.ptrtoint(at, I64), 0))

    def chunk(first: Node, carried: list[Node]) -> list[Node]:
        count = e.least(step, e.sub(rows, first))

        def panel(p: Node, carried: list[Node]) -> list[Node]:
            segment, begin, cell = carried
            e.write(begin, cells, cell)
            offset = e.mul(p, panel_stride)

            def spot(r: Node) -> Node:
                return e.add(e.mul(r, row_stride), offset)

            def longest(i: Node, carried: list[Node]) -> list[Node]:
                length = e.wide(counts, spot(e.add(first, i)), I32)
                return [e.at.select(e.less(carried[0], length), length, carried[0])]

            (most,) = e.loop(0, count, longest, [e.constant(0)])

            def blank(length: Node, _: list[Node]) -> list[Node]:
                e.write(e.constant(0), room, length)
                return []

            e.loop(0, e.add(most, 1), blank)

            def tally(i: Node, _: list[Node]) -> list[Node]:
                length = e.wide(counts, spot(e.add(first, i)), I32)
                e.write(e.add(e.read(room, length, I64), 1), room, length)
                return []

            e.loop(0, count, tally)

            def offsets(i: Node, carried: list[Node]) -> list[Node]:
                length = e.sub(most, i)
                several = e.read(room, length, I64)
                e.write(carried[0], room, length)
                return [e.add(carried[0], several)]

            e.loop(0, e.add(most, 1), offsets, [segment])

            def put(i: Node, _: list[Node]) -> list[Node]:
                r = e.add(first, i)
                length = e.wide(counts, spot(r), I32)
                s = e.read(room, length, I64)
                e.write(e.add(s, 1), room, length)
                e.write(e.at.trunc(r, I32), order, s)
                e.write(e.at.trunc(length, I16), lengths, s)
                return []

            e.loop(0, count, put)

            def lay(s: Node, carried: list[Node]) -> list[Node]:
                (begin,) = carried
                r = e.wide(order, s, I32)
                length = e.wide(lengths, s, I16)
                e.write(e.at.trunc(begin, I32), following, spot(r))
                with e.at.if_then(placing):
                    place = e.read(at, r, I64)
                    e.write(e.at.trunc(place, I32), places, s)
                    e.write(e.add(place, length), at, r)
                return [e.add(begin, length)]

            end = e.add(segment, count)
            return [end, *e.loop(segment, end, lay, [begin]), e.add(cell, 1)]

        return e.loop(0, panels, panel, carried)

    _, begin, cell = e.loop(0, rows, chunk, [e.constant(0)] * 3, step)
    e.write(begin, cells, cell)
    e.at.ret_void()


def _fill(module: ir.Module) -> None:
    made = function(module, "fill_places_share", [PTR] + [I64] * 14, exported=False)
    _, positions, at, rows, columns, width, height, *arrays, part, team = made.args
    e = Emitter(made, 1)
    positions, at = (e.at.inttoptr(a, PTR) for a in (positions, at))
    counts, following, index, t_following, t_index, places = (e.at.inttoptr(a, PTR) for a in arrays)
    across = _panels(e, columns, width)
    low, high = _share(e, rows, height, part, team)

    def panel(above: Node, _: list[Node]) -> list[Node]:
        mine = e.element(t_following, e.mul(above, columns), I32)
        first = e.mul(above, height)

        # Panel by panel of columns: what is written into the transpose meanwhile stays in the first-level cache.
        def across_panel(p: Node, _: list[Node]) -> list[Node]:
            begins = e.mul(p, width)

            def row(r: Node, _: list[Node]) -> list[Node]:
                before, inside = e.mul(r, columns), e.at.trunc(e.sub(r, first), I16)
                cell = e.add(e.mul(r, across), p)
                target, count = e.wide(following, cell, I32), e.wide(counts, cell, I32)
                k = e.read(at, r, I64)
                e.write(e.add(k, count), at, r)

                def one(j: Node, _: list[Node]) -> list[Node]:
                    number = e.add(k, j)
                    column = e.sub(e.read(positions, number, I64), before)
                    e.write(e.at.trunc(e.sub(column, begins), I16), index, e.add(target, j))
                    place = e.wide(mine, column, I32)
                    e.write(e.at.trunc(e.add(place, 1), I32), mine, column)
                    e.write(inside, t_index, place)
                    e.write(e.at.trunc(number, I32), places, place)
                    return []

                e.loop(0, count, one)
                return []

            e.loop(first, e.least(rows, e.add(first, height)), row)
            return []

        e.loop(0, across, across_panel)
        return []

    e.loop(low, high, panel)
    e.at.ret_void()
    in_team(module, "fill_places", made, 12)
