"""Everything that runs on feature-major tiles, as one module of LLVM IR: products, layout, LayerNorm, elementwise.

Activations [tokens, K] become tiles [⌈tokens / tile⌉, K, tile], a tile being a few vectors of tokens; lanes beyond the
last token repeat it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.group_code import TILES, add_products
from gossamer.runtime.layout import in_team, pack_function, unpack_function

__all__ = ["tile_kernels"]

Node = Any  # llvmlite has no type stubs


def tile_kernels(lanes: int) -> str:
    """LLVM IR of a module with seven entry points, each with a description first and a number of threads last.

    ``multiply(description, x, y, residual, tiles, vectors, threads)`` is Y = f(W·X + b) + residual.

    ``pack(pool, x, x_stride, tiles, tokens, columns, vectors, threads)`` and
    ``unpack(pool, tiles, y, y_stride, tokens, rows, vectors, threads)`` change the layout; ``pack_brain`` reads and
    ``unpack_brain`` writes rows of bfloat16.

    ``normalise(pool, x, y, gain, shift, rows, tiles, vectors, epsilon, threads)`` is LayerNorm over features; epsilon
    as the bits of a float32.

    ``combine(pool, a, b, y, activation, vectors, threads)`` is y = f(a) + b, b may be null.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_tiles")
    finish = add_products(module, lanes)
    for brain in (False, True):
        _edge(module, lanes, pack_function(module, lanes, brain=brain), packing=True, brain=brain)
        _edge(module, lanes, unpack_function(module, lanes, brain=brain), packing=False, brain=brain)
    _normalise(module, lanes)
    _combine(module, lanes, finish)
    return str(module)


def _edge(module: ir.Module, lanes: int, change: ir.Function, *, packing: bool, brain: bool) -> None:
    """Members take features, so that none of them reads or writes the same cache lines of the tiles."""
    name = ("pack" if packing else "unpack") + ("_brain" if brain else "")
    made = function(module, f"{name}_share", [PTR] + [I64] * 8, exported=False)
    if packing:
        _, rows, stride, tiles, tokens, features, vectors, part, team = made.args
    else:
        _, tiles, rows, stride, tokens, features, vectors, part, team = made.args
    e = Emitter(made, lanes)
    span = e.mul(vectors, lanes)
    squares = e.div(e.add(features, lanes - 1), lanes)
    first, last = (e.least(features, e.mul(e.div(e.mul(e.add(part, i), squares), team), lanes)) for i in range(2))
    rows_at, tiles_at = e.at.inttoptr(rows, PTR), e.at.inttoptr(tiles, PTR)

    def tile(token: Node, _: list[Node]) -> list[Node]:
        left = e.least(span, e.sub(tokens, token))
        row = e.element(rows_at, e.mul(token, stride), I16 if brain else F32)
        tile_at = e.element(tiles_at, e.mul(token, features), F32)
        ends = [row, tile_at] if packing else [tile_at, row]
        e.at.call(change, [*ends, stride, left, vectors, first, last])
        return []

    e.loop(0, tokens, tile, step=span)
    e.at.ret_void()
    in_team(module, name, made, 6)


def _normalise(module: ir.Module, lanes: int) -> None:
    """(x − mean) / √(variance + ε) · gain + shift over the features of a token: two passes, and one that writes.

    A tile is read row by row, all vectors of a row together: memory is fetched ahead only along whole rows.
    """
    root = ir.Function(module, ir.FunctionType(vector := ir.VectorType(F32, lanes), [vector]), f"llvm.sqrt.v{lanes}f32")
    ones = {width: _normalise_tile(module, lanes, width, root) for width in TILES}
    made = function(module, "normalise_share", [PTR] + [I64] * 10, exported=False)
    _, *addresses, rows, tiles, vectors, bits, part, team = made.args
    e = Emitter(made, lanes)
    x, y, gain, shift = (e.at.inttoptr(a, PTR) for a in addresses)
    size = e.mul(rows, e.mul(vectors, lanes))
    epsilon = e.at.bitcast(e.at.trunc(bits, I32), F32)

    def tile(i: Node, _: list[Node]) -> list[Node]:
        at = e.mul(i, size)
        for width, one in ones.items():
            with e.at.if_then(e.equal(vectors, width)):
                e.at.call(one, [e.element(x, at, F32), e.element(y, at, F32), gain, shift, rows, epsilon])
        return []

    e.loop(e.div(e.mul(part, tiles), team), e.div(e.mul(e.add(part, 1), tiles), team), tile)
    e.at.ret_void()
    in_team(module, "normalise", made, 8)


def _normalise_tile(module: ir.Module, lanes: int, width: int, root: ir.Function) -> ir.Function:
    one = function(module, f"normalise_tile_{width}", [PTR] * 4 + [I64, F32], exported=False)
    x, y, gain, shift, rows, epsilon = one.args
    e = Emitter(one, lanes)
    side = max(1, 8 // width)  # rows at once: eight sums hide the latency of additions
    whole = e.mul(e.div(rows, side), side)

    def value(r: Node, w: int) -> Node:
        return e.load(x, e.add(e.mul(r, width * lanes), w * lanes), lanes * 4)

    def total(term: Callable[[Node, int], Node]) -> list[Node]:
        """Sums over features, one per vector."""

        def several(r: Node, sums: list[Node]) -> list[Node]:
            return [e.at.fadd(s, term(e.add(r, i // width), i % width)) for i, s in enumerate(sums)]

        def single(r: Node, sums: list[Node]) -> list[Node]:
            return [e.at.fadd(s, term(r, w)) for w, s in enumerate(sums)]

        found = e.loop(0, whole, several, [e.number(0)] * (side * width), side)
        while len(found) > width:
            half = len(found) // 2
            found = [e.at.fadd(found[i], found[i + half]) for i in range(half)]
        return e.loop(whole, rows, single, found)

    each = e.spread(e.at.fdiv(ir.Constant(F32, 1.0), e.at.uitofp(rows, F32)))
    mean = [e.at.fmul(sums, each) for sums in total(value)]

    def squared(r: Node, w: int) -> Node:
        off = e.at.fsub(value(r, w), mean[w])
        return e.at.fmul(off, off)

    scale = []
    for sums in total(squared):
        variance = e.at.fadd(e.at.fmul(sums, each), e.spread(epsilon))
        scale.append(e.at.fdiv(e.number(1), e.at.call(root, [variance])))

    def written(r: Node, _: list[Node]) -> list[Node]:
        factor, term = (e.spread(e.read(of, r, F32)) for of in (gain, shift))
        for w in range(width):
            off = e.at.fmul(e.at.fsub(value(r, w), mean[w]), scale[w])
            e.store(e.fma(off, factor, term), y, e.add(e.mul(r, width * lanes), w * lanes), lanes * 4)
        return []

    e.loop(0, rows, written)
    e.at.ret_void()
    return one


def _combine(module: ir.Module, lanes: int, finish: ir.Function) -> None:
    """y = f(a) + b in pieces that stay in the first-level cache."""
    made = function(module, "combine_share", [PTR] + [I64] * 7, exported=False)
    _, a, b, y, activation, vectors, part, team = made.args
    e = Emitter(made, lanes)
    a_at, b_at, y_at = (e.at.inttoptr(address, PTR) for address in (a, b, y))
    low, high = (e.div(e.mul(e.add(part, i), vectors), team) for i in range(2))
    piece = 64

    def some(v: Node, _: list[Node]) -> list[Node]:
        count = e.least(piece, e.sub(high, v))
        at = e.mul(v, lanes)
        source, other, target = (e.element(base, at, F32) for base in (a_at, b_at, y_at))

        def copy(i: Node, _: list[Node]) -> list[Node]:
            e.store(e.load(source, e.mul(i, lanes)), target, e.mul(i, lanes))
            return []

        e.loop(0, count, copy)
        e.at.call(finish, [target, e.at.select(e.equal(b, 0), b_at, other), activation, count])
        return []

    e.loop(low, high, some, step=piece)
    e.at.ret_void()
    in_team(module, "combine", made, 5)
