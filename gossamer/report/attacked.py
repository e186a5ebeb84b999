"""Accuracy under attack and under corruption: one small chart per file, the dense network dashed in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gossamer.report.looks import Look, with_dense
from gossamer.report.plots import Frame, badge, drawing, file_cell, multiples
from gossamer.report.scales import Scale, percent, points
from gossamer.report.svg import Markup, label, tag
from gossamer.report.tables import Cell, Column, Figure, Table, numeric, text

__all__ = ["corruption_curves", "corruption_map", "robustness_curves"]

_WIDTH, _HEIGHT = 240.0, 176.0

Rows = list[tuple[float, float]]


def robustness_curves(looks: Sequence[Look], dense: Look | None) -> Figure | None:
    """Worst-case accuracy over ε; None if nothing was attacked."""
    charts = _charts(looks, dense, _worst, _norm(looks), lambda x: f"{x:.3g}/255", _beside)
    if charts is None:
        return None
    shown = _legend(transfer=any(_transfer(look) for look in looks))
    warned = [tag("p", {"class": "warning"}, badge(o.letter), f" {w}") for o in looks for w in _warnings(o)]
    note = "Share of right answers when pixels may change by ε, in 255ths; of all attacks the worst for each image."
    table = _attack_table(with_dense(looks, dense))
    return Figure("robustness", "Under attack", note, tag("div", {}, shown, charts, *warned), table)


def _charts(
    looks: Sequence[Look],
    dense: Look | None,
    of: Callable[[Look], Rows],
    title: str,
    at: Callable[[float], str],
    beside: Callable[[Frame, Look], list[Markup]] = lambda frame, look: [],
) -> Markup | None:
    """A small chart per file, all with the same axes and, under its own curve, what is drawn beside it; or None."""
    found = [(look, curve) for look in looks if (curve := of(look))]
    if not found:
        return None
    reference = [] if dense is None else of(dense)
    every = [curve for _, curve in found]
    frame = _frame([point for curve in (*every, reference) for point in curve])
    axes = frame.axes(_apart([x for x, _ in found[0][1]]), frame.y.ticks(4), "{:.3g}".format, _whole, title)
    members = []
    for look, curve in found:
        others = [frame.curve(other, "other") for other in every if other is not curve]
        parts = [axes, *others, frame.curve(reference, "dense-line"), *beside(frame, look)]
        parts += [frame.curve(curve, "here"), *_dots(frame, curve)]
        said = ", ".join(f"{percent(y)} at {at(x)}" for x, y in curve)
        members.append((look.letter, look.name, drawing(_WIDTH, _HEIGHT, f"{look.name}: {said}", parts)))
    return multiples(members)


def _beside(frame: Frame, look: Look) -> list[Markup]:
    return [frame.band(_spread(look), "band"), frame.curve(_transfer(look), "second")]


def _worst(look: Look) -> Rows:
    """(ε in 255ths, share), from no attack on."""
    part = look.part("robustness")
    return [] if part is None else sorted(({0.0: float(part["clean"])} | dict(_levels(part["worst"]))).items())


def _spread(look: Look) -> list[tuple[float, float, float]]:
    part = look.part("robustness")
    rows = [] if part is None else sorted(part["worst"], key=lambda r: float(r["epsilon"]))
    return [(255 * float(r["epsilon"]), float(r["low"]), float(r["high"])) for r in rows]


def _transfer(look: Look) -> Rows:
    part = look.part("robustness")
    return [] if part is None else sorted(_levels(part.get("transfer") or ()))


def _levels(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [(255 * float(r["epsilon"]), float(r["accuracy"])) for r in rows]


def _warnings(look: Look) -> list[str]:
    part = look.part("robustness")
    return [] if part is None else [str(w) for w in part["warnings"]]


def _norm(looks: Sequence[Look]) -> str:
    norms = {str(part["norm"]) for look in looks if (part := look.part("robustness")) is not None}
    shown = {"linf": "L∞", "l2": "L2"}
    return "ε / 255, " + ", ".join(shown.get(n.lower(), n) for n in sorted(norms))


def _apart(ticks: Sequence[float]) -> list[float]:
    """Ticks that leave room for their numbers."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick - kept[-1] >= 0.1 * ticks[-1]:
            kept.append(tick)
    return kept


def _frame(points: Rows) -> Frame:
    """That holds all points; from 0% on if any is low."""
    levels, shares = [x for x, _ in points], [y for _, y in points]
    x = Scale(min(levels), max(*levels, min(levels) + 1e-9), 40.0, _WIDTH - 10.0)
    bottom, top = min(shares), max(shares)
    bottom = 0.0 if bottom < 0.4 else max(0.0, bottom - 0.15 * (top - bottom) - 0.01)
    return Frame(_WIDTH, _HEIGHT, x, Scale(bottom, min(1.0, top + 0.05), _HEIGHT - 38.0, 12.0))


def _whole(share: float) -> str:
    return percent(share, 0)


def _dots(frame: Frame, curve: Rows) -> list[Markup]:
    return [
        tag(
            "circle",
            {"cx": frame.x(a), "cy": frame.y(b), "r": 3.2, "class": "dot"},
            tag("title", {}, f"{percent(b)}"),
        )
        for a, b in curve
    ]


def _legend(*, transfer: bool) -> Markup:
    entries = [("here", "this file"), ("dense-line", "dense"), ("other", "the other files")]
    if transfer:
        entries.insert(1, ("second", "attacks made for the dense network"))
    return tag("p", {"class": "key"}, *(_key(kind, name) for kind, name in entries))


def _key(kind: str, name: str) -> Markup:
    stroke = tag("path", {"d": "M0 6L26 6", "class": kind})
    return tag("span", {}, tag("svg", {"width": 26, "height": 12, "aria-hidden": "true"}, stroke), f" {name}")


def _attack_table(everyone: Sequence[Look]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for look in everyone:
        part = look.part("robustness")
        if part is None:
            continue
        head = file_cell(look.letter, look.name)
        listed: list[tuple[str, Mapping[str, Any]]] = [(str(r["attack"]), r) for r in part["rows"]]
        listed += [("all, worst case", r) for r in part["worst"]]
        listed += [("made for the dense network", r) for r in part.get("transfer") or ()]
        listed += [(f"{r['attack']} on a surrogate", r) for r in part.get("surrogate") or ()]
        for attack, r in listed:
            level = float(r["epsilon"])
            rows.append((head, text(attack), numeric(255 * level, f"{255 * level:.3g}"), _share(r["accuracy"])))
    columns = (Column("file", False), Column("attack", False), Column("ε / 255"), Column("right"))
    return Table("Right answers under attack", columns, tuple(rows))


def _share(value: Any) -> Cell:
    return numeric(value, percent(float(value)))


def corruption_curves(looks: Sequence[Look], dense: Look | None) -> Figure | None:
    """Mean accuracy over severities; None if nothing was corrupted."""
    charts = _charts(looks, dense, _mean, "severity", lambda x: f"severity {x:g}")
    if charts is None:
        return None
    rows = tuple(
        (file_cell(o.letter, o.name), numeric(x, f"{x:g}"), _share(y))
        for o in with_dense(looks, dense)
        for x, y in _mean(o)
    )
    columns = (Column("file", False), Column("severity"), Column("right"))
    note = (
        "Share of right answers over noise, blur, contrast, JPEG and others, mean over the kinds, at five severities."
    )
    chart = tag("div", {}, _legend(transfer=False), charts)
    return Figure("corruptions", "Under common corruptions", note, chart, Table("Mean over corruptions", columns, rows))


def _mean(look: Look) -> Rows:
    part = look.part("corruptions")
    return [] if part is None else sorted((float(k), float(v)) for k, v in part["mean"].items())


def corruption_map(look: Look, dense: Look | None) -> Figure | None:
    """Kind by severity, coloured by what was lost against the dense network; None if nothing was corrupted."""
    part = look.part("corruptions")
    if part is None or not part["rows"]:
        return None
    rows = [(str(r["corruption"]), float(r["severity"]), float(r["accuracy"])) for r in part["rows"]]
    other = None if dense is None else dense.part("corruptions")
    before = (
        {}
        if other is None
        else {(str(r["corruption"]), float(r["severity"])): float(r["accuracy"]) for r in other["rows"]}
    )
    levels = sorted({severity for _, severity, _ in rows})
    kinds = list(dict.fromkeys(kind for kind, *_ in rows))
    left, cell, high = 118.0, 43.0, 24.0
    parts: list[Markup] = [
        label(left + (i + 0.5) * cell - 1, 13, f"{s:g}", "tick", "middle") for i, s in enumerate(levels)
    ]
    for kind, severity, accuracy in rows:
        x, y = left + levels.index(severity) * cell, 20 + kinds.index(kind) * high
        lost = before.get((kind, severity), accuracy) - accuracy
        parts.append(_heat(x, y, cell - 2, high - 2, accuracy, lost, f"{kind}, severity {severity:g}"))
    names = [(13.0, "severity"), *((20 + i * high + 15, kind) for i, kind in enumerate(kinds))]
    parts += [label(left - 8, y, name, "tick", "end") for y, name in names]
    width, height = left + cell * len(levels), 22 + high * len(kinds)
    table = _corruption_table(look, rows, before, levels, kinds)
    note = "Right answers, %. Orange lost against the dense network, blue gained; full colour from 10 points on."
    chart = drawing(width, height, f"Corruptions of {look.name}", parts, "chart heat")
    name = f"corruptions-{look.letter.lower()}"
    return Figure(name, "Which corruptions hurt", note, chart, table, wide=False)


def _corruption_table(
    look: Look,
    rows: Sequence[tuple[str, float, float]],
    before: Mapping[tuple[str, float], float],
    levels: Sequence[float],
    kinds: Sequence[str],
) -> Table:
    """A row per kind: right answers at each severity, and points against the dense network, mean over severities."""
    found = {(kind, severity): accuracy for kind, severity, accuracy in rows}
    shown = []
    for kind in kinds:
        lost = [found[kind, s] - before[kind, s] for s in levels if (kind, s) in found and (kind, s) in before]
        mean = sum(lost) / len(lost) if lost else None
        cells = (numeric(found.get((kind, s)), percent(found.get((kind, s)))) for s in levels)
        shown.append((text(kind), *cells, numeric(mean, points(mean))))
    columns = (*(Column(f"severity {s:g}") for s in levels), Column("points against dense", hint="mean"))
    return Table(f"Corruptions of {look.name}", (Column("corruption", False), *columns), tuple(shown))


def _heat(x: float, y: float, width: float, height: float, accuracy: float, lost: float, said: str) -> Markup:
    shade = min(4, round(abs(lost) / 0.1 * 4))
    kind = f"heat {'lost' if lost > 0 else 'gained'}{shade}" if shade else "heat level"
    box = {"x": x, "y": y, "width": width, "height": height, "class": kind}
    told = f"{said}: {percent(accuracy)}, {points(-lost)} points against dense"
    number = label(x + width / 2, y + height / 2 + 4, f"{100 * accuracy:.0f}", "cell", "middle")
    return tag("rect", box, tag("title", {}, told)) + number
