"""Steps of an LSTM or a GRU that trains, forward and back, over feature-major tiles, as a module of LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import sigmoid
from gossamer.runtime.layout import in_team

__all__ = ["BACKWARD_WORDS", "FORWARD_WORDS", "cell_kernels"]

Node = Any  # llvmlite has no type stubs

FORWARD_WORDS = 10
"""Arguments of a step forward between description and number of threads."""

BACKWARD_WORDS = 14
"""Those of a step back."""


def cell_kernels(lanes: int) -> str:
    """LLVM IR of a module with four entry points; arrays are [tiles, features, tile], g·units features or units.

    ``lstm_forward`` and ``gru_forward(pool, gates, state, before, kept, h, new, units, tile, tiles, tokens, threads)``:
    ``gates`` holds the input's product and gets the gates after their functions, ``state`` holds the state's product;
    biases are added already. h becomes ``new``. LSTM: the cell ``before`` becomes ``kept``. GRU: ``kept`` gets the
    state's product of the new gate, and ``before`` is not used. Gates are in PyTorch's order: input, forget, cell,
    output; reset, update, new.

    ``lstm_backward`` and ``gru_backward(pool, gates, before, kept, h, product, dy, carry, dc, dgates, dstate, units,
    tile, tiles, tokens, threads)``: the gradient of the new state is the sum of ``product`` (from the step that came
    after this one, through its weight), ``dy`` and ``carry``; carry becomes what reaches h beside the weight's product,
    ``dgates`` the gradient of the input's product and, of a GRU, ``dstate`` that of the state's (an LSTM's are the
    same). LSTM: ``dc`` becomes the gradient of ``before``. GRU: ``dc`` and ``before`` are not used.

    Tokens from ``tokens`` on do not take part in the step: their state stays, and their gates get a gradient of zero.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_cells")
    _entry(module, lanes, "lstm_forward", (4, 4, 1, 1, 1, 1), _lstm_forward)
    _entry(module, lanes, "gru_forward", (3, 3, 1, 1, 1, 1), _gru_forward)
    _entry(module, lanes, "lstm_backward", (4, 1, 1, 1, 1, 1, 1, 1, 4, 4), _lstm_backward)
    _entry(module, lanes, "gru_backward", (3, 1, 1, 1, 1, 1, 1, 1, 3, 3), _gru_backward)
    return str(module)


@final
@dataclass(frozen=True)
class _Unit:
    """One vector of tokens of one unit.

    Args:
        e: writes the code.
        bases: of the arrays, at this tile.
        at: of the vector in an array with one feature per unit.
        gate: floats from one gate to the next.
        live: which lanes take part.
    """

    e: Emitter
    bases: list[Node]
    at: Node
    gate: Node
    live: Node

    def get(self, array: int, gate: int = 0) -> Node:
        """A vector of an array."""
        return self.e.load(self.bases[array], self.e.add(self.at, self.e.mul(self.gate, gate)))

    def put(self, value: Node, array: int, gate: int = 0) -> None:
        """Write it."""
        self.e.store(value, self.bases[array], self.e.add(self.at, self.e.mul(self.gate, gate)))

    def chosen(self, value: Node, otherwise: Node) -> Node:
        """``value`` in lanes that take part."""
        return self.e.at.select(self.live, value, otherwise)

    def summed(self, array: int, other: int, gate: int) -> Node:
        """One gate of two arrays."""
        return self.e.at.fadd(self.get(array, gate), self.get(other, gate))


Cell = Callable[[_Unit], None]


def _lstm_forward(u: _Unit) -> None:
    """c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c')."""
    e = u.e
    gates, state, before, kept, h, new = range(6)
    i, f = (sigmoid(e, u.summed(gates, state, k)) for k in (0, 1))
    g, o = _tanh(e, u.summed(gates, state, 2)), sigmoid(e, u.summed(gates, state, 3))
    old = u.get(before)
    cell = e.fma(i, g, e.at.fmul(f, old))
    for k, value in enumerate((i, f, g, o)):
        u.put(value, gates, k)
    u.put(u.chosen(cell, old), kept)
    u.put(u.chosen(e.at.fmul(o, _tanh(e, cell)), u.get(h)), new)


def _lstm_backward(u: _Unit) -> None:
    """Gradients of the four gates before their functions."""
    e = u.e
    gates, before, kept, _, product, dy, carry, dc, dgates, _ = range(10)
    b = e.at
    i, f, g, o = (u.get(gates, k) for k in range(4))
    dh = b.fadd(b.fadd(u.get(product), u.get(dy)), u.get(carry))
    bent = _tanh(e, u.get(kept))
    later = u.get(dc)
    dcell = e.fma(b.fmul(dh, o), _one_less(e, b.fmul(bent, bent)), later)
    found = (
        b.fmul(b.fmul(dcell, g), _slope(e, i)),
        b.fmul(b.fmul(dcell, u.get(before)), _slope(e, f)),
        b.fmul(b.fmul(dcell, i), _one_less(e, b.fmul(g, g))),
        b.fmul(b.fmul(dh, bent), _slope(e, o)),
    )
    zero = e.number(0)
    for k, value in enumerate(found):
        u.put(u.chosen(value, zero), dgates, k)
    u.put(u.chosen(b.fmul(dcell, f), later), dc)
    u.put(u.chosen(zero, dh), carry)


def _gru_forward(u: _Unit) -> None:
    """n = tanh(aₙ + σ(r)·bₙ), h' = n + σ(z)·(h − n)."""
    e = u.e
    gates, state, _, kept, h, new = range(6)
    r, z = (sigmoid(e, u.summed(gates, state, k)) for k in (0, 1))
    own = u.get(state, 2)
    n = _tanh(e, e.fma(r, own, u.get(gates, 2)))
    old = u.get(h)
    for k, value in enumerate((r, z, n)):
        u.put(value, gates, k)
    u.put(own, kept)
    u.put(u.chosen(e.fma(z, e.at.fsub(old, n), n), old), new)


def _gru_backward(u: _Unit) -> None:
    """Gradients of the three gates before their functions, twice: the new gate's differs by a factor of r."""
    e = u.e
    gates, _, kept, h, product, dy, carry, _, dgates, dstate = range(10)
    b = e.at
    r, z, n = (u.get(gates, k) for k in range(3))
    dh = b.fadd(b.fadd(u.get(product), u.get(dy)), u.get(carry))
    dn = b.fmul(b.fmul(dh, _one_less(e, z)), _one_less(e, b.fmul(n, n)))
    dz = b.fmul(b.fmul(dh, b.fsub(u.get(h), n)), _slope(e, z))
    dr = b.fmul(b.fmul(dn, u.get(kept)), _slope(e, r))
    zero = e.number(0)
    dn, dz, dr = (u.chosen(value, zero) for value in (dn, dz, dr))
    for k, (ours, theirs) in enumerate(((dr, dr), (dz, dz), (dn, b.fmul(dn, r)))):
        u.put(ours, dgates, k)
        u.put(theirs, dstate, k)
    u.put(u.chosen(b.fmul(dh, z), dh), carry)


def _tanh(e: Emitter, x: Node) -> Node:
    """2σ(2x) − 1, exact to float32's rounding of 1."""
    return e.fma(sigmoid(e, e.at.fmul(x, e.number(2))), e.number(2), e.number(-1))


def _one_less(e: Emitter, x: Node) -> Node:
    """1 − x."""
    return e.at.fsub(e.number(1), x)


def _slope(e: Emitter, s: Node) -> Node:
    """Of a sigmoid whose value is s."""
    return e.at.fmul(s, _one_less(e, s))


def _entry(module: ir.Module, lanes: int, name: str, widths: tuple[int, ...], cell: Cell) -> None:
    """Threads divide the units; ``widths`` says how many features per unit each array has."""
    part = _part(module, lanes, name, len(widths), cell)
    words = len(widths) + 4
    made = function(module, f"{name}_share", [PTR] + [I64] * (words + 2), exported=False)
    _, *addresses, units, tile, tiles, tokens, member, team = made.args
    e = Emitter(made, lanes)
    arrays = [e.at.inttoptr(address, PTR) for address in addresses]
    first, last = (e.div(e.mul(e.add(member, i), units), team) for i in range(2))
    size = e.mul(units, tile)

    def one(t: Node, _: list[Node]) -> list[Node]:
        begin = e.mul(t, size)
        bases = [e.element(array, e.mul(begin, width), F32) for array, width in zip(arrays, widths, strict=True)]
        e.at.call(part, [*bases, size, tile, first, last, e.sub(tokens, e.mul(t, tile))])
        return []

    e.loop(0, tiles, one)
    e.at.ret_void()
    in_team(module, name, made, words)


def _part(module: ir.Module, lanes: int, name: str, arrays: int, cell: Cell) -> ir.Function:
    """Units from first to last of one tile."""
    made = function(module, f"{name}_tile", [PTR] * arrays + [I64] * 5, exported=False)
    *bases, size, tile, first, last, tokens = made.args
    e = Emitter(made, lanes)
    lane = ir.Constant(e.vector, [float(i) for i in range(lanes)])

    def unit(u: Node, _: list[Node]) -> list[Node]:
        def vector(v: Node, _: list[Node]) -> list[Node]:
            left = e.spread(e.at.sitofp(e.sub(tokens, v), F32))
            cell(_Unit(e, list(bases), e.add(e.mul(u, tile), v), size, e.at.fcmp_ordered("<", lane, left)))
            return []

        e.loop(0, tile, vector, step=lanes)
        return []

    e.loop(first, last, unit)
    e.at.ret_void()
    return made
