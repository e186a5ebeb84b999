"""Softmax attention over feature-major tiles, as LLVM IR.

O = V·softmax(scale · KᵀQ) per image and head, with queries along vectors: scores of one key are vectors over
queries, so that the maximum, the exponentials and the sum over keys need no shuffles, and outputs are feature-major.
Keys are copied into panels of four, [keys / 4, features, 4]: what scores of four keys read is one run of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import exponential
from gossamer.runtime.layout import in_team

__all__ = ["AttentionField", "attention_kernels", "scratch_floats"]

Node = Any  # llvmlite has no type stubs

_ROWS = 4  # keys, or features of values, at once


def _widths(lanes: int) -> tuple[int, ...]:
    """Vectors of queries at once, falling: with four rows of sums each what registers have room for, and down to 1."""
    return (4, 1) if lanes > 8 else (3, 2, 1)


class AttentionField(IntEnum):
    """Where the kernel finds what in its description, beside ``layout.Pool`` at 11 to 14."""

    HEADS = 0
    DEPTH = 1  # features of a head
    QUERIES = 2  # tokens of an image
    KEYS = 3
    QUERY_TILE = 4  # tokens of a tile, also of the outputs
    KEY_TILE = 5
    VALUE_TILE = 6
    SCALE = 7  # bits of a float32
    CAUSAL = 8  # whether query i sees keys 0 … i only
    QUERY_TILES = 9  # in all
    SCRATCH = 10  # floats of one member of the team


def scratch_floats(queries: int, keys: int, depth: int, lanes: int) -> int:
    """Floats that one member of the team needs: copies of a head's queries, keys, values and outputs, and scores."""
    wide, long = (-(-n // lanes) * lanes for n in (queries, keys))
    return depth * (2 * wide + 2 * long) + keys * _widths(lanes)[0] * lanes + 8 * lanes


def attention_kernels(lanes: int) -> str:
    """LLVM IR with one entry point: ``attend(description, q, k, v, y, scratch, images, threads)``.

    Tensors are tiles [tiles, heads · depth, tile] of images · tokens tokens.

    Args:
        lanes: floats per vector register, a power of two.
    """
    module = ir.Module("gossamer_attention")
    gather, scatter = (_copy(module, lanes, into_tiles=into) for into in (False, True))
    blocks = {(w, hides): _block(module, lanes, w, hides=hides) for w in _widths(lanes) for hides in (False, True)}
    fill, panels = _fill(module, lanes), _panels(module, lanes)
    _attend(module, lanes, gather, scatter, panels, blocks, fill)
    return str(module)


def _copy(module: ir.Module, lanes: int, *, into_tiles: bool) -> ir.Function:
    """``copy(tiles, rows, token, tokens, features, first, depth, span, wide)``.

    Features [first, first + depth) of the tokens [token, token + tokens) between tiles and rows of ``wide`` floats.
    """
    name = "scatter" if into_tiles else "gather"
    made = function(module, name, [PTR, PTR] + [I64] * 7, exported=False)
    tiles, rows, token, tokens, features, first, depth, span, wide = made.args
    e = Emitter(made, lanes)

    def between(tile_at: Node, row_at: Node, kind: str) -> None:
        source, target = (row_at, tile_at) if into_tiles else (tile_at, row_at)
        if kind == "vector":
            e.store(e.load(source, 0), target, 0)
        else:
            e.write(e.read(source, 0, F32), target, 0)

    def segment(done: list[Node]) -> list[Node]:
        """Up to the end of a tile."""
        at = e.add(token, done[0])
        tile = e.div(at, span)
        inside = e.sub(at, e.mul(tile, span))
        count = e.least(e.sub(span, inside), e.sub(tokens, done[0]))
        whole = e.mul(e.div(count, lanes), lanes)
        base = e.add(e.mul(e.add(e.mul(tile, features), first), span), inside)

        def feature(f: Node, _: list[Node]) -> list[Node]:
            tile_row = e.element(tiles, e.add(base, e.mul(f, span)), F32)
            row = e.element(rows, e.add(e.mul(f, wide), done[0]), F32)

            def vector(i: Node, _: list[Node]) -> list[Node]:
                between(e.element(tile_row, i, F32), e.element(row, i, F32), "vector")
                return []

            def single(i: Node, _: list[Node]) -> list[Node]:
                between(e.element(tile_row, i, F32), e.element(row, i, F32), "single")
                return []

            e.loop(0, whole, vector, step=lanes)
            e.loop(whole, count, single)
            return []

        e.loop(0, depth, feature)
        return [e.add(done[0], count)]

    pieces = e.add(e.div(tokens, span), 2)  # tiles that tokens may touch

    def piece(_: Node, done: list[Node]) -> list[Node]:
        return e.choose(e.less(done[0], tokens), lambda: segment(done), lambda: [done[0]])

    e.loop(0, pieces, piece, [e.constant(0)])
    e.at.ret_void()
    return made


def _panels(module: ir.Module, lanes: int) -> ir.Function:
    """``panels(rows, panels, depth, long)``: rows of keys, ``long`` floats apart, into panels [long / 4, depth, 4]."""
    made = function(module, "panels", [PTR, PTR, I64, I64], exported=False)
    rows, panels, depth, long = made.args
    e = Emitter(made, lanes)
    four = ir.VectorType(F32, _ROWS)

    def feature(f: Node, _: list[Node]) -> list[Node]:
        def panel(s: Node, _: list[Node]) -> list[Node]:
            value = e.at.load(e.element(rows, e.add(e.mul(f, long), s), F32), align=4, typ=four)
            e.at.store(value, e.element(panels, e.add(e.mul(s, depth), e.mul(f, _ROWS)), F32), align=4)
            return []

        e.loop(0, long, panel, step=_ROWS)
        return []

    e.loop(0, depth, feature)
    e.at.ret_void()
    return made


def _block(module: ir.Module, lanes: int, width: int, *, hides: bool) -> ir.Function:
    """``attend_w(q, k, v, scores, o, depth, keys, wide, long, first, scale)`` for ``width`` vectors of queries.

    Rows of q and o are ``wide`` floats apart, of v ``long``; k is in panels; ``scores`` keeps those of the first
    ``keys`` keys.
    If the block hides, key s does not count for queries before s, the first of which here is ``first``.
    """
    name = f"attend_{width}_causal" if hides else f"attend_{width}"
    made = function(module, name, [PTR] * 5 + [I64] * 5 + [F32], exported=False)
    q, k, v, scores, o, depth, keys, wide, long, first, scale = made.args
    e = Emitter(made, lanes)
    span = width * lanes
    factor = e.spread(scale)
    integers = ir.VectorType(I32, lanes)
    never = e.number(float("-inf"))

    def every(value: Node) -> Node:
        one = e.at.insert_element(ir.Constant(integers, ir.Undefined), e.at.trunc(value, I32), ir.Constant(I32, 0))
        return e.at.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    places = [e.at.add(every(e.add(first, w * lanes)), ir.Constant(integers, list(range(lanes)))) for w in range(width)]

    def products(height: int, left: Node, left_step: Node, right: Node, right_row: Node, count: Node) -> list[Node]:
        """Sums of ``height`` rows: left[r] (a number per step) times vectors right[step]."""

        def step(i: Node, sums: list[Node]) -> list[Node]:
            vectors = [e.load(right, e.add(e.mul(i, right_row), w * lanes)) for w in range(width)]
            out = []
            for r in range(height):
                number = e.spread(e.read(left[r], e.mul(i, left_step), F32))
                out += [e.fma(number, x, sums[r * width + w]) for w, x in enumerate(vectors)]
            return out

        return e.loop(0, count, step, [e.number(0)] * (height * width))

    whole = e.sub(keys, e.at.urem(keys, e.constant(_ROWS)))

    def scored(height: int) -> Any:
        def some(s: Node, largest: list[Node]) -> list[Node]:
            # The last panel may not be full: its keys are gone through one by one.
            begin = e.mul(s, depth) if height == _ROWS else e.add(e.mul(whole, depth), e.sub(s, whole))
            left = [e.element(k, e.add(begin, r), F32) for r in range(height)]
            sums = products(height, left, e.constant(_ROWS), q, wide, depth)
            for r in range(height):
                for w in range(width):
                    value = e.at.fmul(sums[r * width + w], factor)
                    if hides:
                        hidden = e.at.icmp_signed(">", every(e.add(s, r)), places[w])
                        value = e.at.select(hidden, never, value)
                    e.store(value, scores, e.add(e.mul(e.add(s, r), span), w * lanes))
                    largest[w] = e.at.select(e.at.fcmp_ordered(">", value, largest[w]), value, largest[w])
            return largest

        return some

    largest = e.loop(0, whole, scored(_ROWS), [never] * width, step=_ROWS)
    largest = e.loop(whole, keys, scored(1), largest)

    def raised(s: Node, sums: list[Node]) -> list[Node]:
        out = []
        for w in range(width):
            at = e.add(e.mul(s, span), w * lanes)
            power = exponential(e, e.at.fsub(e.load(scores, at), largest[w]), negative=True)
            e.store(power, scores, at)
            out.append(e.at.fadd(sums[w], power))
        return out

    sums = e.loop(0, keys, raised, [e.number(0)] * width)
    shares = [e.at.fdiv(e.number(1), total) for total in sums]

    def mixed(height: int) -> Any:
        def some(f: Node, _: list[Node]) -> list[Node]:
            left = [e.element(v, e.mul(e.add(f, r), long), F32) for r in range(height)]
            found = products(height, left, e.constant(1), scores, e.constant(span), keys)
            for r in range(height):
                for w in range(width):
                    at = e.add(e.mul(e.add(f, r), wide), w * lanes)
                    e.store(e.at.fmul(found[r * width + w], shares[w]), o, at)
            return []

        return some

    whole = e.mul(e.div(depth, _ROWS), _ROWS)
    e.loop(0, whole, mixed(_ROWS), step=_ROWS)
    e.loop(whole, depth, mixed(1))
    e.at.ret_void()
    return made


def _fill(module: ir.Module, lanes: int) -> ir.Function:
    """``fill(tiles, tokens, end, features, first, depth, span)``: lanes beyond the last token repeat it."""
    made = function(module, "fill", [PTR] + [I64] * 6, exported=False)
    tiles, tokens, end, features, first, depth, span = made.args
    e = Emitter(made, lanes)
    last = e.sub(tokens, 1)
    tile = e.div(last, span)
    base = e.mul(e.add(e.mul(tile, features), first), span)
    begin = e.mul(tile, span)

    def feature(f: Node, _: list[Node]) -> list[Node]:
        row = e.element(tiles, e.add(base, e.mul(f, span)), F32)
        value = e.read(row, e.sub(last, begin), F32)

        def lane(i: Node, _: list[Node]) -> list[Node]:
            e.write(value, row, e.sub(i, begin))
            return []

        e.loop(tokens, end, lane)
        return []

    e.loop(0, depth, feature)
    e.at.ret_void()
    return made


def _attend(
    module: ir.Module,
    lanes: int,
    gather: ir.Function,
    scatter: ir.Function,
    panels: ir.Function,
    blocks: Mapping[tuple[int, bool], ir.Function],
    fill: ir.Function,
) -> None:
    """Members take heads of images."""
    made = function(module, "attend_share", [PTR] + [I64] * 8, exported=False)
    description, *addresses, scratch, images, part, team = made.args
    e = Emitter(made, lanes)
    q, k, v, y = (e.at.inttoptr(address, PTR) for address in addresses)
    heads, depth, queries, keys, query_tile, key_tile, value_tile, bits, causal, query_tiles, room = (
        e.read(description, int(field), I64) for field in AttentionField
    )
    features = e.mul(heads, depth)
    scale = e.at.bitcast(e.at.trunc(bits, I32), F32)
    wide, long = (e.mul(e.div(e.add(n, lanes - 1), lanes), lanes) for n in (queries, keys))
    own = e.element(e.at.inttoptr(scratch, PTR), e.mul(part, room), F32)
    q_at = own
    o_at = e.element(q_at, e.mul(depth, wide), F32)
    k_at = e.element(o_at, e.mul(depth, wide), F32)
    v_at = e.element(k_at, e.mul(depth, long), F32)
    scores = e.element(v_at, e.mul(depth, long), F32)

    def blank(f: Node, _: list[Node]) -> list[Node]:
        """Queries that pad the last vector."""

        def lane(i: Node, _: list[Node]) -> list[Node]:
            e.write(ir.Constant(F32, 0.0), q_at, e.add(e.mul(f, wide), i))
            return []

        e.loop(queries, wide, lane)
        return []

    e.loop(0, depth, blank)
    items = e.mul(images, heads)

    def item(i: Node, _: list[Node]) -> list[Node]:
        image = e.div(i, heads)
        first = e.mul(e.sub(i, e.mul(image, heads)), depth)

        def taken(source: Node, rows: Node, tokens: Node, span: Node, stride: Node) -> None:
            e.at.call(gather, [source, rows, e.mul(image, tokens), tokens, features, first, depth, span, stride])

        taken(q, q_at, queries, query_tile, wide)
        taken(k, v_at, keys, key_tile, long)
        e.at.call(panels, [v_at, k_at, depth, long])
        taken(v, v_at, keys, value_tile, long)
        start = e.constant(0)
        for width, end in _parts(e, wide, _widths(lanes)):
            span = width * lanes

            def some(t: Node, _: list[Node], width: int = width, span: int = span) -> list[Node]:
                here = [e.element(q_at, t, F32), k_at, v_at, scores, e.element(o_at, t, F32), depth]
                with e.at.if_else(e.equal(causal, 0)) as (plain, hiding):
                    with plain:
                        e.at.call(blocks[width, False], [*here, keys, wide, long, t, scale])
                    with hiding:
                        seen = e.least(keys, e.add(t, span))
                        e.at.call(blocks[width, True], [*here, seen, wide, long, t, scale])
                return []

            e.loop(start, end, some, step=span)
            start = end
        token = e.mul(image, queries)
        e.at.call(scatter, [y, o_at, token, queries, features, first, depth, query_tile, wide])
        with e.at.if_then(e.equal(e.add(image, 1), images)):
            end = e.mul(query_tiles, query_tile)
            e.at.call(fill, [y, e.mul(images, queries), end, features, first, depth, query_tile])
        return []

    e.loop(e.div(e.mul(part, items), team), e.div(e.mul(e.add(part, 1), items), team), item)
    e.at.ret_void()
    in_team(module, "attend", made, 6)


def _parts(e: Emitter, wide: Node, widths: tuple[int, ...]) -> list[tuple[int, Node]]:
    """Up to which query blocks of each width go; two pairs of vectors rather than three and one: sums side by side."""
    vectors = e.div(wide, e.lanes)
    widest = e.div(vectors, widths[0])
    if widths[:2] == (3, 2):
        alone = e.at.and_(e.equal(e.sub(vectors, e.mul(widest, 3)), 1), e.less(0, widest))
        widest = e.sub(widest, e.at.zext(alone, I64))
    ends = [e.mul(widest, widths[0])]
    for width in widths[1:]:
        ends.append(e.add(ends[-1], e.mul(e.div(e.sub(vectors, ends[-1]), width), width)))
    return [(width, e.mul(end, e.lanes)) for width, end in zip(widths, ends, strict=True)]
