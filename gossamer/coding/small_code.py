"""Compiled reading of small leaves by the coders of container version 1, as LLVM IR: one call for a whole leaf.

What is wrong with a leaf need not be said here: Python reads a refused one again.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from gossamer.coding.bits_code import BitsCode, read_table
from gossamer.coding.coded import Coder
from gossamer.jit.emit import I8, I16, I32, I64, PTR, Emitter, function

__all__ = ["add_small"]

Node = Any  # llvmlite has no type stubs

_SPAN: Final = 256
_PRECISION: Final = 24  # bits of frequencies, as in `ans`
_SLOTS: Final = 1 << _PRECISION
_BUCKET: Final = 16  # bits of slots that share an entry where the search for one begins
_WORD: Final = 32
_BYTE: Final = 8
_MANTISSA: Final = 5
_MOST_PLANES: Final = 8


def add_small(module: ir.Module) -> None:
    """Adds ``symbols`` and ``planes``; 8 bytes may be read behind the last byte of every table and payload.

    ``symbols(coder, table, table bytes, payload, payload bytes, count, least, most, out, stride, good)``: as
    `symbols.decode_symbols` by one of four coders, symbols of one byte from the least to the most, each `stride`
    bytes behind the one before it, count > 0. ``good`` int64 [1] becomes 1, or 0 where anything is not as expected.

    ``planes(data, table bytes, payload bytes, count, itemsize, out, good)``: as `float_planes.decode_planes`; count
    items, more than 0, of itemsize ≤ 8 bytes.
    """
    _add_stream(module)
    _add_symbols(module)
    _add_planes(module)


def _add_stream(module: ir.Module) -> None:
    """``stream(payload, bytes, count, roots, values, symbols, out, stride, good)``: as `ans.AnsReader`."""
    made = function(module, "stream", [PTR, I64, I64, PTR, PTR, I64, PTR, I64, PTR], exported=False)
    payload, size, count, roots, values, symbols, out, stride, good = made.args
    e = Emitter(made, 1)
    starts, first = e.at.alloca(I64, size=_SPAN + 1), e.at.alloca(I64, size=(_SLOTS >> _BUCKET) + 1)
    shift, below = e.constant(_PRECISION), e.constant(_SLOTS - 1)

    def square(i: Node) -> Node:
        root = e.read(roots, i, I64)
        return e.mul(root, root)

    (total,) = e.loop(0, symbols, lambda i, carried: [e.add(carried[0], square(i))], [e.constant(0)])

    def frequency(i: Node) -> Node:
        found = e.div(e.at.shl(square(i), shift), total)
        return e.at.select(e.less(0, found), found, e.constant(1))

    def most(i: Node, carried: list[Node]) -> list[Node]:
        found = frequency(i)
        e.write(found, starts, i)
        larger = e.less(carried[1], found)
        return [e.add(carried[0], found), e.at.select(larger, found, carried[1]), e.at.select(larger, i, carried[2])]

    zero = e.constant(0)
    given, _, largest = e.loop(0, symbols, most, [zero, zero, zero])
    e.write(e.add(e.read(starts, largest, I64), e.sub(_SLOTS, given)), starts, largest)

    def cumulate(i: Node, carried: list[Node]) -> list[Node]:
        found = e.read(starts, i, I64)
        e.write(carried[0], starts, i)
        return [e.add(carried[0], found)]

    e.loop(0, symbols, cumulate, [zero])
    e.write(e.constant(_SLOTS), starts, symbols)

    def begin(j: Node, carried: list[Node]) -> list[Node]:
        slot, last = e.at.shl(j, e.constant(_BUCKET)), e.sub(symbols, 1)

        def going(at: list[Node]) -> Node:
            behind = e.at.icmp_signed("<=", e.read(starts, e.add(at[0], 1), I64), slot)
            return e.at.and_(e.less(at[0], last), behind)

        (at,) = e.repeat([carried[0]], going, lambda at: [e.add(at[0], 1)])
        e.write(at, first, j)
        return [at]

    e.loop(0, (_SLOTS >> _BUCKET) + 1, begin, [zero])

    words = e.at.lshr(e.add(size, 3), e.constant(2))
    some = e.less(0, size)
    end = e.at.select(some, e.sub(size, 1), zero)
    ends_well = e.at.or_(e.equal(size, 0), e.at.icmp_unsigned("!=", e.read(payload, end, I8), ir.Constant(I8, 0)))

    def word(i: Node) -> Node:
        at = e.element(payload, e.mul(e.at.select(e.less(i, 0), zero, i), 4), I8)
        return e.at.zext(e.at.load(at, align=1, typ=I32), I64)

    spare = e.sub(e.mul(words, _WORD), e.mul(size, _BYTE))  # bits of the last word that others follow in
    top = e.at.and_(word(e.sub(words, 1)), e.at.lshr(e.constant((1 << _WORD) - 1), spare))
    bits = e.constant(_WORD)
    two = e.at.or_(e.at.shl(top, bits), word(e.sub(words, 2)))
    state = e.at.select(e.less(1, words), two, e.at.select(some, top, zero))
    left = e.at.select(e.less(2, words), e.sub(words, 2), zero)

    def one(i: Node, carried: list[Node]) -> list[Node]:
        state, left = carried
        slot = e.at.and_(state, below)
        bucket = e.at.lshr(slot, e.constant(_BUCKET))
        range_ = [e.read(first, bucket, I64), e.read(first, e.add(bucket, 1), I64)]

        def halve(between: list[Node]) -> list[Node]:
            low, high = between
            middle = e.at.lshr(e.add(low, high, 1), e.constant(1))
            there = e.at.icmp_signed("<=", e.read(starts, middle, I64), slot)
            return [e.at.select(there, middle, low), e.at.select(there, high, e.sub(middle, 1))]

        symbol, _ = e.repeat(range_, lambda between: e.less(between[0], between[1]), halve)
        start = e.read(starts, symbol, I64)
        frequency = e.sub(e.read(starts, e.add(symbol, 1), I64), start)
        e.write(e.at.trunc(e.read(values, symbol, I64), I8), out, e.mul(i, stride))
        state = e.at.add(e.at.mul(e.at.lshr(state, shift), frequency), e.sub(slot, start))
        lacks = e.at.icmp_unsigned("<", state, e.constant(1 << _WORD))
        lacks = e.at.and_(lacks, e.less(0, left))
        left = e.at.select(lacks, e.sub(left, 1), left)
        return [e.at.select(lacks, e.at.or_(e.at.shl(state, bits), word(left)), state), left]

    state, left = e.loop(0, count, one, [state, left])
    ended = e.at.and_(e.equal(state, 0), e.equal(left, 0))
    e.write(e.at.zext(e.at.and_(ended, ends_well), I64), good, 0)
    e.at.ret_void()


def _add_symbols(module: ir.Module) -> None:
    kinds = [I64, PTR, I64, PTR, I64, I64, I64, I64, PTR, I64, PTR]
    made = function(module, "symbols", kinds, exported=True)
    coder, table, table_bytes, payload, payload_bytes, count, least, most, out, stride, good = made.args
    e = Emitter(made, 1)
    zero, one = e.constant(0), e.constant(1)
    offsets, roots, done = (e.at.alloca(I64, size=size) for size in (_SPAN, _SPAN, 1))
    totals, cursors = e.at.alloca(I64, size=_BYTE + 1), e.at.alloca(I64, size=_BYTE + 1)
    source = BitsCode(e, table, e.mul(table_bytes, _BYTE))
    e.write(zero, good, 0)
    low = source.signed()
    source.check(e.at.and_(e.at.icmp_signed("<=", least, low), e.at.icmp_signed("<=", low, most)))
    span = e.sub(most, low)

    def put(value: Node, i: Node) -> None:
        e.write(e.at.trunc(value, I8), out, e.mul(i, stride))

    def accept(condition: Node) -> None:
        e.write(e.at.zext(condition, I64), good, 0)

    def constant() -> None:
        source.finish()
        source.check(e.equal(payload_bytes, 0))

        def fill(i: Node, _: list[Node]) -> list[Node]:
            put(low, i)
            return []

        e.loop(0, count, fill)
        accept(source.good)

    def unpacked(first: Node, width: Node) -> Node:
        """At most eight bits from a bit of the payload on, least significant first."""
        at = e.element(payload, e.at.lshr(first, e.constant(3)), I8)
        pair = e.at.zext(e.at.load(at, align=1, typ=I16), I64)
        pair = e.at.lshr(pair, e.at.and_(first, e.constant(7)))
        return e.at.and_(pair, e.sub(e.at.shl(one, width), 1))

    def padded(first: Node) -> Node:
        """Whether the bits from here to the next whole byte are zero."""
        return e.equal(unpacked(first, e.at.and_(e.sub(0, first), e.constant(7))), 0)

    def packed() -> None:
        width = e.add(source.uint(6), 1)
        source.finish()
        source.check(e.less(width, _BYTE + 1))
        last = e.mul(count, width)
        source.check(e.equal(payload_bytes, e.at.lshr(e.add(last, 7), e.constant(3))))
        with e.at.if_then(source.good):

            def each(i: Node, carried: list[Node]) -> list[Node]:
                found = unpacked(e.mul(i, width), width)
                put(e.add(found, low), i)
                return [e.at.select(e.less(carried[0], found), found, carried[0])]

            (largest,) = e.loop(0, count, each, [zero])
            accept(e.at.and_(padded(last), e.at.icmp_signed("<=", largest, span)))

    def read_stream(size: Node, symbols: Node) -> Node:
        arguments = [payload, size, count, roots, offsets, symbols, out, stride, done]
        e.at.call(module.globals["stream"], arguments)
        return e.equal(e.read(done, 0, I64), 1)

    def change(symbols: Node, value: Any) -> None:
        """Every offset."""

        def each(i: Node, _: list[Node]) -> list[Node]:
            e.write(value(e.read(offsets, i, I64)), offsets, i)
            return []

        e.loop(0, symbols, each)

    def greatest_of(symbols: Node) -> Node:
        """The last offset; 0 where the table is not good, since nothing may have been written there."""
        return e.at.select(source.good, e.read(offsets, e.sub(symbols, 1), I64), zero)

    def static() -> None:
        symbols = read_table(e, source, _SPAN, offsets, roots)
        source.finish()
        source.check(e.at.icmp_signed("<=", greatest_of(symbols), span))
        with e.at.if_then(source.good):
            change(symbols, lambda offset: e.add(offset, low))
            accept(read_stream(payload_bytes, symbols))

    def split() -> None:
        logarithmic, parameter = e.equal(source.uint(1), 1), source.uint(6)
        source.check(e.less(parameter, e.at.select(logarithmic, e.constant(_MANTISSA + 1), e.constant(_BYTE + 1))))
        source.check(e.at.or_(logarithmic, e.less(0, parameter)))  # without low bits nothing is split
        first = source.golomb(2)
        source.check(e.less(first, _SPAN))
        symbols = read_table(e, source, _SPAN, offsets, roots)
        size = source.golomb(7)
        source.finish()
        source.check(e.at.icmp_signed("<=", size, payload_bytes))
        greatest = greatest_of(symbols)
        source.check(e.less(greatest, _SPAN))
        shift = e.at.select(source.good, parameter, zero)

        def low_bits(bucket: Node) -> Node:
            found = e.sub(e.at.lshr(bucket, shift), 1)
            found = e.at.select(e.less(found, 0), zero, found)
            return e.at.select(logarithmic, e.least(found, _BYTE + 1), shift)

        def base(offset: Node) -> Node:
            bucket = e.at.add(offset, first)
            bits = low_bits(bucket)
            upper = e.at.select(logarithmic, e.at.sub(bucket, e.at.shl(bits, shift)), bucket)
            return e.at.shl(upper, bits)

        source.check(e.less(low_bits(e.at.add(greatest, first)), _BYTE + 1))
        source.check(e.at.icmp_signed("<=", base(greatest), span))
        leading = module.globals["llvm.ctlz.i64"]

        def bits_of(i: Node) -> tuple[Node, Node]:
            """A value without its low bits, and how many it has."""
            found = e.wide(out, e.mul(i, stride), I8)
            length = e.sub(2 * _WORD, e.at.call(leading, [found, ir.Constant(ir.IntType(1), 0)]))
            bits = e.sub(e.sub(length, 1), shift)
            return found, e.at.select(logarithmic, e.at.select(e.less(bits, 0), zero, bits), shift)

        with e.at.if_then(source.good):
            change(symbols, base)
            streamed = read_stream(size, symbols)
            for bits in range(_BYTE + 1):
                e.write(zero, totals, bits)

            def count_bits(i: Node, _: list[Node]) -> list[Node]:
                _, bits = bits_of(i)
                e.write(e.add(e.read(totals, bits, I64), 1), totals, bits)
                return []

            e.loop(0, count, count_bits)
            begin, ends = e.mul(size, _BYTE), []
            for bits in range(_BYTE + 1):
                e.write(begin, cursors, bits)
                begin = e.add(begin, e.mul(e.read(totals, bits, I64), bits))
                ends.append(begin)
                begin = e.at.and_(e.add(begin, 7), e.constant(-8))
            fits = e.at.and_(streamed, e.equal(begin, e.mul(payload_bytes, _BYTE)))
            with e.at.if_then(fits):

                def complete(i: Node, carried: list[Node]) -> list[Node]:
                    found, bits = bits_of(i)
                    at = e.read(cursors, bits, I64)
                    e.write(e.add(at, bits), cursors, bits)
                    found = e.add(found, unpacked(at, bits))
                    put(e.add(found, low), i)
                    return [e.at.select(e.less(carried[0], found), found, carried[0])]

                (largest,) = e.loop(0, count, complete, [zero])
                right = e.at.icmp_signed("<=", largest, span)
                for end in ends:
                    right = e.at.and_(right, padded(end))
                accept(right)

    for kind, write in (
        (Coder.CONSTANT, constant),
        (Coder.PACKED, packed),
        (Coder.STATIC, static),
        (Coder.SPLIT, split),
    ):
        with e.at.if_then(e.equal(coder, int(kind))):
            write()
    e.at.ret_void()


def _add_planes(module: ir.Module) -> None:
    made = function(module, "planes", [PTR, I64, I64, I64, I64, PTR, PTR], exported=True)
    data, table_bytes, payload_bytes, count, itemsize, out, good = made.args
    e = Emitter(made, 1)
    zero = e.constant(0)
    coders, tables, payloads = (e.at.alloca(I64, size=_MOST_PLANES) for _ in range(3))
    done = e.at.alloca(I64)
    source = BitsCode(e, data, e.mul(table_bytes, _BYTE))
    e.write(zero, good, 0)
    rotated = source.uint(1)
    source.check(e.at.or_(e.equal(rotated, 0), e.less(1, itemsize)))

    def plan(i: Node, carried: list[Node]) -> list[Node]:
        coder = source.uint(3)
        source.check(e.less(coder, int(Coder.SPLIT) + 1))
        raw = e.equal(coder, int(Coder.RAW))
        sizes = e.choose(raw, lambda: [zero, count], lambda: [source.golomb(3), source.golomb(7)])
        e.write(coder, coders, i)
        for size, place in zip(sizes, (tables, payloads), strict=True):
            e.write(size, place, i)
        return [e.add(before, size) for before, size in zip(carried, sizes, strict=True)]

    table, payload = e.loop(0, itemsize, plan, [zero, zero])
    start = source.rest()
    source.check(e.equal(e.add(start, table), table_bytes))
    source.check(e.equal(payload, payload_bytes))
    with e.at.if_then(source.good):

        def plane(i: Node, carried: list[Node]) -> list[Node]:
            table, payload, right = carried
            coder, sizes = e.read(coders, i, I64), [e.read(place, i, I64) for place in (tables, payloads)]
            here, place = e.element(data, payload, I8), e.element(out, i, I8)

            def copied() -> list[Node]:
                def one(j: Node, _: list[Node]) -> list[Node]:
                    e.write(e.read(here, j, I8), place, e.mul(j, itemsize))
                    return []

                e.loop(0, count, one)
                return [right]

            def decoded() -> list[Node]:
                arguments = [coder, e.element(data, table, I8), sizes[0], here, sizes[1], count]
                limits = [zero, e.constant(_SPAN - 1)]
                e.at.call(module.globals["symbols"], [*arguments, *limits, place, itemsize, done])
                return [e.at.and_(right, e.read(done, 0, I64))]

            (right,) = e.choose(e.equal(coder, int(Coder.RAW)), copied, decoded)
            return [e.add(table, sizes[0]), e.add(payload, sizes[1]), right]

        *_, right = e.loop(0, itemsize, plane, [start, table_bytes, e.constant(1)])

        def back(j: Node, _: list[Node]) -> list[Node]:
            """One bit to the right: the lowest bit of each byte is the highest of the one before it."""
            item = e.element(out, e.mul(j, itemsize), I8)
            one, seven = ir.Constant(I8, 1), ir.Constant(I8, 7)

            def byte(i: Node, carried: list[Node]) -> list[Node]:
                here, first = carried
                last = e.equal(e.add(i, 1), itemsize)
                after = e.at.select(last, first, e.read(item, e.at.select(last, i, e.add(i, 1)), I8))
                e.write(e.at.or_(e.at.lshr(here, one), e.at.shl(after, seven)), item, i)
                return [after, first]

            first = e.read(item, 0, I8)
            e.loop(0, itemsize, byte, [first, first])
            return []

        with e.at.if_then(e.equal(rotated, 1)):
            e.loop(0, count, back)
        e.write(right, good, 0)
    e.at.ret_void()
