"""Description length: what it takes to send the network and then the labels, beside sending the labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.report.looks import Look
from gossamer.report.plots import badge, length_strip
from gossamer.report.scales import Scale, count, finite
from gossamer.report.svg import Markup
from gossamer.report.tables import Cell, Column, Figure, Table, numeric

__all__ = ["description_lengths"]

_WIDTH = 240.0


def description_lengths(looks: Sequence[Look], dense: Look | None) -> list[Figure]:
    """A figure per set of labels that all files with a description length have."""
    found = [(look, part) for look in looks if (part := look.part("description_length")) is not None]
    names = [name for name in (found[0][1]["sets"] if found else ()) if all(name in p["sets"] for _, p in found)]
    return [_figure(i, str(name), found, dense) for i, name in enumerate(names)]


def _figure(i: int, name: str, found: Sequence[tuple[Look, Mapping[str, Any]]], dense: Look | None) -> Figure:
    sets = [(look, part, part["sets"][name]) for look, part in found]
    uniform = float(sets[0][2]["uniform_bits"])
    totals = [float(part["two_part_bits"][name]) for _, part, _ in sets]
    labels = [float(own["label_bits"]) for *_, own in sets]
    scale = Scale.of([uniform, *totals, *labels, *_dense_totals(found, name)], 6.0, _WIDTH - 6.0, log=True, room=0.03)
    rows = [_row(look, part, own, name, scale, uniform) for look, part, own in sets]
    whole = _dense_row(found, dense, name, scale, uniform)
    note = (
        f"Bits to send {sets[0][2]['labels']:,} labels to someone who has the inputs: what they take under the network "
        "(orange), and with the network's file sent first (blue), on a logarithmic scale. The tick is what they take "
        "without any network: left of it, the file pays for itself."
    )
    paying = [look for (look, *_), total in zip(sets, totals, strict=True) if total < uniform]
    title = f"Description length, {name} labels: " + (
        f"{len(paying)} of {len(sets)} files pay for themselves" if paying else "no file pays for itself yet"
    )
    columns = (
        Column("file", False),
        Column("file + labels", hint="bits in all"),
        Column("file", hint="bits"),
        Column("labels", hint="bits"),
        Column("labels, calibrated", hint="bits, with one temperature"),
        Column("pays from", hint="labels from which on sending the network first is shorter"),
    )
    return Figure(f"lengths-{i}", title, note, Markup(""), Table(title, columns, (*rows, *whole)), open=True)


def _row(
    look: Look, part: Mapping[str, Any], own: Mapping[str, Any], name: str, scale: Scale, uniform: float
) -> tuple[Cell, ...]:
    model, labels = float(part["model_bits"]), float(own["label_bits"])
    total = float(part["two_part_bits"][name])
    mark = length_strip(labels, total, scale, uniform, _WIDTH)
    pays = finite(part["pays_from"].get(name))
    return (
        Cell(look.name, look.name, badge(look.letter)),
        numeric(total, f"{count(total)}", mark),
        numeric(model, count(model)),
        numeric(labels, count(labels)),
        numeric(own.get("label_bits_calibrated"), count(finite(own.get("label_bits_calibrated")))),
        Cell("never", None) if pays is None else numeric(pays, f"{pays:,.0f}"),
    )


def _dense_totals(found: Sequence[tuple[Look, Mapping[str, Any]]], name: str) -> list[float]:
    return [float(whole[name]) for _, part in found if (whole := part.get("dense_two_part_bits")) and name in whole]


def _dense_row(
    found: Sequence[tuple[Look, Mapping[str, Any]]], dense: Look | None, name: str, scale: Scale, uniform: float
) -> list[tuple[Cell, ...]]:
    """The dense network, as those who were compared with it say."""
    for _, part in found:
        whole, labels = part.get("dense_two_part_bits"), finite(part["sets"][name].get("dense_label_bits"))
        if not whole or labels is None:
            continue
        total = float(whole[name])
        model = total - labels
        mark = length_strip(labels, total, scale, uniform, _WIDTH)
        calibrated = finite(part["sets"][name].get("dense_label_bits_calibrated"))
        shown = "dense" if dense is None else dense.name
        cells = (Cell(shown, shown, badge("dense"), "is-dense"), numeric(total, f"{count(total)}", mark))
        more = (numeric(model, count(model)), numeric(labels, count(labels)), numeric(calibrated, count(calibrated)))
        return [(*cells, *more, Cell("–", None))]
    return []
