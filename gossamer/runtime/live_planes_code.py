"""Planes of images, one after the other or interleaved, to blocks with one image per lane and back, as LLVM IR."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, final

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I32, I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team

__all__ = ["PlanesField", "add_planes"]

Node = Any  # llvmlite has no type stubs


class PlanesField(IntEnum):
    """Where kernels find what in a description of blocks, beside ``layout.Pool``; distances in bytes."""

    CHANNELS = 0
    POSITIONS = 1  # of a plane
    TABLE = 2  # uint32 [POSITIONS]: distance of each position from the first
    LINE = 3  # from channel to channel
    BLOCK = 4
    HEIGHT = 5
    ROW = 6
    FRAME = 7  # columns of zeros before each line
    WIDTH = 8  # columns of a plane


def add_planes(module: ir.Module, lanes: int) -> None:
    """Adds ``pack``, ``unpack``, ``pack_last`` and ``unpack_last``, all (description, planes, …, images, threads).

    The first two know planes that lie one after the other, (…, image, channel, blocks, …) with distances in floats
    between images and between planes; the others interleaved planes, (…, image, position, blocks, …). Lanes beyond the
    last image become zero in blocks. Columns of zeros are written before each line. Members of a team take planes, or
    image rows.

    Args:
        module: gets the entry points.
        lanes: floats per vector register.
    """
    for packing in (True, False):
        name = "pack" if packing else "unpack"
        _change(module, lanes, name, _plane(module, lanes, packing=packing), PlanesField.CHANNELS, PlanesField.LINE)
        row = _interleaved_row(module, lanes, packing=packing)
        _change(module, lanes, f"{name}_last", row, PlanesField.HEIGHT, PlanesField.ROW)


def _change(
    module: ir.Module, lanes: int, name: str, one: ir.Function, pieces: PlanesField, distance: PlanesField
) -> None:
    """Members take pieces of blocks: so many per block, so far apart in it."""
    made = function(module, f"{name}_share", [PTR] + [I64] * 7, exported=False)
    description, planes, image, step, blocks, images, part, team = made.args
    e = Emitter(made, lanes)
    per_block, apart, block, width = (
        e.read(description, int(f), I64) for f in (pieces, distance, PlanesField.BLOCK, PlanesField.WIDTH)
    )
    count = e.div(e.add(images, lanes - 1), lanes)
    low, high = (e.div(e.mul(e.add(part, i), e.mul(count, per_block)), team) for i in range(2))
    outside = e.mul(step, width) if pieces is PlanesField.HEIGHT else step

    def unit(u: Node, _: list[Node]) -> list[Node]:
        b = e.div(u, per_block)
        i = e.sub(u, e.mul(b, per_block))
        there = e.add(planes, e.mul(4, e.add(e.mul(e.mul(b, lanes), image), e.mul(i, outside))))
        here = e.add(blocks, e.mul(b, block), e.mul(i, apart))
        left = e.sub(images, e.mul(b, lanes))
        e.at.call(one, [description, *(e.at.inttoptr(a, PTR) for a in (there, here)), image, step, left])
        return []

    e.loop(low, high, unit)
    e.at.ret_void()
    in_team(module, name, made, 5)


@final
class _Images:
    """The images of a block: where they are, and which of them there are."""

    def __init__(self, e: Emitter, planes: Node, image: Node, left: Node) -> None:
        self.e, self.left = e, left
        # Beyond the last image the last one is read, or written before it is written itself.
        self.there = [e.element(planes, e.mul(e.least(i, e.sub(left, 1)), image), F32) for i in range(e.lanes)]
        steps = ir.Constant(ir.VectorType(I32, e.lanes), list(range(e.lanes)))
        known = e.at.trunc(e.least(left, e.lanes), I32)
        undefined = ir.Constant(ir.VectorType(I32, e.lanes), ir.Undefined)
        spread = e.at.insert_element(undefined, known, ir.Constant(I32, 0))
        self.kept = e.at.icmp_signed("<", steps, e.shuffle(spread, spread, [0] * e.lanes))

    def square(self, p: Node, here: list[Node], *, packing: bool) -> None:
        """As many numbers of each image from p on as there are images; each has its own vector in the block."""
        e, align = self.e, self.e.lanes * 4
        if packing:
            for vector, target in zip(e.transpose([e.load(source, p) for source in self.there]), here, strict=True):
                e.store(e.at.select(self.kept, vector, e.number(0)), target, 0, align)
        else:
            loaded = e.transpose([e.load(source, 0, align) for source in here])
            for target, vector in reversed(list(zip(self.there, loaded, strict=True))):
                e.store(vector, target, p)

    def single(self, p: Node, here: Node, *, packing: bool) -> None:
        """One number of each image."""
        e = self.e
        for i, plane in reversed(list(enumerate(self.there))):
            if packing:
                number = e.at.select(e.less(i, self.left), e.read(plane, p, F32), ir.Constant(F32, 0.0))
                e.write(number, here, i)
            else:
                e.write(e.read(here, i, F32), plane, p)


def _blank(e: Emitter, description: Node, line: Node) -> None:
    """Zeros before a line."""

    def one(j: Node, _: list[Node]) -> list[Node]:
        away = e.mul(e.add(j, 1), -4 * e.lanes)
        e.store(e.number(0), e.at.gep(line, [away], source_etype=I8), 0, 4 * e.lanes)
        return []

    e.loop(0, e.read(description, int(PlanesField.FRAME), I64), one)


def _plane(module: ir.Module, lanes: int, *, packing: bool) -> ir.Function:
    """One channel of one block: squares of as many positions as there are images."""
    name = "pack_plane" if packing else "unpack_plane"
    made = function(module, name, [PTR] * 3 + [I64] * 3, exported=False)
    description, planes, block, image, _step, left = made.args
    e = Emitter(made, lanes)
    positions = e.read(description, int(PlanesField.POSITIONS), I64)
    table = e.read(description, int(PlanesField.TABLE), PTR)
    images = _Images(e, planes, image, left)

    def here(p: Node) -> Node:
        return e.at.gep(block, [e.wide(table, p, I32)], source_etype=I8)

    def squares(p: Node, _: list[Node]) -> list[Node]:
        first = e.least(p, e.sub(positions, lanes))  # the last one may overlap the one before
        images.square(first, [here(e.add(first, i)) for i in range(lanes)], packing=packing)
        return []

    def single(p: Node, _: list[Node]) -> list[Node]:
        images.single(p, here(p), packing=packing)
        return []

    with e.at.if_else(e.less(positions, lanes)) as (few, many):
        with few:
            e.loop(0, positions, single)
        with many:
            e.loop(0, positions, squares, step=lanes)
    if packing:
        height, row = (e.read(description, int(f), I64) for f in (PlanesField.HEIGHT, PlanesField.ROW))

        def before(h: Node, _: list[Node]) -> list[Node]:
            _blank(e, description, e.at.gep(block, [e.mul(h, row)], source_etype=I8))
            return []

        e.loop(0, height, before)
    e.at.ret_void()
    return made


def _interleaved_row(module: ir.Module, lanes: int, *, packing: bool) -> ir.Function:
    """One image row of one block: squares of as many channels as there are images."""
    name = "pack_row" if packing else "unpack_row"
    made = function(module, name, [PTR] * 3 + [I64] * 3, exported=False)
    description, planes, block, image, step, left = made.args
    e = Emitter(made, lanes)
    channels, line, width = (
        e.read(description, int(f), I64) for f in (PlanesField.CHANNELS, PlanesField.LINE, PlanesField.WIDTH)
    )
    images = _Images(e, planes, image, left)

    def here(c: Node, w: Node) -> Node:
        return e.at.gep(block, [e.add(e.mul(c, line), e.mul(w, 4 * lanes))], source_etype=I8)

    def squares(c: Node, _: list[Node]) -> list[Node]:
        first = e.least(c, e.sub(channels, lanes))  # the last one may overlap the one before

        def position(w: Node, _: list[Node]) -> list[Node]:
            vectors = [here(e.add(first, i), w) for i in range(lanes)]
            images.square(e.add(e.mul(w, step), first), vectors, packing=packing)
            return []

        e.loop(0, width, position)
        return []

    def single(c: Node, _: list[Node]) -> list[Node]:
        def position(w: Node, _: list[Node]) -> list[Node]:
            images.single(e.add(e.mul(w, step), c), here(c, w), packing=packing)
            return []

        e.loop(0, width, position)
        return []

    with e.at.if_else(e.less(channels, lanes)) as (few, many):
        with few:
            e.loop(0, channels, single)
        with many:
            e.loop(0, channels, squares, step=lanes)
    if packing:

        def before(c: Node, _: list[Node]) -> list[Node]:
            _blank(e, description, here(c, e.constant(0)))
            return []

        e.loop(0, channels, before)
    e.at.ret_void()
    return made
