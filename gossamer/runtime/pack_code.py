"""Code that brings the non-zeros of a weight into the orders in which `group_code` goes through them, as LLVM IR.

The dense weight is read twice: once to count what each row has in each panel, once to write indices and values where
they belong. Loops over columns have no branches that depend on where the zeros are: every weight is written to a small
buffer, and the place to write at moves on if it was not zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.matching_code import add_matching
from gossamer.runtime.pack_parts import buffers, is_live, panels_of, part_of, summed
from gossamer.runtime.pack_patterns import add_patterns
from gossamer.runtime.pairing_code import add_pairings

__all__ = ["pack_kernels"]

Node = Any  # llvmlite has no type stubs

_UNROLLED = 4
"""Columns per round of a loop without branches."""


def pack_kernels(lanes: int) -> str:
    """LLVM IR of a module whose entry points pack a weight W, float32 [rows, columns].

    Panels have ``width`` columns, ``have`` is uint16 [panels, rows], ``begins`` int64 [panels · chunks + 1] the first
    group of every panel and chunk, ``order`` uint32 [groups, tall] the rows of each group, padded with its first one.

    - ``count(W, rows, columns, width, have)``: non-zeros of every row in every panel.
    - ``sort(have, rows, panels, width, bounds, chunks, tall, scratch, order, begins)``: rows of every panel and chunk,
      longest first, those without non-zeros in groups of their own.
    - ``match_rows``: see `matching_code`.
    - ``match_pairs(W, rows, columns, width, chunks, begins, order, have, counts)``: steps of both segments of a group.
    - ``count_patterns(W, rows, columns, width, scratch, counts)``: columns of every pattern.
    - ``sliced_8``, ``sliced_16``, ``pairs_8``, ``pairs_16``:
      ``(W, rows, columns, width, chunks, tall, begins, order, have, counts, scratch, index, values)``; the last two
      hold zeros before.
    - ``deal_pairings``, ``pairings_8``, ``pairings_16``: see `pairing_code`.
    - ``patterns_8``, ``patterns_16``: ``(W, rows, columns, width, counts, scratch, index, values)``.
    - ``rows(W, rows, columns, width, have, index, values)``: row after row of every panel; the last two need room for
      one more.

    Args:
        lanes: floats per vector register.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_pack")
    live, both = _live_function(module, lanes), _both_function(module, lanes)
    _count(module, lanes, live)
    _sort(module)
    add_matching(module, lanes)
    _match_pairs(module, lanes, both)
    add_patterns(module, lanes)
    compress, divide = _compress_function(module), _divide_function(module)
    _rows(module, compress)
    spreads = {kind: _spread_function(module, kind) for kind in (I8, I16)}
    add_pairings(module, lanes, _Walk, compress, spreads)
    for kind, spread in spreads.items():
        _sliced(module, kind, compress, spread)
        _pairs(module, kind, compress, divide, spread)
    return str(module)


def _live_function(module: ir.Module, lanes: int) -> ir.Function:
    """How many of n weights are not zero → ``*out``, uint16."""
    made = function(module, "live", [PTR, I64, PTR], exported=False)
    row, n, out = made.args
    e = Emitter(made, lanes)
    ints = ir.VectorType(I32, lanes)

    def body(c: Node, carried: list[Node], vector: bool) -> list[Node]:
        one = e.at.zext(is_live(e, row, c, vector=vector), ints if vector else I32)
        return [e.at.add(carried[0], one)]

    total = summed(e, n, body, [ir.Constant(ints, [0] * lanes)])
    e.write(e.at.trunc(total, I16), out, 0)
    e.at.ret_void()
    return made


def _both_function(module: ir.Module, lanes: int) -> ir.Function:
    """At how many of n columns two rows are not zero → ``*out``, uint16."""
    made = function(module, "both", [PTR, PTR, I64, PTR], exported=False)
    first, second, n, out = made.args
    e = Emitter(made, lanes)
    ints = ir.VectorType(I32, lanes)

    def body(c: Node, carried: list[Node], vector: bool) -> list[Node]:
        a, b = (is_live(e, row, c, vector=vector) for row in (first, second))
        return [e.at.add(carried[0], e.at.zext(e.at.and_(a, b), ints if vector else I32))]

    total = summed(e, n, body, [ir.Constant(ints, [0] * lanes)])
    e.write(e.at.trunc(total, I16), out, 0)
    e.at.ret_void()
    return made


def _count(module: ir.Module, lanes: int, live: ir.Function) -> None:
    made = function(module, "count", [PTR, I64, I64, I64, PTR], exported=True)
    weight, rows, columns, width, have = made.args
    e = Emitter(made, lanes)
    panels = panels_of(e, columns, width)

    def row(r: Node, _: list[Node]) -> list[Node]:
        def panel(p: Node, _: list[Node]) -> list[Node]:
            first, n = part_of(e, p, columns, width)
            at = e.element(weight, e.add(e.mul(r, columns), first), F32)
            e.at.call(live, [at, n, e.element(have, e.add(e.mul(p, rows), r), I16)])
            return []

        e.loop(0, panels, panel)
        return []

    e.loop(0, rows, row)
    e.at.ret_void()


def _sort(module: ir.Module) -> None:
    """By counting how many rows have how many non-zeros, which keeps rows of equal length in order."""
    made = function(module, "sort", [PTR, I64, I64, I64, PTR, I64, I64, PTR, PTR, PTR], exported=True)
    have, rows, panels, width, bounds, chunks, tall, places, order, begins = made.args
    e = Emitter(made, 1)

    def fill_up(slot: Node) -> Node:
        """Pads the last group with its first row; returns where the next group begins."""
        end = e.mul(e.div(e.add(slot, e.sub(tall, 1)), tall), tall)

        def one(s: Node, _: list[Node]) -> list[Node]:
            first = e.mul(e.div(s, tall), tall)
            e.write(e.read(order, first, I32), order, s)
            return []

        e.loop(slot, end, one)
        return end

    def chunk(number: Node, carried: list[Node]) -> list[Node]:
        (slot,) = carried
        e.write(e.div(slot, tall), begins, number)
        p, c = e.div(number, chunks), e.at.urem(number, chunks)
        low, high = e.read(bounds, c, I64), e.read(bounds, e.add(c, 1), I64)
        lengths = e.element(have, e.mul(p, rows), I16)

        def clear(i: Node, _: list[Node]) -> list[Node]:
            e.write(ir.Constant(I64, 0), places, i)
            return []

        def tally(r: Node, _: list[Node]) -> list[Node]:
            n = e.wide(lengths, r, I16)
            e.write(e.add(e.read(places, n, I64), 1), places, n)
            return []

        def place(i: Node, carried: list[Node]) -> list[Node]:
            n = e.sub(width, i)
            many = e.read(places, n, I64)
            e.write(carried[0], places, n)
            return [e.add(carried[0], many)]

        def put(r: Node, _: list[Node]) -> list[Node]:
            n = e.wide(lengths, r, I16)
            at = e.read(places, n, I64)
            e.write(e.at.trunc(r, I32), order, at)
            e.write(e.add(at, 1), places, n)
            return []

        e.loop(0, e.add(width, 1), clear)
        e.loop(low, high, tally)
        none = e.read(places, 0, I64)
        (last,) = e.loop(0, width, place, [slot])
        rest = e.mul(e.div(e.add(last, e.sub(tall, 1)), tall), tall)
        e.write(rest, places, 0)
        e.loop(low, high, put)
        fill_up(last)
        return [fill_up(e.add(rest, none))]

    total = e.mul(panels, chunks)
    (end,) = e.loop(0, total, chunk, [e.constant(0)])
    e.write(e.div(end, tall), begins, total)
    e.at.ret_void()


class _Walk:
    """Goes through the groups of all panels, as `_sort` has ordered them."""

    def __init__(self, e: Emitter, weight: Node, columns: Node, width: Node, chunks: Node, begins: Node) -> None:
        self.e = e
        self.weight = weight
        self.columns = columns
        self.width = width
        self.chunks = chunks
        self.begins = begins

    def groups(self, body: Callable[[Node, Node, Node, list[Node]], list[Node]], carried: list[Node]) -> None:
        """Calls ``body(panel, columns in it, group, carried)``."""
        e = self.e

        def panel(p: Node, carried: list[Node]) -> list[Node]:
            _, n = part_of(e, p, self.columns, self.width)
            first, last = (e.read(self.begins, e.mul(e.add(p, i), self.chunks), I64) for i in range(2))
            return e.loop(first, last, lambda g, carried: body(p, n, g, carried), carried)

        e.loop(0, panels_of(e, self.columns, self.width), panel, carried)

    def row(self, panel: Node, row: Node) -> Node:
        """Where the weights of a row begin in a panel."""
        e = self.e
        return e.element(self.weight, e.add(e.mul(row, self.columns), e.mul(panel, self.width)), F32)


def _match_pairs(module: ir.Module, lanes: int, both: ir.Function) -> None:
    made = function(module, "match_pairs", [PTR] + [I64] * 4 + [PTR] * 4, exported=True)
    weight, rows, columns, width, chunks, begins, order, have, counts = made.args
    e = Emitter(made, lanes)
    walk = _Walk(e, weight, columns, width, chunks, begins)
    found = e.at.alloca(I16, size=2)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        ids = [e.wide(order, e.add(e.mul(g, 4), r), I32) for r in range(4)]
        lengths = e.element(have, e.mul(p, rows), I16)
        a, b, c, d = (e.wide(lengths, i, I16) for i in ids)
        shortest = e.least(e.least(a, b), e.least(c, d))
        longest = e.at.select(e.less(a, c), c, a)  # the first row of a pair is not shorter than the second
        whole = e.at.and_(e.at.not_(e.equal(ids[3], ids[0])), e.less(1, shortest))

        def matched() -> list[Node]:
            for pair in range(2):
                a, b = (walk.row(p, i) for i in ids[2 * pair : 2 * pair + 2])
                e.at.call(both, [a, b, n, e.element(found, pair, I16)])
            # Every row keeps one weight of its own, which can be split where it has fewer than the others.
            return [e.least(e.least(e.wide(found, 0, I16), e.wide(found, 1, I16)), e.sub(shortest, 1))]

        (common,) = e.choose(whole, matched, lambda: [e.constant(0)])
        e.write(e.at.trunc(common, I16), counts, e.mul(g, 2))
        e.write(e.at.trunc(e.sub(longest, common), I16), counts, e.add(e.mul(g, 2), 1))
        return []

    walk.groups(group, [])
    e.at.ret_void()


def _compress_function(module: ir.Module) -> ir.Function:
    """Columns and weights of n that are not zero, to buffers with room for one more."""
    made = function(module, "compress", [PTR, I64, PTR, PTR], exported=False)
    row, n, places, weights = made.args
    e = Emitter(made, 1)

    def one(c: Node, carried: list[Node]) -> list[Node]:
        at = carried[0]
        value = e.read(row, c, F32)
        e.write(e.at.trunc(c, I16), places, at)
        e.write(value, weights, at)
        return [e.add(at, e.at.zext(e.at.fcmp_unordered("!=", value, ir.Constant(F32, 0.0)), I64))]

    _unrolled(e, n, one, [e.constant(0)])
    e.at.ret_void()
    return made


def _rows(module: ir.Module, compress: ir.Function) -> None:
    made = function(module, "rows", [PTR, I64, I64, I64, PTR, PTR, PTR], exported=True)
    weight, rows, columns, width, have, index, values = made.args
    e = Emitter(made, 1)

    def panel(p: Node, carried: list[Node]) -> list[Node]:
        first, n = part_of(e, p, columns, width)

        def row(r: Node, carried: list[Node]) -> list[Node]:
            at = carried[0]
            source = e.element(weight, e.add(e.mul(r, columns), first), F32)
            # What is written behind a row's last non-zero, the next row overwrites.
            e.at.call(compress, [source, n, e.element(index, at, I16), e.element(values, at, F32)])
            return [e.add(at, e.wide(have, e.add(e.mul(p, rows), r), I16))]

        return e.loop(0, rows, row, carried)

    e.loop(0, panels_of(e, columns, width), panel, [e.constant(0)])
    e.at.ret_void()


def _unrolled(
    e: Emitter, n: Node, one: Callable[[Node, list[Node]], list[Node]], carried: list[Node], step: int = _UNROLLED
) -> list[Node]:
    """The body for every column, several in a round."""

    def several(c: Node, carried: list[Node]) -> list[Node]:
        for k in range(step):
            carried = one(e.add(c, k), carried)
        return carried

    whole = e.mul(e.div(n, step), step)
    return e.loop(whole, n, one, e.loop(0, whole, several, carried, step))


def _divide_function(module: ir.Module) -> ir.Function:
    """Columns of two rows: the first ``common`` that both have, then what each has beside these."""
    made = function(module, "divide", [PTR, PTR, I64, I64] + [PTR] * 7, exported=False)
    row_a, row_b, n, common, places, both_a, both_b, places_a, own_a, places_b, own_b = made.args
    e = Emitter(made, 1)

    def one(c: Node, carried: list[Node]) -> list[Node]:
        both, at_a, at_b = carried
        a, b = e.read(row_a, c, F32), e.read(row_b, c, F32)
        live_a, live_b = (e.at.fcmp_unordered("!=", x, ir.Constant(F32, 0.0)) for x in (a, b))
        shared = e.at.and_(e.at.and_(live_a, live_b), e.less(both, common))
        column = e.at.trunc(c, I16)
        for target, at in ((places, both), (places_a, at_a), (places_b, at_b)):
            e.write(column, target, at)
        for value, target, at in ((a, both_a, both), (b, both_b, both), (a, own_a, at_a), (b, own_b, at_b)):
            e.write(value, target, at)
        alone = e.at.not_(shared)
        steps = (shared, e.at.and_(live_a, alone), e.at.and_(live_b, alone))
        return [e.add(at, e.at.zext(step, I64)) for at, step in zip(carried, steps, strict=True)]

    _unrolled(e, n, one, [e.constant(0)] * 3, 2)
    e.at.ret_void()
    return made


def _spread_function(module: ir.Module, kind: Node) -> ir.Function:
    """The ``have`` non-zeros of a row on its ``want`` steps, each ``tall`` places after the one before.

    A row with too few splits some of them into 2, 3, … parts, w/2ᵏ or half of that, which add up exactly.
    """
    made = function(module, f"spread_{kind.width}", [PTR, PTR, I64, I64, I64, PTR, PTR], exported=False)
    places, weights, have, want, tall, index, values = made.args
    e = Emitter(made, 1)
    leading = (
        ir.Function(module, ir.FunctionType(I64, [I64, ir.IntType(1)]), "llvm.ctlz.i64")
        if (module.globals.get("llvm.ctlz.i64") is None)
        else module.globals["llvm.ctlz.i64"]
    )

    def column(k: Node) -> Node:
        place = e.read(places, k, I16)
        return place if kind is I16 else e.at.trunc(place, kind)

    def as_they_are() -> list[Node]:
        def one(k: Node, carried: list[Node]) -> list[Node]:
            e.write(column(k), index, carried[0])
            e.write(e.read(weights, k, F32), values, carried[0])
            return [e.add(carried[0], tall)]

        _unrolled(e, have, one, [e.constant(0)])
        return []

    def split() -> list[Node]:
        safe = e.at.select(e.equal(have, 0), e.constant(1), have)
        share, extra = e.div(want, safe), e.at.urem(want, safe)

        def one(k: Node, carried: list[Node]) -> list[Node]:
            parts = e.add(share, e.at.zext(e.less(k, extra), I64))
            bits = e.sub(63, e.at.call(leading, [parts, ir.Constant(ir.IntType(1), 1)]))
            large = e.at.shl(e.constant(1), bits)
            fewer = e.sub(e.mul(large, 2), parts)
            place, weight = column(k), e.read(weights, k, F32)

            def part(i: Node, carried: list[Node]) -> list[Node]:
                divisor = e.at.select(e.less(i, fewer), large, e.mul(large, 2))
                e.write(place, index, carried[0])
                e.write(e.at.fdiv(weight, e.at.uitofp(divisor, F32)), values, carried[0])
                return [e.add(carried[0], tall)]

            return e.loop(0, parts, part, carried)

        e.loop(0, have, one, [e.constant(0)])
        return []

    e.choose(e.equal(have, want), as_they_are, split)
    e.at.ret_void()
    return made


_FILL = [PTR] + [I64] * 5 + [PTR] * 7


def _sliced(module: ir.Module, kind: Node, compress: ir.Function, spread: ir.Function) -> None:
    made = function(module, f"sliced_{kind.width}", _FILL, exported=True)
    weight, rows, columns, width, chunks, tall, begins, order, have, counts, scratch, index, values = made.args
    e = Emitter(made, 1)
    walk = _Walk(e, weight, columns, width, chunks, begins)
    (weights,), (places,) = buffers(e, scratch, width, 1, 1)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        (at,) = carried
        steps = e.wide(counts, g, I16)
        lengths = e.element(have, e.mul(p, rows), I16)
        ids = e.element(order, e.mul(g, tall), I32)
        first = e.wide(ids, 0, I32)

        def member(r: Node, _: list[Node]) -> list[Node]:
            row = e.wide(ids, r, I32)
            with e.at.if_then(e.at.or_(e.equal(r, 0), e.at.not_(e.equal(row, first)))):
                e.at.call(compress, [walk.row(p, row), n, places, weights])
                place = e.add(at, r)
                targets = [e.element(index, place, kind), e.element(values, place, F32)]
                e.at.call(spread, [places, weights, e.wide(lengths, row, I16), steps, tall, *targets])
            return []

        with e.at.if_then(e.less(0, steps)):
            e.loop(0, tall, member)
        return [e.add(at, e.mul(steps, tall))]

    walk.groups(group, [e.constant(0)])
    e.at.ret_void()


def _pairs(module: ir.Module, kind: Node, compress: ir.Function, divide: ir.Function, spread: ir.Function) -> None:
    made = function(module, f"pairs_{kind.width}", _FILL, exported=True)
    weight, rows, columns, width, chunks, _tall, begins, order, have, counts, scratch, index, values = made.args
    e = Emitter(made, 1)
    walk = _Walk(e, weight, columns, width, chunks, begins)
    (both_a, both_b, own_a, own_b), (places, places_a, places_b) = buffers(e, scratch, width, 4, 3)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        at, value_at = carried
        common, alone = (e.wide(counts, e.add(e.mul(g, 2), i), I16) for i in range(2))
        lengths = e.element(have, e.mul(p, rows), I16)
        ids = [e.wide(order, e.add(e.mul(g, 4), r), I32) for r in range(4)]
        own_at, own_value_at = e.add(at, e.mul(common, 2)), e.add(value_at, e.mul(common, 4))

        def spread_row(r: int, columns_of: Node, weights: Node) -> None:
            left = e.sub(e.wide(lengths, ids[r], I16), common)
            targets = [e.element(index, e.add(own_at, r), kind), e.element(values, e.add(own_value_at, r), F32)]
            e.at.call(spread, [columns_of, weights, left, alone, e.constant(4), *targets])

        def row_by_row() -> list[Node]:
            for r, row in enumerate(ids):
                real = e.less(0, alone) if r == 0 else e.at.not_(e.equal(row, ids[0]))
                with e.at.if_then(e.at.and_(real, e.less(0, alone))):
                    e.at.call(compress, [walk.row(p, row), n, places_a, own_a])
                    spread_row(r, places_a, own_a)
            return []

        def by_pairs() -> list[Node]:
            for pair in range(2):
                a, b = (walk.row(p, i) for i in ids[2 * pair : 2 * pair + 2])
                buffers = [places, both_a, both_b, places_a, own_a, places_b, own_b]
                e.at.call(divide, [a, b, n, common, *buffers])

                def shared(k: Node, _: list[Node], pair: int = pair) -> list[Node]:
                    column = e.read(places, k, I16)
                    e.write(column if kind is I16 else e.at.trunc(column, kind), index, e.add(at, e.mul(k, 2), pair))
                    place = e.add(value_at, e.mul(k, 4), 2 * pair)
                    e.write(e.read(both_a, k, F32), values, place)
                    e.write(e.read(both_b, k, F32), values, e.add(place, 1))
                    return []

                e.loop(0, common, shared)
                spread_row(2 * pair, places_a, own_a)
                spread_row(2 * pair + 1, places_b, own_b)
            return []

        e.choose(e.equal(common, 0), row_by_row, by_pairs)
        steps = e.mul(alone, 4)
        return [e.add(own_at, steps), e.add(own_value_at, steps)]

    walk.groups(group, [e.constant(0), e.constant(0)])
    e.at.ret_void()
