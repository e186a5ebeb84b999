"""Two accuracies of every network over how small its file is: training and test, clean and attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gossamer.report.looks import Look
from gossamer.report.overview import robust_at, robust_level
from gossamer.report.plots import RADIUS, Frame, drawing, file_cell
from gossamer.report.scales import Scale, finite, percent, points, times
from gossamer.report.svg import Markup, label, line, tag
from gossamer.report.tables import Cell, Column, Figure, Table, numeric

__all__ = ["attack_chart", "gap_chart"]

_WIDTH, _HEIGHT = 440.0, 330.0


@final
@dataclass(frozen=True)
class _Pair:
    """A network.

    Args:
        look: its file.
        ratio: how many times smaller.
        hollow: the accuracy that is only for comparison.
        filled: the one that it is about.
    """

    look: Look
    ratio: float
    hollow: float
    filled: float


def gap_chart(looks: Sequence[Look], dense: Look | None) -> Figure | None:
    """Training and test accuracy (Occam's hill); None if not measured."""
    found = []
    for look in _everyone(looks, dense):
        train, test = (look.number("generalisation", f"{kind}_accuracy") for kind in ("train", "test"))
        if train is not None and test is not None:
            found.append(_Pair(look, _ratio(look), train, test))
    note = "Hollow: training; with a letter: test. The line between is the gap, hidden where it is small. Grey: dense."
    return _figure("gap", "Training against test", note, ("training", "test"), found)


def attack_chart(looks: Sequence[Look], dense: Look | None) -> Figure | None:
    """Clean accuracy and what attacks leave of it; None if not measured."""
    everyone = _everyone(looks, dense)
    level = robust_level(everyone)
    found = []
    for look in everyone:
        clean, left = look.number("robustness", "clean"), None if level is None else robust_at(look, level)
        if clean is not None and left is not None:
            found.append(_Pair(look, _ratio(look), clean, left))
    shown = f"{255 * (level or 0):.3g}/255"
    note = f"Hollow: untouched images; with a letter: the worst case when pixels may change by {shown}. Grey: dense."
    return _figure("cost", "Does it cost robustness?", note, ("untouched", f"at {shown}"), found)


def _everyone(looks: Sequence[Look], dense: Look | None) -> list[Look]:
    measured = [look for look in looks if look.part("robustness") or look.part("generalisation")]
    return [*([dense] if dense is not None else []), *measured]


def _ratio(look: Look) -> float:
    return max(1.0, look.number("ratio") or 1.0)


def _figure(name: str, title: str, note: str, kinds: tuple[str, str], found: Sequence[_Pair]) -> Figure | None:
    if not found:
        return None
    x = Scale.of([pair.ratio for pair in found], 66.0, _WIDTH - 16.0, log=True)
    y = Scale.of([v for p in found for v in (p.hollow, p.filled)], _HEIGHT - 50.0, 34.0, room=0.1)
    frame = Frame(_WIDTH, _HEIGHT, x, y)
    digits = 0 if y.high - y.low > 0.06 else 1
    axes = frame.axes(
        x.ticks(6),
        y.ticks(5),
        lambda v: f"{v:g}×",
        lambda v: percent(v, digits),
        "times smaller than the dense file →",
        "↑ right answers",
    )
    chart = drawing(
        _WIDTH,
        _HEIGHT,
        f"{title}: " + ", ".join(f"{p.look.name} {percent(p.hollow)} and {percent(p.filled)}" for p in found),
        [axes, *(_stem(frame, p) for p in found), *(_mark(frame, p, kinds) for p in found)],
        "chart plot",
    )
    rows = tuple(_row(p) for p in found)
    columns = (Column("file", False), Column("smaller"), Column(kinds[0]), Column(kinds[1]), Column("points apart"))
    return Figure(name, title, note, chart, Table(title, columns, rows), wide=False)


def _stem(frame: Frame, pair: _Pair) -> Markup:
    at, kind = frame.x(pair.ratio), "gap is-dense" if pair.look.file["dense"] else "gap"
    return line(at, frame.y(pair.hollow), at, frame.y(pair.filled), kind)


def _mark(frame: Frame, pair: _Pair, kinds: tuple[str, str]) -> Markup:
    look, at, base = pair.look, frame.x(pair.ratio), frame.y(pair.filled)
    said = f"{look.letter}: {look.name}, {kinds[0]} {percent(pair.hollow)}, {kinds[1]} {percent(pair.filled)}"
    hollow = tag("circle", {"cx": at, "cy": frame.y(pair.hollow), "r": 4.0, "class": "dot-hollow"})
    if look.file["dense"]:
        filled = tag("circle", {"cx": at, "cy": base, "r": 6.0, "class": "dot"})
    else:
        circle = tag("circle", {"cx": at, "cy": base, "r": RADIUS})
        filled = tag("g", {"class": "point best"}, circle, label(at, base, look.letter, "letter", "middle"))
    kind = "is-dense" if look.file["dense"] else None
    return tag("g", {"class": kind}, tag("title", {}, said), hollow, filled)


def _row(pair: _Pair) -> tuple[Cell, ...]:
    look, apart = pair.look, pair.hollow - pair.filled
    return (
        file_cell(look.letter, look.name),
        numeric(pair.ratio, times(pair.ratio)),
        numeric(pair.hollow, percent(finite(pair.hollow), 2)),
        numeric(pair.filled, percent(finite(pair.filled), 2)),
        numeric(apart, points(apart).lstrip("+")),
    )
