"""Compiled interleaved ANS where every symbol has the number of the table that it is coded under, as LLVM IR.

States and words as in `rans_code`. Symbols are numbers below k; of T tables each has 2^14 slots in one array [T, 2^14]
and k entries in another [T, k]. A symbol's table is known before the symbol is, so vectors work as with one table: only
what they gather lies elsewhere.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.coding.rans_code import WIDE, _by_lanes, _Vectors, _words
from gossamer.coding.rans_model import LEAST, PRECISION
from gossamer.jit.emit import I8, I16, I32, I64, PTR, Emitter, function

__all__ = ["add_tabled"]

Node = Any  # llvmlite has no type stubs


def add_tabled(module: ir.Module, lanes: int) -> None:
    """Entry points.

    ``decode_tabled(out, which, count, words, end, states, lanes, slots, table, symbols, read)``: bytes out [count], the
    symbols' numbers; which uint8 [count], below T; ``words`` and ``end`` bound uint16 words; states uint32 [lanes],
    before and after; slots uint8 [T · 2^14 + 3]; table uint32 [T, symbols]: f·2^16 + c. ``read`` int64 becomes the
    number of words read, or −1 where more would have been needed.

    ``encode_tabled(numbers, which, count, end, states, lanes, table, symbols, wrote)``: words are written downwards
    from ``end``, ``wrote`` int64 becomes their number, at most ``count``.

    Args:
        module: gets them.
        lanes: floats per vector register.
    """
    _decode(module, wide=lanes == WIDE)
    _encode(module)


def _decode(module: ir.Module, *, wide: bool) -> None:
    made = function(module, "decode_tabled", [PTR, PTR, I64, PTR, PTR, PTR, I64, PTR, PTR, I64, PTR], exported=True)
    out, which, count, words, end, states, lanes, slots, table, symbols, read = made.args
    e = Emitter(made, WIDE)
    available = _words(e, words, end)
    bits, below, half = (ir.Constant(I32, value) for value in (PRECISION, (1 << PRECISION) - 1, 16))

    def scalar(i: Node, p: Node, safe: bool) -> Node:
        """One symbol; p: words read so far, negative after the end was passed."""
        lane = e.at.and_(i, e.sub(lanes, 1))
        x = e.read(states, lane, I32)
        slot = e.at.and_(x, below)
        number = e.wide(which, i, I8)
        symbol = e.read(slots, e.add(e.at.shl(number, ir.Constant(I64, PRECISION)), e.at.zext(slot, I64)), I8)
        entry = e.read(table, e.add(e.mul(number, symbols), e.at.zext(symbol, I64)), I32)
        e.write(symbol, out, i)
        frequency, start = e.at.lshr(entry, half), e.at.and_(entry, ir.Constant(I32, 0xFFFF))
        x = e.at.sub(e.at.add(e.at.mul(frequency, e.at.lshr(x, bits)), slot), start)
        short = e.at.icmp_unsigned("<", x, ir.Constant(I32, LEAST))

        def taken(at: Node) -> Node:
            return e.at.or_(e.at.shl(x, half), e.at.zext(e.read(words, at, I16), I32))

        if safe:  # the word is there, whether needed or not
            x = e.at.select(short, taken(p), x)
            p = e.add(p, e.at.zext(short, I64))
        else:
            there = e.at.and_(e.at.icmp_unsigned("<", p, available), short)
            (x,) = e.choose(there, lambda: [taken(p)], lambda: [x])
            stuck = e.at.and_(short, e.at.not_(there))
            p = e.at.select(stuck, e.constant(-1), e.add(p, e.at.zext(there, I64)))
        e.write(x, states, lane)
        return p

    steps = e.div(count, lanes)

    def going(values: list[Node]) -> Node:
        """Whether a whole step is left and there are words for all lanes."""
        return e.at.and_(e.less(values[0], steps), e.less(e.add(values[1], lanes), available))

    def scalars() -> list[Node]:
        def one(values: list[Node]) -> list[Node]:
            first = e.mul(values[0], lanes)
            (after,) = e.loop(0, lanes, lambda j, c: [scalar(e.add(first, j), c[0], safe=True)], [values[1]])
            return [e.add(values[0], 1), after]

        return e.repeat([e.constant(0), e.constant(0)], going, one)

    v = _Vectors(e)

    def vector(i: Node, p: Node, x: Node) -> tuple[Node, Node]:
        """Sixteen symbols: words read, and the states after."""
        number = e.at.zext(e.at.load(e.element(which, i, I8), align=1, typ=ir.VectorType(I8, WIDE)), v.kind)
        slot = e.at.and_(x, v.constant((1 << PRECISION) - 1))
        place = e.at.or_(e.at.shl(number, v.constant(PRECISION)), slot)
        symbol = e.at.and_(v.gathered(slots, place, I8), v.constant(0xFF))
        each = v.everywhere(e.at.trunc(symbols, I32))
        entry = v.gathered(table, e.at.add(e.at.mul(number, each), symbol), I32)
        e.at.store(e.at.trunc(symbol, ir.VectorType(I8, WIDE)), e.element(out, i, I8), align=1)
        frequency, start = e.at.lshr(entry, v.constant(16)), e.at.and_(entry, v.constant(0xFFFF))
        new = e.at.add(e.at.mul(frequency, e.at.lshr(x, v.constant(PRECISION))), e.at.sub(slot, start))
        short = e.at.icmp_unsigned("<", new, v.constant(LEAST))
        ahead = e.at.load(e.element(words, p, I16), align=1, typ=ir.VectorType(I16, WIDE))
        word = v.spread(e.at.zext(ahead, v.kind), short)
        x = e.at.select(short, e.at.or_(e.at.shl(new, v.constant(16)), word), new)
        return e.add(p, v.count(short)), x

    def vectorised(vectors: int) -> list[Node]:
        def one(values: list[Node]) -> list[Node]:
            step, p, *xs = values
            first = e.mul(step, WIDE * vectors)
            for k in range(vectors):
                p, xs[k] = vector(e.add(first, WIDE * k), p, xs[k])
            return [e.add(step, 1), p, *xs]

        xs = [v.load(states, WIDE * k) for k in range(vectors)]
        step, p, *xs = e.repeat([e.constant(0), e.constant(0), *xs], going, one)
        for k, x in enumerate(xs):
            v.store(x, states, WIDE * k)
        return [step, p]

    step, p = _by_lanes(e, lanes, 1, vectorised, scalars) if wide else scalars()

    def rest(values: list[Node]) -> list[Node]:
        return [e.add(values[0], 1), scalar(values[0], values[1], safe=False)]

    def left(values: list[Node]) -> Node:
        return e.at.and_(e.less(values[0], count), e.at.icmp_signed(">=", values[1], e.constant(0)))

    _, p = e.repeat([e.mul(step, lanes), p], left, rest)
    e.write(p, read, 0)
    e.at.ret_void()


def _encode(module: ir.Module) -> None:
    made = function(module, "encode_tabled", [PTR, PTR, I64, PTR, PTR, I64, PTR, I64, PTR], exported=True)
    numbers, which, count, end, states, lanes, table, symbols, wrote = made.args
    e = Emitter(made, WIDE)
    bits, upper, half = (ir.Constant(I32, value) for value in (PRECISION, 32 - PRECISION, 16))

    def scalar(i: Node, p: Node) -> Node:
        lane = e.at.and_(i, e.sub(lanes, 1))
        x = e.read(states, lane, I32)
        place = e.add(e.mul(e.wide(which, i, I8), symbols), e.wide(numbers, i, I8))
        entry = e.read(table, place, I32)
        frequency, start = e.at.lshr(entry, half), e.at.and_(entry, ir.Constant(I32, 0xFFFF))
        full = e.at.icmp_unsigned(">=", e.at.lshr(x, upper), frequency)
        with e.at.if_then(full):
            e.write(e.at.trunc(x, I16), end, e.sub(-1, p))
        x = e.at.select(full, e.at.lshr(x, half), x)
        q = e.at.udiv(x, frequency)
        rest = e.at.sub(x, e.at.mul(q, frequency))
        e.write(e.at.add(e.at.add(e.at.shl(q, bits), rest), start), states, lane)
        return e.add(p, e.at.zext(full, I64))

    (p,) = e.loop(0, count, lambda k, c: [scalar(e.sub(e.sub(count, 1), k), c[0])], [e.constant(0)])
    e.write(p, wrote, 0)
    e.at.ret_void()
