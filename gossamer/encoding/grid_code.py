"""Compiled scaling of grids, as LLVM IR: numbers of groups from integers, in one pass."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import F32, I8, I32, I64, PTR, Emitter, function

__all__ = ["grid_kernels"]

Node = Any  # llvmlite has no type stubs


def grid_kernels(lanes: int) -> str:
    """LLVM IR of a module: ``scale(out, q, scales, zeros, groups, size)``: out float32 = scale · (q − zero).

    q uint8 and out [groups, size], scales and zeros float32 [groups].

    Args:
        lanes: floats per vector register.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_grid")
    made = function(module, "scale", [PTR, PTR, PTR, PTR, I64, I64], exported=True)
    out, q, scales, zeros, groups, size = made.args
    e = Emitter(made, lanes)
    octets, integers = ir.VectorType(I8, lanes), ir.VectorType(I32, lanes)
    whole = e.mul(e.div(size, lanes), lanes)

    def group(g: Node, _: list[Node]) -> list[Node]:
        first = e.mul(g, size)
        scale, zero = e.read(scales, g, F32), e.read(zeros, g, F32)
        all_scale, all_zero = e.spread(scale), e.spread(zero)
        source, target = e.element(q, first, I8), e.element(out, first, F32)

        def several(i: Node, _: list[Node]) -> list[Node]:
            codes = e.at.load(e.element(source, i, I8), align=1, typ=octets)
            # from 32 bits with a sign, which every processor converts: they are below 256
            numbers = e.at.sitofp(e.at.zext(codes, integers), e.vector)
            e.store(e.at.fmul(e.at.fsub(numbers, all_zero), all_scale), target, i)
            return []

        def one(i: Node, _: list[Node]) -> list[Node]:
            number = e.at.sitofp(e.at.zext(e.read(source, i, I8), I32), F32)
            e.write(e.at.fmul(e.at.fsub(number, zero), scale), target, i)
            return []

        e.loop(0, whole, several, step=lanes)
        e.loop(whole, size, one)
        return []

    e.loop(0, groups, group)
    e.at.ret_void()
    return str(module)
