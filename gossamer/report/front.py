"""What nobody else beats in both: the Pareto front of a gain and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from gossamer.report.looks import Look, small_names
from gossamer.report.plots import RADIUS, TEXT, Frame, drawing, file_cell
from gossamer.report.scales import Scale, bytes_text, milliseconds, percent, times
from gossamer.report.svg import Markup, label, line, tag, widest
from gossamer.report.tables import Column, Figure, Table, numeric, text

__all__ = ["front_of", "fronts"]

_WIDTH, _HEIGHT = 440.0, 330.0

Box = tuple[float, float, float, float]


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats in one coordinate without losing in the other; larger is better.

    Args:
        points: (gain, quality).

    Returns:
        Indices in ascending order of gain. Equal points are all there.

    Example:
        >>> front_of([(1, 5), (2, 4), (2, 3), (3, 1)])
        [0, 1, 3]
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept, best, last = [], -float("inf"), None
    for i in reversed(order):
        if points[i][1] > best or points[i] == last:
            kept.append(i)
            best, last = points[i][1], points[i]
    return kept[::-1]


@final
@dataclass(frozen=True)
class _Gain:
    """What is on the horizontal axis.

    Args:
        name: of the anchor.
        title: of the figure, when nobody is best in both.
        axis: its title.
        of: the gain of a file.
        detail: column of the table with the number behind it: its title, number and text.
        better: title of the gain's own column.
    """

    name: str
    title: str
    axis: str
    of: Callable[[Look], float | None]
    detail: tuple[str, Callable[[Look], float | None], Callable[[float | None], str]]
    better: str


_SIZE = _Gain(
    "front-size",
    "Smaller against right",
    "times smaller than the dense file →",
    lambda look: look.number("ratio"),
    ("size", lambda look: look.number("file_bytes"), bytes_text),
    "smaller",
)
_SPEED = _Gain(
    "front-time",
    "Faster against right",
    "times faster than the dense network →",
    lambda look: look.speed,
    ("time", lambda look: look.number("latency", "milliseconds"), milliseconds),
    "faster",
)


def fronts(looks: Sequence[Look], dense: Look | None) -> list[Figure]:
    """Size and time, where they were measured, for one file or more."""
    return [figure for gain in (_SIZE, _SPEED) if (figure := _front(gain, looks, dense)) is not None]


def _front(gain: _Gain, looks: Sequence[Look], dense: Look | None) -> Figure | None:
    found = [(look, g, a) for look in looks if (g := gain.of(look)) is not None and (a := look.accuracy) is not None]
    if not found:
        return None
    best = set(front_of([(g, a) for _, g, a in found]))
    reference = None if dense is None else dense.accuracy
    note = "Filled: on the front, no other file is better in both."
    if reference is not None:
        note += " The dashed line is the dense network."
    return Figure(
        gain.name,
        gain.title,
        note,
        _chart(gain, found, best, reference),
        _table(gain, found, best),
        wide=False,
    )


def _chart(gain: _Gain, found: Sequence[tuple[Look, float, float]], best: set[int], reference: float | None) -> Markup:
    accuracies = [a for *_, a in found] + ([reference] if reference is not None else [])
    x = Scale.of([1.0, *(g for _, g, _ in found)], 66.0, _WIDTH - 14.0, log=True)
    y = Scale.of(accuracies, _HEIGHT - 50.0, 34.0, room=0.16)
    frame = Frame(_WIDTH, _HEIGHT, x, y)
    digits = 0 if y.high - y.low > 0.06 else 1
    parts = [frame.axes(x.ticks(6), y.ticks(6), _tick, lambda v: percent(v, digits), gain.axis, "↑ right answers")]
    if reference is not None:
        at = y(reference)
        parts.append(line(x.start, at, x.end, at, "dense-line"))
    ordered = sorted(best, key=lambda i: found[i][1])
    parts.append(_steps(frame, [(found[i][1], found[i][2]) for i in ordered]))
    for i, (look, g, a) in enumerate(found):
        parts.append(_point(look, x(g), y(a), i in best, f"{times(g)}, {percent(a)}"))
    taken = [(x(g) - RADIUS, y(a) - RADIUS, 2 * RADIUS, 2 * RADIUS) for _, g, a in found]
    if reference is not None:
        parts.append(_dense_name(frame, y(reference), taken))
    parts += _names(frame, found, ordered, taken)
    return drawing(
        _WIDTH, _HEIGHT, f"{gain.title}: {len(found)} files, {len(best)} of them on the front", parts, "chart plot"
    )


def _tick(value: float) -> str:
    return f"{value:g}×"


def _steps(frame: Frame, points: Sequence[tuple[float, float]]) -> Markup:
    """Down from one to the next: what is reached between them is what the next one reaches."""
    corners: list[tuple[float, float]] = []
    for g, a in points:
        if corners:
            corners.append((corners[-1][0], a))
        corners.append((g, a))
    return frame.curve(corners, "front")


def _point(look: Look, x: float, y: float, best: bool, said: str) -> Markup:
    kind = "point best" if best else "point"
    return tag(
        "g",
        {"class": kind},
        tag("title", {}, f"{look.letter}: {look.name}, {said}"),
        tag("circle", {"cx": x, "cy": y, "r": RADIUS}),
        label(x, y, look.letter, "letter", "middle"),
    )


def _dense_name(frame: Frame, y: float, taken: list[Box]) -> Markup:
    """What the dashed line is, where no point is in the way; the line and the word take their room."""
    width, left = widest("dense", TEXT), frame.x.start + 4
    right = frame.x.end - width - 4
    places = [(x, base) for x in (left, right, (left + right) / 2) for base in (y - 5, y + 17)]
    free = (place for place in places if not any(_meet((place[0], place[1] - 14, width, 18.0), box) for box in taken))
    x, base = next(free, places[0])
    taken += [(x, base - 14, width, 18.0), (frame.x.start, y - 2, frame.x.end - frame.x.start, 4.0)]
    return label(x, base, "dense", "note")


def _names(
    frame: Frame, found: Sequence[tuple[Look, float, float]], ordered: Sequence[int], taken: list[Box]
) -> list[Markup]:
    """Names of points on the front, where there is room: above, below, beside, or not at all."""
    short = small_names([look.name for look, *_ in found], 26)
    parts = []
    for i in ordered:
        _, g, a = found[i]
        width, x, y = widest(short[i], TEXT), frame.x(g), frame.y(a)
        middle = min(max(x, frame.x.start + width / 2), frame.width - width / 2 - 2)
        beside = x - RADIUS - 4 - width / 2, x + RADIUS + 4 + width / 2
        for centre, base in ((middle, y - RADIUS - 5), (middle, y + RADIUS + 15), *((b, y + 5) for b in beside)):
            box = (centre - width / 2, base - 14, width, 18.0)
            inside = frame.y.end - 8 < base < frame.y.start - 2
            inside = inside and centre - width / 2 >= frame.x.start and centre + width / 2 <= frame.width
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                parts.append(label(centre, base, short[i], "name", "middle"))
                break
    return parts


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _table(gain: _Gain, found: Sequence[tuple[Look, float, float]], best: set[int]) -> Table:
    title, number, shown = gain.detail
    rows = tuple(
        (
            file_cell(look.letter, look.name),
            numeric(number(look), shown(number(look))),
            numeric(g, times(g)),
            numeric(a, percent(a, 2)),
            text("yes" if i in best else "no"),
        )
        for i, (look, g, a) in enumerate(found)
    )
    columns = (
        Column("file", False),
        Column(title),
        Column(gain.better),
        Column("right"),
        Column("on the front", False),
    )
    return Table(gain.title, columns, rows)
