"""Kernels for sparse matrix × few vectors by bitmap, as LLVM IR, for AVX-512 with its instruction that spreads adjacent
numbers over the set places of a mask.

Four rows go through the columns together, sixteen at a time: of each row, as many values as its mask has bits are taken
from the stream of values, spread, and multiplied with the sixteen numbers of x, which serve all four rows. Lanes whose
bit is not set keep their sum, whatever x holds there. Sums of four rows and up to four tokens are added up together.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team
from gossamer.runtime.vector_fields import PIECES, Field
from gossamer.runtime.vector_packing import BITMAP_ROWS
from gossamer.runtime.vector_values import Storage, called, decoded, prefetch, stack

__all__ = ["add_bitmaps", "alone"]

Node = Any  # llvmlite has no type stubs

_LANES = 16
_TOKENS = (4, 2, 1)
_AHEAD = 2048  # bytes of values that are asked for before they are needed
_BIT = ir.IntType(1)
_QUICK = (
    Storage.FLOAT32,
    Storage.BFLOAT16,
    Storage.INT8,
)  # the first ones: decoded where they are needed for one token
_BLOCK = 32  # chunks whose values are turned into float32 before they are used, if stored in another form


def add_bitmaps(module: ir.Module, finish: ir.Function, decode: ir.Function) -> None:
    """Adds ``by_bitmap(description, x, x_stride, y, tokens, scratch, threads)``, as `vector_code` describes it.

    Args:
        module: gets the entry point and what it calls.
        finish: applies an activation.
        decode: turns stored values into float32.
    """
    walk = _walk(module, finish, decode)
    made = function(module, "bitmap_share", [PTR] + [I64] * 7, exported=False)
    description, x_word, stride, y_word, tokens, _, part, team = made.args
    e = Emitter(made, _LANES)
    x, y = e.at.inttoptr(x_word, PTR), e.at.inttoptr(y_word, PTR)
    bounds = e.read(description, int(Field.BOUNDS), PTR)
    low, high = (e.read(bounds, e.div(e.mul(e.add(part, i), PIECES), team), I64) for i in range(2))
    e.at.call(walk, [description, x, y, stride, tokens, low, high])
    e.at.ret_void()
    in_team(module, "by_bitmap", made, 5)
    alone(module, _LANES, "by_bitmap_once", made)


def alone(module: ir.Module, lanes: int, name: str, share: ir.Function) -> None:
    """Exports ``name(description, x, y)``: one token on one thread. Every argument of a call from Python takes time."""
    made = function(module, name, [PTR] * 3, exported=True)
    description, x, y = made.args
    e = Emitter(made, lanes)
    x_word, y_word = e.at.ptrtoint(x, I64), e.at.ptrtoint(y, I64)
    zero, one = e.constant(0), e.constant(1)
    e.at.call(share, [description, x_word, zero, y_word, one, zero, zero, one])
    e.at.ret_void()


def _walk(module: ir.Module, finish: ir.Function, decode: ir.Function) -> ir.Function:
    """Groups [first, last) for all tokens: four, two and one at a time, while a group's values are in the cache."""
    products = {count: _group(module, count, finish, decode) for count in _TOKENS}
    singles = {kind: _group(module, 1, finish, kind) for kind in _QUICK}
    made = function(module, "bitmap_groups", [PTR] * 3 + [I64] * 4, exported=False)
    description, x, y, stride, tokens, first, last = made.args
    e = Emitter(made, _LANES)
    rows = e.read(description, int(Field.ROWS), I64)

    def group(g: Node, _: list[Node]) -> list[Node]:
        begin: Node = e.constant(0)
        for count, product in products.items():
            end = e.add(begin, e.mul(e.div(e.sub(tokens, begin), count), count))

            def some(t: Node, _: list[Node], product: ir.Function = product) -> list[Node]:
                x_token = e.element(x, e.mul(t, stride), F32)
                e.at.call(product, [description, x_token, e.element(y, e.mul(t, rows), F32), stride, g])
                return []

            e.loop(begin, end, some, step=count)
            begin = end
        return []

    kind = e.read(description, int(Field.STORAGE), I64)
    quick = e.less(kind, len(_QUICK))
    with e.at.if_else(e.at.and_(e.equal(tokens, 1), quick)) as (single_quick, others):
        with single_quick:
            for storage, single in singles.items():

                def one(g: Node, _: list[Node], single: ir.Function = single) -> list[Node]:
                    e.at.call(single, [description, x, y, stride, g])
                    return []

                with e.at.if_then(e.equal(kind, int(storage))):
                    e.loop(first, last, one)
        with others:
            e.loop(first, last, group)
    e.at.ret_void()
    return made


def _group(module: ir.Module, count: int, finish: ir.Function, decode: ir.Function | Storage) -> ir.Function:
    """Four rows for ``count`` tokens.

    For one kind of stored values, which are decoded as they are needed; or for all kinds, with the function that
    decodes blocks of them.
    """
    form = decode.name.lower() if isinstance(decode, Storage) else "block"
    made = function(module, f"bitmap_{count}_{form}", [PTR] * 3 + [I64] * 2, exported=False)
    description, x, y, stride, group = made.args
    e = Emitter(made, _LANES)
    rows, columns, kind, activation = (
        e.read(description, int(f), I64) for f in (Field.ROWS, Field.COLUMNS, Field.STORAGE, Field.ACTIVATION)
    )
    masks, starts, values, table, scale, bias = (
        e.read(description, int(f), PTR)
        for f in (Field.MASKS, Field.STARTS, Field.VALUES, Field.TABLE, Field.SCALE, Field.BIAS)
    )
    chunks = e.div(e.add(columns, _LANES - 1), _LANES)
    outputs, buffer = stack(e, _LANES), stack(e, _LANES * (BITMAP_ROWS * _BLOCK + 1))
    whole = e.div(columns, _LANES)
    words = e.element(masks, e.mul(group, chunks), I64)
    tokens = [e.element(x, e.mul(stride, t), F32) for t in range(count)]
    bits_per_value = e.read(description, int(Field.BITS), I64)
    coded = e.at.icmp_signed("!=", kind, ir.Constant(I64, int(Storage.FLOAT32)))

    def chunk(at: Node, source: Node, offset: Node, load: Any, carried: list[Node]) -> list[Node]:
        position, sums = carried[0], carried[1:]
        word = e.read(words, at, I64)
        inputs = [load(token, e.mul(at, _LANES)) for token in tokens]
        found: list[Node] = []
        for r in range(BITMAP_ROWS):
            before = e.add(position, _ones(e, e.at.and_(word, ir.Constant(I64, (1 << 16 * r) - 1)))) if r else position
            bits = e.at.trunc(e.at.lshr(word, ir.Constant(I64, 16 * r)), I16)
            mask = e.at.bitcast(bits, ir.VectorType(_BIT, _LANES))
            if isinstance(decode, Storage):
                prefetch(e, values, before, decode.bits, _AHEAD)
                adjacent = decoded(e, decode, values, table, before, whole=False)
            else:
                prefetch(e, values, e.add(before, offset), bits_per_value, _AHEAD)
                adjacent = e.load(source, before)
            weight = _expanded(e, adjacent, mask)
            for t, vector in enumerate(inputs):
                total = sums[r * count + t]
                found.append(e.at.select(mask, e.fma(weight, vector, total), total))
        return [e.add(position, _ones(e, word)), *found]

    def block(first: Node, end: Node, load: Any, carried: list[Node]) -> list[Node]:
        if isinstance(decode, Storage):
            return e.loop(first, end, lambda at, now: chunk(at, values, e.constant(0), load, now), carried)
        position, sums = carried[0], carried[1:]
        last = e.least(e.add(first, _BLOCK), end)

        def as_floats() -> list[Node]:
            count_ones = lambda at, now: [e.add(now[0], _ones(e, e.read(words, at, I64)))]  # noqa: E731
            (number,) = e.loop(first, last, count_ones, [e.constant(0)])
            e.at.call(decode, [values, table, kind, position, number, buffer])
            return [buffer]

        (source,) = e.choose(coded, as_floats, lambda: [e.element(values, position, F32)])
        begin = [e.constant(0), *sums]
        taken, *sums = e.loop(first, last, lambda at, now: chunk(at, source, position, load, now), begin)
        return [e.add(position, taken), *sums]

    def blocks(first: Node, end: Node, load: Any, carried: list[Node]) -> list[Node]:
        if isinstance(decode, Storage):
            return block(first, end, load, carried)
        return e.loop(first, end, lambda at, now: block(at, end, load, now), carried, _BLOCK)

    carried = [e.read(starts, group, I64), *[e.number(0)] * (BITMAP_ROWS * count)]
    carried = blocks(e.constant(0), whole, e.load, carried)
    lanes = ir.Constant(ir.VectorType(I64, _LANES), list(range(_LANES)))
    left = e.sub(columns, e.mul(whole, _LANES))
    one = e.at.insert_element(ir.Constant(lanes.type, ir.Undefined), left, ir.Constant(ir.IntType(32), 0))
    inside = e.at.icmp_signed("<", lanes, e.shuffle(one, one, [0] * _LANES))
    at_the_end = lambda base, at: _masked_load(e, base, at, inside)  # noqa: E731
    _, *sums = blocks(whole, chunks, at_the_end, carried)
    four = e.mul(group, BITMAP_ROWS)
    total = e.fma(_all_sums(e, sums), _per_row(e, scale, four, count), _per_row(e, bias, four, count))
    e.at.store(total, outputs, align=4)
    with e.at.if_then(e.less(0, activation)):
        e.at.call(finish, [outputs, ir.Constant(PTR, None), activation, e.constant(1)])

    def write(r: Node, _: list[Node]) -> list[Node]:
        for t in range(count):
            e.write(e.read(outputs, e.add(e.mul(r, count), t), F32), y, e.add(e.mul(rows, t), four, r))
        return []

    e.loop(0, e.least(BITMAP_ROWS, e.sub(rows, four)), write)
    e.at.ret_void()
    return made


def _per_row(e: Emitter, base: Node, row: Node, count: int) -> Node:
    four = e.at.load(e.element(base, row, F32), align=4, typ=ir.VectorType(F32, BITMAP_ROWS))
    return e.shuffle(four, four, [r for r in range(BITMAP_ROWS) for _ in range(count)])


def _all_sums(e: Emitter, vectors: list[Node]) -> Node:
    """The sum of each vector in a lane of its own: vectors are halved, and halves of pairs put side by side."""
    sums = len(vectors)
    while len(vectors) > 1:
        width = vectors[0].type.count
        even, odd = list(range(0, 2 * width, 2)), list(range(1, 2 * width, 2))
        vectors = [
            e.at.fadd(e.shuffle(a, b, even), e.shuffle(a, b, odd))
            for a, b in zip(vectors[0::2], vectors[1::2], strict=True)
        ]
    (total,) = vectors
    while (width := total.type.count) > sums:
        halves = [e.shuffle(total, total, list(range(begin, width, 2))) for begin in (0, 1)]
        total = e.at.fadd(*halves)
    return total


def _ones(e: Emitter, word: Node) -> Node:
    return called(e, "llvm.ctpop.i64", I64, [word])


def _expanded(e: Emitter, adjacent: Node, mask: Node) -> Node:
    blank = e.number(0)
    return called(e, "llvm.x86.avx512.mask.expand.v16f32", e.vector, [adjacent, blank, mask])


def _masked_load(e: Emitter, base: Node, index: Node, mask: Node) -> Node:
    arguments = [e.element(base, index, F32), ir.Constant(ir.IntType(32), 4), mask, e.number(0)]
    return called(e, "llvm.masked.load.v16f32.p0", e.vector, arguments)
