"""Kernels that choose among many numbers, as LLVM IR.

Numbers are compared by their bits, as integers: of floats without a sign that is the order of the floats, NaN after
infinity.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.choice_moves_code import add_moves
from gossamer.runtime.layout import in_team

__all__ = ["MAGNITUDE", "MOST_OF_GROUP", "VALUE", "add_scan", "choice_kernels"]

Node = Any  # llvmlite has no type stubs

MOST_OF_GROUP = 16
"""Elements of a group, at most."""

MAGNITUDE, VALUE = 0x7FFFFFFF, 0xFFFFFFFF
"""Bits of floats that are compared."""

_BITS = 31
"""Of a float without its sign."""

_SIDE = 4
"""Vectors that are compared in one step of a loop."""


def choice_kernels(lanes: int) -> str:
    """LLVM IR of a module; where threads come last, a description comes first.

    ``above(description, values, count, threshold, mask, first, positions, found, counts, threads)``: the values whose
    bits under ``mask`` (0x7FFFFFFF for magnitudes, 0xFFFFFFFF for values) are larger than a float, given by its bits,
    or not a number. Members take shares of float32 [count], write positions int64 + ``first`` and values from their
    share's place on, and int64 (share's place, how many) into ``counts`` [threads, 2].

    ``best_of_rows(description, scores, which, rows, columns, count, mask, always, starts, positions, room, places,
    threads)``: of each row whose number is in ``which`` int64 [rows] the ``count`` highest scores under ``mask``,
    without signs; int64 positions [rows, count], ascending; of equal ones the first. Before, scores at the positions
    ``always``, of which ``starts`` says where rows begin, become infinite; a null pointer means none. Room is float32
    and places int64 [threads, columns]. A row alone needs no room, has no sign and nothing that is chosen always.

    ``best_of_groups(description, scores, groups, size, count, positions, threads)``: the same of groups of up to 16
    scores that lie side by side.

    ``blank(values, positions, begin, end, first)``: zero at int64 ``positions[begin:end]`` − ``first``.

    And what `add_moves` says.

    Args:
        lanes: floats per vector register.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_choice")
    scan = add_scan(module, lanes)
    _above(module, lanes, scan)
    _best_of_rows(module, lanes, scan)
    _best_of_groups(module, lanes)
    _blank(module)
    add_moves(module)
    return str(module)


def _share(e: Emitter, whole: Node, part: Node, team: Node, unit: int) -> tuple[Node, Node]:
    """A member's share of so many elements, in whole units but for the end."""
    units = e.div(e.add(whole, unit - 1), unit)
    low, high = (e.least(whole, e.mul(e.div(e.mul(e.add(part, i), units), team), unit)) for i in range(2))
    return low, high


def _packed(e: Emitter, hits: Node) -> Node:
    """A vector of bits as an integer."""
    return e.at.bitcast(hits, ir.IntType(e.lanes))


def _integers(e: Emitter, base: Node, index: Node) -> Node:
    """A vector of 32-bit integers."""
    return e.at.load(e.element(base, index, I32), align=4, typ=ir.VectorType(I32, e.lanes))


def _everywhere(e: Emitter, value: Node) -> Node:
    """An integer in every lane."""
    kind = ir.VectorType(I32, e.lanes)
    one = e.at.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return e.shuffle(one, one, [0] * e.lanes)


def _compresses(lanes: int) -> bool:
    """Whether there is an instruction that brings chosen lanes together: with registers of 512 bits."""
    return lanes == 16


def _compressed(e: Emitter, vector: Node, hits: Node) -> Node:
    """The lanes that are hit, one after the other; behind them anything."""
    kind = vector.type
    name = f"llvm.experimental.vector.compress.v{kind.count}{'f32' if kind.element == F32 else 'i32'}"
    known = e.made.module.globals.get(name)
    if known is None:
        known = ir.Function(e.made.module, ir.FunctionType(kind, [kind, hits.type, kind]), name)
    return e.at.call(known, [vector, hits, ir.Constant(kind, ir.Undefined)])


def _put_places(e: Emitter, first: Node, hits: Node, positions: Node, n: Node) -> None:
    """``first`` + the numbers of the lanes that are hit to ``positions[n]`` and on; a whole vector is overwritten."""
    lanes = _compressed(e, ir.Constant(ir.VectorType(I32, e.lanes), list(range(e.lanes))), hits)
    kind = ir.VectorType(I64, e.lanes)
    one = e.at.insert_element(ir.Constant(kind, ir.Undefined), first, ir.Constant(I32, 0))
    numbers = e.at.add(e.shuffle(one, one, [0] * e.lanes), e.at.zext(lanes, kind))
    e.at.store(numbers, e.element(positions, n, I64), align=4)


def _number_of(e: Emitter, bits: Node) -> Node:
    """Of bits that are set in an integer with one per lane, as 64 bits."""
    return e.at.zext(e.at.ctpop(bits), I64)


def add_scan(module: ir.Module, lanes: int) -> ir.Function:
    """Adds a function (values, count, threshold, mask, first, positions, found, tally), as ``above``.

    What is found goes behind what ``tally`` says is there already; there must be room for ``count`` more.
    """
    made = function(module, "scan", [PTR] + [I64] * 4 + [PTR] * 3, exported=False)
    values, count, threshold, mask, first, positions, found, tally = made.args
    e = Emitter(made, lanes)
    whole = e.at.and_(count, e.constant(-lanes))
    least = e.at.bitcast(e.at.trunc(threshold, I32), F32)
    bits = e.at.trunc(mask, I32)
    many_least, many_bits = e.spread(least), _everywhere(e, bits)

    def put(i: Node, hit: Node, n: Node) -> Node:
        """Writes in any case, and goes on if it was wanted: at most at the place of what is looked at."""
        e.write(e.add(first, i), positions, n)
        e.write(e.read(values, i, F32), found, n)
        return e.add(n, e.at.zext(hit, I64))

    def vector(i: Node, carried: list[Node]) -> list[Node]:
        (n,) = carried
        seen = e.at.bitcast(e.at.and_(_integers(e, values, i), many_bits), e.vector)
        hit_lanes = e.at.fcmp_unordered(">", seen, many_least)
        hits = _packed(e, hit_lanes)
        if _compresses(lanes):
            # A branch that is taken now and then costs more. A whole vector fits: no more is found than looked at.
            _put_places(e, e.add(first, i), hit_lanes, positions, n)
            e.store(_compressed(e, e.load(values, i), hit_lanes), found, n)
            return [e.add(n, _number_of(e, hits))]

        def each() -> list[Node]:
            at = n
            for lane in range(lanes):
                bit = e.at.trunc(e.at.lshr(hits, ir.Constant(hits.type, lane)), ir.IntType(1))
                at = put(e.add(i, lane), bit, at)
            return [at]

        return e.choose(e.at.icmp_unsigned("!=", hits, ir.Constant(hits.type, 0)), each, lambda: [n])

    def single(i: Node, carried: list[Node]) -> list[Node]:
        seen = e.at.bitcast(e.at.and_(e.read(values, i, I32), bits), F32)
        return [put(i, e.at.fcmp_unordered(">", seen, least), carried[0])]

    n = e.loop(0, whole, vector, [e.read(tally, 0, I64)], lanes)
    n = e.loop(whole, count, single, n)
    e.write(n[0], tally, 0)
    e.at.ret_void()
    return made


def _above(module: ir.Module, lanes: int, scan: ir.Function) -> None:
    made = function(module, "above_share", [PTR] + [I64] * 10, exported=False)
    _, values, count, threshold, mask, first, positions, found, counts, part, team = made.args
    e = Emitter(made, lanes)
    counts_at = e.at.inttoptr(counts, PTR)
    low, high = _share(e, count, part, team, lanes)
    offsets = ((values, 4), (positions, 8), (found, 4))
    values_at, positions_at, found_at = (e.at.inttoptr(e.add(a, e.mul(low, n)), PTR) for a, n in offsets)
    e.write(low, counts_at, e.mul(part, 2))
    tally = e.element(counts_at, e.add(e.mul(part, 2), 1), I64)
    e.write(e.constant(0), tally, 0)
    given = [values_at, e.sub(high, low), threshold, mask, e.add(first, low), positions_at, found_at, tally]
    e.at.call(scan, given)
    e.at.ret_void()
    in_team(module, "above", made, 8)


def _at_least(e: Emitter, row: Node, columns: Node, whole: Node, least: Node) -> Node:
    """How many integers of a row are at least so large."""
    kind, bound = ir.VectorType(I32, e.lanes), _everywhere(e, least)

    def single(k: Node, carried: list[Node]) -> list[Node]:
        return [e.at.add(carried[0], e.at.zext(e.at.icmp_signed(">=", e.read(row, k, I32), least), I32))]

    if _compresses(e.lanes):  # bits of hits are an integer at once

        def counted(k: Node, carried: list[Node]) -> list[Node]:
            hits = _packed(e, e.at.icmp_signed(">=", _integers(e, row, k), bound))
            return [e.at.add(carried[0], e.at.trunc(_number_of(e, hits), I32))]

        totals = e.loop(0, whole, counted, [ir.Constant(I32, 0)], e.lanes)
        return e.at.zext(e.loop(whole, columns, single, totals)[0], I64)
    zero = ir.Constant(kind, [0] * e.lanes)
    sides = e.mul(e.div(whole, e.lanes * _SIDE), e.lanes * _SIDE)

    def one(k: Node, total: Node) -> Node:
        hits = e.at.icmp_signed(">=", _integers(e, row, k), bound)
        return e.at.sub(total, e.at.sext(hits, kind))

    def several(k: Node, totals: list[Node]) -> list[Node]:
        return [one(e.add(k, e.lanes * i), total) for i, total in enumerate(totals)]

    totals = e.loop(0, sides, several, [zero] * _SIDE, e.lanes * _SIDE)
    first = e.loop(sides, whole, lambda k, total: [one(k, total[0])], totals[:1], e.lanes)
    for other in totals[1:]:
        first = [e.at.add(first[0], other)]
    total = ir.Constant(I32, 0)
    for lane in range(e.lanes):
        total = e.at.add(total, e.at.extract_element(first[0], ir.Constant(I32, lane)))
    return e.at.zext(e.loop(whole, columns, single, [total])[0], I64)


def _best_of_row(module: ir.Module, lanes: int) -> ir.Function:
    """Adds a function (row, columns, count, first, positions, least); the smallest that is chosen is its result.

    Its bits are found one by one, from the highest on.
    """
    made = function(module, "best_of_row", [PTR, I64, I64, I64, PTR, PTR], exported=False)
    row, columns, count, first, positions, result = made.args
    e = Emitter(made, lanes)
    whole = e.at.and_(columns, e.constant(-lanes))
    spot = e.at.alloca(I64)

    def bit(b: Node, carried: list[Node]) -> list[Node]:
        least, reach = carried

        def tried() -> list[Node]:
            shifted = e.at.shl(ir.Constant(I32, 1), e.at.trunc(e.sub(_BITS - 1, b), I32))
            more = e.at.or_(least, shifted)
            n = _at_least(e, row, columns, whole, more)
            enough = e.at.icmp_signed(">=", n, count)
            return [e.at.select(enough, more, least), e.at.select(enough, n, reach)]

        return e.choose(e.equal(reach, count), lambda: [least, reach], tried)

    least, reach = e.loop(0, _BITS, bit, [ir.Constant(I32, 0), columns])
    e.at.store(least, result)
    # Of those that are equal to the smallest, the last are too many.
    exact = e.equal(reach, count)
    (above,) = e.choose(
        exact,
        lambda: [e.constant(0)],
        lambda: [_at_least(e, row, columns, whole, e.at.add(least, ir.Constant(I32, 1)))],
    )
    spare = e.at.select(exact, columns, e.sub(count, above))
    bound = _everywhere(e, least)

    def put(k: Node, carried: list[Node]) -> list[Node]:
        n, spare = carried
        seen = e.read(row, k, I32)
        larger = e.at.icmp_signed(">", seen, least)
        tied = e.at.and_(e.at.icmp_signed("==", seen, least), e.less(0, spare))
        # Behind the last one there may be somebody else's.
        e.at.store(e.add(first, k), e.at.select(e.less(n, count), e.element(positions, n, I64), spot))
        return [e.add(n, e.at.zext(e.at.or_(larger, tied), I64)), e.sub(spare, e.at.zext(tied, I64))]

    def vector(k: Node, carried: list[Node]) -> list[Node]:
        seen = _integers(e, row, k)
        hit_lanes = e.at.icmp_signed(">=", seen, bound)
        hits = _packed(e, hit_lanes)

        def one_by_one() -> list[Node]:
            now = carried
            for lane in range(lanes):
                now = put(e.add(k, lane), now)
            return now

        def each() -> list[Node]:
            if not _compresses(lanes):
                return one_by_one()
            n, spare = carried
            ties = _number_of(e, _packed(e, e.at.icmp_signed("==", seen, bound)))
            # Behind the last one there may be somebody else's, and of the last ties not all are wanted.
            fits = e.at.and_(e.less(e.add(n, lanes - 1), count), e.at.not_(e.less(spare, ties)))

            def together() -> list[Node]:
                _put_places(e, e.add(first, k), hit_lanes, positions, n)
                return [e.add(n, _number_of(e, hits)), e.sub(spare, ties)]

            return e.choose(fits, together, one_by_one)

        return e.choose(e.at.icmp_unsigned("!=", hits, ir.Constant(hits.type, 0)), each, lambda: carried)

    carried = e.loop(0, whole, vector, [e.constant(0), spare], lanes)
    e.loop(whole, columns, put, carried)
    e.at.ret_void()
    return made


def _best_of_rows(module: ir.Module, lanes: int, scan: ir.Function) -> None:
    """Members take rows. What is much smaller than the smallest of the row before is not looked at in detail."""
    best = _best_of_row(module, lanes)
    made = function(module, "best_of_rows_share", [PTR] + [I64] * 13, exported=False)
    _, scores, which, rows, columns, count, mask, always, starts, positions, room, places, part, team = made.args
    e = Emitter(made, lanes)
    scores_at, which_at, positions_at = (e.at.inttoptr(a, PTR) for a in (scores, which, positions))
    always_at, starts_at = (e.at.inttoptr(a, PTR) for a in (always, starts))
    room_at, places_at = (
        e.at.inttoptr(e.add(a, e.mul(part, e.mul(columns, n))), PTR) for a, n in ((room, 4), (places, 8))
    )
    low, high = _share(e, rows, part, team, 1)
    least, tally = e.at.alloca(I32), e.at.alloca(I64)
    lowest = ir.Constant(F32, -1.0)

    def one(r: Node, carried: list[Node]) -> list[Node]:
        (guess,) = carried
        number = e.read(which_at, r, I64)
        begin = e.mul(number, columns)
        row, target = e.element(scores_at, begin, F32), e.element(positions_at, e.mul(r, count), I64)

        def settled(k: Node, _: list[Node]) -> list[Node]:
            e.write(ir.Constant(F32, float("inf")), scores_at, e.read(always_at, k, I64))
            return []

        with e.at.if_then(e.at.not_(e.equal(always, 0))):
            e.loop(e.read(starts_at, number, I64), e.read(starts_at, e.add(number, 1), I64), settled)

        def looked(threshold: Node) -> Node:
            bits = e.at.zext(e.at.bitcast(threshold, I32), I64)
            e.at.store(e.constant(0), tally)
            e.at.call(scan, [row, columns, bits, mask, begin, places_at, room_at, tally])
            return e.at.load(tally, typ=I64)

        # Rows differ: one that is smaller than the one before is seldom much smaller.
        with e.at.if_then(e.less(looked(guess), count)):
            half = e.at.select(
                e.at.fcmp_ordered("<", guess, ir.Constant(F32, 0.0)), lowest, e.at.fmul(guess, ir.Constant(F32, 0.5))
            )
            with e.at.if_then(e.less(looked(half), count)):
                looked(lowest)
        found = e.at.load(tally, typ=I64)
        _without_signs(e, room_at, found, mask)
        e.at.call(best, [room_at, found, count, e.constant(0), target, least])

        def placed(i: Node, _: list[Node]) -> list[Node]:
            e.write(e.read(places_at, e.read(target, i, I64), I64), target, i)
            return []

        e.loop(0, count, placed)
        smallest = e.at.bitcast(e.at.load(least, typ=I32), F32)
        finite = e.at.fcmp_ordered("<", smallest, ir.Constant(F32, float("inf")))
        return [e.at.select(finite, e.at.fmul(smallest, ir.Constant(F32, 0.75)), lowest)]

    with e.at.if_else(e.equal(rows, 1)) as (single, several):
        with single, e.at.if_then(e.less(low, high)):
            begin = e.mul(e.read(which_at, 0, I64), columns)
            row = e.element(scores_at, begin, F32)
            e.at.call(best, [row, columns, count, begin, positions_at, least])
        with several:
            e.loop(low, high, one, [lowest])
    e.at.ret_void()
    in_team(module, "best_of_rows", made, 11)


def _without_signs(e: Emitter, values: Node, count: Node, mask: Node) -> None:
    """Numbers under a mask, in place."""
    bits = e.at.trunc(mask, I32)
    many = _everywhere(e, bits)
    whole = e.at.and_(count, e.constant(-e.lanes))

    def vector(k: Node, _: list[Node]) -> list[Node]:
        e.store(e.at.bitcast(e.at.and_(_integers(e, values, k), many), e.vector), values, k)
        return []

    def single(k: Node, _: list[Node]) -> list[Node]:
        e.write(e.at.and_(e.read(values, k, I32), bits), values, k)
        return []

    with e.at.if_then(e.at.icmp_unsigned("!=", bits, ir.Constant(I32, VALUE))):
        e.loop(0, whole, vector, step=e.lanes)
        e.loop(whole, count, single)


def _best_of_groups(module: ir.Module, lanes: int) -> None:
    """Members take groups, a lane for each: an element is chosen if fewer than ``count`` others come before it."""
    made = function(module, "best_of_groups_share", [PTR] + [I64] * 7, exported=False)
    _, scores, groups, size, count, positions, part, team = made.args
    e = Emitter(made, lanes)
    kind = ir.VectorType(I32, lanes)
    scores_at, positions_at = e.at.inttoptr(scores, PTR), e.at.inttoptr(positions, PTR)
    held = e.at.alloca(kind, size=MOST_OF_GROUP)
    ranks = e.at.alloca(kind, size=MOST_OF_GROUP)
    low, high = _share(e, groups, part, team, lanes)

    def several(g: Node, _: list[Node]) -> list[Node]:
        # The last lanes may have no group: they look at the last one's again.
        lane_of = [e.least(e.add(g, lane), e.sub(high, 1)) for lane in range(lanes)]

        def read(i: Node, _: list[Node]) -> list[Node]:
            made = ir.Constant(kind, ir.Undefined)
            for lane, group in enumerate(lane_of):
                score = e.read(scores_at, e.add(e.mul(group, size), i), I32)
                made = e.at.insert_element(made, score, ir.Constant(I32, lane))
            e.write(made, held, i)
            e.write(ir.Constant(kind, [0] * lanes), ranks, i)
            return []

        e.loop(0, size, read)

        def first(i: Node, _: list[Node]) -> list[Node]:
            mine = e.read(held, i, kind)

            def second(j: Node, carried: list[Node]) -> list[Node]:
                # Of equal ones the first comes first.
                behind = e.at.sext(e.at.icmp_signed(">", e.read(held, j, kind), mine), kind)
                other = e.at.add(e.read(ranks, j, kind), ir.Constant(kind, [1] * lanes))
                e.write(e.at.add(other, behind), ranks, j)
                return [e.at.sub(carried[0], behind)]

            (rank,) = e.loop(e.add(i, 1), size, second, [e.read(ranks, i, kind)])
            e.write(rank, ranks, i)
            return []

        e.loop(0, size, first)
        bound = _everywhere(e, e.at.trunc(count, I32))

        def mark(i: Node, carried: list[Node]) -> list[Node]:
            chosen = e.at.sext(e.at.icmp_signed("<", e.read(ranks, i, kind), bound), kind)
            bit = _everywhere(e, e.at.shl(ir.Constant(I32, 1), e.at.trunc(i, I32)))
            return [e.at.or_(carried[0], e.at.and_(chosen, bit))]

        (marks,) = e.loop(0, size, mark, [ir.Constant(kind, [0] * lanes)])
        for lane in range(lanes):
            group = e.add(g, lane)
            with e.at.if_then(e.less(group, high)):
                begin, target = e.mul(group, size), e.mul(group, count)
                mine = e.at.extract_element(marks, ir.Constant(I32, lane))

                def put(i: Node, carried: list[Node], begin: Node = begin, target: Node = target) -> list[Node]:
                    (left,) = carried
                    lowest = e.at.cttz(left, ir.Constant(ir.IntType(1), 0))
                    e.write(e.add(begin, e.at.zext(lowest, I64)), positions_at, e.add(target, i))
                    return [e.at.and_(left, e.at.sub(left, ir.Constant(I32, 1)))]

                e.loop(0, count, put, [mine])
        return []

    e.loop(low, high, several, step=lanes)
    e.at.ret_void()
    in_team(module, "best_of_groups", made, 5)


def _blank(module: ir.Module) -> None:
    made = function(module, "blank", [PTR, PTR, I64, I64, I64], exported=True)
    values, positions, begin, end, first = made.args
    e = Emitter(made, 1)

    def one(k: Node, _: list[Node]) -> list[Node]:
        e.write(ir.Constant(F32, 0.0), values, e.sub(e.read(positions, k, I64), first))
        return []

    e.loop(begin, end, one)
    e.at.ret_void()
