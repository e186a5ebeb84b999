"""Compiled reading of tables, as LLVM IR: what `bits.BitReader` and `table.FrequencyTable` read, in the same order."""

from __future__ import annotations

from typing import Any, Final, final

from llvmlite import ir

from gossamer.jit.emit import I8, I64, PTR, Emitter, function

__all__ = ["BitsCode", "add_bits", "read_table"]

Node = Any  # llvmlite has no type stubs

_BIT: Final = ir.IntType(1)
_WORD: Final = 64
_SURE: Final = 57  # bits of a word that are there wherever in a byte it begins
_EQUAL: Final = 2
_DELTA: Final = 1
_MOST_SYMBOLS: Final = 4096
_MOST_STEP: Final = (1 << 50) - 1
_MOST_ROOT: Final = 1 << 16


def _known(e: Emitter, name: str, arguments: list[Node]) -> Node:
    module = e.made.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(I64, arguments), name)


@final
class BitsCode:
    """Emits reading of bits, most significant first, within one function.

    Whatever is not there, longer than 57 bits or refused makes the place −1, where it stays. Codes are read as zeros
    from then on, so that arithmetic with them never overflows; other integers may be anything of so many bits.

    Args:
        e: of the function.
        table: address of bytes, 8 of which may be read behind the last.
        bits: how many there are, 8 to each byte.
        first: the first to be read.
    """

    def __init__(self, e: Emitter, table: Node, bits: Node, first: Node = 0) -> None:
        self._e, self._table, self._bits = e, table, bits
        self._place = e.at.alloca(I64)
        e.at.store(e.constant(first), self._place)

    @property
    def place(self) -> Node:
        """The next bit, or −1."""
        return self._e.at.load(self._place, typ=I64)

    @property
    def good(self) -> Node:
        """Whether everything was there so far, as a bit."""
        return self._e.at.icmp_signed(">=", self.place, self._e.constant(0))

    def check(self, condition: Node) -> None:
        """Refuses what does not hold."""
        self._e.at.store(self._e.at.select(condition, self.place, self._e.constant(-1)), self._place)

    def _ahead(self) -> tuple[Node, Node]:
        """A word that begins with the next bit, and the place of that; where nothing is read any more, of the first."""
        e = self._e
        swap = _known(e, "llvm.bswap.i64", [I64])
        at = e.at.select(self.good, self.place, e.constant(0))
        word = e.at.load(e.element(self._table, e.at.lshr(at, e.constant(3)), I8), align=1, typ=I64)
        word = e.at.call(swap, [word])
        return e.at.shl(word, e.at.and_(at, e.constant(7))), at

    def _take(self, at: Node, size: Node) -> None:
        after = self._e.add(at, size)
        self.check(self._e.less(after, self._e.add(self._bits, 1)))
        self._e.at.store(self._e.at.select(self.good, after, self._e.constant(-1)), self._place)

    def uint(self, width: int) -> Node:
        """So many bits, 1 to 57."""
        word, at = self._ahead()
        self._take(at, self._e.constant(width))
        return self._e.at.lshr(word, self._e.constant(_WORD - width))

    def golomb(self, order: Node) -> Node:
        """One exponential Golomb code."""
        e = self._e
        word, at = self._ahead()
        leading = _known(e, "llvm.ctlz.i64", [I64, _BIT])
        zeros = e.at.call(leading, [word, ir.Constant(_BIT, 0)])
        size = e.add(zeros, zeros, 1, order)  # as many bits behind the first one as zeros before it, then `order`
        sure = e.less(size, _SURE + 1)
        self.check(sure)
        size = e.at.select(sure, size, e.constant(_SURE))
        self._take(at, size)
        found = e.sub(e.at.lshr(word, e.sub(_WORD, size)), e.at.shl(e.constant(1), e.constant(order)))
        return e.at.select(self.good, found, e.constant(0))

    def signed(self) -> Node:
        """Any integer."""
        return self._unfolded(self.golomb(2))

    def _unfolded(self, folded: Node) -> Node:
        e = self._e
        half = e.at.lshr(folded, e.constant(1))
        return e.at.select(e.at.trunc(folded, _BIT), e.sub(-1, half), half)

    def int_list(self, count: Node, limit: Node, out: Node) -> None:
        """So many integers, from 0 to the limit, into int64 [count]."""
        e = self._e
        kind, order = self.uint(2), self.uint(4)
        self.check(e.less(kind, _EQUAL + 1))
        coded = e.at.select(e.equal(kind, _EQUAL), e.least(count, 1), e.constant(count))
        delta = e.equal(kind, _DELTA)

        def one(i: Node, carried: list[Node]) -> list[Node]:
            found = self.golomb(order)
            stepped = e.at.and_(delta, e.less(0, i))
            found = e.at.select(stepped, e.at.add(carried[0], self._unfolded(found)), found)
            self.check(e.at.icmp_unsigned("<=", found, e.constant(limit)))
            e.write(found, out, i)
            return [e.at.select(self.good, found, e.constant(0))]

        (last,) = e.loop(0, coded, one, [e.constant(0)])

        def same(i: Node, _: list[Node]) -> list[Node]:
            e.write(last, out, i)
            return []

        e.loop(coded, count, same)

    def rest(self) -> Node:
        """The next whole byte; refuses bits before it that are not zero."""
        word, at = self._ahead()
        e = self._e
        start = e.at.lshr(e.add(at, 7), e.constant(3))
        odd = e.sub(e.mul(start, 8), at)
        skipped = e.at.lshr(e.at.lshr(word, e.constant(1)), e.sub(_WORD - 1, odd))  # none, where there are none to skip
        self.check(e.equal(skipped, 0))
        return start

    def finish(self) -> None:
        """Refuses bytes that nobody asked for."""
        self.check(self._e.equal(self._e.mul(self.rest(), 8), self._bits))


def read_table(e: Emitter, source: BitsCode, most: int, offsets: Node, roots: Node) -> Node:
    """A frequency table of a span or list of at most so many symbols, into two int64 [most].

    Returns:
        How many symbols occur; 2 at least, of which the last is the greatest.
    """
    listed, size = source.uint(1), e.add(source.golomb(3), 2)
    source.check(e.less(size, most + 1))
    size = e.at.select(source.good, size, e.constant(2))

    def by_list() -> list[Node]:
        gaps = e.element(offsets, 1, I64)
        source.int_list(e.sub(size, 1), _MOST_STEP, gaps)
        e.write(e.constant(0), offsets, 0)
        source.int_list(size, _MOST_ROOT, roots)

        def place(i: Node, _: list[Node]) -> list[Node]:
            before = e.read(offsets, e.sub(i, 1), I64)
            e.write(e.at.add(e.at.add(before, e.read(offsets, i, I64)), e.constant(1)), offsets, i)
            return []

        e.loop(1, size, place)

        def positive(i: Node, _: list[Node]) -> list[Node]:
            source.check(e.less(0, e.read(roots, i, I64)))
            return []

        e.loop(0, size, positive)
        return [size]

    def by_span() -> list[Node]:
        source.int_list(size, _MOST_ROOT, roots)
        for end in (e.constant(0), e.sub(size, 1)):
            source.check(e.less(0, e.read(roots, end, I64)))

        def keep(i: Node, carried: list[Node]) -> list[Node]:
            root = e.read(roots, i, I64)
            e.write(i, offsets, carried[0])
            e.write(root, roots, carried[0])
            return [e.add(carried[0], e.at.zext(e.less(0, root), I64))]

        return e.loop(0, size, keep, [e.constant(0)])

    (count,) = e.choose(e.equal(listed, 1), by_list, by_span)
    return e.at.select(source.good, count, e.constant(2))


def add_bits(module: ir.Module) -> None:
    """Adds ``lists`` and ``table``, of bits as in `BitsCode`.

    ``lists(table, bits, count, size, limit, out, at)``: count lists of so many integers each, one after the other, into
    int64 [count, size]. ``at`` int64 [1] is the first bit and becomes the one behind the last; −1 where one is not
    there, longer than 57 bits, or not from 0 to the limit.

    ``table(table, bits, offsets, roots, at)``: one frequency table of at most 4096 symbols, into int64 [4096] each;
    ``at`` int64 [2] likewise, and how many symbols it has.
    """
    made = function(module, "lists", [PTR, I64, I64, I64, I64, PTR, PTR], exported=True)
    table, bits, count, size, limit, out, at = made.args
    e = Emitter(made, 1)
    source = BitsCode(e, table, bits, e.read(at, 0, I64))

    def one(i: Node, _: list[Node]) -> list[Node]:
        source.int_list(size, limit, e.element(out, e.mul(i, size), I64))
        return []

    e.loop(0, count, one)
    e.write(source.place, at, 0)
    e.at.ret_void()

    made = function(module, "table", [PTR, I64, PTR, PTR, PTR], exported=True)
    table, bits, offsets, roots, at = made.args
    e = Emitter(made, 1)
    source = BitsCode(e, table, bits, e.read(at, 0, I64))
    count = read_table(e, source, _MOST_SYMBOLS, offsets, roots)
    e.write(source.place, at, 0)
    e.write(count, at, 1)
    e.at.ret_void()
