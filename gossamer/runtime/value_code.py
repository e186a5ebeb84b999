"""Weights that are stored in fewer bits, and their expansion to float32 just before they are used.

Formats of values have nothing to do with how a kernel goes through a group: as many values as the largest group has are
expanded by whole vectors into a buffer that stays in the first-level cache, and the same inner loops read that.

A row that is shorter than the others of its group needs entries that change nothing, though a weight of zero would turn
an infinite activation into NaN. Floats are split into halves for that; of integers and indices into a table there are
no halves. There, one part is the whole weight and the others are *next to nothing*: at least 2³² times smaller, with
the weight's sign and at its column, so that infinity and NaN go where they went already, and a finite product changes
by less than a hundredth of its rounding.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.brain import widened

__all__ = ["ENTRIES", "LEAST", "SHORT", "WORDS", "Stored", "ValueField", "expand_function"]

Node = Any  # llvmlite has no type stubs

LEAST = 2.0**-32
"""How large next to nothing is beside one step of `Stored.INTEGERS`, or the smallest number of a table."""

ENTRIES = 256
"""Places of a table."""

SHORT = 32
"""Entries of a table that two registers hold."""

WORDS = 32
"""64-bit integers of a description."""


class Stored(IntEnum):
    """How the values of a packed weight are stored; the numbers are part of compiled code."""

    FLOATS = 0  # float32
    BFLOATS = 1  # the upper half of a float32
    INTEGERS = 2  # int8; 0 and −128 are ±LEAST. Sums of a panel are multiplied with a scale: below 2¹²⁰ they are finite
    TABLE = 3  # uint8, the number of an entry of a table of float32
    SHORT_TABLE = 4  # the same with at most SHORT entries, which are in registers during expansion


class ValueField(IntEnum):
    """Where kernels find what in the description of a packed matrix, beside ``group_code.Field`` and ``Pool``."""

    FORMAT = 24
    TABLE = 25  # float32 [256]
    SCALES = 26  # float32 [PANELS, ROWS] that a panel's sums are multiplied with, or null
    LARGEST = 27  # values of the largest group
    ROOM = 28  # floats of the buffer that a group's values are expanded to; 0 if they are floats already
    LENGTH = 29  # values


def expand_function(module: ir.Module, lanes: int) -> ir.Function:
    """``expand(description, values, first, buffer)``: values from number ``first`` on, as many as there is room for.

    Whole vectors are read: as many bytes beyond the last value as a vector has lanes must be there.
    """
    made = function(module, "expand", [PTR, PTR, I64, PTR], exported=False)
    description, values, first, buffer = made.args
    e = Emitter(made, lanes)

    def field(which: ValueField, kind: Node = I64) -> Node:
        return e.read(description, int(which), kind)

    count = e.least(field(ValueField.ROOM), e.sub(field(ValueField.LENGTH), first))
    integers = ir.VectorType(I32, lanes)

    def every(value: int) -> Node:
        return ir.Constant(integers, [value] * lanes)

    def raw(i: Node, kind: Node) -> Node:
        base = e.element(values, e.add(first, i), kind)
        return e.at.load(base, align=kind.width // 8, typ=ir.VectorType(kind, lanes))

    def brain(i: Node) -> Node:
        return widened(e.at, raw(i, I16))

    def integer(i: Node) -> Node:
        q = e.at.sext(raw(i, I8), integers)
        f = e.at.sitofp(q, e.vector)
        f = e.at.select(e.at.icmp_signed("==", q, every(0)), e.number(LEAST), f)
        return e.at.select(e.at.icmp_signed("==", q, every(-128)), e.number(-LEAST), f)

    table = field(ValueField.TABLE, PTR)

    def entry(i: Node) -> Node:
        return _looked_up(e, table, e.at.zext(raw(i, I8), integers))

    def entry_of(registers: list[Node]) -> Any:
        return lambda i: _permuted(e, registers, e.at.zext(raw(i, I8), integers))

    ways = {Stored.BFLOATS: brain, Stored.INTEGERS: integer, Stored.TABLE: entry, Stored.SHORT_TABLE: entry}
    sizes = {Stored.TABLE: ENTRIES, Stored.SHORT_TABLE: SHORT} if lanes == 16 else {}
    after = made.append_basic_block()
    for stored, value in ways.items():
        yes, no = made.append_basic_block(), made.append_basic_block()
        e.at.cbranch(e.equal(field(ValueField.FORMAT), int(stored)), yes, no)
        e.at.position_at_end(yes)
        registers = [e.load(table, lanes * k) for k in range(sizes.get(stored, 0) // lanes)]
        found = entry_of(registers) if registers else value

        def vector(i: Node, _: list[Node], found: Any = found) -> list[Node]:
            e.store(found(i), buffer, i, lanes * 4)
            return []

        e.loop(0, count, vector, step=lanes)
        e.at.branch(after)
        e.at.position_at_end(no)
    e.at.branch(after)
    e.at.position_at_end(after)
    e.at.ret_void()
    return made


def _looked_up(e: Emitter, table: Node, codes: Node) -> Node:
    """Entries of a table in memory; processors with vectors of 8 floats are x86, and gather them."""
    if e.lanes == 4:
        found = ir.Constant(e.vector, ir.Undefined)
        for lane in range(e.lanes):
            at = ir.Constant(I32, lane)
            one = e.read(table, e.at.zext(e.at.extract_element(codes, at), I64), F32)
            found = e.at.insert_element(found, one, at)
        return found
    mask = e.at.bitcast(ir.Constant(codes.type, [-1] * e.lanes), e.vector)
    arguments = [e.number(0), table, codes, mask, ir.Constant(I8, 4)]
    return e.at.call(_intrinsic(e, "llvm.x86.avx2.gather.d.ps.256", arguments), arguments)


def _permuted(e: Emitter, table: list[Node], codes: Node) -> Node:
    """Entries of a table in registers: of every two by the lower five bits, of these by one bit after the other.

    As fast as gathering 16 entries where that is fast; microcode against leaks has made it slow on many processors.
    """
    found = []
    for low, high in zip(table[::2], table[1::2], strict=True):
        arguments = [low, codes, high]
        found.append(e.at.call(_intrinsic(e, "llvm.x86.avx512.vpermi2var.ps.512", arguments), arguments))
    bit = SHORT
    while len(found) > 1:
        every = ir.Constant(codes.type, [bit] * e.lanes)
        above = e.at.icmp_unsigned("!=", e.at.and_(codes, every), ir.Constant(codes.type, [0] * e.lanes))
        found = [e.at.select(above, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


def _intrinsic(e: Emitter, name: str, arguments: list[Node]) -> Node:
    known = e.made.module.globals.get(name)
    return known or ir.Function(e.made.module, ir.FunctionType(e.vector, [a.type for a in arguments]), name)
