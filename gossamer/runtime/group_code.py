"""Kernels for sparse × dense products that take several rows of the weight at once, as LLVM IR.

Activations are feature-major tiles, X [tiles, K, tile] → Y [tiles, M, tile], a tile being 1, 2 or 4 vectors of tokens.
The columns of W are cut into panels, its rows into chunks; within both, rows form groups. A group's outputs of one
tile are held in registers while its non-zeros of one panel are gone through. There are two ways to go:

- *sliced*: the rows of a group have about equally many non-zeros, and step through them side by side, each at columns
  of its own (sliced ELLPACK with sorted rows: Kreutzer et al. 2014, arXiv 1307.6209, section 2). One loop per group,
  nearly as long as the one before: its end is foreseen by the processor.
- *pairs*: columns that two rows have in common serve both; two pairs step through these side by side, as many as both
  have, then the four rows through what is left, sliced. Two loops per group instead of the fifteen of patterns.
- *pairings*: four rows make two pairs in three ways, (01)(23), (02)(13) and (03)(12). Columns that two or more rows
  have in common are dealt to the three, as evenly as the columns allow; pairs step through them side by side as above,
  one loop per pairing, then comes what is left, sliced. Where two rows share a load, multiply-adds are as many as the
  processor can do, not loads. All groups of a panel get equally many steps per pairing, for ends to be foreseen.
- *patterns*: the columns of a group are sorted by which of its rows are not zero there; each row of X that is loaded is
  used by all of these. Pays where rows overlap, from a density of about 0.2 on.

Positions are data: the same code serves every matrix. Indices count from the start of the panel, in 8 or 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I16, I32, I64, PTR, Emitter, function
from gossamer.runtime.epilogue import finish_function
from gossamer.runtime.layout import in_team
from gossamer.runtime.value_code import ValueField, expand_function

__all__ = [
    "PAIRINGS",
    "PATTERNS",
    "TILES",
    "Field",
    "Group",
    "Way",
    "add_products",
    "height",
    "pair_steps",
    "pairing_steps",
    "pattern_steps",
    "segments_of",
    "sliced_steps",
    "steps_of",
]

Node = Any  # llvmlite has no type stubs

TILES = (1, 2, 4)
"""Vectors of tokens per tile for which there is code."""

PATTERNS = tuple(sorted(range(1, 16), key=lambda mask: (mask.bit_count(), mask)))
"""The non-empty sets of four rows as bit masks, in the order in which a group goes through them."""

PAIRINGS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
"""The ways in which four rows make two pairs."""

_BATCH = 128
"""Tokens that go through a block of weights before the next block is read from memory."""


_AHEAD = 256
"""How many weights ahead is asked for the ones to come."""


class Way(IntEnum):
    """How a group's non-zeros are ordered."""

    SLICED = 0
    PATTERNS = 1
    PAIRS = 2
    PAIRINGS = 3


class Field(IntEnum):
    """Where kernels find what in the description of a packed matrix, beside ``layout.Pool``."""

    ROWS = 0
    COLUMNS = 1
    PANELS = 2
    WIDTH = 3  # columns per panel
    CHUNKS = 4
    STEP = 5  # chunks per block
    STARTS = 6  # int64 [PANELS · CHUNKS + 1, 3]: the first group, index and value of each panel and chunk
    COUNTS = 7  # uint16 [groups, segments]: steps of a group in each of its segments
    ORDER = 8  # uint32 [groups, height]: rows of a group; one that repeats the first row stands for none
    INDEX = 9  # uint8 or uint16 [indices], column within the panel
    VALUES = 10  # [values], in the format that `value_code.ValueField` says
    BIAS = 15  # float32 [ROWS]
    ACTIVATION = 16
    WAY = 17
    NARROW = 18  # 1 if indices have 8 bits


def height(way: Way, lanes: int) -> int:
    """Rows per group: what registers have room for beside the tile (16 of them with vectors of 8 floats, else 32)."""
    return 2 if way is Way.SLICED and lanes == 8 else 4


def segments_of(way: Way) -> int:
    """Loops that a group's non-zeros are divided into."""
    return {Way.SLICED: 1, Way.PAIRS: 2, Way.PATTERNS: len(PATTERNS), Way.PAIRINGS: len(PAIRINGS) + 1}[way]


def add_products(module: ir.Module, lanes: int) -> ir.Function:
    """Adds ``multiply(description, x, y, residual, tiles, vectors, threads)``: Y = f(W·X + b) + residual.

    Args:
        module: gets the entry point and what it calls.
        lanes: floats per vector register.

    Returns:
        The function that applies activation and residual to a row.
    """
    finish, expand = finish_function(module, lanes), expand_function(module, lanes)
    made = function(module, "multiply_share", [PTR] + [I64] * 7, exported=False)
    description, x, y, residual, tiles, vectors, part, team = made.args
    e = Emitter(made, lanes)
    after = made.append_basic_block()
    found = [e.read(description, int(field), I64) for field in (Field.WAY, Field.NARROW)] + [vectors]
    for way in Way:
        for narrow in (1, 0):
            for count in TILES:
                walk = _walk(module, lanes, way, narrow, count, finish, expand)
                yes, no = made.append_basic_block(), made.append_basic_block()
                same = [e.equal(a, int(b)) for a, b in zip(found, (way, narrow, count), strict=True)]
                e.at.cbranch(e.at.and_(e.at.and_(same[0], same[1]), same[2]), yes, no)
                e.at.position_at_end(yes)
                e.at.call(walk, [description, x, y, residual, tiles, part, team])
                e.at.branch(after)
                e.at.position_at_end(no)
    e.at.branch(after)
    e.at.position_at_end(after)
    e.at.ret_void()
    in_team(module, "multiply", made, 5)
    return finish


def _walk(
    module: ir.Module, lanes: int, way: Way, narrow: int, vectors: int, finish: ir.Function, expand: ir.Function
) -> ir.Function:
    """One member's share of a product: chunks of rows for all tiles, or all rows for some tiles."""
    product = _product(module, lanes, way, narrow, vectors, finish, expand)
    made = function(
        module, f"walk_{way.name.lower()}_{8 if narrow else 16}_{vectors}", [PTR] + [I64] * 6, exported=False
    )
    description, x, y, residual, tiles, part, team = made.args
    e = Emitter(made, lanes)
    rows, columns, panels, chunks, step = (
        e.read(description, int(f), I64) for f in (Field.ROWS, Field.COLUMNS, Field.PANELS, Field.CHUNKS, Field.STEP)
    )
    buffer = e.at.alloca(F32, size=e.read(description, int(ValueField.ROOM), I64))
    buffer.align = 4 * lanes
    # By chunks each member reads its own part of the weights; with many members and tiles, shares would get uneven.
    by_chunks = e.at.or_(e.less(tiles, team), e.less(e.mul(team, 2), e.add(chunks, 1)))

    def share(whole: Node, divided: Node) -> list[Node]:
        bounds = (e.div(e.mul(e.add(part, i), whole), team) for i in range(2))
        return [e.at.select(divided, b, e.constant(o)) for b, o in zip(bounds, (0, whole), strict=True)]

    chunk_from, chunk_to = share(chunks, by_chunks)
    tile_from, tile_to = share(tiles, e.at.not_(by_chunks))
    tile_bytes = 4 * lanes * vectors
    batch = _BATCH // (lanes * vectors)

    def some_tiles(t: Node, _: list[Node]) -> list[Node]:
        t_end = e.least(e.add(t, batch), tile_to)

        def block(c: Node, _: list[Node]) -> list[Node]:
            c_end = e.least(e.add(c, step), chunk_to)

            def panel(p: Node, _: list[Node]) -> list[Node]:
                def tile(i: Node, _: list[Node]) -> list[Node]:
                    x_at = e.add(x, e.mul(i, e.mul(columns, tile_bytes)))
                    y_off = e.mul(i, e.mul(rows, tile_bytes))
                    none = e.equal(residual, 0)
                    r_at = e.at.select(none, e.constant(0), e.add(residual, y_off))
                    addresses = [e.at.inttoptr(a, PTR) for a in (x_at, e.add(y, y_off), r_at)]
                    e.at.call(product, [description, *addresses, buffer, p, c, c_end])
                    return []

                e.loop(t, t_end, tile)
                return []

            e.loop(0, panels, panel)
            return []

        e.loop(chunk_from, chunk_to, block, step=step)
        return []

    e.loop(tile_from, tile_to, some_tiles, step=batch)
    e.at.ret_void()
    return made


def _product(
    module: ir.Module, lanes: int, way: Way, narrow: int, vectors: int, finish: ir.Function, expand: ir.Function
) -> ir.Function:
    """One panel of W, rows of the chunks [first, last), times one tile: added to Y, and finished if it is the last."""
    name = f"{way.name.lower()}_{8 if narrow else 16}_{vectors}"
    made = function(module, name, [PTR] * 5 + [I64] * 3, exported=False)
    description, x, y, residual, buffer, panel, first, last = made.args
    e = Emitter(made, lanes)
    rows = height(way, lanes)
    tile, align = lanes * vectors, lanes * 4
    inner = min(vectors, 2) if way is not Way.SLICED and lanes == 8 else vectors  # what registers have room for
    index_type = I8 if narrow else I16
    segments = segments_of(way)

    def field(which: Field, kind: Node = PTR) -> Node:
        return e.read(description, int(which), kind)

    starts, counts, order, index, values, bias = (
        field(f) for f in (Field.STARTS, Field.COUNTS, Field.ORDER, Field.INDEX, Field.VALUES, Field.BIAS)
    )
    chunks, activation = field(Field.CHUNKS, I64), field(Field.ACTIVATION, I64)
    x_panel = e.element(x, e.mul(panel, e.mul(field(Field.WIDTH, I64), tile)), F32)
    opening = e.equal(panel, 0)
    nothing = e.at.and_(e.equal(activation, 0), e.equal(e.at.ptrtoint(residual, I64), 0))
    closing = e.at.and_(e.equal(panel, e.sub(field(Field.PANELS, I64), 1)), e.at.not_(nothing))

    room, largest = (e.read(description, int(f), I64) for f in (ValueField.ROOM, ValueField.LARGEST))
    expanded = e.at.select(e.equal(room, 0), e.constant(1 << 60), e.constant(0))  # floats are there from the beginning
    scales = e.read(description, int(ValueField.SCALES), PTR)
    scaled = e.at.not_(e.equal(e.at.ptrtoint(scales, I64), 0))
    panel_scales = e.element(scales, e.mul(panel, field(Field.ROWS, I64)), F32)

    def floats(value_at: Node, ready: Node, source: Node) -> tuple[Node, Node]:
        """Makes sure that a group's values are there as floats: up to which number they are, and where number 0 is."""

        def more() -> list[Node]:
            e.at.call(expand, [description, values, value_at, buffer])
            return [e.add(value_at, room), e.at.gep(buffer, [e.sub(0, value_at)], source_etype=F32)]

        until, base = e.choose(e.less(ready, e.add(value_at, largest)), more, lambda: [ready, source])
        return until, base

    def half(h: Node, _: list[Node]) -> list[Node]:
        offset = e.mul(h, inner * lanes)
        x_half, y_half, r_half = (e.element(base, offset, F32) for base in (x_panel, y, residual))

        def fetch(g: Node) -> None:
            """Sums of a group on their way to the first-level cache."""
            for r in range(rows):
                row = e.mul(e.wide(order, e.add(e.mul(g, rows), r), I32), tile)
                for v in range(0, inner, max(1, 16 // lanes)):
                    e.prefetch(y_half, e.add(row, lanes * v))

        def group(g: Node, carried: list[Node], end: Node) -> list[Node]:
            at, value_at, ready, source = carried
            ready, source = floats(value_at, ready, source)
            if lanes <= 8:  # their second-level caches are small, and so are the vectors that hide waiting for it
                fetch(e.least(e.add(g, 1), e.sub(end, 1)))
            ids = [e.wide(order, e.add(e.mul(g, rows), r), I32) for r in range(rows)]
            outs = [e.element(y_half, e.mul(i, tile), F32) for i in ids]

            def before() -> list[Node]:
                return e.choose(
                    opening,
                    lambda: [s for i in ids for s in [e.spread(e.read(bias, i, F32))] * inner],
                    lambda: [e.load(out, lanes * v, align) for out in outs for v in range(inner)],
                )

            flat = e.choose(scaled, lambda: [e.number(0)] * (rows * inner), before)
            sums = [flat[r * inner : (r + 1) * inner] for r in range(rows)]
            sums, at, value_at = steps_of(way)(
                Group(e, counts, index, source, x_half, index_type, tile, segments), g, sums, at, value_at
            )

            flat = [s for row in sums for s in row]

            def times_scale(flat: list[Node] = flat) -> list[Node]:
                factors = [e.spread(e.read(panel_scales, i, F32)) for i in ids for _ in range(inner)]
                return [e.fma(f, s, b) for f, s, b in zip(factors, flat, before(), strict=True)]

            flat = e.choose(scaled, times_scale, partial(list, flat))
            sums = [flat[r * inner : (r + 1) * inner] for r in range(rows)]
            # A row that stands for none repeats the first: its place is written before the first row's sums are.
            for out, row in reversed(list(zip(outs, sums, strict=True))):
                for v, s in enumerate(row):
                    e.store(s, out, lanes * v, align)
            with e.at.if_then(closing):
                for r, out in enumerate(outs):
                    real = e.constant(1) if r == 0 else None
                    left = e.element(r_half, e.mul(ids[r], tile), F32)
                    null = e.equal(e.at.ptrtoint(residual, I64), 0)
                    left = e.at.select(null, residual, left)
                    arguments = [out, left, activation, e.constant(inner)]
                    if real is not None:
                        e.at.call(finish, arguments)
                    else:
                        with e.at.if_then(e.at.not_(e.equal(ids[r], ids[0]))):
                            e.at.call(finish, arguments)
            return [at, value_at, ready, source]

        def chunk(c: Node, _: list[Node]) -> list[Node]:
            entry = e.mul(e.add(e.mul(panel, chunks), c), 3)
            begin, at, value_at, end = (e.read(starts, e.add(entry, i), I64) for i in range(4))
            e.loop(begin, end, partial(group, end=end), [at, value_at, expanded, values])
            return []

        e.loop(first, last, chunk)
        return []

    e.loop(0, vectors // inner, half)
    e.at.ret_void()
    return made


class Group:
    """What the inner loops of both ways read."""

    def __init__(
        self,
        e: Emitter,
        counts: Node,
        index: Node,
        values: Node,
        x: Node,
        index_type: Node,
        tile: Node,
        segments: int,
        align: int | None = None,
    ) -> None:
        self.e = e
        self.counts = counts
        self.index = index
        self.values = values
        self.x = x
        self.index_type = index_type
        self.tile = tile
        self.segments = segments
        self.align = 4 * e.lanes if align is None else align  # of vectors of X, in bytes

    def count(self, g: Node, segment: int) -> Node:
        """Steps of a segment of group ``g``."""
        return self.e.wide(self.counts, self.e.add(self.e.mul(g, self.segments), segment), I16)

    def no_steps(self, g: Node, segments: int) -> Node:
        """Whether the first, at least 8, segments of group ``g`` have no steps."""
        eight = ir.IntType(128)
        first = self.e.mul(g, self.segments)
        both = [
            self.e.at.load(self.e.element(self.counts, self.e.add(first, at), I16), align=2, typ=eight)
            for at in (0, segments - 8)
        ]
        return self.e.at.icmp_unsigned("==", self.e.at.or_(*both), ir.Constant(eight, 0))

    def inputs(self, at: Node) -> Node:
        """Address of the row of X that index number ``at`` names."""
        return self.row(self.e.wide(self.index, at, self.index_type))

    def row(self, column: Node) -> Node:
        """Address of a row of X."""
        return self.e.element(self.x, self.e.mul(column, self.tile), F32)

    def columns(self, at: Node, count: int) -> list[Node]:
        """So many indices from number ``at`` on, read as one word: loads are what limits these loops."""
        width = self.index_type.width
        word = ir.IntType(width * count)
        loaded = self.e.at.load(self.e.element(self.index, at, self.index_type), align=width // 8, typ=word)
        found = []
        for k in range(count):
            part = self.e.at.lshr(loaded, ir.Constant(word, width * k)) if k else loaded
            found.append(self.e.at.zext(self.e.at.trunc(part, self.index_type), I64))
        return found

    @property
    def quads(self) -> bool:
        """Whether four weights are better loaded at once and spread from there, than each by a load of its own.

        Where a vector holds few floats, loads and operations per multiply-add are what limits these loops.
        """
        return self.e.lanes <= 8

    def weights(self, at: Node, count: int) -> list[Node]:
        """So many values from number ``at`` on, each in every lane."""
        if not self.quads or count != 4:
            return [self.e.spread(self.e.read(self.values, self.e.add(at, k), F32)) for k in range(count)]
        four = self.e.at.load(self.e.element(self.values, at, F32), align=4, typ=ir.VectorType(F32, 4))
        again = self.e.lanes // 4
        held = self.e.fence(self.e.shuffle(four, four, [*range(4)] * again))
        return [self.e.shuffle(held, held, [4 * i + k for i in range(again) for _ in range(4)]) for k in range(count)]

    def vector(self, address: Node, v: int) -> Node:
        """Vector ``v`` of a row of X."""
        return self.e.load(address, self.e.lanes * v, self.align)


Steps = Callable[[Group, Node, list[list[Node]], Node, Node], tuple[list[list[Node]], Node, Node]]


def steps_of(way: Way) -> Steps:
    """What goes through the non-zeros of a group."""
    return {
        Way.SLICED: sliced_steps,
        Way.PAIRS: pair_steps,
        Way.PATTERNS: pattern_steps,
        Way.PAIRINGS: pairing_steps,
    }[way]


def sliced_steps(
    group: Group, g: Node, sums: list[list[Node]], at: Node, value_at: Node
) -> tuple[list[list[Node]], Node, Node]:
    """Every row steps through as many non-zeros as the others: one of each at a time."""
    sums, end = _side_by_side(group, group.count(g, 0), sums, at, 0)
    return sums, end, group.e.add(value_at, group.e.sub(end, at))


def pair_steps(
    group: Group, g: Node, sums: list[list[Node]], at: Node, value_at: Node
) -> tuple[list[list[Node]], Node, Node]:
    """Columns of the first pair of rows beside those of the second, then every row's own."""
    sums, at, value_at = _two_pairs(group, group.count(g, 0), PAIRINGS[0], sums, at, value_at)
    sums, last = _side_by_side(group, group.count(g, 1), sums, at, group.e.sub(value_at, at))
    return sums, last, group.e.add(value_at, group.e.sub(last, at))


def pairing_steps(
    group: Group, g: Node, sums: list[list[Node]], at: Node, value_at: Node
) -> tuple[list[list[Node]], Node, Node]:
    """Pairing after pairing, then every row's own."""
    for segment, pairing in enumerate(PAIRINGS):
        sums, at, value_at = _two_pairs(group, group.count(g, segment), pairing, sums, at, value_at)
    sums, last = _side_by_side(group, group.count(g, len(PAIRINGS)), sums, at, group.e.sub(value_at, at))
    return sums, last, group.e.add(value_at, group.e.sub(last, at))


def _two_pairs(
    group: Group, steps: Node, pairing: tuple[tuple[int, int], ...], sums: list[list[Node]], at: Node, value_at: Node
) -> tuple[list[list[Node]], Node, Node]:
    """One column of either pair at a time."""
    e, inner = group.e, len(sums[0])
    end = e.add(at, e.mul(steps, 2))

    def step(p: Node, carried: list[Node]) -> list[Node]:
        w, *flat = carried
        out = list(flat)
        e.prefetch(group.values, e.add(w, _AHEAD), F32)  # loads are not what limits these steps
        weights = group.weights(w, 4)
        for k, pair in enumerate(pairing):
            x_row = group.inputs(e.add(p, k))
            vectors = [group.vector(x_row, v) for v in range(inner)]
            for i, r in enumerate(pair):
                for v in range(inner):
                    out[r * inner + v] = e.fma(weights[2 * k + i], vectors[v], flat[r * inner + v])
        return [e.add(w, 4), *out]

    value_at, *flat = e.loop(at, end, step, [value_at, *(s for row in sums for s in row)], step=2)
    return [flat[r * inner : (r + 1) * inner] for r in range(len(sums))], end, value_at


def _side_by_side(
    group: Group, steps: Node, sums: list[list[Node]], at: Node, shift: Node
) -> tuple[list[list[Node]], Node]:
    """One non-zero of every row at a time; values lie ``shift`` behind their indices."""
    e, rows, inner = group.e, len(sums), len(sums[0])
    end = e.add(at, e.mul(steps, rows))

    def several(p: Node, carried: list[Node], count: int) -> list[Node]:
        """So many weights, row after row, step after step."""
        out = list(carried)
        w = p if isinstance(shift, int) else e.add(p, shift)
        for i, (column, weight) in enumerate(zip(group.columns(p, count), group.weights(w, count), strict=True)):
            x_row, first = group.row(column), i % rows * inner
            for v in range(inner):
                out[first + v] = e.fma(weight, group.vector(x_row, v), out[first + v])
        return out

    # Groups with fewer than four rows have so many steps that they take whole quads of weights.
    count = 4 if group.quads else rows
    flat = e.loop(at, end, partial(several, count=count), [s for row in sums for s in row], step=count)
    return [flat[r * inner : (r + 1) * inner] for r in range(rows)], end


def pattern_steps(
    group: Group, g: Node, sums: list[list[Node]], at: Node, value_at: Node
) -> tuple[list[list[Node]], Node, Node]:
    """Pattern by pattern; one row of X is loaded for all rows of the pattern.

    Rows in blocks share all their columns: then only the last pattern, all four rows, has any.
    """
    e, inner = group.e, len(sums[0])

    def steps(segments: range, sums: list[list[Node]], at: Node, value_at: Node) -> list[Node]:
        for segment in segments:
            members = [r for r in range(4) if PATTERNS[segment] >> r & 1]
            end = e.add(at, group.count(g, segment))

            def column(p: Node, carried: list[Node], members: list[int] = members) -> list[Node]:
                w, *flat = carried
                x_row = group.inputs(p)
                vectors = [group.vector(x_row, v) for v in range(inner)]
                out: list[Node] = []
                for k, weight in enumerate(group.weights(w, len(members))):
                    out += [e.fma(weight, vectors[v], flat[k * inner + v]) for v in range(inner)]
                return [e.add(w, len(members)), *out]

            value_at, *flat = e.loop(at, end, column, [value_at, *(s for r in members for s in sums[r])])
            sums = [flat[members.index(r) * inner :][:inner] if r in members else sums[r] for r in range(4)]
            at = end
        return [at, value_at, *(s for row in sums for s in row)]

    given = [at, value_at, *(s for row in sums for s in row)]
    last = len(PATTERNS) - 1
    at, value_at, *flat = e.choose(
        group.no_steps(g, last), lambda: given, lambda: steps(range(last), sums, at, value_at)
    )
    sums = [flat[r * inner : (r + 1) * inner] for r in range(4)]
    at, value_at, *flat = steps(range(last, last + 1), sums, at, value_at)
    return [flat[r * inner : (r + 1) * inner] for r in range(4)], at, value_at
