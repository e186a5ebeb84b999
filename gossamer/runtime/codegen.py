"""The kernels for sparse × dense products, as LLVM IR for vectors of a given length.

Every kernel is a loop over index arrays: the code depends on the vector length only, never on where the zeros are.

A weight W [M, K] is cut into panels of columns, narrow enough for a panel of the activations to stay in the
first-level cache; within a panel its non-zeros lie row by row. Activations are processed in tiles of 1, 2, 4 or 8
vectors of tokens, feature-major: X [K, tile] → Y [M, tile]. One row of Y is accumulated in registers while the row's
non-zeros of one panel are gone through: per non-zero one scalar of W meets one row of X.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, final

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.layout import Pool, in_team, pack_function, unpack_function

__all__ = ["PIECES", "TILES", "Slot", "kernels"]

TILES = (1, 2, 4, 8)
"""Vectors of tokens per tile for which there is code."""

PIECES = 64
"""Pieces that the rows of a matrix are cut into; a team of threads divides the pieces."""

Node = Any  # llvmlite has no type stubs


class Slot(IntEnum):
    """Where a kernel finds what in the description of a packed matrix, an array of 64-bit integers."""

    ROWS = 0
    COLUMNS = 1
    PANELS = 2
    WIDTH = 3  # columns per panel
    STARTS = 4  # uint32 [PANELS, ROWS + 1]
    INDEX = 5  # uint16 [non-zeros], column within the panel
    VALUES = 6  # float32 [non-zeros]
    BIAS = 7  # float32 [ROWS]
    RELU = 8  # 0 or 1
    VECTORS = 9  # vectors of tokens per full tile, one of TILES
    BOUNDS = 10  # int64 [PIECES + 1], where the rows are cut into pieces of about equally many non-zeros


def kernels(lanes: int) -> str:
    """LLVM IR of a module with two entry points, for ``lanes`` floats per vector.

    ``layer(description, x, x_stride, y, y_stride, tokens, scratch, threads)`` computes Y = f(X·Wᵀ + b) for rows of
    tokens as PyTorch lays them out; strides in floats.

    ``tiles(description, x, y, tiles, vectors, threads)`` computes the same for activations that are feature-major:
    x [tiles, K, lanes·vectors] → y [tiles, M, lanes·vectors], aligned to a vector.

    Args:
        lanes: floats per vector register, a power of two.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer")
    pack = pack_function(module, lanes)
    unpack = unpack_function(module, lanes)
    vector = _matrix_vector(module, lanes)
    products = {count: _product(module, lanes, count) for count in TILES}
    _layer(module, lanes, pack, unpack, vector, products)
    _tiles(module, lanes, products)
    return str(module)


def _product(module: ir.Module, lanes: int, vectors: int) -> ir.Function:
    """Y[first:last] = f(W[first:last]·X + b) for one feature-major tile of ``vectors`` vectors."""
    made = function(module, f"product_{vectors}", [PTR] * 6 + [I64] * 6, exported=False)
    starts, index, values, bias, x, y, rows, panels, width, relu, first, last = made.args
    e = Emitter(made, lanes)
    tile, align = lanes * vectors, lanes * 4
    parallel = max(1, 8 // vectors)  # sums kept side by side, to hide the latency of the additions
    zero, lowest = ir.Constant(F32, 0.0), ir.Constant(F32, float("-inf"))
    rectified = e.at.icmp_signed("!=", relu, ir.Constant(I64, 0))

    def panel(number: Node, _: list[Node]) -> list[Node]:
        begin = e.element(starts, e.mul(number, e.add(rows, 1)), I32)
        x_panel = e.element(x, e.mul(number, e.mul(width, tile)), F32)
        opening = e.equal(number, 0)
        closing = e.at.and_(rectified, e.equal(number, e.sub(panels, 1)))
        floor = e.spread(e.at.select(closing, zero, lowest))

        def row(r: Node, carried: list[Node]) -> list[Node]:
            p0 = carried[0]
            p1 = e.wide(begin, e.add(r, 1), I32)
            y_row = e.element(y, e.mul(r, tile), F32)
            sums = e.choose(
                opening,
                lambda: [e.spread(e.read(bias, r, F32))] * vectors,
                lambda: [e.load(y_row, lanes * v, align) for v in range(vectors)],
            )

            def one(p: Node, sums: list[Node]) -> list[Node]:
                column = e.wide(index, p, I16)
                weight = e.spread(e.read(values, p, F32))
                x_row = e.element(x_panel, e.mul(column, tile), F32)
                return [e.fma(weight, e.load(x_row, lanes * v, align), s) for v, s in enumerate(sums)]

            if parallel > 1:
                whole = e.add(p0, e.mul(e.div(e.sub(p1, p0), parallel), parallel))
                blank = [ir.Constant(e.vector, [0.0] * lanes)] * (vectors * (parallel - 1))

                def several(p: Node, carried: list[Node]) -> list[Node]:
                    out: list[Node] = []
                    for k in range(parallel):
                        out += one(e.add(p, k), carried[k * vectors : (k + 1) * vectors])
                    return out

                partial = e.loop(p0, whole, several, sums + blank, parallel)
                sums = partial[:vectors]
                p0 = whole
                sums = e.loop(p0, p1, one, sums)
                more = partial[vectors:]
                while more:
                    sums = [e.at.fadd(s, m) for s, m in zip(sums, more[:vectors], strict=True)]
                    more = more[vectors:]
            else:
                sums = e.loop(p0, p1, one, sums)
            for v, s in enumerate(sums):
                e.store(e.at_least(s, floor), y_row, lanes * v, align)
            return [p1]

        e.loop(first, last, row, [e.wide(begin, first, I32)])
        return []

    e.loop(0, panels, panel)
    e.at.ret_void()
    return made


def _matrix_vector(module: ir.Module, lanes: int) -> ir.Function:
    """y[first:last] = f(W[first:last]·x + b) for one token: several sums in turn, one scalar each."""
    made = function(module, "matrix_vector", [PTR] * 6 + [I64] * 6, exported=False)
    starts, index, values, bias, x, y, rows, panels, width, relu, first, last = made.args
    e = Emitter(made, lanes)
    zero, lowest = ir.Constant(F32, 0.0), ir.Constant(F32, float("-inf"))
    rectified = e.at.icmp_signed("!=", relu, ir.Constant(I64, 0))
    side = 4

    def panel(number: Node, _: list[Node]) -> list[Node]:
        begin = e.element(starts, e.mul(number, e.add(rows, 1)), I32)
        x_panel = e.element(x, e.mul(number, width), F32)
        opening = e.equal(number, 0)
        closing = e.at.and_(rectified, e.equal(number, e.sub(panels, 1)))
        floor = e.at.select(closing, zero, lowest)

        def row(r: Node, carried: list[Node]) -> list[Node]:
            p0 = carried[0]
            p1 = e.wide(begin, e.add(r, 1), I32)
            (total,) = e.choose(opening, lambda: [e.read(bias, r, F32)], lambda: [e.read(y, r, F32)])

            def one(p: Node, s: list[Node]) -> list[Node]:
                column = e.wide(index, p, I16)
                return [e.fma(e.read(values, p, F32), e.read(x_panel, column, F32), s[0])]

            def several(p: Node, s: list[Node]) -> list[Node]:
                return [one(e.add(p, k), [s[k]])[0] for k in range(side)]

            whole = e.add(p0, e.mul(e.div(e.sub(p1, p0), side), side))
            a, b, c, d = e.loop(p0, whole, several, [total, zero, zero, zero], side)
            (total,) = e.loop(whole, p1, one, [e.at.fadd(e.at.fadd(a, b), e.at.fadd(c, d))])
            e.write(e.at_least(total, floor), y, r)
            return [p1]

        e.loop(first, last, row, [e.wide(begin, first, I32)])
        return []

    e.loop(0, panels, panel)
    e.at.ret_void()
    return made


@final
class _Matrix:
    """The fields of a packed matrix's description, as a kernel reads them."""

    def __init__(self, e: Emitter, description: Node) -> None:
        self.e = e
        self.description = description
        self.rows = self.word(Slot.ROWS)
        self.columns = self.word(Slot.COLUMNS)

    def word(self, slot: Slot) -> Node:
        """An integer field."""
        return self.e.read(self.description, int(slot), I64)

    def address(self, slot: Slot) -> Node:
        """A field that is an address."""
        return self.e.read(self.description, int(slot), PTR)

    def multiply(self, product: ir.Function, x: Node, y: Node, first: Node, last: Node) -> None:
        """Calls a product for the rows [first, last)."""
        arrays = [self.address(slot) for slot in (Slot.STARTS, Slot.INDEX, Slot.VALUES, Slot.BIAS)]
        sizes = [self.rows, self.word(Slot.PANELS), self.word(Slot.WIDTH), self.word(Slot.RELU)]
        self.e.at.call(product, [*arrays, x, y, *sizes, self.e.constant(first), self.e.constant(last)])

    def multiply_tile(
        self, products: dict[int, ir.Function], vectors: Node, x: Node, y: Node, first: Node, last: Node
    ) -> None:
        """Calls the product for tiles of that many vectors."""
        e = self.e
        after = e.made.append_basic_block()
        for count, product in products.items():
            yes, no = e.made.append_basic_block(), e.made.append_basic_block()
            e.at.cbranch(e.equal(vectors, count), yes, no)
            e.at.position_at_end(yes)
            self.multiply(product, x, y, first, last)
            e.at.branch(after)
            e.at.position_at_end(no)
        e.at.branch(after)
        e.at.position_at_end(after)

    def share(self, part: Node, team: Node) -> tuple[Node, Node]:
        """The rows of one member of a team: about as many non-zeros as any other's."""
        bounds = self.address(Slot.BOUNDS)
        low, high = (
            self.e.read(bounds, self.e.div(self.e.mul(self.e.add(part, i), PIECES), team), I64) for i in range(2)
        )
        return low, high


def _layer(
    module: ir.Module,
    lanes: int,
    pack: ir.Function,
    unpack: ir.Function,
    vector: ir.Function,
    products: dict[int, ir.Function],
) -> None:
    """Y [tokens, M] from X [tokens, K]: whole tiles are dealt to the team, the remaining ones are shared by rows."""
    made = function(module, "layer_share", [PTR] + [I64] * 8, exported=False)
    description, x_word, x_stride, y_word, y_stride, tokens, scratch_word, part, team = made.args
    e = Emitter(made, lanes)
    x, y, scratch = (e.at.inttoptr(word, PTR) for word in (x_word, y_word, scratch_word))
    w = _Matrix(e, description)
    low, high = w.share(part, team)

    def one_token() -> None:
        w.multiply(vector, x, y, low, high)

    def manytoken_addresses() -> None:
        vectors = w.word(Slot.VECTORS)
        span = e.mul(vectors, lanes)
        each = e.div(e.div(tokens, span), team)

        def own(i: Node, _: list[Node]) -> list[Node]:
            token = e.mul(e.add(e.mul(part, each), i), span)
            x_tile = e.element(scratch, e.mul(part, e.mul(e.add(w.columns, w.rows), span)), F32)
            y_tile = e.element(x_tile, e.mul(w.columns, span), F32)
            source, target = e.element(x, e.mul(token, x_stride), F32), e.element(y, e.mul(token, y_stride), F32)
            e.at.call(pack, [source, x_tile, x_stride, span, vectors, e.constant(0), w.columns])
            w.multiply_tile(products, vectors, x_tile, y_tile, 0, w.rows)
            e.at.call(unpack, [y_tile, target, y_stride, span, vectors, e.constant(0), w.rows])
            return []

        e.loop(0, each, own)

        def wait(condition: Node) -> None:
            with e.at.if_then(condition):
                e.at.call(e.foreign(e.read(description, int(Pool.BARRIER), I64), ir.VoidType(), []), [])

        together = e.less(1, team)
        squares = e.div(e.add(w.columns, lanes - 1), lanes)
        first, last = (e.least(w.columns, e.mul(e.div(e.mul(e.add(part, i), squares), team), lanes)) for i in range(2))

        def shared(token: Node, _: list[Node]) -> list[Node]:
            left = e.least(span, e.sub(tokens, token))
            needed: Node = e.constant(1)
            for count in TILES[:-1]:
                needed = e.at.select(e.less(count * lanes, left), e.constant(2 * count), needed)
            x_tile = scratch
            y_tile = e.element(x_tile, e.mul(w.columns, e.mul(needed, lanes)), F32)
            source, target = e.element(x, e.mul(token, x_stride), F32), e.element(y, e.mul(token, y_stride), F32)
            wait(e.at.and_(together, e.less(0, token)))  # until nobody reads the previous tile any more
            e.at.call(pack, [source, x_tile, x_stride, left, needed, first, last])
            wait(together)
            w.multiply_tile(products, needed, x_tile, y_tile, low, high)
            e.at.call(unpack, [y_tile, target, y_stride, left, needed, low, high])
            return []

        e.loop(e.mul(e.mul(each, team), span), tokens, shared, step=span)

    with e.at.if_else(e.equal(tokens, 1)) as (one, many):
        with one:
            one_token()
        with many:
            manytoken_addresses()
    e.at.ret_void()
    in_team(module, "layer", made, 6)


def _tiles(module: ir.Module, lanes: int, products: dict[int, ir.Function]) -> None:
    """Feature-major tiles: as many as possible are dealt whole to the team, the others are shared by rows."""
    made = function(module, "tiles_share", [PTR] + [I64] * 6, exported=False)
    description, x_word, y_word, count, vectors, part, team = made.args
    e = Emitter(made, lanes)
    x, y = e.at.inttoptr(x_word, PTR), e.at.inttoptr(y_word, PTR)
    w = _Matrix(e, description)
    low, high = w.share(part, team)
    span = e.mul(vectors, lanes)
    each = e.div(count, team)

    def tile(i: Node, first: Node, last: Node) -> None:
        x_tile, y_tile = (
            e.element(base, e.mul(i, e.mul(size, span)), F32) for base, size in ((x, w.columns), (y, w.rows))
        )
        w.multiply_tile(products, vectors, x_tile, y_tile, first, last)

    def own(i: Node, _: list[Node]) -> list[Node]:
        tile(e.add(e.mul(part, each), i), 0, w.rows)
        return []

    def shared(i: Node, _: list[Node]) -> list[Node]:
        tile(i, low, high)
        return []

    e.loop(0, each, own)
    e.loop(e.mul(each, team), count, shared)
    e.at.ret_void()
    in_team(module, "tiles", made, 4)
