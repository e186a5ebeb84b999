"""A thin layer over llvmlite's IR builder: loops, vectors and in-register transposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from llvmlite import ir

__all__ = ["BF16", "F32", "I8", "I16", "I32", "I64", "PTR", "Emitter", "function"]

F32 = ir.FloatType()


class _BFloat16(ir.types.Type):  # type: ignore[misc]  # llvmlite has no type stubs, and knows no such type
    """The upper half of a float32."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


BF16 = _BFloat16()
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
PTR = ir.PointerType()

Node = Any  # llvmlite has no type stubs: an ir.Value, or a Python int where a constant will do
LoopBody = Callable[[Node, list[Node]], Sequence[Node]]


def function(module: ir.Module, name: str, arguments: Sequence[Node], *, exported: bool) -> ir.Function:
    """A void function with the given argument types; its pointers are promised not to overlap."""
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), list(arguments)), name)
    made.attributes.add("nounwind")
    for argument in made.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
    if not exported:
        made.linkage = "internal"
        made.attributes.add("noinline")  # inlining would lose the promise on the pointers
    return made


@final
class Emitter:
    """Writes one function; integers are 64 bits wide and Python ints are taken as constants.

    Args:
        made: the function to fill, still without a body.
        lanes: floats per vector register.
    """

    def __init__(self, made: ir.Function, lanes: int) -> None:
        self.made = made
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)
        self.at = ir.IRBuilder(made.append_basic_block("entry"))

    def constant(self, value: Node) -> Node:
        """A 64-bit constant, or the value as it is."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms: Node) -> Node:
        """Sum of 64-bit integers."""
        total = self.constant(terms[0])
        for term in terms[1:]:
            total = self.at.add(total, self.constant(term), flags=("nsw",))
        return total

    def sub(self, a: Node, b: Node) -> Node:
        """a − b."""
        return self.at.sub(self.constant(a), self.constant(b), flags=("nsw",))

    def mul(self, a: Node, b: Node) -> Node:
        """a · b."""
        return self.at.mul(self.constant(a), self.constant(b), flags=("nsw",))

    def div(self, a: Node, b: Node) -> Node:
        """⌊a / b⌋ of non-negative integers."""
        return self.at.udiv(self.constant(a), self.constant(b))

    def less(self, a: Node, b: Node) -> Node:
        """a < b as a bit."""
        return self.at.icmp_signed("<", self.constant(a), self.constant(b))

    def equal(self, a: Node, b: Node) -> Node:
        """a = b as a bit."""
        return self.at.icmp_signed("==", self.constant(a), self.constant(b))

    def least(self, a: Node, b: Node) -> Node:
        """min(a, b)."""
        return self.at.select(self.less(a, b), self.constant(a), self.constant(b))

    def element(self, base: Node, index: Node, kind: Node) -> Node:
        """Address of ``base[index]`` where elements are of type ``kind``."""
        return self.at.gep(base, [self.constant(index)], inbounds=True, source_etype=kind)

    def read(self, base: Node, index: Node, kind: Node) -> Node:
        """``base[index]``."""
        return self.at.load(self.element(base, index, kind), typ=kind)

    def write(self, value: Node, base: Node, index: Node) -> None:
        """``base[index] = value``."""
        self.at.store(value, self.element(base, index, value.type))

    def wide(self, base: Node, index: Node, kind: Node) -> Node:
        """``base[index]`` of a narrower unsigned integer, as 64 bits."""
        return self.at.zext(self.read(base, index, kind), I64)

    def load(self, base: Node, index: Node, align: int = 4) -> Node:
        """A vector of floats that starts at ``base[index]``."""
        return self.at.load(self.element(base, index, F32), align=align, typ=self.vector)

    def store(self, value: Node, base: Node, index: Node, align: int = 4) -> None:
        """Stores a vector of floats at ``base[index]``."""
        self.at.store(value, self.element(base, index, F32), align=align)

    def stream(self, value: Node, base: Node, index: Node) -> None:
        """Stores a vector of floats at ``base[index]``, aligned, past the caches: a fence must follow at the end."""
        stored = self.at.store(value, self.element(base, index, F32), align=4 * self.lanes)
        stored.set_metadata("nontemporal", self.made.module.add_metadata([ir.Constant(I32, 1)]))

    def spread(self, value: Node) -> Node:
        """One number in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.at.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.shuffle(one, one, [0] * self.lanes)

    def prefetch(self, base: Node, index: Node, kind: Node = F32, *, near: bool = True) -> None:
        """Asks for the cache line of ``base[index]``, which may lie beyond what may be read.

        Into all caches, or, if not ``near``, into those beyond the first.
        """
        known = self.made.module.globals.get("llvm.prefetch.p0")
        if known is None:
            known = ir.Function(
                self.made.module, ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32]), "llvm.prefetch.p0"
            )
        address = self.at.gep(base, [self.constant(index)], source_etype=kind)
        self.at.call(known, [address, *(ir.Constant(I32, i) for i in (0, 3 if near else 2, 1))])  # to read; data

    def shuffle(self, a: Node, b: Node, lanes: Sequence[int]) -> Node:
        """Lane i of the result is lane ``lanes[i]`` of a followed by b."""
        return self.at.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def fma(self, a: Node, b: Node, c: Node) -> Node:
        """a·b + c, in one rounding where the processor has it."""
        kind = a.type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        known = self.made.module.globals.get(f"llvm.fmuladd.{suffix}")
        if known is None:
            known = ir.Function(self.made.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{suffix}")
        return self.at.call(known, [a, b, c])

    def paired(self, one: Node, other: Node) -> Node:
        """Two vectors as pairs of bfloat16 in 32-bit lanes, the first in the lower halves; as a vector of floats."""
        kind = ir.VectorType(I32, self.lanes)
        half = ir.VectorType(I16, self.lanes)
        low, high = (
            self.at.zext(self.at.bitcast(self.at.fptrunc(v, ir.VectorType(BF16, self.lanes)), half), kind)
            for v in (one, other)
        )
        shift = ir.Constant(kind, [16] * self.lanes)
        return self.at.bitcast(self.at.or_(low, self.at.shl(high, shift)), self.vector)

    def pair_fma(self, a: Node, b: Node, c: Node) -> Node:
        """a₀ · b₀ + a₁ · b₁ + c of pairs of bfloat16 in 32-bit lanes; an instruction of some processors."""
        pairs = ir.VectorType(BF16, 2 * self.lanes)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes}"
        known = self.made.module.globals.get(name)
        if known is None:
            known = ir.Function(self.made.module, ir.FunctionType(self.vector, [self.vector, pairs, pairs]), name)
        return self.at.call(known, [c, self.at.bitcast(a, pairs), self.at.bitcast(b, pairs)])

    def fence(self, value: Node) -> Node:
        """The same floats, of which the compiler knows no more where they come from: they are not loaded again."""
        kind = value.type
        name = f"llvm.arithmetic.fence.v{kind.count}f32"
        known = self.made.module.globals.get(name)
        return self.at.call(known or ir.Function(self.made.module, ir.FunctionType(kind, [kind]), name), [value])

    def at_least(self, value: Node, floor: Node) -> Node:
        """max(value, floor) per lane; NaN stays NaN."""
        return self.at.select(self.at.fcmp_ordered("<", value, floor), floor, value)

    def at_most(self, value: Node, ceiling: Node) -> Node:
        """min(value, ceiling) per lane; NaN stays NaN."""
        return self.at.select(self.at.fcmp_ordered(">", value, ceiling), ceiling, value)

    def number(self, value: float) -> Node:
        """A constant in every lane."""
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def polynomial(self, x: Node, coefficients: Sequence[float]) -> Node:
        """Σ cₖ·xᵏ by Horner's rule, lowest power first."""
        total = self.number(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            total = self.fma(total, x, self.number(c))
        return total

    def foreign(self, address: Node, result: Node, arguments: Sequence[Node]) -> Node:
        """A function of another library, to be called through its address, a 64-bit integer."""
        return self.at.inttoptr(address, ir.FunctionType(result, list(arguments)).as_pointer())

    def transpose(self, rows: Sequence[Node]) -> list[Node]:
        """The square of ``lanes`` vectors mirrored at its diagonal, by log₂ stages of exchanges."""
        square = list(rows)
        distance = self.lanes // 2
        while distance:
            low = [lane if not lane & distance else self.lanes + lane - distance for lane in range(self.lanes)]
            high = [lane + distance if not lane & distance else self.lanes + lane for lane in range(self.lanes)]
            for i in range(self.lanes):
                if not i & distance:
                    a, b = square[i], square[i | distance]
                    square[i], square[i | distance] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            distance //= 2
        return square

    def loop(self, start: Node, end: Node, body: LoopBody, carried: Sequence[Node] = (), step: Node = 1) -> list[Node]:
        """``for i in range(start, end, step): carried = body(i, carried)``; returns what was carried out."""

        def one(values: list[Node]) -> list[Node]:
            index, *inner = values
            new = body(index, inner)
            return [self.add(index, step), *new]

        return self.repeat([self.constant(start), *carried], lambda values: self.less(values[0], end), one)[1:]

    def repeat(
        self, carried: Sequence[Node], going: Callable[[list[Node]], Node], body: Callable[[list[Node]], list[Node]]
    ) -> list[Node]:
        """``while going(carried): carried = body(carried)``; returns what was carried out."""
        before = self.at.block
        head = self.made.append_basic_block()
        inside = self.made.append_basic_block()
        after = self.made.append_basic_block()
        self.at.branch(head)
        self.at.position_at_end(head)
        phis = []
        for value in carried:
            phi = self.at.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        self.at.cbranch(going(phis), inside, after)
        self.at.position_at_end(inside)
        for phi, value in zip(phis, body(list(phis)), strict=True):
            phi.add_incoming(value, self.at.block)
        self.at.branch(head)
        self.at.position_at_end(after)
        return phis

    def choose(self, condition: Node, then: Callable[[], list[Node]], other: Callable[[], list[Node]]) -> list[Node]:
        """The values of one of two branches; only the chosen one runs."""
        with self.at.if_else(condition) as (yes, no):
            with yes:
                a = then()
                end_a = self.at.block
            with no:
                b = other()
                end_b = self.at.block
        out = []
        for one, two in zip(a, b, strict=True):
            phi = self.at.phi(one.type)
            phi.add_incoming(one, end_a)
            phi.add_incoming(two, end_b)
            out.append(phi)
        return out
