"""Code that deals the columns four rows have in common to the three pairings of `group_code`, as LLVM IR.

A queue per pair of rows holds the columns at which the pair is multiplied together. Columns of exactly two rows can
only go to one queue; those of three rows go one by one to whichever of their three queues is shortest, those of four
rows to both queues of a pairing, whichever has fewest steps. What exceeds a queue's steps is left to single rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.group_code import PAIRINGS
from gossamer.runtime.pack_parts import buffers, is_live

__all__ = ["add_pairings"]

Node = Any  # llvmlite has no type stubs
Groups = Callable[[Callable[[Node, Node, Node, list[Node]], list[Node]], list[Node]], None]

_QUEUES = tuple(pair for pairing in PAIRINGS for pair in pairing)
_NEVER = 1 << 40
_ALL = 15
_TRIPLES = tuple(_ALL & ~(1 << r) for r in range(4))

# What `deal` writes, 64-bit integers: for each of 16 masks where its columns begin to go to the second and the third
# pairing, then, per mask and queue, what has to be added to a column's number among those of its mask to get its step.
_CUTS = 0
_BASES = 32
_LEVELS = _BASES + 16 * 6
_DEALT = _LEVELS + 6  # per missing row and pairing
_LEFT = _DEALT + 12
_QUADS = _LEFT + 4
_PLAN = _QUADS + 3


def _mask(queue: int) -> int:
    first, second = _QUEUES[queue]
    return 1 << first | 1 << second


def _sources(queue: int) -> list[int]:
    """The rows that may be missing from a column of three rows for it to go to a queue."""
    return [r for r in range(4) if r not in _QUEUES[queue]]


def add_pairings(
    module: ir.Module,
    lanes: int,
    walk_of: Callable[..., Any],
    compress: ir.Function,
    spreads: dict[Node, ir.Function],
) -> None:
    """Adds three entry points to the packers.

    - ``deal_pairings(W, rows, columns, width, chunks, begins, order, have, scratch, steps)``: how many steps the
      columns of a group allow per pairing, uint16 [groups, 3].
    - ``pairings_8``, ``pairings_16``: as ``pairs_8``, with those steps and the ones of single rows in ``counts``.

    Args:
        module: of the packers.
        lanes: floats per vector register.
        walk_of: what goes through the groups: called with an emitter and W, columns, width, chunks, begins.
        compress: finds the non-zeros of a row.
        spreads: puts them to their places, by type of the indices.
    """
    masks, deal = _masks(module, lanes), _deal(module)
    made = function(module, "deal_pairings", [PTR] + [I64] * 4 + [PTR] * 5, exported=True)
    weight, rows, columns, width, chunks, begins, order, have, scratch, steps = made.args
    e = Emitter(made, 1)
    walk = walk_of(e, weight, columns, width, chunks, begins)
    tally, plan = e.at.alloca(I64, size=16), e.at.alloca(I64, size=_PLAN)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        ids = [e.wide(order, e.add(e.mul(g, 4), r), I32) for r in range(4)]
        shortest = e.wide(e.element(have, e.mul(p, rows), I16), ids[3], I16)
        whole = e.at.and_(e.at.not_(e.equal(ids[3], ids[0])), e.less(1, shortest))

        def dealt() -> list[Node]:
            e.at.call(masks, [walk.row(p, i) for i in ids] + [n, scratch, tally])
            e.at.call(deal, [tally, plan])
            levels = [e.read(plan, _LEVELS + i, I64) for i in range(6)]
            return [e.least(levels[2 * k], levels[2 * k + 1]) for k in range(3)]

        for k, found in enumerate(e.choose(whole, dealt, lambda: [e.constant(0)] * 3)):
            e.write(e.at.trunc(found, I16), steps, e.add(e.mul(g, 3), k))
        return []

    walk.groups(group, [])
    e.at.ret_void()
    for kind, spread in spreads.items():
        _fill(module, kind, walk_of, masks, deal, compress, spread)


def _masks(module: ir.Module, lanes: int) -> ir.Function:
    """Which of four rows are not zero at each of n columns → uint8 [n]; and how many columns have each mask."""
    made = function(module, "masks_of_rows", [PTR] * 4 + [I64, PTR, PTR], exported=False)
    *rows, n, out, tally = made.args
    e = Emitter(made, lanes)
    whole = e.mul(e.div(n, lanes), lanes)

    def bits(c: Node, count: int) -> Node:
        kind = ir.VectorType(I8, count) if count > 1 else I8
        mask = None
        for r, row in enumerate(rows):
            bit = ir.Constant(kind, [1 << r] * count if count > 1 else 1 << r)
            none = ir.Constant(kind, [0] * count if count > 1 else 0)
            found = e.at.select(is_live(e, row, c, vector=count > 1), bit, none)
            mask = found if mask is None else e.at.or_(mask, found)
        return mask

    def some(c: Node, _: list[Node]) -> list[Node]:
        e.at.store(bits(c, lanes), e.element(out, c, I8), align=1)
        return []

    def one(c: Node, _: list[Node]) -> list[Node]:
        e.write(bits(c, 1), out, c)
        return []

    e.loop(0, whole, some, step=lanes)
    e.loop(whole, n, one)
    for mask in range(16):
        e.write(e.constant(0), tally, mask)

    def count(c: Node, _: list[Node]) -> list[Node]:
        mask = e.wide(out, c, I8)
        e.write(e.add(e.read(tally, mask, I64), 1), tally, mask)
        return []

    e.loop(0, n, count)
    e.at.ret_void()
    return made


def _deal(module: ir.Module) -> ir.Function:
    """From columns per mask to a plan: which of them go to which queue."""
    made = function(module, "deal", [PTR, PTR], exported=False)
    tally, plan = made.args
    e = Emitter(made, 1)

    def get(at: Node) -> Node:
        return e.read(plan, at, I64)

    def put(value: Node, at: Node) -> None:
        e.write(e.constant(value), plan, at)

    for queue in range(6):
        put(e.read(tally, _mask(queue), I64), _LEVELS + queue)
    for i in range(12):
        put(0, _DEALT + i)
    for row, mask in enumerate(_TRIPLES):
        put(e.read(tally, mask, I64), _LEFT + row)
    for k in range(3):
        put(0, _QUADS + k)

    def three(_: Node, __: list[Node]) -> list[Node]:
        left = [get(_LEFT + r) for r in range(4)]
        best: Node = e.constant(_NEVER)
        queue, source, place = e.constant(0), e.constant(0), e.constant(0)
        for q in range(6):
            a, b = _sources(q)
            more = e.less(left[a], left[b])
            level = e.at.select(e.less(0, e.add(left[a], left[b])), get(_LEVELS + q), e.constant(_NEVER))
            better = e.less(level, best)
            best = e.at.select(better, level, best)
            queue = e.at.select(better, e.constant(q), queue)
            source = e.at.select(better, e.at.select(more, e.constant(b), e.constant(a)), source)
            places = [e.constant(_DEALT + 3 * r + q // 2) for r in (b, a)]
            place = e.at.select(better, e.at.select(more, *places), place)
        put(e.add(get(e.add(_LEVELS, queue)), 1), e.add(_LEVELS, queue))
        put(e.sub(get(e.add(_LEFT, source)), 1), e.add(_LEFT, source))
        put(e.add(get(place), 1), place)
        return []

    e.loop(0, e.add(*(get(_LEFT + r) for r in range(4))), three)

    def four(_: Node, __: list[Node]) -> list[Node]:
        steps = [e.least(get(_LEVELS + 2 * k), get(_LEVELS + 2 * k + 1)) for k in range(3)]
        best = e.at.select(e.less(steps[1], steps[0]), e.constant(1), e.constant(0))
        best = e.at.select(e.less(steps[2], e.least(steps[0], steps[1])), e.constant(2), best)
        for place in (e.add(_LEVELS, e.mul(best, 2)), e.add(_LEVELS + 1, e.mul(best, 2)), e.add(_QUADS, best)):
            put(e.add(get(place), 1), place)
        return []

    e.loop(0, e.read(tally, _ALL, I64), four)

    for mask in range(16):
        for queue in range(6):
            put(_NEVER, _BASES + 6 * mask + queue)
    for queue in range(6):
        k, mask = queue // 2, _mask(queue)
        cuts = [_NEVER, _NEVER] if k == 0 else [0, _NEVER] if k == 1 else [0, 0]
        for i, cut in enumerate(cuts):
            put(cut, _CUTS + 2 * mask + i)
        put(0, _BASES + 6 * mask + queue)
    base = [e.read(tally, _mask(queue), I64) for queue in range(6)]
    for row, mask in enumerate(_TRIPLES):
        begin: Node = e.constant(0)
        for k in range(3):
            (queue,) = (q for q in (2 * k, 2 * k + 1) if row in _sources(q))
            put(e.sub(base[queue], begin), _BASES + 6 * mask + queue)
            dealt = get(_DEALT + 3 * row + k)
            base[queue], begin = e.add(base[queue], dealt), e.add(begin, dealt)
            if k < 2:
                put(begin, _CUTS + 2 * mask + k)
    begin = e.constant(0)
    for k in range(3):
        for queue in (2 * k, 2 * k + 1):
            put(e.sub(base[queue], begin), _BASES + 6 * _ALL + queue)
        begin = e.add(begin, get(_QUADS + k))
        if k < 2:
            put(begin, _CUTS + 2 * _ALL + k)
    for mask in (0, 1, 2, 4, 8):
        for i in range(2):
            put(_NEVER, _CUTS + 2 * mask + i)
    e.at.ret_void()
    return made


def _fill(
    module: ir.Module,
    kind: Node,
    walk_of: Callable[..., Any],
    masks: ir.Function,
    deal: ir.Function,
    compress: ir.Function,
    spread: ir.Function,
) -> None:
    made = function(module, f"pairings_{kind.width}", [PTR] + [I64] * 5 + [PTR] * 7, exported=True)
    weight, rows, columns, width, chunks, _tall, begins, order, have, counts, scratch, index, values = made.args
    e = Emitter(made, 1)
    walk = walk_of(e, weight, columns, width, chunks, begins)
    weights, (*places, mask_of) = buffers(e, scratch, width, 4, 5)
    tally, plan, seen = e.at.alloca(I64, size=16), e.at.alloca(I64, size=_PLAN), e.at.alloca(I64, size=16)
    lines, beside = e.at.alloca(PTR, size=4), e.at.alloca(F32, size=2)
    pairs = e.at.alloca(I64, size=12)
    for queue, pair in enumerate(_QUEUES):
        for i, r in enumerate(pair):
            e.write(e.constant(r), pairs, 2 * queue + i)

    def group(p: Node, n: Node, g: Node, carried: list[Node]) -> list[Node]:
        at, value_at = carried
        steps = [e.wide(counts, e.add(e.mul(g, 4), k), I16) for k in range(3)]
        alone = e.wide(counts, e.add(e.mul(g, 4), 3), I16)
        common = e.add(*steps)
        lengths = e.element(have, e.mul(p, rows), I16)
        ids = [e.wide(order, e.add(e.mul(g, 4), r), I32) for r in range(4)]
        own_at, own_value_at = e.add(at, e.mul(common, 2)), e.add(value_at, e.mul(common, 4))

        def spread_row(r: int) -> None:
            left = e.sub(e.wide(lengths, ids[r], I16), common)
            targets = [e.element(index, e.add(own_at, r), kind), e.element(values, e.add(own_value_at, r), F32)]
            e.at.call(spread, [places[r], weights[r], left, alone, e.constant(4), *targets])

        def row_by_row() -> list[Node]:
            for r, row in enumerate(ids):
                real = e.less(0, alone) if r == 0 else e.at.not_(e.equal(row, ids[0]))
                with e.at.if_then(e.at.and_(real, e.less(0, alone))):
                    e.at.call(compress, [walk.row(p, row), n, places[r], weights[r]])
                    spread_row(r)
            return []

        def by_pairs() -> list[Node]:
            addresses = [walk.row(p, i) for i in ids]
            e.at.call(masks, [*addresses, n, mask_of, tally])
            e.at.call(deal, [tally, plan])
            for r, address in enumerate(addresses):
                e.write(address, lines, r)
            for mask in range(16):
                e.write(e.constant(0), seen, mask)
            before = [e.constant(0), steps[0], e.add(steps[0], steps[1])]

            def column(c: Node, at_own: list[Node]) -> list[Node]:
                mask = e.wide(mask_of, c, I8)
                number = e.read(seen, mask, I64)
                e.write(e.add(number, 1), seen, mask)
                cuts = [e.read(plan, e.add(_CUTS, e.mul(mask, 2), i), I64) for i in range(2)]
                later = [e.at.not_(e.less(number, cut)) for cut in cuts]
                pairing = e.add(*(e.at.zext(bit, I64) for bit in later))
                limit, first = (
                    e.at.select(later[1], of[2], e.at.select(later[0], of[1], of[0])) for of in (steps, before)
                )
                left: Node = mask
                for side in range(2):
                    queue = e.add(e.mul(pairing, 2), side)
                    step = e.add(e.read(plan, e.add(_BASES, e.mul(mask, 6), queue), I64), number)
                    shared = e.less(step, limit)
                    pair = [e.read(pairs, e.add(e.mul(queue, 2), i), I64) for i in range(2)]

                    # What is not shared is written beside: a branch here would be mispredicted most of the time.
                    slot = e.add(first, step)
                    place = e.element(index, e.add(at, e.mul(slot, 2), side), kind)
                    target = e.element(values, e.add(value_at, e.mul(slot, 4), 2 * side), F32)
                    e.write(e.at.trunc(c, kind), e.at.select(shared, place, beside), 0)
                    for i, r in enumerate(pair):
                        value = e.read(e.read(lines, r, PTR), c, F32)
                        e.write(value, e.at.select(shared, target, beside), i)
                    bits = e.at.or_(*(e.at.shl(e.constant(1), r) for r in pair))
                    left = e.at.select(shared, e.at.and_(left, e.at.not_(bits)), left)
                found = []
                for r, own in enumerate(at_own):
                    e.write(e.at.trunc(c, I16), places[r], own)
                    e.write(e.read(addresses[r], c, F32), weights[r], own)
                    found.append(e.add(own, e.at.and_(e.at.lshr(left, e.constant(r)), e.constant(1))))
                return found

            e.loop(0, n, column, [e.constant(0)] * 4)
            for r in range(4):
                spread_row(r)
            return []

        e.choose(e.equal(common, 0), row_by_row, by_pairs)
        last = e.mul(alone, 4)
        return [e.add(own_at, last), e.add(own_value_at, last)]

    walk.groups(group, [e.constant(0), e.constant(0)])
    e.at.ret_void()
