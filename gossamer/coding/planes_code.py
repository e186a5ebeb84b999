"""Compiled taking apart of floats into planes of bytes, and putting together, as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from gossamer.jit.emit import I8, I64, PTR, Emitter, function

__all__ = ["ITEMSIZES", "add_planes"]

Node = Any  # llvmlite has no type stubs

ITEMSIZES: Final = (2, 4)
_TOGETHER: Final = 32  # items


def add_planes(module: ir.Module) -> None:
    """Entry points for items of 2 and 4 bytes: byte b of every item lies in plane b.

    ``split_2(items, count, planes, rotated)``: ``planes`` holds an address per byte; where ``rotated`` is 1, items are
    first rotated left by one bit, which brings the sign of a float behind its mantissa and its exponent together.

    ``merge_2(items, count, planes, rotated)``: the inverse.

    Args:
        module: gets them.
    """
    for size in ITEMSIZES:
        _split(module, size)
        _merge(module, size)


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
