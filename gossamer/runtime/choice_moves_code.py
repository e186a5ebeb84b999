"""Kernels that merge ascending positions and move what is known of them along, as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team

__all__ = ["APART", "REJOINED", "add_moves", "first_not_below"]

Node = Any  # llvmlite has no type stubs
Going = Callable[[list[Node]], Node]
Step = Callable[[list[Node]], list[Node]]

APART = 8
"""Numbers of a cache line: two members that write into the same one wait for each other."""

_STREAMS = 4
"""Shares of a member that go on side by side: each step of one waits for the one before."""

REJOINED = 2
"""The same where a step needs twice the registers."""


def add_moves(module: ir.Module) -> None:
    """Adds kernels whose positions are int64 and ascending; a description comes first, threads come last.

    ``merge(description, a, count, b, count, merged, threads)``: both.

    ``follow(description, old, count, new, count, missing, sources, threads)``: for each of the new ones its place among
    the old ones, or ``missing``, int64.

    ``carry(description, old, count, sources, count, made, threads)``: float32 ``made[i] = old[sources[i]]``, or zero
    where int64 sources are not below the number of old ones.

    ``rejoin(description, old, count, kept, new, count, before, units, merged, sources, threads)``: the old ones that
    bytes ``kept`` keep and the new ones, of which some may be old ones that are not kept; and of each its place among
    the old ones, or ``count``. Members take units. ``before`` int64 says how many old ones are kept before share ``s``
    of `REJOINED` · units, which begins at s · count / shares, and at last how many in all; behind what is made there is
    room for `APART` · threads more.

    ``edges(positions, count, rows, columns, starts)``: which of the positions in a matrix is the first of each row, and
    their number, int64 [rows + 1].
    """
    _merge(module)
    _rejoin(module)
    _edges(module)
    _follow(module)
    _carry(module)


def _side_by_side(e: Emitter, starts: Sequence[list[Node]], goings: Sequence[Going], step: Step) -> list[list[Node]]:
    """Several loops with the same body, a step of each in turn until one of them ends, then one by one."""
    size = len(starts[0])

    def split(carried: list[Node]) -> list[list[Node]]:
        return [carried[i : i + size] for i in range(0, len(carried), size)]

    def all_going(carried: list[Node]) -> Node:
        yes, *others = (going(own) for going, own in zip(goings, split(carried), strict=True))
        for other in others:
            yes = e.at.and_(yes, other)
        return yes

    def all_step(carried: list[Node]) -> list[Node]:
        return [value for own in split(carried) for value in step(own)]

    together = e.repeat([value for own in starts for value in own], all_going, all_step)
    return [e.repeat(own, going, step) for own, going in zip(split(together), goings, strict=True)]


def first_not_below(e: Emitter, numbers: Node, low: Node, high: Node, bound: Node) -> Node:
    """The first place from ``low`` on where ascending int64 numbers are not below a bound, or ``high``."""

    def halved(at: list[Node]) -> list[Node]:
        low, high = at
        middle = e.div(e.add(low, high), 2)
        below = e.at.icmp_signed("<", e.read(numbers, middle, I64), bound)
        return [e.at.select(below, e.add(middle, 1), low), e.at.select(below, high, middle)]

    return e.repeat([low, high], lambda at: e.less(at[0], at[1]), halved)[0]


def _merge(module: ir.Module) -> None:
    """Members take shares of the first, and what of the second lies between."""
    made = function(module, "merge_share", [PTR] + [I64] * 7, exported=False)
    _, a, count_a, b, count_b, merged, part, team = made.args
    e = Emitter(made, 1)
    a, b, merged = (e.at.inttoptr(x, PTR) for x in (a, b, merged))
    shares = e.mul(team, _STREAMS)

    def edge(share: Node) -> list[Node]:
        i = e.div(e.mul(share, count_a), shares)

        def between() -> list[Node]:
            return [first_not_below(e, b, e.constant(0), count_b, e.read(a, i, I64))]

        def outside() -> list[Node]:
            return [e.at.select(e.equal(share, shares), count_b, e.constant(0))]

        return [i, *e.choose(e.at.and_(e.less(0, share), e.less(i, count_a)), between, outside)]

    def going(end: list[Node]) -> Going:
        return lambda at: e.at.and_(e.less(at[0], end[0]), e.less(at[1], end[1]))

    def step(at: list[Node]) -> list[Node]:
        i, j = at
        one, other = e.read(a, i, I64), e.read(b, j, I64)
        from_a = e.at.icmp_signed("<", one, other)
        e.write(e.at.select(from_a, one, other), merged, e.add(i, j))
        return [e.add(i, e.at.zext(from_a, I64)), e.add(j, e.at.zext(e.at.not_(from_a), I64))]

    def rest(source: Node, begin: Node, end: Node, offset: Node) -> None:
        def one(k: Node, _: list[Node]) -> list[Node]:
            e.write(e.read(source, k, I64), merged, e.add(k, offset))
            return []

        e.loop(begin, end, one)

    edges = [edge(e.add(e.mul(part, _STREAMS), k)) for k in range(_STREAMS + 1)]
    stopped = _side_by_side(e, edges[:-1], [going(end) for end in edges[1:]], step)
    for (i, j), (end_a, end_b) in zip(stopped, edges[1:], strict=True):
        rest(a, i, end_a, j)
        rest(b, j, end_b, end_a)
    e.at.ret_void()
    in_team(module, "merge", made, 5)


def _rejoin(module: ir.Module) -> None:
    """Units are two shares of the old ones, and what of the new ones lies between."""
    made = function(module, "rejoin_share", [PTR] + [I64] * 11, exported=False)
    _, old, count_old, kept, new, count_new, before, units, merged, sources, part, team = made.args
    e = Emitter(made, 1)
    old, kept, new, before, merged, sources = (e.at.inttoptr(x, PTR) for x in (old, kept, new, before, merged, sources))
    shares = e.mul(units, REJOINED)
    spare = e.add(e.read(before, shares, I64), count_new, e.mul(part, APART))
    byte = ir.IntType(8)

    def edge(share: Node) -> tuple[Node, Node]:
        i = e.div(e.mul(share, count_old), shares)

        def between() -> list[Node]:
            return [first_not_below(e, new, e.constant(0), count_new, e.read(old, i, I64))]

        def outside() -> list[Node]:
            return [e.at.select(e.equal(share, shares), count_new, e.constant(0))]

        return i, e.choose(e.at.and_(e.less(0, share), e.less(i, count_old)), between, outside)[0]

    def put(n: Node, position: Node, source: Node) -> None:
        e.write(position, merged, n)
        e.write(source, sources, n)

    def stays(i: Node) -> Node:
        return e.at.icmp_unsigned("!=", e.read(kept, i, byte), ir.Constant(byte, 0))

    def step(at: list[Node]) -> list[Node]:
        i, j, n = at
        one, other = e.read(old, i, I64), e.read(new, j, I64)
        is_old, is_new = e.at.icmp_signed("<=", one, other), e.at.icmp_signed("<=", other, one)
        wanted = e.at.or_(is_new, stays(i))
        # Behind the share's last one is somebody else's.
        put(e.at.select(wanted, n, spare), e.at.select(is_old, one, other), e.at.select(is_old, i, count_old))
        return [e.add(k, e.at.zext(yes, I64)) for k, yes in zip(at, (is_old, is_new, wanted), strict=True)]

    def both(unit: Node, _: list[Node]) -> list[Node]:
        starts, ends = [], []
        for k in range(REJOINED):
            share = e.add(e.mul(unit, REJOINED), k)
            i, j = edge(share)
            starts.append([i, j, e.add(e.read(before, share, I64), j)])
            ends.append(edge(e.add(share, 1)))

        def going(end: tuple[Node, Node]) -> Going:
            return lambda at: e.at.and_(e.less(at[0], end[0]), e.less(at[1], end[1]))

        stopped = _side_by_side(e, starts, [going(end) for end in ends], step)
        for (i, j, n), (end_i, end_j) in zip(stopped, ends, strict=True):

            def left(k: Node, carried: list[Node]) -> list[Node]:
                (n,) = carried
                with e.at.if_then(stays(k)):
                    put(n, e.read(old, k, I64), k)
                return [e.add(n, e.at.zext(stays(k), I64))]

            def added(k: Node, carried: list[Node]) -> list[Node]:
                put(carried[0], e.read(new, k, I64), count_old)
                return [e.add(carried[0], 1)]

            e.loop(j, end_j, added, e.loop(i, end_i, left, [n]))
        return []

    first, last = (e.div(e.mul(e.add(part, i), units), team) for i in range(2))
    e.loop(first, last, both)
    e.at.ret_void()
    in_team(module, "rejoin", made, 9)


def _edges(module: ir.Module) -> None:
    made = function(module, "edges", [I64] * 5, exported=True)
    positions, count, rows, columns, starts = made.args
    e = Emitter(made, 1)
    positions, starts = (e.at.inttoptr(x, PTR) for x in (positions, starts))

    def row(r: Node, carried: list[Node]) -> list[Node]:
        (at,) = carried
        e.write(at, starts, r)
        # a row has no more than its columns
        return [first_not_below(e, positions, at, e.least(count, e.add(at, columns)), e.mul(e.add(r, 1), columns))]

    (at,) = e.loop(0, rows, row, [e.constant(0)])
    e.write(at, starts, rows)
    e.at.ret_void()


def _follow(module: ir.Module) -> None:
    """Members take shares of the new ones."""
    made = function(module, "follow_share", [PTR] + [I64] * 8, exported=False)
    _, old, count_old, new, count_new, missing, sources, part, team = made.args
    e = Emitter(made, 1)
    old, new, sources = (e.at.inttoptr(x, PTR) for x in (old, new, sources))
    shares = e.mul(team, _STREAMS)
    edges = [e.div(e.mul(e.add(e.mul(part, _STREAMS), k), count_new), shares) for k in range(_STREAMS + 1)]

    def start(first: Node, last: Node) -> list[Node]:
        def found() -> list[Node]:
            return [first_not_below(e, old, e.constant(0), count_old, e.read(new, first, I64))]

        return [*e.choose(e.less(first, last), found, lambda: [count_old]), first]

    def going(last: Node) -> Going:
        return lambda at: e.at.and_(e.less(at[0], count_old), e.less(at[1], last))

    def step(at: list[Node]) -> list[Node]:
        i, j = at
        one, other = e.read(old, i, I64), e.read(new, j, I64)
        e.write(e.at.select(e.equal(one, other), i, missing), sources, j)
        forward = (e.at.icmp_signed("<=", one, other), e.at.icmp_signed(">=", one, other))
        return [e.add(k, e.at.zext(yes, I64)) for k, yes in zip(at, forward, strict=True)]

    def none(k: Node, _: list[Node]) -> list[Node]:
        e.write(missing, sources, k)
        return []

    starts = [start(first, last) for first, last in pairwise(edges)]
    stopped = _side_by_side(e, starts, [going(last) for last in edges[1:]], step)
    for (_, j), last in zip(stopped, edges[1:], strict=True):
        e.loop(j, last, none)
    e.at.ret_void()
    in_team(module, "follow", made, 6)


def _carry(module: ir.Module) -> None:
    """Members take shares of what is made."""
    made = function(module, "carry_share", [PTR] + [I64] * 7, exported=False)
    _, old, count_old, sources, count, new, part, team = made.args
    e = Emitter(made, 1)
    old, sources, new = (e.at.inttoptr(x, PTR) for x in (old, sources, new))
    first, last = (e.div(e.mul(e.add(part, k), count), team) for k in range(2))

    def one(k: Node, _: list[Node]) -> list[Node]:
        source = e.read(sources, k, I64)
        known = e.less(source, count_old)
        number = e.read(old, e.at.select(known, source, e.constant(0)), F32)
        e.write(e.at.select(known, number, ir.Constant(F32, 0.0)), new, k)
        return []

    with e.at.if_then(e.less(0, count_old)):
        e.loop(first, last, one)
    e.at.ret_void()
    in_team(module, "carry", made, 5)
