"""Compiled making of what decoders of bytes look up, as LLVM IR."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from gossamer.coding.rans_model import PRECISION, SLOTS_BEHIND
from gossamer.jit.emit import I8, I32, I64, PTR, Emitter, function

__all__ = ["add_model"]

Node = Any  # llvmlite has no type stubs

_PIECE: Final = SLOTS_BEHIND


def add_model(module: ir.Module) -> None:
    """``model(bytes, frequencies, count, keys, slots, table)``: what `rans_model.ByteModel` says.

    bytes uint8 [count] and frequencies int64 [count], positive and of the sum 2^14; keys int64 [count + 1] is used on
    the way; slots uint8 [2^14 + 32] and table uint32 [256], zeros before, are filled. Each byte is stored in whole
    pieces of 32, which the next bytes overwrite.
    """
    made = function(module, "model", [PTR, PTR, I64, PTR, PTR, PTR], exported=True)
    bytes_, frequencies, count, keys, slots, table = made.args
    e = Emitter(made, _PIECE)
    eight, low = ir.Constant(I64, 8), ir.Constant(I64, 0xFF)
    e.write(e.constant(-1), keys, 0)  # less than every key

    def insert(i: Node, _: list[Node]) -> list[Node]:
        """By falling frequency, then by byte; few, as a rule nearly in order from the middle outwards."""
        behind = e.sub(1 << PRECISION, e.read(frequencies, i, I64))
        key = e.at.or_(e.at.shl(behind, eight), e.wide(bytes_, i, I8))

        def move(values: list[Node]) -> list[Node]:
            e.write(e.read(keys, values[0], I64), keys, e.add(values[0], 1))
            return [e.sub(values[0], 1)]

        (place,) = e.repeat([i], lambda values: e.less(key, e.read(keys, values[0], I64)), move)
        e.write(key, keys, e.add(place, 1))
        return []

    e.loop(0, count, insert)
    kind = ir.VectorType(I8, _PIECE)

    def fill(i: Node, carried: list[Node]) -> list[Node]:
        key, first = e.read(keys, e.add(i, 1), I64), carried[0]
        frequency, byte = e.sub(1 << PRECISION, e.at.ashr(key, eight)), e.at.and_(key, low)
        entry = e.at.or_(e.at.shl(frequency, e.constant(16)), first)
        e.write(e.at.trunc(entry, I32), table, byte)
        one = e.at.insert_element(ir.Constant(kind, ir.Undefined), e.at.trunc(byte, I8), ir.Constant(I32, 0))
        piece, last = e.shuffle(one, one, [0] * _PIECE), e.add(first, frequency)

        def store(at: Node, _: list[Node]) -> list[Node]:
            e.at.store(piece, e.element(slots, at, I8), align=1)
            return []

        e.loop(first, last, store, step=_PIECE)
        return [last]

    e.loop(0, count, fill, [e.constant(0)])
    e.at.ret_void()
