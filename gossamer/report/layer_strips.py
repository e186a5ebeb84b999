"""Density, bits and rank of every layer as aligned strips; what runs each layer, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.report.looks import Look
from gossamer.report.plots import STRIP, bar_strip, dot_strip
from gossamer.report.scales import Scale, bytes_text, finite, milliseconds, percent, times
from gossamer.report.svg import Markup, tag
from gossamer.report.tables import Cell, Column, Figure, Table, numeric, text

__all__ = ["gallery", "kernel_strips", "layer_strips"]

_FULL_BITS = 32.0


def largest(layers: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """So many of the layers, those with the most weights, in the order in which they came."""
    kept = {r["name"] for r in sorted(layers, key=lambda r: -r["dense_bytes"])[:most]}
    return [r for r in layers if r["name"] in kept]


def layer_strips(look: Look, most: int) -> Figure:
    """A row per tensor, the largest if there are many, in the network's order.

    Args:
        look: the file.
        most: rows.
    """
    layers: Sequence[Mapping[str, Any]] = look.file["layers"]
    shown = largest(layers, most)
    bits = Scale.of([0.25, _FULL_BITS, *(r["bits"] for r in shown)], 6.0, STRIP - 6.0, log=True, room=0.0)
    ranked = any(r["rank"] is not None for r in shown)
    columns = [
        Column("tensor", False),
        Column("shape", False),
        Column("bytes"),
        Column("smaller"),
        Column("density", hint="share of weights that are not zero"),
        Column("bits per weight", hint="bytes in the file × 8 / weights, logarithmic; the tick is 32"),
        *([Column("rank", hint="of the full rank")] if ranked else []),
        Column("stored as", False),
    ]
    rows = tuple(_row(r, bits, ranked=ranked) for r in shown)
    left = len(layers) - len(shown)
    note = "In the network's order." + (
        f" {left} smaller tensors are left out; gossamer report --json has all." if left else ""
    )
    table = Table(f"Tensors of {look.name}", tuple(columns), rows)
    return Figure(
        f"layers-{look.letter.lower()}", "Density, bits and rank, tensor by tensor", note, Markup(""), table, open=True
    )


def _row(r: Mapping[str, Any], bits: Scale, *, ranked: bool) -> tuple[Cell, ...]:
    shape, size = "×".join(str(s) for s in r["shape"]) or "scalar", float(r["bytes"])
    ratio = r["dense_bytes"] / size if size else None
    cells = [
        text(str(r["name"])),
        Cell(shape, float(r["dense_bytes"])),
        numeric(size, bytes_text(size)),
        numeric(ratio, times(ratio)),
        numeric(r["density"], percent(finite(r["density"])), bar_strip(float(r["density"]))),
        numeric(r["bits"], f"{r['bits']:.2f}", dot_strip(float(r["bits"]), bits, dense=_FULL_BITS)),
    ]
    if ranked:
        rank, full = finite(r["rank"]), finite(r.get("full_rank"))
        share = rank / full if rank is not None and full else None
        mark = Markup("") if share is None else bar_strip(share, "bar two")
        told = "" if rank is None else f"{rank:.0f}" + (f" of {full:.0f}" if full else "")
        cells.append(numeric(share, told, mark))
    return (*cells, text(str(r["encoding"]), kind="code"))


def gallery(look: Look) -> Figure | None:
    """Pictures of masks; None if the file has none."""
    rows = [r for r in look.file["layers"] if r.get("mask")]
    if not rows:
        return None
    cards = [card for r in rows for card in _cards(r)]
    columns = (Column("tensor", False), Column("shape", False), Column("density"), Column("densest cell"))
    table = Table(
        f"Masks of {look.name}",
        columns,
        tuple(
            (
                text(str(r["name"])),
                text("×".join(str(s) for s in r["shape"])),
                numeric(r["density"], percent(finite(r["density"]), 2)),
                numeric(r["mask"]["darkest"], percent(finite(r["mask"]["darkest"]))),
            )
            for r in rows
        ),
    )
    note = (
        "Outputs go down, inputs to the right; darker cells keep more of their weights, the darkest as many as is said."
    )
    drawing = tag("div", {"class": "gallery", "role": "list"}, *cards)
    return Figure(f"masks-{look.letter.lower()}", "Which weights are left", note, drawing, table)


def _cards(r: Mapping[str, Any]) -> list[Markup]:
    made = [_card(r["mask"], str(r["name"]), f"{percent(finite(r['density']))} left")]
    if r.get("input_mask"):
        made.append(_card(r["input_mask"], f"{r['name']}: what it looks at", "per pixel of the input"))
    return made


def _card(picture: Mapping[str, Any], name: str, told: str) -> Markup:
    tall, wide = int(picture["height"]), int(picture["width"])
    scale = 176 / max(wide, tall)
    size = {"width": max(24, round(wide * scale)), "height": max(24, round(tall * scale))}
    image = tag("img", {"src": picture["uri"], "alt": f"mask of {name}", "class": "pixels", **size})
    darkest = percent(finite(picture["darkest"]), 0)
    words = tag("p", {}, tag("b", {}, name), tag("br"), f"{told}, darkest {darkest}")
    return tag("div", {"class": "card", "role": "listitem"}, image, words)


def kernel_strips(look: Look, most: int) -> Figure | None:
    """What runs each layer of the lowered network; None if it was not lowered."""
    kernels: Sequence[Mapping[str, Any]] | None = look.file.get("kernels")
    if not kernels:
        return None
    timed = [t for k in kernels if (t := finite(k["milliseconds"])) is not None]
    ordered = sorted(kernels, key=lambda k: -(finite(k["milliseconds"]) or 0.0))[:most]
    kept = [k for k in kernels if any(k is o for o in ordered)]
    longest = max(
        [*timed, *(d for k in kernels if (d := finite(k.get("dense_milliseconds"))) is not None)], default=0.0
    )
    rows = tuple(_kernel(k, longest) for k in kept)
    columns = (
        Column("layer", False),
        Column("time", hint="of the kernel alone; the tick is the dense layer"),
        Column("runs on", False),
        Column("why", False),
    )
    title = "What runs each layer, and for how long"
    if len(timed) > 1 and sum(timed) > 0:
        first = max(kernels, key=lambda k: finite(k["milliseconds"]) or 0.0)
        of = "" if len(timed) == len(kernels) else f" of {len(timed)} timed layers"
        title = f"{percent(max(timed) / sum(timed), 0)} of the time{of} goes to layer “{first['layer']}”"
    note = "Measured candidates took turns on this machine, the dense layer among them; the fastest was kept."
    table = Table(f"Kernels of {look.name}", columns, rows)
    return Figure(f"kernels-{look.letter.lower()}", title, note, Markup(""), table, open=True)


def _kernel(k: Mapping[str, Any], longest: float) -> tuple[Cell, ...]:
    time, dense = finite(k["milliseconds"]), finite(k.get("dense_milliseconds"))
    tick = dense / longest if dense is not None and longest > 0 else None
    mark = bar_strip(time / longest if time is not None and longest > 0 else 0.0, tick=tick)
    return (
        text(str(k["layer"]) or "the whole network"),
        numeric(time, milliseconds(time), mark),
        text(str(k["kernel"]), kind="code"),
        text(str(k["why"] or "fastest when measured"), kind="words"),
    )
