"""Rows of activations to feature-major tiles and back, whole cache lines at a time on both sides, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team

__all__ = ["add_changes"]

Node = Any  # llvmlite has no type stubs

_LINE = 16
"""Floats of a cache line."""


def add_changes(module: ir.Module, lanes: int) -> None:
    """Adds ``pack`` and ``unpack``, (pool, rows, stride, tiles, tokens, features, vectors, threads).

    Rows [tokens, features] lie ``stride`` floats apart. Lanes beyond the last token become zero in tiles, and are
    not read from there. Members of a team take features.

    Args:
        module: gets the entry points.
        lanes: floats per vector register.
    """
    for packing in (True, False):
        _edge(module, lanes, _tile(module, lanes, packing=packing), packing=packing)


def _edge(module: ir.Module, lanes: int, change: ir.Function, *, packing: bool) -> None:
    name = "pack" if packing else "unpack"
    made = function(module, f"{name}_share", [PTR] + [I64] * 8, exported=False)
    _, rows, stride, tiles, tokens, features, vectors, part, team = made.args
    e = Emitter(made, lanes)
    span = e.mul(vectors, lanes)
    lines = e.div(e.add(features, _LINE - 1), _LINE)
    first, last = (e.least(features, e.mul(e.div(e.mul(e.add(part, i), lines), team), _LINE)) for i in range(2))
    rows_at, tiles_at = e.at.inttoptr(rows, PTR), e.at.inttoptr(tiles, PTR)

    def tile(token: Node, _: list[Node]) -> list[Node]:
        left = e.least(span, e.sub(tokens, token))
        row, made = e.element(rows_at, e.mul(token, stride), F32), e.element(tiles_at, e.mul(token, features), F32)
        e.at.call(change, [row, made, stride, left, vectors, first, last])
        return []

    e.loop(0, tokens, tile, step=span)
    e.at.ret_void()
    in_team(module, name, made, 6)


def _tile(module: ir.Module, lanes: int, *, packing: bool) -> ir.Function:
    """Features [first, last) of one tile."""
    made = function(module, "pack_tile" if packing else "unpack_tile", [PTR, PTR] + [I64] * 5, exported=False)
    rows, tile, stride, tokens, vectors, first, last = made.args
    e = Emitter(made, lanes)
    width = e.mul(vectors, lanes)
    step = max(lanes, _LINE)
    lined = e.add(first, e.mul(e.div(e.sub(last, first), step), step))
    whole = e.div(tokens, lanes)  # vectors of which all lanes are tokens

    def square(v: Node, k: Node) -> None:
        token = e.mul(v, lanes)
        sources = [e.element(rows, e.mul(e.add(token, i), stride), F32) for i in range(lanes)]
        target = e.element(tile, token, F32)
        if packing:
            for i, vector in enumerate(e.transpose([e.load(source, k) for source in sources])):
                e.store(vector, target, e.mul(e.add(k, i), width), lanes * 4)
        else:
            loaded = [e.load(target, e.mul(e.add(k, i), width), lanes * 4) for i in range(lanes)]
            for source, vector in zip(sources, e.transpose(loaded), strict=True):
                e.store(vector, source, k)

    def lines(several: int) -> Any:
        def body(v: Node, _: list[Node]) -> list[Node]:
            def line(k: Node, _: list[Node]) -> list[Node]:
                for w in range(several):
                    for h in range(0, step, lanes):
                        square(e.add(v, w), e.add(k, h))
                return []

            e.loop(first, lined, line, step=step)
            return []

        return body

    side = max(1, _LINE // lanes)  # vectors of a line of the tile
    pairs = e.mul(e.div(whole, side), side)
    e.loop(0, pairs, lines(side), step=side)
    if side > 1:
        e.loop(pairs, whole, lines(1))

    def single(token: Node, k: Node) -> None:
        row, column = e.element(rows, e.mul(token, stride), F32), e.element(tile, token, F32)
        if packing:
            e.write(e.read(row, k, F32), column, e.mul(k, width))
        else:
            e.write(e.read(column, e.mul(k, width), F32), row, k)

    def rest(token: Node, begin: Node) -> None:
        def one(k: Node, _: list[Node]) -> list[Node]:
            single(token, k)
            return []

        e.loop(begin, last, one)

    def end(token: Node, _: list[Node]) -> list[Node]:
        rest(token, lined)
        return []

    def alone(token: Node, _: list[Node]) -> list[Node]:
        rest(token, first)
        return []

    e.loop(0, e.mul(whole, lanes), end)
    e.loop(e.mul(whole, lanes), tokens, alone)
    if packing:

        def blank(token: Node, _: list[Node]) -> list[Node]:
            def zero(k: Node, _: list[Node]) -> list[Node]:
                e.write(ir.Constant(F32, 0.0), e.element(tile, token, F32), e.mul(k, width))
                return []

            e.loop(first, last, zero)
            return []

        e.loop(tokens, width, blank)
    e.at.ret_void()
    return made
