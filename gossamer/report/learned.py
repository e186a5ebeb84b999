"""Whether confidence can be believed, and who is named worse than before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.report.looks import Look, with_dense
from gossamer.report.plots import STRIP, Frame, dot_strip, drawing, file_cell, multiples
from gossamer.report.scales import Scale, finite, percent, points
from gossamer.report.svg import Markup, label, line, tag
from gossamer.report.tables import Cell, Column, Figure, Table, numeric, text

__all__ = ["Names", "class_name", "class_strips", "most_changed", "reliability"]

Names = Sequence[str] | Mapping[int, str]

_SMALL = 240.0
_TALL = 200.0
_ENOUGH = 10  # answers of a bin that the line goes through


def _share(value: object) -> Cell:
    found = finite(value)
    return numeric(found, percent(found, 2))


def reliability(looks: Sequence[Look], dense: Look | None) -> Figure | None:
    """Accuracy over confidence, one small chart per file; None if not measured."""
    found = [
        (look, part)
        for look in with_dense(looks, dense)
        if (part := look.part("generalisation")) is not None and part["reliability"]
    ]
    if not found:
        return None
    x, y = Scale(0.0, 1.0, 42.0, _SMALL - 18.0), Scale(0.0, 1.0, _TALL - 38.0, 12.0)
    frame = Frame(_SMALL, _TALL, x, y)
    halves = (0.0, 0.5, 1.0)
    axes = frame.axes(halves, halves, lambda v: percent(v, 0), lambda v: percent(v, 0), "confidence")
    members, rows = [], []
    for look, part in found:
        filled = [r for r in part["reliability"] if r["n"] and finite(r["confidence"]) is not None]
        most = max((r["n"] for r in filled), default=1)
        dots = [_bin(frame, r, most) for r in filled]
        curve = frame.curve(
            [(float(r["confidence"]), float(r["accuracy"])) for r in filled if r["n"] >= _ENOUGH], "here thin"
        )
        error = percent(finite(part["calibration_error"]))
        parts = [axes, line(x.start, y.start, x.end, y.end, "axis"), curve, *dots]
        parts.append(label(x.end, y.start - 8, f"error {error}", "note", "end"))
        members.append(
            (look.letter, look.name, drawing(_SMALL, _TALL, f"{look.name}: calibration error {error}", parts))
        )
        head = file_cell(look.letter, look.name)
        rows += [(head, *_bin_cells(r)) for r in part["reliability"]]
    columns = (
        Column("file", False),
        Column("from"),
        Column("to"),
        Column("samples"),
        Column("confidence"),
        Column("right"),
    )
    note = "Answers by how sure the network is; below the diagonal it is too sure. Larger dots hold more answers."
    table = Table("Reliability", columns, tuple(rows))
    return Figure("reliability", "Can its confidence be believed?", note, multiples(members), table)


def _bin(frame: Frame, r: Mapping[str, Any], most: float) -> Markup:
    said = f"{r['n']} answers, {percent(float(r['confidence']))} sure, {percent(float(r['accuracy']))} right"
    at = {"cx": frame.x(float(r["confidence"])), "cy": frame.y(float(r["accuracy"]))}
    return tag("circle", {**at, "r": 1.5 + 5.5 * (r["n"] / most) ** 0.5, "class": "dot soft"}, tag("title", {}, said))


def _bin_cells(r: Mapping[str, Any]) -> tuple[Cell, ...]:
    low, high = finite(r["low"]), finite(r["high"])
    return (
        numeric(low, percent(low, 0)),
        numeric(high, percent(high, 0)),
        numeric(r["n"], f"{r['n']:,}"),
        _share(r["confidence"] if r["n"] else None),
        _share(r["accuracy"] if r["n"] else None),
    )


def class_strips(look: Look, names: Names, most: int) -> Figure | None:
    """Accuracy per class beside the dense network's, the most changed first; None if not measured.

    Args:
        look: the file.
        names: of classes, as far as they are known.
        most: rows.
    """
    part = look.part("generalisation")
    if part is None or not part["per_class"]:
        return None
    listed = most_changed(part["per_class"])
    shown = listed[:most]
    numbers = [
        v
        for r in shown
        for key in ("low", "high", "accuracy", "dense_accuracy")
        if (v := finite(r.get(key))) is not None
    ]
    scale = Scale.of(numbers, 6.0, STRIP - 6.0)
    rows = tuple(_class(r, names, scale) for r in shown)
    changed = [r for r in part["per_class"] if r["changed"]]
    title = (
        f"{len(changed)} of {len(listed)} classes changed by more than chance"
        if changed
        else "No class changed by more than chance"
    )
    columns = (
        Column("class", False),
        Column("samples"),
        Column("right", hint="whiskers: 95% interval; the tick is the dense network"),
        Column("dense"),
        Column("points", hint="against dense"),
        Column("p, adjusted", hint="exact McNemar test, Holm over the classes"),
        Column("changed", False),
    )
    left = len(listed) - len(shown)
    note = "Most lost first; whiskers are 95% intervals, the tick is the dense network." + (
        f" {left} more with --json." if left else ""
    )
    table = Table(f"Classes of {look.name}", columns, rows)
    return Figure(f"classes-{look.letter.lower()}", title, note, Markup(""), table, open=True)


def most_changed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Classes by what they lost against the dense network, those that lost most first."""
    return sorted(rows, key=_change)


def _change(r: Mapping[str, Any]) -> float:
    dense = finite(r.get("dense_accuracy"))
    accuracy = finite(r["accuracy"])
    return accuracy - dense if accuracy is not None and dense is not None else 0.0


def class_name(number: object, names: Names) -> str:
    """The name of a class, or its number.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(7, {})
        ('dog', '7')
    """
    found = finite(number)
    if found is None:
        return str(number)
    if isinstance(names, Mapping):
        return names.get(int(found), str(number))
    return names[int(found)] if 0 <= found < len(names) else str(number)


def _class(r: Mapping[str, Any], names: Names, scale: Scale) -> tuple[Cell, ...]:
    accuracy, dense = finite(r["accuracy"]), finite(r.get("dense_accuracy"))
    mark = dot_strip(accuracy, scale, dense=dense, low=finite(r["low"]), high=finite(r["high"]))
    lost = None if dense is None else _change(r)
    p = finite(r.get("p_adjusted"))
    return (
        text(class_name(r["class"], names)),
        numeric(r["n"], f"{r['n']:,}"),
        numeric(accuracy, percent(accuracy), mark),
        numeric(dense, percent(dense)),
        numeric(lost, points(lost)),
        numeric(p, "" if p is None else f"{p:.3g}"),
        text("yes" if r["changed"] else "no"),
    )
