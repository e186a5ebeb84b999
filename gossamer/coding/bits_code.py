"""Compiled reading of lists of exponential Golomb codes, as LLVM IR."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from gossamer.jit.emit import I8, I64, PTR, Emitter, function

__all__ = ["add_bits"]

Node = Any  # llvmlite has no type stubs

_WORD: Final = 64
_SURE: Final = 57  # bits of a word that are there wherever in a byte it begins


def add_bits(module: ir.Module) -> None:
    """``golombs(table, bits, count, order, out, at)``: as `bits.BitReader` reads them.

    table uint8 of so many bits, most significant first, with 8 bytes behind; out int64 [count]. ``at`` int64 [1] is
    the first bit and becomes the one behind the last code; −1 where a code is not there or longer than 57 bits.
    """
    made = function(module, "golombs", [PTR, I64, I64, I64, PTR, PTR], exported=True)
    table, bits, count, order, out, at = made.args
    e = Emitter(made, 1)
    swap = ir.Function(module, ir.FunctionType(I64, [I64]), "llvm.bswap.i64")
    leading = ir.Function(module, ir.FunctionType(I64, [I64, ir.IntType(1)]), "llvm.ctlz.i64")
    below = e.at.shl(e.constant(1), order)

    def one(values: list[Node]) -> list[Node]:
        i, first = values
        place = e.element(table, e.at.lshr(first, e.constant(3)), I8)
        word = e.at.call(swap, [e.at.load(place, align=1, typ=I64)])
        word = e.at.shl(word, e.at.and_(first, e.constant(7)))
        zeros = e.at.call(leading, [word, ir.Constant(ir.IntType(1), 0)])
        size = e.add(zeros, zeros, 1, order)  # as many bits behind the first one as zeros before it, then `order`
        after = e.add(first, size)
        good = e.at.and_(e.less(size, _SURE + 1), e.less(after, e.add(bits, 1)))
        size = e.at.select(good, size, e.constant(1))
        value = e.sub(e.at.lshr(word, e.sub(_WORD, size)), below)
        e.write(value, out, i)
        return [e.add(i, 1), e.at.select(good, after, e.constant(-1))]

    def going(values: list[Node]) -> Node:
        return e.at.and_(e.less(values[0], count), e.at.icmp_signed(">=", values[1], e.constant(0)))

    _, after = e.repeat([e.constant(0), e.read(at, 0, I64)], going, one)
    e.write(after, at, 0)
    e.at.ret_void()
