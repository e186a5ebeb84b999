"""What happens to a row of outputs before it leaves the first-level cache: activation, then a residual is added."""

from __future__ import annotations

from enum import IntEnum
from math import factorial, log, sqrt
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import I32, I64, PTR, Emitter, function

__all__ = ["Activation", "activated", "exponential", "finish_function", "sigmoid"]

Node = Any  # llvmlite has no type stubs

_HALF_UP = 1.5 * 2.0**23
"""Adding it rounds a float to an integer, which its lowest bits then hold."""

_ERF_LIMIT = 3.925  # beyond it erf is 1 in float32
# erf(x) = x·P(x²)/Q(x²) for |x| ≤ 3.925: our own fit, reweighted least squares in float64; off by at most 2e-8 there
# and by 3e-7 after rounding to float32.
_ERF_P = (1.12837902, 0.192973459, 0.053084464, 0.00387636377, 0.000287492573, 2.03085643e-06)
_ERF_Q = (1.0, 0.504349913, 0.115167826, 0.0151884295, 0.00118975819, 3.80313369e-05)


class Activation(IntEnum):
    """Functions that kernels apply at the store; the numbers are part of compiled code."""

    NONE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4
    RELU6 = 5


def finish_function(module: ir.Module, lanes: int) -> ir.Function:
    """``finish(y, residual, activation, vectors)``: y ← f(y) + residual for ``vectors`` adjacent vectors, in place.

    The residual may be null.
    """
    made = function(module, "finish", [PTR, PTR, I64, I64], exported=False)
    y, residual, activation, vectors = made.args
    e = Emitter(made, lanes)
    after = made.append_basic_block()
    for kind in Activation:
        if kind is Activation.NONE:
            continue
        yes, no = made.append_basic_block(), made.append_basic_block()
        e.at.cbranch(e.equal(activation, int(kind)), yes, no)
        e.at.position_at_end(yes)

        def one(v: Node, _: list[Node], kind: Activation = kind) -> list[Node]:
            at = e.mul(v, lanes)
            e.store(activated(e, e.load(y, at), kind), y, at)
            return []

        e.loop(0, vectors, one)
        e.at.branch(after)
        e.at.position_at_end(no)
    e.at.branch(after)
    e.at.position_at_end(after)

    def plus(v: Node, _: list[Node]) -> list[Node]:
        at = e.mul(v, lanes)
        e.store(e.at.fadd(e.load(y, at), e.load(residual, at)), y, at)
        return []

    with e.at.if_then(e.at.icmp_unsigned("!=", e.at.ptrtoint(residual, I64), ir.Constant(I64, 0))):
        e.loop(0, vectors, plus)
    e.at.ret_void()
    return made


def activated(e: Emitter, x: Node, kind: Activation) -> Node:
    """f of every lane; not for `Activation.NONE`."""
    if kind is Activation.RELU:
        return e.at_least(x, e.number(0))
    if kind is Activation.RELU6:
        return e.at_most(e.at_least(x, e.number(0)), e.number(6))
    if kind is Activation.SILU:
        return _times_sigmoid(e, x, x)
    if kind is Activation.GELU_TANH:  # (1 + tanh u) / 2 is the sigmoid of 2u
        scale = 2 * sqrt(2 / 3.141592653589793)
        inner = e.polynomial(e.at.fmul(x, x), (scale, scale * 0.044715))
        return _times_sigmoid(e, x, e.at.fmul(x, inner))
    half = e.at.fmul(x, e.number(0.5))
    return e.fma(half, _erf(e, e.at.fmul(x, e.number(sqrt(0.5)))), half)


def sigmoid(e: Emitter, x: Node) -> Node:
    """1 / (1 + exp(−x)) of every lane."""
    return _times_sigmoid(e, e.number(1), x)


def _erf(e: Emitter, x: Node) -> Node:
    x = e.at_most(e.at_least(x, e.number(-_ERF_LIMIT)), e.number(_ERF_LIMIT))
    square = e.at.fmul(x, x)
    return e.at.fdiv(e.at.fmul(x, e.polynomial(square, _ERF_P)), e.polynomial(square, _ERF_Q))


def _times_sigmoid(e: Emitter, x: Node, argument: Node) -> Node:
    """x / (1 + exp(−argument))."""
    grown = exponential(e, e.at.fmul(argument, e.number(-1.0)))
    return e.at.fdiv(x, e.at.fadd(grown, e.number(1.0)))


def exponential(e: Emitter, a: Node, *, negative: bool = False) -> Node:
    """exp(a) = 2ⁿ·exp(a − n·ln 2) of every lane, cut at ±87, or at −87 only where all are known to be negative.

    The reduced argument is within ±0.35, where seven terms of the series are exact to 1e-8. At the cut a sigmoid is 0
    or 1 but for 1e-38. NaN stays NaN.
    """
    a = e.at_least(a, e.number(-87.0))
    a = a if negative else e.at_most(a, e.number(87.0))
    shifted = e.fma(a, e.number(1 / log(2)), e.number(_HALF_UP))
    n = e.at.fsub(shifted, e.number(_HALF_UP))
    high = 0.693359375  # ln 2 in two parts: n·high is exact
    r = e.fma(n, e.number(-high), a)
    r = e.fma(n, e.number(high - log(2)), r)
    integers = ir.VectorType(I32, e.lanes)

    def every(value: int) -> Node:
        return ir.Constant(integers, [value] * e.lanes)

    bits = e.at.bitcast(shifted, integers)
    power = e.at.bitcast(e.at.shl(e.at.add(bits, every(127)), every(23)), e.vector)
    return e.at.fmul(e.polynomial(r, [1 / factorial(k) for k in range(8)]), power)
