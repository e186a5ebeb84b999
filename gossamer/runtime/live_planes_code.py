"""Planes [images, channels, rows · columns] to blocks with one image per lane and back, as LLVM IR."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from llvmlite import ir

from gossamer.runtime.emit import F32, I8, I32, I64, PTR, Emitter, function
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


def add_planes(module: ir.Module, lanes: int) -> None:
    """Adds ``pack`` and ``unpack``, (description, planes, image, channel, blocks, images, threads).

    ``image`` and ``channel`` are distances in floats between planes. Lanes beyond the last image become zero in blocks.
    Columns of zeros are written before each line. Members of a team take planes.

    Args:
        module: gets the entry points.
        lanes: floats per vector register.
    """
    for packing in (True, False):
        _change(module, lanes, packing=packing)


def _change(module: ir.Module, lanes: int, *, packing: bool) -> None:
    name = "pack" if packing else "unpack"
    plane = _plane(module, lanes, packing=packing)
    made = function(module, f"{name}_share", [PTR] + [I64] * 7, exported=False)
    description, planes, image, channel, blocks, images, part, team = made.args
    e = Emitter(made, lanes)
    channels, line, block = (
        e.read(description, int(f), I64) for f in (PlanesField.CHANNELS, PlanesField.LINE, PlanesField.BLOCK)
    )
    count = e.div(e.add(images, lanes - 1), lanes)
    low, high = (e.div(e.mul(e.add(part, i), e.mul(count, channels)), team) for i in range(2))

    def unit(u: Node, _: list[Node]) -> list[Node]:
        b = e.div(u, channels)
        c = e.sub(u, e.mul(b, channels))
        there = e.add(planes, e.mul(4, e.add(e.mul(e.mul(b, lanes), image), e.mul(c, channel))))
        here = e.add(blocks, e.mul(b, block), e.mul(c, line))
        left = e.sub(images, e.mul(b, lanes))
        e.at.call(plane, [description, *(e.at.inttoptr(a, PTR) for a in (there, here)), image, left])
        return []

    e.loop(low, high, unit)
    e.at.ret_void()
    in_team(module, name, made, 5)


def _plane(module: ir.Module, lanes: int, *, packing: bool) -> ir.Function:
    """One channel of one block: squares of as many positions as there are images."""
    name = "pack_plane" if packing else "unpack_plane"
    made = function(module, name, [PTR] * 3 + [I64] * 2, exported=False)
    description, planes, block, image, left = made.args
    e = Emitter(made, lanes)
    align = lanes * 4
    positions = e.read(description, int(PlanesField.POSITIONS), I64)
    table = e.read(description, int(PlanesField.TABLE), PTR)
    # Beyond the last image the last one is read, or written before it is written itself.
    there = [e.element(planes, e.mul(e.least(i, e.sub(left, 1)), image), F32) for i in range(lanes)]
    steps = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    known = e.at.trunc(e.least(left, lanes), I32)
    undefined = ir.Constant(ir.VectorType(I32, lanes), ir.Undefined)
    spread = e.at.insert_element(undefined, known, ir.Constant(I32, 0))
    kept = e.at.icmp_signed("<", steps, e.shuffle(spread, spread, [0] * lanes))

    def here(p: Node) -> Node:
        return e.at.gep(block, [e.wide(table, p, I32)], source_etype=I8)

    def square(p: Node) -> None:
        if packing:
            for i, vector in enumerate(e.transpose([e.load(source, p) for source in there])):
                e.store(e.at.select(kept, vector, e.number(0)), here(e.add(p, i)), 0, align)
        else:
            loaded = e.transpose([e.load(here(e.add(p, i)), 0, align) for i in range(lanes)])
            for target, vector in reversed(list(zip(there, loaded, strict=True))):
                e.store(vector, target, p)

    def squares(p: Node, _: list[Node]) -> list[Node]:
        square(e.least(p, e.sub(positions, lanes)))  # the last one may overlap the one before
        return []

    def single(p: Node, _: list[Node]) -> list[Node]:
        for i, plane in reversed(list(enumerate(there))):
            if packing:
                number = e.at.select(e.less(i, left), e.read(plane, p, F32), ir.Constant(F32, 0.0))
                e.write(number, here(p), i)
            else:
                e.write(e.read(here(p), i, F32), plane, p)
        return []

    with e.at.if_else(e.less(positions, lanes)) as (few, many):
        with few:
            e.loop(0, positions, single)
        with many:
            e.loop(0, positions, squares, step=lanes)
    if packing:
        height, row, frame = (
            e.read(description, int(f), I64) for f in (PlanesField.HEIGHT, PlanesField.ROW, PlanesField.FRAME)
        )

        def before(h: Node, _: list[Node]) -> list[Node]:
            def blank(j: Node, _: list[Node]) -> list[Node]:
                away = e.sub(e.mul(h, row), e.mul(e.add(j, 1), align))
                e.store(e.number(0), e.at.gep(block, [away], source_etype=I8), 0, align)
                return []

            e.loop(0, frame, blank)
            return []

        e.loop(0, height, before)
    e.at.ret_void()
    return made
