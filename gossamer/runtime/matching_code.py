"""Code that puts rows which share columns side by side, as LLVM IR.

Rows of random weights at 90% zeros have a tenth of their columns in common, but in panels of a hundred columns that
varies a lot from one pair of rows to the next: the best of a few hundred shares about a third. Every row in turn,
longest first, takes the partner that has most columns in common with it, one fewer for each non-zero by which it is
shorter: rows of a group should be equally long.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.pack_parts import is_live, panels_of, part_of

__all__ = ["add_matching", "matching_bytes"]

Node = Any  # llvmlite has no type stubs


def matching_bytes(rows: int, width: int) -> int:
    """Bytes of scratch memory for chunks of so many rows and panels of so many columns."""
    return rows * (8 * ((width + 63) // 64) + 24) + 64


def add_matching(module: ir.Module, lanes: int) -> None:
    """Adds ``match_rows(W, rows, columns, width, chunks, begins, order, have, scratch)``, which changes ``order``.

    Only groups of four different rows are touched; the pairs of a chunk are sorted by length, then by what they share.
    """
    bits_of = _bits(module, lanes)
    made = function(module, "match_rows", [PTR] + [I64] * 4 + [PTR] * 4, exported=True)
    weight, rows, columns, width, chunks, begins, order, have, scratch = made.args
    e = Emitter(made, 1)
    count = ir.Function(module, ir.FunctionType(I64, [I64]), "llvm.ctpop.i64")
    words = e.div(e.add(width, 63), 64)
    panels = panels_of(e, columns, width)

    def section(number: Node, _: list[Node]) -> list[Node]:
        p = e.div(number, chunks)
        first, last = (e.read(begins, e.add(number, i), I64) for i in range(2))
        ids = e.element(order, e.mul(first, 4), I32)
        lengths = e.element(have, e.mul(p, rows), I16)
        start, wide = part_of(e, p, columns, width)

        def full(g: Node, carried: list[Node]) -> list[Node]:
            one, four = (e.wide(ids, e.add(e.mul(g, 4), r), I32) for r in (0, 3))
            whole = e.at.and_(e.at.not_(e.equal(one, four)), e.less(0, e.wide(lengths, four, I16)))
            return [e.add(carried[0], e.at.zext(whole, I64))]

        # Sorted by length, full groups come before the one that was filled up and those of empty rows.
        (groups,) = e.loop(0, e.sub(last, first), full, [e.constant(0)])
        n = e.mul(groups, 4)
        places = e.mul(n, words)
        keys = e.element(scratch, places, I64)
        pairs = e.element(keys, n, I64)
        used = e.element(pairs, n, I64)

        def prepare(i: Node, _: list[Node]) -> list[Node]:
            row = e.wide(ids, i, I32)
            at = e.element(weight, e.add(e.mul(row, columns), start), F32)
            e.at.call(bits_of, [at, wide, words, e.element(scratch, e.mul(i, words), I64)])
            e.write(ir.Constant(I8, 0), used, i)
            return []

        e.loop(0, n, prepare)

        def take(i: Node, carried: list[Node]) -> list[Node]:
            (found,) = carried
            mine, length = e.element(scratch, e.mul(i, words), I64), e.wide(lengths, e.wide(ids, i, I32), I16)

            def partner() -> list[Node]:
                def other(j: Node, carried: list[Node]) -> list[Node]:
                    best, who, most = carried
                    theirs = e.element(scratch, e.mul(j, words), I64)

                    def word(w: Node, carried: list[Node]) -> list[Node]:
                        both = e.at.and_(e.read(mine, w, I64), e.read(theirs, w, I64))
                        return [e.add(carried[0], e.at.call(count, [both]))]

                    (common,) = e.loop(0, words, word, [e.constant(0)])
                    shorter = e.sub(length, e.wide(lengths, e.wide(ids, j, I32), I16))
                    free = e.equal(e.wide(used, j, I8), 0)
                    better = e.at.and_(free, e.less(best, e.sub(common, shorter)))
                    return [
                        e.at.select(better, new, old)
                        for new, old in ((e.sub(common, shorter), best), (j, who), (common, most))
                    ]

                least = e.constant(-(1 << 32))
                _, who, most = e.loop(e.add(i, 1), n, other, [least, i, e.constant(0)])
                e.write(ir.Constant(I8, 1), used, who)
                key = e.add(e.mul(length, 1 << 16), most)
                pair = e.add(e.mul(e.wide(ids, i, I32), 1 << 32), e.wide(ids, who, I32))

                def later(k: Node, carried: list[Node]) -> list[Node]:
                    """Moves pairs of smaller keys up by one, from the last one down."""
                    at = e.sub(found, e.add(k, 1))
                    moved = e.less(e.read(keys, at, I64), key)
                    with e.at.if_then(moved):
                        for array in (keys, pairs):
                            e.write(e.read(array, at, I64), array, e.add(at, 1))
                    return [e.sub(carried[0], e.at.zext(moved, I64))]

                (place,) = e.loop(0, found, later, [found])
                e.write(key, keys, place)
                e.write(pair, pairs, place)
                return [e.add(found, 1)]

            return e.choose(e.equal(e.wide(used, i, I8), 0), partner, lambda: [found])

        (found,) = e.loop(0, n, take, [e.constant(0)])

        def put(k: Node, _: list[Node]) -> list[Node]:
            pair = e.read(pairs, k, I64)
            e.write(e.at.trunc(e.at.lshr(pair, e.constant(32)), I32), ids, e.mul(k, 2))
            e.write(e.at.trunc(pair, I32), ids, e.add(e.mul(k, 2), 1))
            return []

        e.loop(0, found, put)
        return []

    e.loop(0, e.mul(panels, chunks), section)
    e.at.ret_void()


def _bits(module: ir.Module, lanes: int) -> ir.Function:
    """A bit per weight of a row that is not zero, column k in bit k mod 64 of word k // 64."""
    made = function(module, "bits_of_row", [PTR, I64, I64, PTR], exported=False)
    row, n, words, out = made.args
    e = Emitter(made, lanes)

    def clear(w: Node, _: list[Node]) -> list[Node]:
        e.write(e.constant(0), out, w)
        return []

    def add(c: Node, bits: Node) -> list[Node]:
        word = e.div(c, 64)
        shifted = e.at.shl(e.at.zext(bits, I64), e.sub(c, e.mul(word, 64)))
        e.write(e.at.or_(e.read(out, word, I64), shifted), out, word)
        return []

    def some(c: Node, _: list[Node]) -> list[Node]:
        return add(c, e.at.bitcast(is_live(e, row, c, vector=True), ir.IntType(lanes)))

    def one(c: Node, _: list[Node]) -> list[Node]:
        return add(c, is_live(e, row, c, vector=False))

    whole = e.mul(e.div(n, lanes), lanes)
    e.loop(0, words, clear)
    e.loop(0, whole, some, step=lanes)
    e.loop(whole, n, one)
    e.at.ret_void()
    return made
