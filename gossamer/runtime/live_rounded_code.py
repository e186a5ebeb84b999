"""The dense gradient from activations rounded to bfloat16, which some processors multiply twice as fast, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from gossamer.jit.emit import I64, PTR, Emitter, function
from gossamer.runtime.layout import in_team
from gossamer.runtime.live_dense_code import add_dense_gradient, panel_columns

__all__ = ["rounded_kernels"]

Node = Any  # llvmlite has no type stubs


def rounded_kernels(lanes: int) -> str:
    """LLVM IR of a module with the entry points of `add_dense_gradient` for pairs of tokens in bfloat16.

    And ``pair_panels(pool, rows, pairs, panels, made, threads)``: float32 rows [2 · pairs, panels · panel_columns]
    become panels of pairs, [panels, pairs, panel_columns, 2] in bfloat16, to the nearest, of equally near ones to the
    even one.

    Args:
        lanes: floats per vector register: 16.

    Returns:
        The module's text.
    """
    module = ir.Module("gossamer_rounded")
    add_dense_gradient(module, lanes, rounded=True)
    _pair_panels(module, lanes)
    return str(module)


def _pair_panels(module: ir.Module, lanes: int) -> None:
    """Members take pairs."""
    made = function(module, "pair_panels_share", [PTR] + [I64] * 6, exported=False)
    _, rows, pairs, panels, target, part, team = made.args
    e = Emitter(made, lanes)
    rows_at, target_at = (e.at.inttoptr(a, PTR) for a in (rows, target))
    width = panel_columns(lanes)
    stride = e.mul(panels, width)
    low, high = (e.div(e.mul(e.add(part, i), pairs), team) for i in range(2))

    def pair(t: Node, _: list[Node]) -> list[Node]:
        first = e.mul(e.mul(t, 2), stride)

        def panel(p: Node, _: list[Node]) -> list[Node]:
            source, there = e.add(first, e.mul(p, width)), e.mul(e.add(e.mul(p, pairs), t), width)
            for v in range(0, width, lanes):
                one, other = (e.load(rows_at, e.add(source, e.mul(stride, i), v)) for i in range(2))
                e.store(e.paired(one, other), target_at, e.add(there, v))
            return []

        e.loop(0, panels, panel)
        return []

    e.loop(low, high, pair)
    e.at.ret_void()
    in_team(module, "pair_panels", made, 4)
