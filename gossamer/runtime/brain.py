"""bfloat16 in registers: it is the upper half of a float32. No processor needs instructions for it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32

__all__ = ["narrowed", "widened"]

Node = Any  # llvmlite has no type stubs


def widened(at: ir.IRBuilder, halves: Node) -> Node:
    """16-bit integers, one or a vector of them, as the float32 that they are the upper halves of; exact."""
    whole = _like(halves.type, I32)
    return at.bitcast(at.shl(at.zext(halves, whole), _every(whole, 16)), _like(halves.type, F32))


def narrowed(at: ir.IRBuilder, value: Node) -> Node:
    """float32, one or a vector, as the nearest bfloat16, ties to even; infinity and NaN stay what they are."""
    whole = _like(value.type, I32)
    bits = at.bitcast(value, whole)
    odd = at.and_(at.lshr(bits, _every(whole, 16)), _every(whole, 1))
    rounded = at.add(bits, at.add(odd, _every(whole, 0x7FFF)))  # carries into the exponent where it has to
    quiet = at.or_(bits, _every(whole, 0x400000))  # the bits of a NaN might all be in the lower half
    kept = at.select(at.fcmp_unordered("uno", value, value), quiet, rounded)
    return at.trunc(at.lshr(kept, _every(whole, 16)), _like(value.type, I16))


def _like(kind: Node, element: Node) -> Node:
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _every(kind: Node, value: int) -> Node:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)
