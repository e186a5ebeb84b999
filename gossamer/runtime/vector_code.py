"""Kernels for sparse matrix × few vectors by index, as LLVM IR.

Rows of about equal length are put side by side, one per lane of a vector register: a slice (sliced ELLPACK with sorted
rows: Kreutzer et al. 2014, arXiv 1307.6209, section 2). Every step reads one 16-bit column and one value per lane.
Where rows are few or of unequal length a row takes 2, 4, … or all lanes, whose sums are added at the slice's end, for
all rows at once. Steps that some lanes have no non-zero for come last; these lanes read nothing from x.

One token: x is gathered. Several tokens: x is first interleaved to [K, tokens], and each non-zero meets the 2, 4, 8 or
16 numbers of its column. Indices and values are the same for any number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.bitmap_code import add_bitmaps, alone
from gossamer.runtime.epilogue import finish_function
from gossamer.runtime.layout import in_team
from gossamer.runtime.vector_fields import PIECES, Field
from gossamer.runtime.vector_packing import WIDTH
from gossamer.runtime.vector_values import Storage, decode_function, decoded, gathered, masked_gather, prefetch, stack

__all__ = ["most_tokens", "vector_kernels"]

Node = Any  # llvmlite has no type stubs

_AHEAD = 2048
"""Bytes of indices and of values that are asked for before they are needed, on top of what the processor does."""

_BLOCK = 64
"""Steps that are added up on their own, for long sums lose digits; and whose values are turned into float32 before they
are used, if they are stored in another form and there are several tokens."""


def most_tokens(lanes: int) -> int:
    """Tokens per pass over the weight: what registers have room for."""
    return 16 if lanes == 16 else 8


def vector_kernels(lanes: int) -> str:
    """LLVM IR of a module with the entry points ``by_index``, ``by_index_once`` and, for 16 lanes, the same by bitmap.

    ``name(description, x, x_stride, y, tokens, scratch, threads)`` computes Y = f(X·Wᵀ + b) for X [tokens, K] and
    Y [tokens, M] as PyTorch lays them out; the stride in floats. Scratch is 4 · K · `most_tokens` bytes per thread,
    not used for one token and bitmaps. ``name_once(description, x, y)`` is the same for one token on one thread.

    Args:
        lanes: floats per vector register.
    """
    module = ir.Module("vectors")
    finish, decode = finish_function(module, lanes), decode_function(module, lanes)
    _by_index(module, lanes, finish, decode)
    if lanes == 16:
        add_bitmaps(module, finish, decode)
    return str(module)


def _counts(lanes: int) -> tuple[int, ...]:
    return tuple(count for count in (2, 4, 8, 16) if count <= most_tokens(lanes))


def _by_index(module: ir.Module, lanes: int, finish: ir.Function, decode: ir.Function) -> None:
    singles = {kind: _product(module, lanes, 1, finish, kind) for kind in Storage}
    products = {n: _product(module, lanes, n, finish, decode) for n in _counts(lanes)}
    interleave = {n: _interleave(module, lanes, n) for n in products}
    made = function(module, "index_share", [PTR] + [I64] * 7, exported=False)
    description, x_word, stride, y_word, tokens, scratch_word, part, team = made.args
    e = Emitter(made, lanes)
    x, y, scratch = (e.at.inttoptr(word, PTR) for word in (x_word, y_word, scratch_word))
    rows, columns, slices = (e.read(description, int(f), I64) for f in (Field.ROWS, Field.COLUMNS, Field.SLICES))
    bounds = e.read(description, int(Field.BOUNDS), PTR)
    low, high = (e.read(bounds, e.div(e.mul(e.add(part, i), PIECES), team), I64) for i in range(2))

    def several() -> None:
        most = most_tokens(lanes)
        mine = e.element(scratch, e.mul(part, e.mul(columns, most)), F32)
        each = e.div(e.div(tokens, most), team)

        def block(begin: Node, left: Node, first: Node, last: Node) -> None:
            x_block = e.element(x, e.mul(begin, stride), F32)
            y_block = e.element(y, e.mul(begin, rows), F32)
            after = made.append_basic_block()
            for n, product in products.items():
                fits, more = made.append_basic_block(), made.append_basic_block()
                e.at.cbranch(e.less(left, n + 1), fits, more)
                e.at.position_at_end(fits)
                e.at.call(interleave[n], [x_block, mine, stride, left, columns])
                e.at.call(product, [description, mine, y_block, left, first, last])
                e.at.branch(after)
                e.at.position_at_end(more)
            e.at.branch(after)
            e.at.position_at_end(after)

        def own(i: Node, _: list[Node]) -> list[Node]:
            block(e.mul(e.add(e.mul(part, each), i), most), e.constant(most), e.constant(0), slices)
            return []

        def shared(begin: Node, _: list[Node]) -> list[Node]:
            block(begin, e.least(most, e.sub(tokens, begin)), low, high)
            return []

        e.loop(0, each, own)
        e.loop(e.mul(e.mul(each, team), most), tokens, shared, step=most)

    with e.at.if_else(e.equal(tokens, 1)) as (single, many):
        with single:
            for kind, product in singles.items():
                with e.at.if_then(e.equal(e.read(description, int(Field.STORAGE), I64), int(kind))):
                    e.at.call(product, [description, x, y, tokens, low, high])
        with many:
            several()
    e.at.ret_void()
    in_team(module, "by_index", made, 5)
    alone(module, lanes, "by_index_once", made)


def _interleave(module: ir.Module, lanes: int, count: int) -> ir.Function:
    """X [tokens, K] → [K, count]; places beyond the last token repeat it."""
    made = function(module, f"interleave_{count}", [PTR, PTR] + [I64] * 3, exported=False)
    x, target, stride, tokens, columns = made.args
    e = Emitter(made, lanes)
    final = e.sub(tokens, 1)
    sources = [e.element(x, e.mul(e.least(t, final), stride), F32) for t in range(count)]
    whole = e.mul(e.div(columns, lanes), lanes)
    low = [lane for i in range(lanes // 2) for lane in (i, lanes + i)]
    high = [lane + lanes // 2 for lane in low]

    def merged(rows: Sequence[Node]) -> list[Node]:
        if len(rows) == 1:
            return list(rows)
        even, odd = merged(rows[0::2]), merged(rows[1::2])
        return [e.shuffle(a, b, half) for a, b in zip(even, odd, strict=True) for half in (low, high)]

    def several(k: Node, _: list[Node]) -> list[Node]:
        for i, vector in enumerate(merged([e.load(source, k) for source in sources])):
            e.store(vector, target, e.add(e.mul(k, count), lanes * i))
        return []

    def one(k: Node, _: list[Node]) -> list[Node]:
        for i, source in enumerate(sources):
            e.write(e.read(source, k, F32), target, e.add(e.mul(k, count), i))
        return []

    e.loop(0, whole, several, step=lanes)
    e.loop(whole, columns, one)
    e.at.ret_void()
    return made


def _product(
    module: ir.Module, lanes: int, count: int, finish: ir.Function, decode: ir.Function | Storage
) -> ir.Function:
    """Rows of the slices [first, last) for ``count`` tokens: x is [K] or interleaved [K, count], y is [tokens, M].

    One token: for one kind of stored values, which are decoded as they are needed, or all would wait for memory.
    Several: blocks of values are decoded by a function, and there is one product for all kinds.
    """
    form = decode.name.lower() if isinstance(decode, Storage) else "block"
    made = function(module, f"slices_{count}_{form}", [PTR] * 3 + [I64] * 3, exported=False)
    description, x, y, tokens, first, last = made.args
    e = Emitter(made, lanes)
    rows, panels, split, kind, activation = (
        e.read(description, int(f), I64)
        for f in (Field.ROWS, Field.PANELS, Field.SPLIT, Field.STORAGE, Field.ACTIVATION)
    )
    steps, lengths, starts, order, index, values, table, scale, bias = (
        e.read(description, int(f), PTR)
        for f in (
            Field.STEPS,
            Field.LENGTHS,
            Field.STARTS,
            Field.ORDER,
            Field.INDEX,
            Field.VALUES,
            Field.TABLE,
            Field.SCALE,
            Field.BIAS,
        )
    )
    integers = ir.VectorType(I32, lanes)
    tokenwise = ir.VectorType(F32, count)
    outputs, buffer = stack(e, lanes * count), stack(e, lanes * _BLOCK)
    zero = e.number(0) if count == 1 else ir.Constant(tokenwise, [0.0] * count)
    nothing = stack(e, lanes if count == 1 else count)  # what is read in place of x where a lane has no non-zero
    e.at.store(zero, nothing, align=4)
    tall = e.div(lanes, split)
    sums = 1 if count == 1 else lanes
    coded = e.at.icmp_signed("!=", kind, ir.Constant(I64, int(Storage.FLOAT32)))
    bits = e.read(description, int(Field.BITS), I64)

    def one_token(x_panel: Node, weights: Node, mask: Node, step: Node, total: Node) -> Node:
        assert isinstance(decode, Storage)
        position = e.mul(step, lanes)
        prefetch(e, values, position, decode.bits, _AHEAD)
        prefetch(e, index, position, 16, _AHEAD)
        weight = decoded(e, decode, weights, table, position, whole=True)
        columns = e.at.load(e.element(index, position, I16), align=2 * lanes, typ=ir.VectorType(I16, lanes))
        columns = e.at.zext(columns, integers)
        if mask is None:
            return e.fma(weight, gathered(e, x_panel, columns), total)
        return e.at.select(mask, e.fma(weight, masked_gather(e, x_panel, columns, mask), total), total)

    def many_tokens(x_panel: Node, weights: Node, active: Node, step: Node, totals: list[Node]) -> list[Node]:
        position = e.mul(step, lanes)
        prefetch(e, values, position, bits, _AHEAD)
        prefetch(e, index, position, 16, _AHEAD)

        def lane(i: int) -> Node:
            place = e.add(position, i)
            x_row = e.element(x_panel, e.mul(e.wide(index, place, I16), count), F32)
            weight = e.read(weights, place, F32)
            if active is not None:
                live = e.at.icmp_signed("<", e.at.trunc(step, I32), active[i])
                x_row, weight = e.at.select(live, x_row, nothing), e.at.select(live, weight, ir.Constant(F32, 0.0))
            numbers = e.at.load(x_row, align=4, typ=tokenwise)
            return e.fma(_spread(e, weight, count), numbers, totals[i])

        return [lane(i) for i in range(lanes)]

    def panel(slice_: Node, p: Node, carried: list[Node]) -> list[Node]:
        begin, totals = carried[0], carried[1:]
        which = e.add(e.mul(slice_, panels), p)
        common, every = (e.wide(steps, e.add(e.mul(which, 2), i), I32) for i in range(2))
        x_panel = e.element(x, e.mul(p, WIDTH * count), F32)
        full, end = e.add(begin, common), e.add(begin, every)
        have = e.at.load(e.element(lengths, e.mul(which, lanes), I32), align=4, typ=integers)
        until = e.at.add(have, _spread_integer(e, e.at.trunc(begin, I32)))
        ends = [e.at.extract_element(until, ir.Constant(I32, i)) for i in range(lanes)] if count > 1 else []

        def block(from_: Node, totals: list[Node]) -> list[Node]:
            to = e.least(e.add(from_, _BLOCK), end)

            def as_floats() -> list[Node]:
                position, number = e.mul(from_, lanes), e.mul(e.sub(to, from_), lanes)
                e.at.call(decode, [values, table, kind, position, number, buffer])
                return [e.element(buffer, e.sub(0, position), F32)]

            weights = values if count == 1 else e.choose(coded, as_floats, lambda: [values])[0]
            middle = e.at.select(e.less(full, from_), from_, e.least(full, to))

            def step(t: Node, now: list[Node]) -> list[Node]:
                if count > 1:
                    return many_tokens(x_panel, weights, None, t, now)
                return [one_token(x_panel, weights, None, t, now[0])]

            def rest(t: Node, now: list[Node]) -> list[Node]:
                if count > 1:
                    return many_tokens(x_panel, weights, ends, t, now)
                mask = e.at.icmp_signed("<", _spread_integer(e, e.at.trunc(t, I32)), until)
                return [one_token(x_panel, weights, mask, t, now[0])]

            parts = e.loop(middle, to, rest, e.loop(from_, middle, step, [zero] * sums))
            return [e.at.fadd(a, b) for a, b in zip(totals, parts, strict=True)]

        return [end, *e.loop(begin, end, block, totals, _BLOCK)]

    def slice_(s: Node, _: list[Node]) -> list[Node]:
        begin = e.read(starts, s, I64)
        _, *totals = e.loop(0, panels, lambda p, now: panel(s, p, now), [begin, *[zero] * sums])
        totals = _across(e, totals, split, lanes)
        at = e.mul(s, lanes)
        if count == 1:
            (total,) = totals
            e.store(e.fma(total, e.load(scale, at), e.load(bias, at)), outputs, 0, 64)
        else:
            for i, total in enumerate(totals):
                factor, offset = (_spread(e, e.read(base, e.add(at, i), F32), count) for base in (scale, bias))
                e.at.store(e.fma(total, factor, offset), e.element(outputs, i * count, F32), align=4 * count)
        with e.at.if_then(e.less(0, activation)):
            e.at.call(finish, [outputs, ir.Constant(PTR, None), activation, e.constant(count)])
        live = e.least(tall, e.sub(rows, e.mul(s, tall)))

        def write(j: Node, _: list[Node]) -> list[Node]:
            row = e.wide(order, e.add(at, j), I32)
            place = e.mul(e.mul(j, split), count)
            if count == 1:
                e.write(e.read(outputs, place, F32), y, row)
                return []

            def token(t: Node, _: list[Node]) -> list[Node]:
                e.write(e.read(outputs, e.add(place, t), F32), y, e.add(e.mul(t, rows), row))
                return []

            e.loop(0, tokens, token)
            return []

        e.loop(0, live, write)
        return []

    e.loop(first, last, slice_)
    e.at.ret_void()
    return made


def _across(e: Emitter, totals: list[Node], split: Node, lanes: int) -> list[Node]:
    """Sums of the lanes of each row, in the first of them."""
    distance = 1
    while distance < lanes:

        def added(distance: int = distance, now: list[Node] = totals) -> list[Node]:
            if len(now) == 1:
                return [e.at.fadd(now[0], e.shuffle(now[0], now[0], [i ^ distance for i in range(lanes)]))]
            return [e.at.fadd(t, now[i + distance]) if i % (2 * distance) == 0 else t for i, t in enumerate(now)]

        totals = e.choose(e.less(distance, split), added, lambda now=totals: now)  # type: ignore[misc]
        distance *= 2
    return totals


def _spread(e: Emitter, value: Node, count: int) -> Node:
    one = e.at.insert_element(ir.Constant(ir.VectorType(F32, count), ir.Undefined), value, ir.Constant(I32, 0))
    return e.shuffle(one, one, [0] * count)


def _spread_integer(e: Emitter, value: Node) -> Node:
    kind = ir.VectorType(I32, e.lanes)
    one = e.at.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return e.shuffle(one, one, [0] * e.lanes)
