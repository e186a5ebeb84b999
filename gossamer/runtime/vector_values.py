"""How the values of a sparse matrix × vector product are stored, and how kernels turn them back into float32."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, final

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from gossamer.errors import PlanError
from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function

__all__ = [
    "Storage",
    "StoredValues",
    "called",
    "decode_function",
    "decoded",
    "gathered",
    "masked_gather",
    "prefetch",
    "stack",
    "store_values",
]

Node = Any  # llvmlite has no type stubs
Array = npt.NDArray[Any]

_SAMPLE = 1 << 14


class Storage(IntEnum):
    """Kinds of stored values; the numbers are part of compiled code."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # with a float32 scale per row
    CODEBOOK8 = 3  # an index into up to 256 float32 values
    CODEBOOK4 = 4  # two indices per byte into up to 16

    @property
    def bits(self) -> int:
        """Per value."""
        return (32, 16, 8, 8, 4)[self]


@final
@dataclass(frozen=True, eq=False)
class StoredValues:
    """Values in one of the kinds.

    Args:
        kind: which.
        codes: [n] float32, uint16 (the upper half of a float32), int8 or uint8, as many as there are non-zeros.
        table: float32 [16] or [256] that codes point into; empty for other kinds.
        scale: float32 [rows] that codes are multiplied by; ones for other kinds than INT8.
    """

    kind: Storage
    codes: Array
    table: Array
    scale: Array

    @classmethod
    def of_integers(cls, q: Array, scale: Array) -> StoredValues:
        """Values scale[row] · q: int8 [n] and float32 [rows]."""
        return cls(Storage.INT8, q, np.zeros(0, np.float32), np.ascontiguousarray(scale, np.float32))


def store_values(values: Array, row: Array, rows: int, kind: Storage) -> StoredValues:
    """Float32 values in another kind.

    Args:
        values: float32 [n], in ascending order of rows.
        row: int [n], row of each.
        rows: of the weight.
        kind: wanted.

    Raises:
        PlanError: there are more different values than a codebook has places.

    Exact: FLOAT32 and codebooks are; BFLOAT16 rounds to nearest, off by 2⁻⁹ of each value; INT8 is off by 1/254 of the
        row's largest value.

    Example:
        >>> made = store_values(np.float32([1.0, -2.0, 1.0]), np.array([0, 0, 1]), 2, Storage.CODEBOOK4)
        >>> made.table[made.codes].tolist()
        [1.0, -2.0, 1.0]
    """
    table, scale = np.zeros(0, np.float32), np.ones(rows, np.float32)
    values = np.ascontiguousarray(values, np.float32)
    if kind is Storage.FLOAT32:
        return StoredValues(kind, values, table, scale)
    if kind is Storage.BFLOAT16:
        bits = values.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
        # What is not a number must not become infinite by rounding.
        halves = np.where(np.isnan(values), bits >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)
        return StoredValues(kind, halves, table, scale)
    if kind is Storage.INT8:
        largest = np.zeros(rows, np.float32)
        np.maximum.at(largest, row, np.abs(values))
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        return StoredValues(kind, np.rint(values / scale[row]).astype(np.int8), table, scale)
    entries, codes = np.unique(values, return_inverse=True)
    if len(entries) > 1 << kind.bits:
        raise PlanError(f"codebook: found {len(entries)} different values, expected at most {1 << kind.bits}")
    table = np.zeros(1 << kind.bits, np.float32)
    table[: len(entries)] = entries
    return StoredValues(kind, codes.astype(np.uint8), table, scale)


def smallest_exact(values: Array) -> Storage:
    """The kind with the fewest bits that holds all values exactly, whatever rows they are in.

    Args:
        values: float32 [n].

    Example:
        >>> smallest_exact(np.float32([0.3, -0.1, 0.3])).name, smallest_exact(np.arange(999, dtype=np.float32) / 7).name
        ('CODEBOOK4', 'FLOAT32')
    """
    if not np.isfinite(values).all():
        return Storage.FLOAT32
    few = len(np.unique(values[:_SAMPLE])) <= 256  # to sort all of them takes longer than to pack them
    different = len(np.unique(values)) if few else len(values)
    if few and different <= 256:
        return Storage.CODEBOOK4 if different <= 16 else Storage.CODEBOOK8
    return Storage.FLOAT32 if np.any(values.view(np.uint32) & 0xFFFF) else Storage.BFLOAT16


def decode_function(module: ir.Module, lanes: int) -> ir.Function:
    """``decode(values, table, kind, position, count, target)``: count values from position on, as float32.

    Writes whole vectors, and may read as much beyond the last value; for all kinds but FLOAT32.
    """
    made = function(module, "decode", [PTR, PTR, I64, I64, I64, PTR], exported=False)
    values, table, found, position, count, target = made.args
    e = Emitter(made, lanes)
    for kind in Storage:
        if kind is Storage.FLOAT32:
            continue

        def some(i: Node, _: list[Node], kind: Storage = kind) -> list[Node]:
            e.store(decoded(e, kind, values, table, e.add(position, i), whole=False), target, i)
            return []

        with e.at.if_then(e.equal(found, int(kind))):
            e.loop(0, count, some, step=lanes)
    e.at.ret_void()
    return made


def decoded(e: Emitter, kind: Storage, values: Node, table: Node, position: Node, *, whole: bool) -> Node:
    """A vector of adjacent values as float32, INT8 without their scale.

    Args:
        e: writes the code.
        kind: of values.
        values: their address.
        table: address of the codebook.
        position: of the first value.
        whole: whether it is a multiple of a vector's length.
    """
    if kind is Storage.FLOAT32:
        return e.load(values, position)
    n = e.lanes
    wide = ir.VectorType(I32, n)
    if kind is Storage.BFLOAT16:
        halves = e.at.zext(_load(e, values, position, I16), wide)
        return e.at.bitcast(e.at.shl(halves, _every(n, 16)), e.vector)
    if kind is Storage.INT8:
        return e.at.sitofp(e.at.sext(_load(e, values, position, I8), wide), e.vector)
    if kind is Storage.CODEBOOK8:
        return gathered(e, table, e.at.zext(_load(e, values, position, I8), wide))
    codes = _nibbles(e, values, position, whole=whole)
    if n == 16:  # so many lanes mean AVX-512, which looks sixteen entries up in a register
        return called(e, "llvm.x86.avx512.permvar.sf.512", e.vector, [e.load(table, 0), codes])
    return gathered(e, table, codes)


def gathered(e: Emitter, base: Node, index: Node) -> Node:
    """``base[index]`` in every lane."""
    if e.lanes < 16:  # gathers of fewer lanes are no faster than loads one by one, and missing on many processors
        made = ir.Constant(e.vector, ir.Undefined)
        for i in range(e.lanes):
            at = e.at.zext(e.at.extract_element(index, ir.Constant(I32, i)), I64)
            made = e.at.insert_element(made, e.read(base, at, F32), ir.Constant(I32, i))
        return made
    return masked_gather(e, base, index, ir.Constant(ir.VectorType(ir.IntType(1), e.lanes), [1] * e.lanes))


def masked_gather(e: Emitter, base: Node, index: Node, mask: Node) -> Node:
    """``base[index]`` where the mask is set, 0 elsewhere; nothing else is read."""
    places = e.at.gep(base, [index], inbounds=True, source_etype=F32)
    places.type = ir.VectorType(base.type, e.lanes)  # a vector of addresses, which llvmlite does not see
    blank = ir.Constant(e.vector, [0.0] * e.lanes)
    name = f"llvm.masked.gather.v{e.lanes}f32.v{e.lanes}p0"
    return called(e, name, e.vector, [places, ir.Constant(I32, 4), mask, blank])


def prefetch(e: Emitter, base: Node, position: Node, bits: Node, ahead: int) -> None:
    """Asks for memory that will be read once, ``ahead`` bytes beyond the element at a position.

    Args:
        e: writes the code.
        base: address of the first element.
        position: of an element.
        bits: per element; a Python int where it is known.
        ahead: bytes.
    """
    if isinstance(bits, int) and bits >= 8:
        place = e.mul(position, bits // 8)
    else:
        place = e.at.lshr(e.mul(position, bits), ir.Constant(I64, 3))
    arguments = [ir.Constant(I32, number) for number in (0, 3, 1)]  # to read, into all caches, data
    called(e, "llvm.prefetch.p0", ir.VoidType(), [e.element(e.element(base, place, I8), ahead, I8), *arguments])


def called(e: Emitter, name: str, result: Node, arguments: list[Node]) -> Node:
    """Result of an intrinsic function, which is declared if it is not yet."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    known = e.made.module.globals.get(name) or ir.Function(e.made.module, kind, name)
    return e.at.call(known, arguments)


def stack(e: Emitter, floats: int) -> Node:
    """Aligned memory of one call."""
    made = e.at.alloca(F32, size=ir.Constant(I32, floats))
    made.align = 64
    made.type = PTR  # llvmlite still gives it the type of what is in it
    return made


def _load(e: Emitter, base: Node, position: Node, kind: Node) -> Node:
    return e.at.load(e.element(base, position, kind), align=kind.width // 8, typ=ir.VectorType(kind, e.lanes))


def _every(lanes: int, value: int) -> Node:
    return ir.Constant(ir.VectorType(I32, lanes), [value] * lanes)


def _nibbles(e: Emitter, base: Node, position: Node, *, whole: bool) -> Node:
    """Codes of four bits, the lower half of a byte first, each in 32 bits."""
    n = e.lanes
    place = e.element(base, e.at.lshr(position, ir.Constant(I64, 1)), I8)
    kind = ir.IntType(4 * n)
    packed = e.at.load(place, align=1, typ=kind)
    if not whole:  # the first code may be an upper half
        more = e.at.load(e.element(place, n // 2, I8), align=1, typ=kind)
        shift = e.at.shl(e.at.and_(position, ir.Constant(I64, 1)), ir.Constant(I64, 2))
        shift = e.at.trunc(shift, kind) if kind.width < 64 else shift
        packed = called(e, f"llvm.fshr.i{kind.width}", kind, [more, packed, shift])
    parts = []
    for begin in range(0, n, 8):  # eight codes in every 32 bits
        part = e.at.lshr(packed, ir.Constant(kind, 4 * begin)) if begin else packed
        part = e.at.trunc(part, I32) if kind.width > 32 else e.at.zext(part, I32) if kind.width < 32 else part
        one = e.at.insert_element(ir.Constant(ir.VectorType(I32, min(n, 8)), ir.Undefined), part, ir.Constant(I32, 0))
        parts.append(e.shuffle(one, one, [0] * min(n, 8)))
    spread = parts[0] if len(parts) == 1 else e.shuffle(parts[0], parts[1], range(n))
    shifts = ir.Constant(ir.VectorType(I32, n), [4 * (i % 8) for i in range(n)])
    return e.at.and_(e.at.lshr(spread, shifts), _every(n, 15))
