"""The dense gradient of a weight, dead places included, for some of its rows, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.choice_code import MAGNITUDE, add_scan
from gossamer.runtime.layout import in_team

__all__ = ["DEAD_ROWS", "add_dense_gradient", "panel_columns"]

Node = Any  # llvmlite has no type stubs

DEAD_ROWS = 48
"""Rows whose gradients are looked at together; a multiple of those that are in registers."""

_HEIGHT = 6
"""Rows whose sums are in registers."""

_TOKENS = 256
"""Tokens of a panel that stay in the first-level cache."""


def _across(lanes: int) -> int:
    """Vectors of a panel, as many as registers hold sums of for some rows: there are 32 with 16 lanes, else 16."""
    return 4 if lanes == 16 else 2


def _side(lanes: int) -> int:
    """Tokens in one step of the loop."""
    return 1 if lanes == 16 else 2


def panel_columns(lanes: int) -> int:
    """Columns that lie side by side for each token."""
    return _across(lanes) * lanes


def add_dense_gradient(module: ir.Module, lanes: int, *, rounded: bool = False) -> None:
    """Adds ``weigh_all(pool, x, dy, tile, rows, columns, tokens, adding, threads)``: tile (+)= dY·Xᵀ.

    x [panels, tokens, panel_columns] are panels of columns, the last one filled up; dy [rows, tokens]; the tile is
    [rows, columns]. Sums are made in the order of the tokens. Members of a team take rows.

    Adds ``dead_above(pool, x, dy, tiles, rows, columns, tokens, live, starts, threshold, positions, found, counts,
    threads)``: the gradients whose magnitude is larger than a float, given by its bits, but for those at the positions
    ``live`` int64, of which ``starts`` int64 [rows + 1] says where rows begin; ``positions``, ``found`` and ``counts``
    as those of ``above`` in `choice_code`; ``tiles`` float32 [threads, DEAD_ROWS, columns] is room.

    Args:
        module: gets the entry points.
        lanes: floats per vector register.
        rounded: whether each "token" of x and dy is a pair of tokens in bfloat16, the first in the lower half; sums are
            made in float32. Needs 16 lanes and instructions for such products.
    """
    height = _HEIGHT
    rows_of = _some_rows(module, lanes, height, rounded=rounded)
    made = function(module, "weigh_all_share", [PTR] + [I64] * 9, exported=False)
    _, x, dy, tile, rows, columns, tokens, adding, part, team = made.args
    e = Emitter(made, lanes)
    groups = e.div(e.add(rows, height - 1), height)
    low, high = (e.least(rows, e.mul(e.div(e.mul(e.add(part, i), groups), team), height)) for i in range(2))

    def block(r: Node, _: list[Node]) -> list[Node]:
        mine = (e.add(base, e.mul(r, e.mul(size, 4))) for base, size in ((dy, tokens), (tile, columns)))
        e.at.call(rows_of, [x, *mine, e.least(DEAD_ROWS, e.sub(high, r)), columns, tokens, adding])
        return []

    e.loop(low, high, block, step=DEAD_ROWS)
    e.at.ret_void()
    in_team(module, "weigh_all", made, 7)
    _dead_above(module, lanes, rows_of)


def _some_rows(module: ir.Module, lanes: int, height: int, *, rounded: bool) -> ir.Function:
    """So few rows that their dY stays in a cache while panels come and go."""
    square = _square(module, lanes, height, rounded=rounded)
    made = function(module, "weigh_rows", [I64] * 7, exported=False)
    x, dy, tile, rows, columns, tokens, adding = made.args
    e = Emitter(made, lanes)
    x_at, dy_at, tile_at = (e.at.inttoptr(a, PTR) for a in (x, dy, tile))
    width = panel_columns(lanes)
    edge = e.at.alloca(F32, size=height * width)
    groups = e.div(e.add(rows, height - 1), height)
    whole = e.div(columns, width)
    left = e.sub(columns, e.mul(whole, width))

    def block(t: Node, _: list[Node]) -> list[Node]:
        count = e.least(_TOKENS, e.sub(tokens, t))
        more = e.at.select(e.equal(t, 0), adding, e.constant(1))

        def panel_at(p: Node) -> Node:
            return e.element(x_at, e.mul(e.add(e.mul(p, tokens), t), width), F32)

        def each(panel: Node, body: Any) -> None:
            def group(g: Node, _: list[Node]) -> list[Node]:
                r = e.mul(g, height)
                last = e.sub(e.least(height, e.sub(rows, r)), 1)
                body(panel, e.element(dy_at, e.add(e.mul(r, tokens), t), F32), r, last)
                return []

            e.loop(0, groups, group)

        def straight(panel: Node, dy_row: Node, r: Node, last: Node, p: Node) -> None:
            target = e.element(tile_at, e.add(e.mul(r, columns), e.mul(p, width)), F32)
            e.at.call(square, [panel, dy_row, target, columns, tokens, count, last, more])

        def panel(p: Node, _: list[Node]) -> list[Node]:
            each(panel_at(p), lambda panel, dy_row, r, last: straight(panel, dy_row, r, last, p))
            return []

        e.loop(0, whole, panel)

        def by_edge(panel: Node, dy_row: Node, r: Node, last: Node) -> None:
            target = e.element(tile_at, e.add(e.mul(r, columns), e.mul(whole, width)), F32)

            def copied(back: bool) -> None:
                def row(i: Node, _: list[Node]) -> list[Node]:
                    def one(k: Node, _: list[Node]) -> list[Node]:
                        there, here = e.add(e.mul(i, columns), k), e.add(e.mul(i, width), k)
                        if back:
                            e.write(e.read(edge, here, F32), target, there)
                        else:
                            e.write(e.read(target, there, F32), edge, here)
                        return []

                    e.loop(0, left, one)
                    return []

                e.loop(0, e.add(last, 1), row)

            with e.at.if_then(e.at.not_(e.equal(more, 0))):
                copied(back=False)
            e.at.call(square, [panel, dy_row, edge, e.constant(width), tokens, count, last, more])
            copied(back=True)

        with e.at.if_then(e.less(0, left)):
            each(panel_at(whole), by_edge)
        return []

    e.loop(0, tokens, block, step=_TOKENS)
    e.at.ret_void()
    return made


def _dead_above(module: ir.Module, lanes: int, weigh: ir.Function) -> None:
    """Members take blocks of rows: a block's gradients are looked at while they are in a cache."""
    scan = add_scan(module, lanes)
    made = function(module, "dead_above_share", [PTR] + [I64] * 14, exported=False)
    _, x, dy, tile, rows, columns, tokens, live, starts, threshold, positions, found, counts, part, team = made.args
    e = Emitter(made, 1)
    live_at, starts_at, counts_at = (e.at.inttoptr(a, PTR) for a in (live, starts, counts))
    blocks = e.div(e.add(rows, DEAD_ROWS - 1), DEAD_ROWS)
    low, high = (e.least(rows, e.mul(e.div(e.mul(e.add(part, i), blocks), team), DEAD_ROWS)) for i in range(2))
    own = e.add(tile, e.mul(part, e.mul(columns, 4 * DEAD_ROWS)))
    own_at = e.at.inttoptr(own, PTR)
    before = e.mul(low, columns)
    positions_at, found_at = (e.at.inttoptr(e.add(a, e.mul(before, n)), PTR) for a, n in ((positions, 8), (found, 4)))
    e.write(before, counts_at, e.mul(part, 2))
    tally = e.element(counts_at, e.add(e.mul(part, 2), 1), I64)
    e.write(e.constant(0), tally, 0)

    def block(r: Node, _: list[Node]) -> list[Node]:
        count = e.least(DEAD_ROWS, e.sub(high, r))
        dy_rows = e.add(dy, e.mul(r, e.mul(tokens, 4)))
        e.at.call(weigh, [x, dy_rows, own, count, columns, tokens, e.constant(0)])
        first = e.mul(r, columns)

        def blank(k: Node, _: list[Node]) -> list[Node]:
            e.write(ir.Constant(F32, 0.0), own_at, e.sub(e.read(live_at, k, I64), first))
            return []

        e.loop(e.read(starts_at, r, I64), e.read(starts_at, e.add(r, count), I64), blank)
        size = e.mul(count, columns)
        given = [own_at, size, threshold, e.constant(MAGNITUDE), first, positions_at, found_at, tally]
        e.at.call(scan, given)
        return []

    e.loop(low, high, block, step=DEAD_ROWS)
    e.at.ret_void()
    in_team(module, "dead_above", made, 12)


def _square(module: ir.Module, lanes: int, height: int, *, rounded: bool) -> ir.Function:
    """Some rows of one panel, for some tokens; rows beyond the last one are the last one again."""
    made = function(module, "weigh_square", [PTR] * 3 + [I64] * 5, exported=False)
    x, dy, tile, stride, tokens, count, last, adding = made.args
    e = Emitter(made, lanes)
    width, across, side = panel_columns(lanes), _across(lanes), _side(lanes)
    row_of = [e.least(i, last) for i in range(height)]
    sources = [e.element(dy, e.mul(r, tokens), F32) for r in row_of]
    targets = [e.element(tile, e.mul(r, stride), F32) for r in row_of]

    def before() -> list[Node]:
        return [e.load(target, lanes * v) for target in targets for v in range(across)]

    sums = e.choose(e.equal(adding, 0), lambda: [ir.Constant(e.vector, [0.0] * lanes)] * (height * across), before)

    def multiplied(a: Node, b: Node, total: Node) -> Node:
        return e.pair_fma(a, b, total) if rounded else e.fma(a, b, total)

    def one(t: Node, sums: list[Node]) -> list[Node]:
        held = [e.load(x, e.add(e.mul(t, width), lanes * v)) for v in range(across)]
        out = []
        for i, source in enumerate(sources):
            scalar = e.spread(e.read(source, t, F32))
            out += [multiplied(scalar, column, sums[across * i + v]) for v, column in enumerate(held)]
        return out

    def several(t: Node, sums: list[Node]) -> list[Node]:
        for i in range(side):
            sums = one(e.add(t, i), sums)
        return sums

    whole = e.mul(e.div(count, side), side)
    sums = e.loop(0, whole, several, sums, side)
    sums = e.loop(whole, count, one, sums)
    for i, target in enumerate(targets):
        for v in range(across):
            e.store(sums[across * i + v], target, lanes * v)
    e.at.ret_void()
    return made
