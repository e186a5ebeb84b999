"""Axes, paths and the small strips within tables that all figures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

from gossamer.report.looks import DENSE_LETTER
from gossamer.report.scales import Scale
from gossamer.report.svg import Markup, label, line, number, tag
from gossamer.report.tables import Cell, joined

__all__ = [
    "RADIUS",
    "STRIP",
    "TEXT",
    "Frame",
    "badge",
    "bar_strip",
    "dot_strip",
    "drawing",
    "file_cell",
    "length_strip",
    "multiples",
    "path",
]

STRIP = 104.0
# Charts beside each other are laid out for a phone's width, where the style sheet sets text and points the largest.
TEXT, RADIUS = 16.0, 12.0
_HEIGHT = 18.0


@final
@dataclass(frozen=True)
class Frame:
    """Axes of a chart.

    Args:
        width: of the drawing.
        height: of the drawing.
        x: to the right, its ends within the drawing.
        y: its start (low numbers) below its end.
    """

    width: float
    height: float
    x: Scale
    y: Scale

    def axes(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
        x_title: str = "",
        y_title: str = "",
    ) -> Markup:
        """Horizontal rules with numbers at the left, numbers below, and titles."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        parts = [line(left, bottom, right, bottom, "axis")]
        for tick in y_ticks:
            y = self.y(tick)
            parts += [line(left, y, right, y, "rule"), label(left - 6, y + 4, y_text(tick), "tick", "end")]
        for tick in x_ticks:
            x = self.x(tick)
            parts += [line(x, bottom, x, bottom + 4, "axis"), label(x, bottom + 17, x_text(tick), "tick", "middle")]
        if x_title:
            parts.append(label((left + right) / 2, self.height - 4, x_title, "unit", "middle"))
        if y_title:
            parts.append(label(2, self.y.end - 14, y_title, "unit"))
        return joined(parts)

    def curve(self, points: Iterable[tuple[float, float]], kind: str) -> Markup:
        """A line through points."""
        return path([(self.x(a), self.y(b)) for a, b in points], kind)

    def band(self, rows: Sequence[tuple[float, float, float]], kind: str) -> Markup:
        """The area between low and high, (x, low, high) each."""
        if len(rows) < 2:
            return Markup("")
        there = [(self.x(a), self.y(low)) for a, low, _ in rows]
        back = [(self.x(a), self.y(high)) for a, _, high in reversed(rows)]
        return path([*there, *back], kind, closed=True)


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> Markup:
    """Straight lines through pixels."""
    if not points:
        return Markup("")
    told = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return tag("path", {"d": f"M{told}{'Z' if closed else ''}", "class": kind})


def drawing(width: float, height: float, title: str, parts: Iterable[Markup], kind: str = "chart") -> Markup:
    """A picture with its title for those who do not see it; "chart plot": one that is laid out for a phone's width."""
    box = f"0 0 {number(width)} {number(height)}"
    return tag("svg", {"viewBox": box, "role": "img", "aria-label": title, "class": kind}, *parts)


def multiples(members: Sequence[tuple[str, str, Markup]]) -> Markup:
    """Small charts of one kind beside each other: (letter, name, chart)."""
    shown = [
        tag(
            "div",
            {"class": "small is-dense" if letter == DENSE_LETTER else "small", "role": "listitem"},
            tag("p", {"class": "small-name"}, badge(letter), " ", name),
            chart,
        )
        for letter, name, chart in members
    ]
    return tag("div", {"class": "multiples", "role": "list"}, *shown)


def badge(letter: str) -> Markup:
    """A file's letter in text, a link to its part of the page; the dense network has none."""
    if letter == DENSE_LETTER:
        return tag("span", {"class": "badge quiet"}, letter)
    return tag("a", {"class": "badge", "href": f"#file-{letter.lower()}", "aria-label": f"file {letter}"}, letter)


def file_cell(letter: str, name: str) -> Cell:
    """The head of a file's row."""
    return Cell(name, name, badge(letter), "is-dense" if letter == DENSE_LETTER else "")


def dot_strip(
    value: float | None,
    scale: Scale,
    *,
    dense: float | None = None,
    low: float | None = None,
    high: float | None = None,
    width: float = STRIP,
) -> Markup:
    """A dot on a track, with a whisker, and a tick where the dense network is; the cell also says the number."""
    middle = _HEIGHT / 2
    parts = [line(scale.start, middle, scale.end, middle, "track")]
    if dense is not None:
        x = scale(dense)
        parts.append(line(x, 2, x, _HEIGHT - 2, "dense-tick"))
    if value is not None:
        if low is not None and high is not None:
            parts.append(line(scale(low), middle, scale(high), middle, "whisker"))
        parts.append(tag("circle", {"cx": scale(value), "cy": middle, "r": 4.5, "class": "dot"}))
    return _strip(parts, width)


def length_strip(labels: float, total: float, scale: Scale, uniform: float, width: float) -> Markup:
    """From the labels alone to the file and the labels, and a tick at the labels without a network."""
    middle = _HEIGHT / 2
    x = scale(uniform)
    parts = [
        line(scale.start, middle, scale.end, middle, "track"),
        line(scale(labels), middle, scale(total), middle, "gap"),
        line(x, 1, x, _HEIGHT - 1, "guide"),
        tag("circle", {"cx": scale(labels), "cy": middle, "r": 3.6, "class": "bar two"}),
        tag("circle", {"cx": scale(total), "cy": middle, "r": 4.5, "class": "dot"}),
    ]
    return _strip(parts, width)


def bar_strip(share: float, kind: str = "bar", *, tick: float | None = None) -> Markup:
    """A bar over a share of the width, and a tick."""
    box = {"x": 0.0, "y": 4.0, "height": 10.0}
    parts = [
        tag("rect", {**box, "width": STRIP, "class": "empty"}),
        tag("rect", {**box, "width": min(max(share, 0.0), 1.0) * STRIP, "class": kind}),
    ]
    if tick is not None:
        parts.append(line(tick * STRIP, 1, tick * STRIP, 17, "dense-tick"))
    return _strip(parts)


def _strip(parts: Iterable[Markup], width: float = STRIP) -> Markup:
    return tag("svg", {"width": width, "height": _HEIGHT, "class": "strip", "aria-hidden": "true"}, *parts)
