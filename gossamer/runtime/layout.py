"""Code that all kernels share: changes of layout, and teams of threads."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.brain import narrowed, widened

__all__ = ["Pool", "in_team", "pack_function", "unpack_function"]

Node = Any  # llvmlite has no type stubs


class Pool(IntEnum):
    """Where every kernel's description, an array of 64-bit integers, holds the addresses of the OpenMP runtime."""

    PARALLEL = 11  # GOMP_parallel
    NUMBER = 12  # omp_get_thread_num
    TEAM = 13  # omp_get_num_threads
    BARRIER = 14  # GOMP_barrier


def whole_squares(e: Emitter, first: Node, last: Node) -> Node:
    """Where the last whole square of vectors in [first, last) ends."""
    return e.add(first, e.mul(e.div(e.sub(last, first), e.lanes), e.lanes))


def token_addresses(e: Emitter, base: Node, v: Node, stride: Node, tokens: Node, kind: Node = F32) -> list[Node]:
    """Addresses of the tokens of vector ``v``; beyond the last token, that of the last one."""
    token, final = e.mul(v, e.lanes), e.sub(tokens, 1)
    return [e.element(base, e.mul(e.least(e.add(token, i), final), stride), kind) for i in range(e.lanes)]


def pack_function(module: ir.Module, lanes: int, *, brain: bool = False) -> ir.Function:
    """Columns [first, last) of X [tokens, K] to a feature-major tile; lanes beyond the last token repeat it.

    X is float32, or bfloat16 if ``brain``; the tile is float32.
    """
    name, kind = ("pack_tile_brain", I16) if brain else ("pack_tile", F32)
    made = function(module, name, [PTR, PTR] + [I64] * 5, exported=False)
    x, tile, stride, tokens, vectors, first, last = made.args
    e = Emitter(made, lanes)
    width = e.mul(vectors, lanes)
    squares = whole_squares(e, first, last)

    def several(source: Node, k: Node) -> Node:
        if not brain:
            return e.load(source, k)
        return widened(e.at, e.at.load(e.element(source, k, I16), align=2, typ=ir.VectorType(I16, lanes)))

    def one(source: Node, k: Node) -> Node:
        return widened(e.at, e.read(source, k, I16)) if brain else e.read(source, k, F32)

    def group(v: Node, _: list[Node]) -> list[Node]:
        target = e.element(tile, e.mul(v, lanes), F32)
        sources = token_addresses(e, x, v, stride, tokens, kind)

        def square(k: Node, _: list[Node]) -> list[Node]:
            for i, vector in enumerate(e.transpose([several(source, k) for source in sources])):
                e.store(vector, target, e.mul(e.add(k, i), width), lanes * 4)
            return []

        def rest(k: Node, _: list[Node]) -> list[Node]:
            row = e.element(target, e.mul(k, width), F32)
            for i, source in enumerate(sources):
                e.write(one(source, k), row, i)
            return []

        e.loop(first, squares, square, step=lanes)
        e.loop(squares, last, rest)
        return []

    e.loop(0, vectors, group)
    e.at.ret_void()
    return made


def unpack_function(module: ir.Module, lanes: int, *, brain: bool = False) -> ir.Function:
    """Rows [first, last) of a feature-major tile to Y [tokens, M], float32 or, if ``brain``, rounded to bfloat16.

    Lanes beyond the last token hold what the last token holds, so they may be written on top of it.
    """
    name, kind = ("unpack_tile_brain", I16) if brain else ("unpack_tile", F32)
    made = function(module, name, [PTR, PTR] + [I64] * 5, exported=False)
    tile, y, stride, tokens, vectors, first, last = made.args
    e = Emitter(made, lanes)
    width = e.mul(vectors, lanes)
    squares = whole_squares(e, first, last)

    def group(v: Node, _: list[Node]) -> list[Node]:
        source = e.element(tile, e.mul(v, lanes), F32)
        targets = token_addresses(e, y, v, stride, tokens, kind)

        def square(r: Node, _: list[Node]) -> list[Node]:
            loaded = [e.load(source, e.mul(e.add(r, i), width), lanes * 4) for i in range(lanes)]
            for target, vector in zip(targets, e.transpose(loaded), strict=True):
                if brain:
                    e.at.store(narrowed(e.at, vector), e.element(target, r, I16), align=2)
                else:
                    e.store(vector, target, r)
            return []

        def rest(r: Node, _: list[Node]) -> list[Node]:
            row = e.element(source, e.mul(r, width), F32)
            for i, target in enumerate(targets):
                number = e.read(row, i, F32)
                e.write(narrowed(e.at, number) if brain else number, target, r)
            return []

        e.loop(first, squares, square, step=lanes)
        e.loop(squares, last, rest)
        return []

    e.loop(0, vectors, group)
    e.at.ret_void()
    return made


def in_team(module: ir.Module, name: str, work: ir.Function, words: int) -> None:
    """Exports ``name(description, words…, threads)``: ``work(description, words…, part, team)`` on every thread.

    The team comes from the OpenMP runtime that PyTorch uses, so that both share one pool of threads. It may be smaller
    than asked for (inside another parallel region it is one thread): each member is told how large it is.
    """
    body = function(module, f"{name}_member", [PTR], exported=False)
    e = Emitter(body, 1)
    saved = [e.read(body.args[0], i, I64) for i in range(words + 1)]
    description = e.at.inttoptr(saved[0], PTR)
    part, team = (
        e.at.zext(e.at.call(e.foreign(e.read(description, int(slot), I64), I32, []), []), I64)
        for slot in (Pool.NUMBER, Pool.TEAM)
    )
    e.at.call(work, [description, *saved[1:], part, team])
    e.at.ret_void()

    made = function(module, name, [PTR] + [I64] * (words + 1), exported=True)
    e = Emitter(made, 1)
    description, *given, threads = made.args
    with e.at.if_else(e.equal(threads, 1)) as (alone, together):
        with alone:
            e.at.call(work, [description, *given, e.constant(0), e.constant(1)])
        with together:
            saved = e.at.alloca(I64, size=words + 1)
            for i, word in enumerate([e.at.ptrtoint(description, I64), *given]):
                e.write(word, saved, i)
            parallel = e.read(description, int(Pool.PARALLEL), I64)
            kind = e.foreign(parallel, ir.VoidType(), [PTR, PTR, I32, I32])
            e.at.call(kind, [body, saved, e.at.trunc(threads, I32), ir.Constant(I32, 0)])
    e.at.ret_void()
