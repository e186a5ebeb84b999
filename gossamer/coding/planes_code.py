"""Compiled taking apart of floats into planes of bytes, and putting together, as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from gossamer.coding.rans_model import HEAPS
from gossamer.jit.emit import I8, I16, I64, PTR, Emitter, function

__all__ = ["ITEMSIZES", "add_planes"]

Node = Any  # llvmlite has no type stubs

ITEMSIZES: Final = (2, 4)
_TOGETHER: Final = 32  # items
_PIECE: Final = 1 << 14  # bytes that are decoded at a time: they stay in the first-level cache


def add_planes(module: ir.Module, lanes: int) -> None:
    """Entry points for items of 2 and 4 bytes: byte b of every item lies in plane b.

    ``split_2(items, count, planes, rotated)``: ``planes`` holds an address per byte; where ``rotated`` is 1, items are
    first rotated left by one bit, which brings the sign of a float behind its mantissa and its exponent together.

    ``merge_2(items, count, planes, rotated)``: the inverse.

    ``unite_2(items, count, planes, coded, rotated, words, end, states, lanes, slots, table, read, heap, size)``: the
    same, while plane ``coded`` is decoded piece by piece, see `rans_code`; size 0: no heap.

    Args:
        module: gets them; has the entry points of `rans_code`.
        lanes: floats per vector register.
    """
    for size in ITEMSIZES:
        _split(module, size)
        _merge(module, size)
        _unite(module, size, lanes)


def _pieces(e: Emitter, count: Node, piece: Callable[[Node, int], None]) -> None:
    """Whole vectors, then what is left one by one."""
    whole = e.mul(e.div(count, _TOGETHER), _TOGETHER)

    def several(i: Node, _: list[Node]) -> list[Node]:
        piece(i, _TOGETHER)
        return []

    def one(i: Node, _: list[Node]) -> list[Node]:
        piece(i, 1)
        return []

    e.loop(0, whole, several, step=_TOGETHER)
    e.loop(whole, count, one)


class _Items:
    """Items of a width, several at a time."""

    def __init__(self, e: Emitter, size: int, together: int) -> None:
        self.e, self.bits, self.together = e, 8 * size, together
        self.kind = self.of(ir.IntType(8 * size))
        self.bytes = self.of(I8)

    def of(self, kind: Node) -> Node:
        return ir.VectorType(kind, self.together) if self.together > 1 else kind

    def constant(self, value: int) -> Node:
        return ir.Constant(self.kind, [value] * self.together if self.together > 1 else value)

    def turned(self, x: Node, left: int) -> Node:
        """Rotated left by so many bits."""
        at = self.e.at
        return at.or_(at.shl(x, self.constant(left)), at.lshr(x, self.constant(self.bits - left)))

    def load(self, base: Node, index: Node, kind: Node) -> Node:
        return self.e.at.load(self._address(base, index, kind), align=1, typ=kind)

    def store(self, value: Node, base: Node, index: Node) -> None:
        self.e.at.store(value, self._address(base, index, value.type), align=1)

    def _address(self, base: Node, index: Node, kind: Node) -> Node:
        return self.e.element(base, index, kind.element if isinstance(kind, ir.VectorType) else kind)


def _either(e: Emitter, rotated: Node, loops: Callable[[bool], None]) -> None:
    """One of two sets of loops, so that nothing is decided within."""
    with e.at.if_else(e.equal(rotated, 1)) as (yes, no):
        with yes:
            loops(True)
        with no:
            loops(False)
    e.at.ret_void()


def _split(module: ir.Module, size: int) -> None:
    made = function(module, f"split_{size}", [PTR, I64, PTR, I64], exported=True)
    source, count, planes, rotated = made.args
    e = Emitter(made, _TOGETHER)
    into = [e.read(planes, byte, PTR) for byte in range(size)]

    def loops(turn: bool) -> None:
        def piece(i: Node, together: int) -> None:
            items = _Items(e, size, together)
            x = items.load(source, i, items.kind)
            x = items.turned(x, 1) if turn else x
            for byte, plane in enumerate(into):
                items.store(e.at.trunc(e.at.lshr(x, items.constant(8 * byte)), items.bytes), plane, i)

        _pieces(e, count, piece)

    _either(e, rotated, loops)


def _merge(module: ir.Module, size: int) -> None:
    made = function(module, f"merge_{size}", [PTR, I64, PTR, I64], exported=True)
    target, count, planes, rotated = made.args
    e = Emitter(made, _TOGETHER)
    source = [e.read(planes, byte, PTR) for byte in range(size)]

    def loops(turn: bool) -> None:
        def piece(i: Node, together: int) -> None:
            items = _Items(e, size, together)
            x = items.constant(0)
            for byte, plane in enumerate(source):
                wide = e.at.zext(items.load(plane, i, items.bytes), items.kind)
                x = e.at.or_(x, e.at.shl(wide, items.constant(8 * byte)))
            items.store(items.turned(x, 8 * size - 1) if turn else x, target, i)

        _pieces(e, count, piece)

    _either(e, rotated, loops)


def _unite(module: ir.Module, size: int, lanes: int) -> None:
    kinds = [PTR, I64, PTR, I64, I64, PTR, PTR, PTR, I64, PTR, PTR, PTR, PTR, I64]
    made = function(module, f"unite_{size}", kinds, exported=True)
    target, count, planes, coded, rotated, words, end, states, of, slots, table, read, heap, few = made.args
    e = Emitter(made, lanes)
    piece = e.at.alloca(I8, size=_PIECE)
    places = e.at.alloca(PTR, size=size)
    known = {few: module.globals[f"decode_{few}"] for few in HEAPS if f"decode_{few}" in module.globals}

    def decode(some: Node, at: Node) -> None:
        arguments = [piece, some, e.element(words, at, I16), end, states, of, slots, table, read]
        after = made.append_basic_block()
        for number, function_ in known.items():
            yes, no = made.append_basic_block(), made.append_basic_block()
            e.at.cbranch(e.equal(few, number), yes, no)
            e.at.position_at_end(yes)
            e.at.call(function_, [*arguments, heap])
            e.at.branch(after)
            e.at.position_at_end(no)
        e.at.call(module.globals["decode"], arguments)
        e.at.branch(after)
        e.at.position_at_end(after)

    def one(values: list[Node]) -> list[Node]:
        first, at, _ = values
        some = e.least(_PIECE, e.sub(count, first))
        decode(some, at)
        for byte in range(size):
            plane = e.element(e.read(planes, byte, PTR), first, I8)
            e.write(e.at.select(e.equal(coded, byte), piece, plane), places, byte)
        e.at.call(module.globals[f"merge_{size}"], [e.element(target, e.mul(first, size), I8), some, places, rotated])
        got = e.read(read, 0, I64)
        return [e.add(first, some), e.add(at, got), got]

    def going(values: list[Node]) -> Node:
        return e.at.and_(e.less(values[0], count), e.at.icmp_signed(">=", values[2], e.constant(0)))

    _, at, got = e.repeat([e.constant(0), e.constant(0), e.constant(0)], going, one)
    e.write(e.at.select(e.less(got, 0), e.constant(-1), at), read, 0)
    e.at.ret_void()
