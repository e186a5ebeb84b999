"""Compiled coding of bytes by interleaved range variants of asymmetric numeral systems, as LLVM IR.

Lane j = i mod L holds the state of symbol i: an integer of 32 bits, at least 2^16 between symbols. All lanes share one
sequence of 16-bit words. With frequency f and cumulated frequency c of a symbol, out of 2^14:

    decoding:  slot = x mod 2^14,  x ← f·⌊x / 2^14⌋ + slot − c,  and x ← x·2^16 + the next word where x < 2^16
    encoding:  the low word of x is given out where x ≥ f·2^18,  then  x ← ⌊x / f⌋·2^14 + x mod f + c

Words are given out from the last symbol to the first and stored downwards, so that a decoder reads them upwards.

With registers of 512 bits 32 to 128 lanes are two to eight vectors; which of them need words is a mask, and
words are spread by it. Everywhere else lanes are scalars, which overlap since none depends on another; a decoder has a
loop of its own for each number of lanes up to 16, with their states in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from gossamer.coding.rans_model import HEAPS, LEAST, MOST_LANES, PRECISION
from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function

__all__ = ["WIDE", "Vectors", "add_rans", "by_lanes", "remaining", "words_between"]

Node = Any  # llvmlite has no type stubs

WIDE: Final = 16
"""Integers in a register of 512 bits."""

_BIT = ir.IntType(1)
_APART: Final = 16  # lanes that scalars have a loop of their own for


def add_rans(module: ir.Module, lanes: int) -> None:
    """Entry points; a table is uint32 [256]: f·2^16 + c of each byte, zero where it does not occur.

    ``decode(out, count, words, end, states, lanes, slots, table, read)``: bytes out [count]; ``words`` and ``end``
    bound uint16 words; states uint32 [lanes], before and after; slots uint8 [2^14 + 3], the byte of each slot. ``read``
    int64 becomes the number of words read, or −1 where more would have been needed.

    ``decode_16``, ``decode_32``, ``decode_64``: the same and, last, few uint16 [4, so many or 32]: a binary heap, from
    [1] on, of the ends of the first bytes' slots, in [0] the end of all that are found by search; then bytes,
    frequencies and first slots, at the places that the search ends at, modulo 32 or 64. For registers of 512 bits only.

    ``encode(bytes, count, end, states, lanes, table, wrote, window)``: words are written downwards from ``end``,
    ``wrote`` int64 becomes their number, at most ``count``. Window uint16 [65]: frequencies and first slots of 32 bytes
    that follow each other, and the first of these: what lies outside takes longer. For registers of 512 bits only.

    Args:
        module: gets them.
        lanes: floats per vector register.
    """
    wide = lanes == WIDE
    _decode(module, few=0, wide=wide)
    for few in HEAPS if wide else ():
        _decode(module, few=few, wide=wide)
    _encode(module, wide=wide)


class Vectors:
    """Integers of 32 bits, 16 at a time."""

    def __init__(self, e: Emitter) -> None:
        self.e = e
        self.kind = ir.VectorType(I32, WIDE)
        self.words = ir.VectorType(I16, WIDE)
        self.halves = ir.VectorType(I16, 2 * WIDE)

    def constant(self, value: int) -> Node:
        """The same in all lanes."""
        return ir.Constant(self.kind, [value] * WIDE)

    def everywhere(self, value: Node) -> Node:
        """A scalar in all lanes."""
        one = self.e.at.insert_element(ir.Constant(self.kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.e.shuffle(one, one, [0] * WIDE)

    def load(self, base: Node, index: Node) -> Node:
        """Sixteen from memory."""
        return self.e.at.load(self.e.element(base, index, I32), align=4, typ=self.kind)

    def store(self, value: Node, base: Node, index: Node) -> None:
        """Sixteen to memory."""
        self.e.at.store(value, self.e.element(base, index, I32), align=4)

    def together(self, low: Node, high: Node) -> Node:
        """Two vectors as one of 16-bit integers, four of each at a time."""
        return self.call("llvm.x86.avx512.packusdw.512", self.halves, [low, high])

    def apart(self, both: Node) -> tuple[Node, Node]:
        """The inverse of `together`."""
        zero = ir.Constant(self.halves, [0] * 2 * WIDE)
        lanes = [[8 * block + 4 * part + i for block in range(4) for i in range(4)] for part in range(2)]
        low, high = ([k for lane in part for k in (lane, 2 * WIDE)] for part in lanes)
        return tuple(self.e.at.bitcast(self.e.shuffle(both, zero, order), self.kind) for order in (low, high))

    def store_bytes(self, both: Node, base: Node, index: Node) -> None:
        """The lower bytes of what `together` made, in order."""
        narrow = self.e.at.trunc(both, ir.VectorType(I8, 2 * WIDE))
        fours = self.e.at.bitcast(narrow, ir.VectorType(I32, 8))
        order = self.e.shuffle(fours, fours, [0, 2, 4, 6, 1, 3, 5, 7])
        self.e.at.store(order, self.e.element(base, index, I8), align=1)

    def chosen(self, tables: Sequence[Node], index: Node) -> Node:
        """The 16-bit element that the low bits of an index say, of a table in 1 or 2 registers."""
        if len(tables) == 1:
            return self.call("llvm.x86.avx512.permvar.hi.512", self.halves, [tables[0], index])
        return self.call("llvm.x86.avx512.vpermi2var.hi.512", self.halves, [tables[0], index, tables[1]])

    def spread(self, packed: Node, hits: Node) -> Node:
        """The first elements brought to the lanes that are hit, in order; zeros elsewhere."""
        return self.call("llvm.x86.avx512.mask.expand.v16i32", self.kind, [packed, self.constant(0), hits])

    def gathered(self, base: Node, index: Node, kind: Node) -> Node:
        """``base[index]`` as 32-bit integers."""
        every = ir.Constant(ir.VectorType(_BIT, WIDE), [1] * WIDE)
        scale = ir.Constant(I32, kind.width // 8)
        arguments = [self.constant(0), base, index, every, scale]
        return self.call("llvm.x86.avx512.mask.gather.dpi.512", self.kind, arguments)

    def count(self, hits: Node) -> Node:
        """How many lanes are hit, as 64 bits."""
        bits = self.e.at.zext(self.e.at.bitcast(hits, I16), I64)
        return self.call("llvm.ctpop.i64", I64, [bits])

    def in_order(self, both: Node) -> list[Node]:
        """Both halves of a vector of 16-bit integers, one after the other, as they are."""
        return [self.e.shuffle(both, both, range(WIDE * part, WIDE * (part + 1))) for part in range(2)]

    def call(self, name: str, result: Node, arguments: Sequence[Node]) -> Node:
        """An intrinsic function."""
        known = self.e.made.module.globals.get(name)
        if known is None:
            known = ir.Function(self.e.made.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.e.at.call(known, list(arguments))


class _Search:
    """Finds slots in registers, 32 at a time: a binary heap of the ends of bytes' slots."""

    def __init__(self, e: Emitter, v: Vectors, table: Node, size: int) -> None:
        self._e, self._v, self._size = e, v, size
        room = max(size, 2 * WIDE)
        self._parts = [
            [e.at.load(e.element(table, room * part + i, I16), align=2, typ=v.halves) for i in range(0, room, 2 * WIDE)]
            for part in range(4)
        ]
        first = e.read(table, 0, I16)
        one = e.at.insert_element(ir.Constant(v.halves, ir.Undefined), first, ir.Constant(I32, 0))
        self._limit = e.shuffle(one, one, [0] * 2 * WIDE)

    def result(self, slot: Node, otherwise: Callable[[], list[Node]]) -> list[Node]:
        """Byte, frequency and first slot; otherwise where a slot lies beyond those that are here."""
        beyond = self._e.at.icmp_unsigned(">=", slot, self._limit)
        some = self._e.at.icmp_unsigned("!=", self._e.at.bitcast(beyond, I32), ir.Constant(I32, 0))
        return self._e.choose(some, otherwise, lambda: self._searched(slot))

    def _searched(self, slot: Node) -> list[Node]:
        at, v = self._e.at, self._v
        one = ir.Constant(v.halves, [1] * 2 * WIDE)
        node, size = one, 2
        while size <= self._size:
            level = self._parts[0][: 1 if size <= 2 * WIDE else 2]
            more = at.icmp_unsigned(">=", slot, v.chosen(level, node))
            node = at.add(node, node)
            node = at.select(more, at.add(node, one), node)
            size *= 2
        return [v.chosen(part, node) for part in self._parts[1:]]


class _Window:
    """Frequencies and first slots of 32 bytes that follow each other, from registers."""

    def __init__(self, e: Emitter, v: Vectors, table: Node) -> None:
        self._e, self._v = e, v
        at = [e.element(table, 2 * WIDE * part, I16) for part in range(2)]
        self._parts = [e.at.load(place, align=2, typ=v.halves) for place in at]
        first = e.read(table, 4 * WIDE, I16)
        one = e.at.insert_element(ir.Constant(v.halves, ir.Undefined), first, ir.Constant(I32, 0))
        self._first = e.shuffle(one, one, [0] * 2 * WIDE)

    def result(self, bytes_: Node, otherwise: Callable[[], list[Node]]) -> list[Node]:
        """Frequencies of both vectors, then first slots; otherwise where a byte lies outside."""
        place = self._e.at.sub(bytes_, self._first)
        outside = self._e.at.icmp_unsigned(">=", place, ir.Constant(self._v.halves, [2 * WIDE] * 2 * WIDE))
        some = self._e.at.icmp_unsigned("!=", self._e.at.bitcast(outside, I32), ir.Constant(I32, 0))
        return self._e.choose(some, otherwise, lambda: self._inside(place))

    def _inside(self, place: Node) -> list[Node]:
        found = [half for part in self._parts for half in self._v.in_order(self._v.chosen([part], place))]
        return [self._e.at.zext(half, self._v.kind) for half in found]


def words_between(e: Emitter, first: Node, last: Node) -> Node:
    """Words between two addresses."""
    distance = e.sub(e.at.ptrtoint(last, I64), e.at.ptrtoint(first, I64))
    return e.at.ashr(distance, ir.Constant(I64, 1))


def _decode(module: ir.Module, *, few: int, wide: bool) -> None:
    name = f"decode_{few}" if few else "decode"
    arguments = [PTR, I64, PTR, PTR, PTR, I64, PTR, PTR, PTR] + ([PTR] if few else [])
    made = function(module, name, arguments, exported=True)
    out, count, words, end, states, lanes, slots, table, read = made.args[:9]
    e = Emitter(made, WIDE)
    available = words_between(e, words, end)
    bits, below = ir.Constant(I32, PRECISION), ir.Constant(I32, (1 << PRECISION) - 1)

    def decoded(x: Node, i: Node) -> tuple[Node, Node]:
        """Symbol i from its lane's state: the state after, and whether that lacks a word."""
        slot = e.at.and_(x, below)
        byte = e.read(slots, e.at.zext(slot, I64), I8)
        place = e.mul(e.at.zext(byte, I64), 2)
        start, frequency = (e.at.zext(e.read(table, e.add(place, half), I16), I32) for half in (0, 1))
        x = e.at.sub(e.at.add(e.at.mul(frequency, e.at.lshr(x, bits)), slot), start)
        e.write(byte, out, i)
        return x, e.at.icmp_unsigned("<", x, ir.Constant(I32, LEAST))

    def filled(x: Node, p: Node) -> Node:
        return e.at.or_(e.at.shl(x, ir.Constant(I32, 16)), e.at.zext(e.read(words, p, I16), I32))

    def scalar(i: Node, p: Node, safe: bool) -> Node:
        """One symbol, states in memory; p: words read so far, negative after the end was passed."""
        lane = e.at.and_(i, e.sub(lanes, 1))
        x, short = decoded(e.read(states, lane, I32), i)
        if safe:  # the word is there, whether needed or not
            x = e.at.select(short, filled(x, p), x)
            p = e.add(p, e.at.zext(short, I64))
        else:
            there = e.at.and_(e.at.icmp_unsigned("<", p, available), short)
            (x,) = e.choose(there, lambda: [filled(x, p)], lambda: [x])
            stuck = e.at.and_(short, e.at.not_(there))
            p = e.at.select(stuck, e.constant(-1), e.add(p, e.at.zext(there, I64)))
        e.write(x, states, lane)
        return p

    steps = e.div(count, lanes)

    def going(values: list[Node]) -> Node:
        """Whether a whole step is left and there are words for all lanes."""
        return e.at.and_(e.less(values[0], steps), e.less(e.add(values[1], lanes), available))

    def scalars(size: int = 1) -> list[Node]:
        if size > _APART:

            def one(values: list[Node]) -> list[Node]:
                first = e.mul(values[0], lanes)
                (after,) = e.loop(0, lanes, lambda j, c: [scalar(e.add(first, j), c[0], safe=True)], [values[1]])
                return [e.add(values[0], 1), after]

            return e.repeat([e.constant(0), e.constant(0)], going, one)
        return e.choose(e.equal(lanes, size), lambda: by_itself(size), lambda: scalars(2 * size))

    def by_itself(size: int) -> list[Node]:
        """Whole steps of so many lanes."""

        def one(values: list[Node]) -> list[Node]:
            step, p, *xs = values
            first, after = e.mul(step, size), []
            for j, x in enumerate(xs):
                new, short = decoded(x, e.add(first, j))
                after.append(e.at.select(short, filled(new, p), new))
                p = e.add(p, e.at.zext(short, I64))
            return [e.add(step, 1), p, *after]

        xs = [e.read(states, j, I32) for j in range(size)]
        step, p, *xs = e.repeat([e.constant(0), e.constant(0), *xs], going, one)
        for j, x in enumerate(xs):
            e.write(x, states, j)
        return [step, p]

    if wide:
        v = Vectors(e)
        wide_bits, wide_below = v.constant(PRECISION), v.constant((1 << PRECISION) - 1)
        search = _Search(e, v, made.args[9], few) if few else None

        def gathered(slot: Node) -> list[Node]:
            """Byte, frequency and first slot, from memory."""
            byte = e.at.and_(v.gathered(slots, slot, I8), v.constant(0xFF))
            entry = v.gathered(table, byte, I32)
            return [byte, e.at.lshr(entry, v.constant(16)), e.at.and_(entry, v.constant(0xFFFF))]

        def found(pair: list[Node]) -> list[Node]:
            """The same for two vectors of slots, each as one of halves."""
            apart = [gathered(slot) for slot in pair]
            return [v.together(*both) for both in zip(*apart, strict=True)]

        def one(values: list[Node]) -> list[Node]:
            step, p, *xs = values
            first = e.mul(step, WIDE * len(xs))
            after = []
            for i in range(0, len(xs), 2):
                pair = [e.at.and_(x, wide_below) for x in xs[i : i + 2]]
                slot = v.together(*pair)
                byte, frequency, start = search.result(slot, lambda pair=pair: found(pair)) if search else found(pair)  # type: ignore[misc]
                v.store_bytes(byte, out, e.add(first, WIDE * i))
                beyond = v.apart(e.at.sub(slot, start))
                for x, factor, more in zip(xs[i : i + 2], v.apart(frequency), beyond, strict=True):
                    new = e.at.add(e.at.mul(factor, e.at.lshr(x, wide_bits)), more)
                    short = e.at.icmp_unsigned("<", new, v.constant(LEAST))
                    ahead = e.at.load(e.element(words, p, I16), align=1, typ=v.words)
                    word = v.spread(e.at.zext(ahead, v.kind), short)
                    after.append(e.at.select(short, e.at.or_(e.at.shl(new, v.constant(16)), word), new))
                    p = e.add(p, v.count(short))
            return [e.add(step, 1), p, *after]

        def vectorised(vectors: int) -> list[Node]:
            xs = [v.load(states, WIDE * i) for i in range(vectors)]
            step, p, *xs = e.repeat([e.constant(0), e.constant(0), *xs], going, one)
            for i, x in enumerate(xs):
                v.store(x, states, WIDE * i)
            return [step, p]

        step, p = by_lanes(e, lanes, 2, vectorised, (lambda: [e.constant(0)] * 2) if few else scalars)
    else:
        step, p = scalars()

    e.write(remaining(e, e.mul(step, lanes), count, p, lambda i, at: scalar(i, at, safe=False)), read, 0)
    e.at.ret_void()


def remaining(e: Emitter, first: Node, count: Node, p: Node, scalar: Callable[[Node, Node], Node]) -> Node:
    """Symbols from the first to the count, one by one; words read in all, negative after the end was passed."""

    def one(values: list[Node]) -> list[Node]:
        return [e.add(values[0], 1), scalar(values[0], values[1])]

    def left(values: list[Node]) -> Node:
        return e.at.and_(e.less(values[0], count), e.at.icmp_signed(">=", values[1], e.constant(0)))

    _, p = e.repeat([first, p], left, one)
    return p


def by_lanes(
    e: Emitter, lanes: Node, least: int, vectorised: Callable[[int], list[Node]], scalars: Callable[[], list[Node]]
) -> list[Node]:
    """The way for so many whole vectors of lanes, of which there must be some."""

    def way(vectors: int) -> list[Node]:
        if vectors > MOST_LANES // WIDE:
            return scalars()
        return e.choose(e.equal(lanes, WIDE * vectors), lambda: vectorised(vectors), lambda: way(2 * vectors))

    return way(least)


def _advanced(e: Emitter, x: Node, frequency: Node, start: Node) -> Node:
    """⌊x/f⌋·2^14 + x mod f + c = x + ⌊x/f⌋·(2^14 − f) + c.

    The quotient, below 2^18, is found in floats a little too small, at most by one, which the rest shows.
    """
    kind = x.type
    wide = isinstance(kind, ir.VectorType)
    floats = ir.VectorType(F32, WIDE) if wide else F32

    def whole(value: int) -> Node:
        return ir.Constant(kind, [value] * WIDE if wide else value)

    def number(value: float) -> Node:
        return ir.Constant(floats, [value] * WIDE if wide else value)

    divisor = e.at.sitofp(frequency, floats)
    if wide:
        known = e.made.module.globals.get("llvm.x86.avx512.rcp14.ps.512")
        if known is None:
            kinds = ir.FunctionType(floats, [floats, floats, ir.IntType(16)])
            known = ir.Function(e.made.module, kinds, "llvm.x86.avx512.rcp14.ps.512")
        near = e.at.call(known, [divisor, number(0.0), ir.Constant(ir.IntType(16), 0xFFFF)])  # to 14 bits
        inverse = e.at.fmul(near, e.fma(e.at.fneg(divisor), near, number(2.0)))  # to 23
    else:
        inverse = e.at.fdiv(number(1.0), divisor)
    less = e.at.fmul(inverse, number(1.0 - 2.0**-20))  # more than all roundings together
    q = e.at.fptosi(e.at.fmul(e.at.uitofp(x, floats), less), kind)
    rest = e.at.sub(x, e.at.mul(q, frequency))
    q = e.at.select(e.at.icmp_signed(">=", rest, frequency), e.at.add(q, whole(1)), q)
    return e.at.add(e.at.add(x, start), e.at.mul(q, e.at.sub(whole(1 << PRECISION), frequency)))


def _encode(module: ir.Module, *, wide: bool) -> None:
    made = function(module, "encode", [PTR, I64, PTR, PTR, I64, PTR, PTR, PTR], exported=True)
    source, count, end, states, lanes, table, wrote, window = made.args
    e = Emitter(made, WIDE)
    upper = ir.Constant(I32, 32 - PRECISION)

    def scalar(i: Node, p: Node) -> Node:
        lane = e.at.and_(i, e.sub(lanes, 1))
        x = e.read(states, lane, I32)
        entry = e.read(table, e.wide(source, i, I8), I32)
        frequency, start = e.at.lshr(entry, ir.Constant(I32, 16)), e.at.and_(entry, ir.Constant(I32, 0xFFFF))
        full = e.at.icmp_unsigned(">=", e.at.lshr(x, upper), frequency)
        with e.at.if_then(full):
            e.write(e.at.trunc(x, I16), end, e.sub(-1, p))
        x = e.at.select(full, e.at.lshr(x, ir.Constant(I32, 16)), x)
        e.write(_advanced(e, x, frequency, start), states, lane)
        return e.add(p, e.at.zext(full, I64))

    def backwards(first: Node, last: Node, p: Node) -> Node:
        """Symbols from last − 1 down to first."""
        (after,) = e.loop(0, e.sub(last, first), lambda k, c: [scalar(e.sub(e.sub(last, 1), k), c[0])], [p])
        return after

    if wide:
        v = Vectors(e)
        wide_upper, mask_kind = v.constant(32 - PRECISION), ir.VectorType(_BIT, WIDE)
        near = _Window(e, v, window)

        def give(x: Node, full: Node, p: Node) -> Node:
            """Stores the low words of the lanes that are full, downwards."""
            hits = v.count(full)
            p = e.add(p, hits)
            packed = v.call("llvm.x86.avx512.mask.compress.v16i32", v.kind, [x, v.constant(0), full])
            some = e.at.bitcast(e.at.trunc(e.sub(e.at.shl(e.constant(1), hits), 1), I16), mask_kind)
            name = "llvm.masked.store.v16i16.p0"
            known = module.globals.get(name)
            if known is None:
                known = ir.Function(module, ir.FunctionType(ir.VoidType(), [v.words, PTR, I32, mask_kind]), name)
            where = e.element(end, e.sub(0, p), I16)
            e.at.call(known, [e.at.trunc(packed, v.words), where, ir.Constant(I32, 1), some])
            return p

        def gathered(bytes_: Node) -> list[Node]:
            """Frequencies of both vectors, then first slots, from memory."""
            found = [v.gathered(table, e.at.zext(half, v.kind), I32) for half in v.in_order(bytes_)]
            return [e.at.lshr(f, v.constant(16)) for f in found] + [e.at.and_(f, v.constant(0xFFFF)) for f in found]

        def step(k: Node, values: list[Node], steps: Node) -> list[Node]:
            p, *xs = values
            first = e.mul(e.sub(e.sub(steps, 1), k), WIDE * len(xs))
            after = list(xs)
            for i in reversed(range(0, len(xs), 2)):
                octets = ir.VectorType(I8, 2 * WIDE)
                loaded = e.at.load(e.element(source, e.add(first, WIDE * i), I8), align=1, typ=octets)
                bytes_ = e.at.zext(loaded, v.halves)
                found = near.result(bytes_, lambda b=bytes_: gathered(b))  # type: ignore[misc]
                for j in (1, 0):
                    x, frequency, start = xs[i + j], found[j], found[2 + j]
                    full = e.at.icmp_unsigned(">=", e.at.lshr(x, wide_upper), frequency)
                    p = give(x, full, p)
                    x = e.at.select(full, e.at.lshr(x, v.constant(16)), x)
                    after[i + j] = _advanced(e, x, frequency, start)
            return [p, *after]

        def vectorised(vectors: int) -> list[Node]:
            steps = e.div(count, WIDE * vectors)
            p = backwards(e.mul(steps, WIDE * vectors), count, e.constant(0))
            xs = [v.load(states, WIDE * i) for i in range(vectors)]
            p, *xs = e.loop(0, steps, lambda k, values: step(k, values, steps), [p, *xs])
            for i, x in enumerate(xs):
                v.store(x, states, WIDE * i)
            return [p]

        (p,) = by_lanes(e, lanes, 2, vectorised, lambda: [backwards(e.constant(0), count, e.constant(0))])
    else:
        p = backwards(e.constant(0), count, e.constant(0))
    e.write(p, wrote, 0)
    e.at.ret_void()
