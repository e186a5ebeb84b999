"""Dot products of a row of outputs' gradients with rows of activations, as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import I32, Emitter

__all__ = ["add_onto", "dots_of_segment", "row_sum"]

Node = Any  # llvmlite has no type stubs


def dots_of_segment(
    e: Emitter,
    at: Node,
    count: Node,
    held: Sequence[Node],
    read: Callable[[Node], Node],
    put: Callable[[Node, Node], None],
    *,
    step: int = 1,
) -> Node:
    """Writes the loop over the non-zeros of a segment: of each, the dot product with what is held.

    Args:
        e: where to.
        at: the first non-zero.
        count: how many there are.
        held: vectors of one row of dY.
        read: where the row of X of a non-zero begins.
        put: takes the products of 1, 2 or 4 non-zeros side by side, and the number of the first.
        step: vectors from one that is read to the next.

    Returns:
        The first non-zero after the segment.
    """
    vectors, align = len(held), 4 * e.lanes

    def some(k: Node, side: int) -> None:
        rows = [read(e.add(k, i)) for i in range(side)]
        # Eight sums at a time, for additions not to wait for one another.
        split = min(vectors, 8 // side)
        products: list[list[Node]] = [[] for _ in range(side)]
        for v in range(vectors):
            for total, row in zip(products, rows, strict=True):
                loaded = e.load(row, e.lanes * step * v, align)
                if v < split:
                    total.append(e.at.fmul(held[v], loaded))
                else:
                    total[v % split] = e.fma(held[v], loaded, total[v % split])
        put(_across(e, [_summed(e, parts) for parts in products]), k)

    fours = e.add(at, e.at.and_(count, e.constant(~3)))

    def four(k: Node, _: list[Node]) -> list[Node]:
        some(k, 4)
        return []

    e.loop(at, fours, four, step=4)
    pair = e.at.and_(count, e.constant(2))
    with e.at.if_then(e.at.not_(e.equal(pair, 0))):
        some(fours, 2)
    with e.at.if_then(e.at.not_(e.equal(e.at.and_(count, e.constant(1)), 0))):
        some(e.add(fours, pair), 1)
    return e.add(at, count)


def row_sum(e: Emitter, vectors: Sequence[Node]) -> Node:
    """The sum of all lanes of some vectors, a number."""
    return _across(e, [_summed(e, list(vectors))])


def add_onto(e: Emitter, found: Node, target: Node, adding: Node) -> None:
    """Stores what was found, on top of what is there if ``adding``."""
    kind = found.type
    (total,) = e.choose(adding, lambda: [e.at.fadd(found, e.at.load(target, align=4, typ=kind))], lambda: [found])
    e.at.store(total, target, align=4)


def _summed(e: Emitter, terms: list[Node]) -> Node:
    """The sum of some vectors, of halves at a time."""
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        pairs = zip(terms, terms[half:], strict=False)
        terms = [e.at.fadd(a, b) for a, b in pairs] + terms[len(terms) - half : half]
    return terms[0]


def _across(e: Emitter, vectors: list[Node]) -> Node:
    """The sums over the lanes of 1, 2 or 4 vectors, side by side; a single one as a number."""

    def folded(a: Node) -> Node:
        size = a.type.count
        while size > 4:
            size //= 2
            low, high = e.shuffle(a, a, list(range(size))), e.shuffle(a, a, list(range(size, 2 * size)))
            a = e.at.fadd(low, high)
        return a

    lanes = e.lanes

    def mixed(a: Node, b: Node, of_a: tuple[int, int], of_b: tuple[int, int], order: str) -> Node:
        """Per group of four lanes, two of a's and two of b's."""
        picked = []
        for g in range(0, lanes, 4):
            ab = {"a": [g + i for i in of_a], "b": [lanes + g + i for i in of_b]}
            picked += [ab[which].pop(0) for which in order]
        return e.shuffle(a, b, picked)

    if len(vectors) == 1:
        four = folded(vectors[0])
        two = e.at.fadd(e.shuffle(four, four, [0, 1]), e.shuffle(four, four, [2, 3]))
        zero, one = (e.at.extract_element(two, ir.Constant(I32, i)) for i in range(2))
        return e.at.fadd(zero, one)

    def zipped(a: Node, b: Node) -> Node:
        """Per group of four lanes a0+a2, b0+b2, a1+a3, b1+b3."""
        return e.at.fadd(mixed(a, b, (0, 1), (0, 1), "abab"), mixed(a, b, (2, 3), (2, 3), "abab"))

    if len(vectors) == 2:
        four = folded(zipped(*vectors))
        return e.at.fadd(e.shuffle(four, four, [0, 1]), e.shuffle(four, four, [2, 3]))
    ab, cd = zipped(*vectors[:2]), zipped(*vectors[2:])
    whole = e.at.fadd(mixed(ab, cd, (0, 1), (0, 1), "aabb"), mixed(ab, cd, (2, 3), (2, 3), "aabb"))
    return folded(whole)
