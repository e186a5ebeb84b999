"""Compiled counts and checksums of bytes, as LLVM IR."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from gossamer.jit.emit import I8, I32, I64, PTR, Emitter, function

__all__ = ["FOLDED", "add_count", "add_fold"]

Node = Any  # llvmlite has no type stubs

FOLDED: Final = 256
"""Bytes that one step of `fold` takes, and the least that it is for."""

_TABLES: Final = 4  # so that a byte that follows itself does not wait for its own count
_POLYNOMIAL: Final = 0x104C11DB7


def add_count(module: ir.Module) -> None:
    """``count(bytes, count, counts)``: adds to int64 counts [256] how often each byte occurs.

    Args:
        module: gets it.
    """
    made = function(module, "count", [PTR, I64, PTR], exported=True)
    source, count, counts = made.args
    e = Emitter(made, _TABLES)
    tables = e.at.alloca(I64, size=256 * _TABLES)

    def clear(i: Node, _: list[Node]) -> list[Node]:
        e.write(ir.Constant(I64, 0), tables, i)
        return []

    e.loop(0, 256 * _TABLES, clear)

    def tally(byte: Node, table: int) -> None:
        place = e.add(byte, 256 * table)
        e.write(e.add(e.read(tables, place, I64), 1), tables, place)

    whole = e.mul(e.div(count, 8), 8)

    def eight(i: Node, _: list[Node]) -> list[Node]:
        word = e.at.load(e.element(source, i, I8), align=1, typ=I64)
        for k in range(8):
            tally(e.at.and_(e.at.lshr(word, ir.Constant(I64, 8 * k)), ir.Constant(I64, 255)), k % _TABLES)
        return []

    def one(i: Node, _: list[Node]) -> list[Node]:
        tally(e.wide(source, i, I8), 0)
        return []

    e.loop(0, whole, eight, step=8)
    e.loop(whole, count, one)

    def gather(i: Node, _: list[Node]) -> list[Node]:
        parts = [e.read(tables, e.add(i, 256 * k), I64) for k in range(_TABLES)]
        e.write(e.add(e.read(counts, i, I64), *parts), counts, i)
        return []

    e.loop(0, 256, gather)
    e.at.ret_void()


def _power(exponent: int) -> int:
    """x^exponent modulo the polynomial of CRC-32, as the factor of a carry-less product of reflected bits."""
    rest = 1
    for _ in range(exponent):
        rest <<= 1
        rest ^= _POLYNOMIAL if rest >> 32 else 0
    return int(f"{rest:032b}"[::-1], 2) << 1


def add_fold(module: ir.Module, *, wide: bool) -> None:
    """``fold(bytes, count, folded)``: sixteen bytes that leave the same rest as ``count``, a multiple of 256 ≥ 256.

    A message M of bits is a polynomial, its CRC-32 the rest of M·x³² modulo P. Sixteen bytes that are followed by D
    more bits are worth (their two halves) · x^(D ± 32) mod P of 95 bits each, which is added to what follows.
    The register that CRC-32 begins with, all ones, is already added to the first four bytes.

    Args:
        module: gets it; its processor must have carry-less products.
        wide: of registers of 512 bits at once; else of 128.

    Source: Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ instruction", Intel 2009.
    """
    made = function(module, "fold", [PTR, I64, PTR], exported=True)
    source, count, folded = made.args
    e = Emitter(made, 4)
    pairs = 4 if wide else 1
    step = 16 * pairs
    sides_count = FOLDED // step if wide else 4
    stride = step * sides_count

    def kind(of: int) -> Node:
        return ir.VectorType(I64, 2 * of)

    def load(at: Node) -> Node:
        return e.at.load(e.element(source, at, I8), align=1, typ=kind(pairs))

    def moved(x: Node, distance: int, onto: Node) -> Node:
        of = x.type.count // 2
        name = "llvm.x86.pclmulqdq" + (".512" if of > 1 else "")
        multiply = module.globals.get(name)
        if multiply is None:
            multiply = ir.Function(module, ir.FunctionType(kind(of), [kind(of), kind(of), I8]), name)
        factors = ir.Constant(kind(of), [_power(distance + 32), _power(distance - 32)] * of)
        low = e.at.call(multiply, [x, factors, ir.Constant(I8, 0x00)])
        high = e.at.call(multiply, [x, factors, ir.Constant(I8, 0x11)])
        return e.at.xor(e.at.xor(low, high), onto)

    sides = [load(step * i) for i in range(sides_count)]
    sides[0] = e.at.xor(sides[0], ir.Constant(kind(pairs), [0xFFFFFFFF] + [0] * (2 * pairs - 1)))

    def one(i: Node, sides: list[Node]) -> list[Node]:
        return [moved(x, 8 * stride, load(e.add(i, step * k))) for k, x in enumerate(sides)]

    first, *others = e.loop(stride, count, one, sides, stride)
    for other in others:
        first = moved(first, 8 * step, other)
    if wide:
        first, *others = (e.shuffle(first, first, [2 * k, 2 * k + 1]) for k in range(pairs))
        for other in others:
            first = moved(first, 128, other)
    e.at.store(first, e.element(folded, 0, I32), align=1)
    e.at.ret_void()
