"""What happens to the two products of a step of an LSTM or a GRU, as a module of LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import sigmoid
from gossamer.runtime.layout import in_team

__all__ = ["gate_kernels"]

Node = Any  # llvmlite has no type stubs
Cell = Callable[[Emitter, list[Node], list[Node], Node, Node], tuple[Node, Node]]
"""Gates of the input, gates of the state, h, c → h', c'."""


def gate_kernels(lanes: int) -> str:
    """LLVM IR of a module with two entry points.

    ``lstm(pool, a, b, h, c, y, y_stride, units, rows, threads)`` and ``gru(…)``, which leaves c alone: a and b are the
    products of input and state with their weights, biases added, [rows, gates · units] each; h and c, [rows, units],
    become those of the next step, and h is also written to ``rows`` rows of y that lie ``y_stride`` apart. Gates are in
    PyTorch's order: input, forget, cell, output; reset, update, new.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_gates")
    _entry(module, lanes, "lstm", 4, _lstm)
    _entry(module, lanes, "gru", 3, _gru)
    return str(module)


def _lstm(e: Emitter, a: list[Node], b: list[Node], h: Node, c: Node) -> tuple[Node, Node]:
    """c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c')."""
    del h
    i, f, g, o = (e.at.fadd(one, other) for one, other in zip(a, b, strict=True))
    kept = e.at.fmul(sigmoid(e, f), c)
    new = e.fma(sigmoid(e, i), _tanh(e, g), kept)
    return e.at.fmul(sigmoid(e, o), _tanh(e, new)), new


def _gru(e: Emitter, a: list[Node], b: list[Node], h: Node, c: Node) -> tuple[Node, Node]:
    """n = tanh(aₙ + σ(r)·bₙ), h' = n + σ(z)·(h − n)."""
    r = sigmoid(e, e.at.fadd(a[0], b[0]))
    z = sigmoid(e, e.at.fadd(a[1], b[1]))
    n = _tanh(e, e.fma(r, b[2], a[2]))
    return e.fma(z, e.at.fsub(h, n), n), c


def _tanh(e: Emitter, x: Node) -> Node:
    """2σ(2x) − 1, exact to float32's rounding of 1."""
    return e.fma(sigmoid(e, e.at.fmul(x, e.number(2))), e.number(2), e.number(-1))


def _entry(module: ir.Module, lanes: int, name: str, gates: int, cell: Cell) -> None:
    """Threads divide the units, in whole vectors."""
    wide = _part(module, lanes, name, gates, cell)
    narrow = _part(module, 1, name, gates, cell)
    made = function(module, f"{name}_share", [PTR] + [I64] * 10, exported=False)
    _, *addresses, stride, units, rows, part, team = made.args
    e = Emitter(made, lanes)
    a, b, h, c, y = (e.at.inttoptr(address, PTR) for address in addresses)
    vectors = e.div(e.add(units, lanes - 1), lanes)
    first, last = (e.least(units, e.mul(e.div(e.mul(e.add(part, i), vectors), team), lanes)) for i in range(2))
    whole = e.add(first, e.mul(e.div(e.sub(last, first), lanes), lanes))

    def row(r: Node, _: list[Node]) -> list[Node]:
        at = e.mul(r, units)
        products = [e.element(base, e.mul(at, gates), F32) for base in (a, b)]
        states = [e.element(base, at, F32) for base in (h, c)]
        ends = [*products, *states, e.element(y, e.mul(r, stride), F32), units]
        e.at.call(wide, [*ends, first, whole])
        e.at.call(narrow, [*ends, whole, last])
        return []

    e.loop(0, rows, row)
    e.at.ret_void()
    in_team(module, name, made, 8)


def _part(module: ir.Module, lanes: int, name: str, gates: int, cell: Cell) -> ir.Function:
    """Units from first to last of one row, a multiple of ``lanes``."""
    made = function(module, f"{name}_{lanes}", [PTR] * 5 + [I64] * 3, exported=False)
    a, b, h, c, y, units, first, last = made.args
    e = Emitter(made, lanes)

    def some(u: Node, _: list[Node]) -> list[Node]:
        ours, theirs = ([e.load(base, e.add(u, e.mul(units, k))) for k in range(gates)] for base in (a, b))
        old = e.load(c, u) if gates == 4 else None
        out, new = cell(e, ours, theirs, e.load(h, u), old)
        if gates == 4:
            e.store(new, c, u)
        e.store(out, h, u)
        e.store(out, y, u)
        return []

    e.loop(first, last, some, step=lanes)
    e.at.ret_void()
    return made
