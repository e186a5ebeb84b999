"""All files beside each other: one row each, one strip per measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from gossamer.measure.proportions import wilson
from gossamer.report.looks import Look, with_dense
from gossamer.report.plots import dot_strip, file_cell
from gossamer.report.scales import Scale, bytes_text, milliseconds, percent, times
from gossamer.report.svg import Markup
from gossamer.report.tables import Cell, Column, Figure, Table, numeric

__all__ = ["overview", "robust_at", "robust_level"]

_STRIP = 72.0


@final
@dataclass(frozen=True)
class _Measure:
    """A column.

    Args:
        title: its head.
        hint: longer.
        of: its number of a file.
        shown: how it is written.
        spread: low and high of a file, or None.
        log: strip by the logarithm.
        strip: whether there is one.
    """

    title: str
    hint: str
    of: Callable[[Look], float | None]
    shown: Callable[[float | None], str]
    spread: Callable[[Look], tuple[float, float] | None] = lambda look: None
    log: bool = False
    strip: bool = True


def overview(looks: Sequence[Look], dense: Look | None) -> Figure:
    """A row per file; strips of a column share their scale, the tick is the dense network."""
    everyone = with_dense(looks, dense)
    measures = [m for m in _measures(looks) if any(m.of(look) is not None for look in everyone)]
    scales = {m.title: _scale(m, everyone) for m in measures}
    rows = tuple(
        (file_cell(look.letter, look.name), *(_cell(m, look, dense, scales[m.title]) for m in measures))
        for look in everyone
    )
    columns = (Column("file", number=False), *(Column(m.title, hint=m.hint) for m in measures))
    note = (
        "Each strip has one scale for all files, logarithmic for sizes and times; the tick is the dense network, "
        "whiskers are 95% intervals of shares and the middle half of times."
    )
    return Figure("files", "Every file at a glance", note, Markup(""), Table("All files", columns, rows), open=True)


def robust_level(looks: Sequence[Look]) -> float | None:
    """The ε at which robustness is compared in one number: the middle one that all have."""
    found = [
        {float(row["epsilon"]) for row in part["worst"] if row["epsilon"] > 0}
        for look in looks
        if (part := look.part("robustness")) is not None
    ]
    common = sorted(set.intersection(*found)) if found else []
    return common[len(common) // 2] if common else None


def robust_at(look: Look, epsilon: float) -> float | None:
    """Worst-case accuracy at an ε."""
    part = look.part("robustness")
    rows = [] if part is None else part["worst"]
    return next((float(row["accuracy"]) for row in rows if float(row["epsilon"]) == epsilon), None)


def _measures(looks: Sequence[Look]) -> list[_Measure]:
    made = [
        _Measure("size", "bytes of the file", lambda o: o.number("file_bytes"), bytes_text, log=True),
        _Measure("smaller", "times smaller than the dense file", lambda o: o.number("ratio"), times, strip=False),
        _Measure("right", "share of right answers", lambda o: o.accuracy, percent, spread=_interval),
        _Measure("perplexity", "exp of the mean loss", lambda o: o.number("accuracy", "perplexity"), _plain, log=True),
        _Measure("time", "of one forward pass", _time, milliseconds, spread=_time_spread, log=True),
        _Measure("faster", "times faster than dense in turns", lambda o: o.speed, times, strip=False),
        _Measure("agrees", "same answer as the dense network", lambda o: o.number("changed", "agreement"), percent),
    ]
    level = robust_level(looks)
    if level is not None:
        hint = f"worst case over all attacks that may change pixels by {level * 255:.3g}/255"
        made.append(_Measure("attacked", hint, lambda o: robust_at(o, level), percent))
    return made


def _time(look: Look) -> float | None:
    return look.number("latency", "milliseconds")


def _time_spread(look: Look) -> tuple[float, float] | None:
    low, high = look.number("latency", "low"), look.number("latency", "high")
    return (low, high) if low is not None and high is not None else None


def _interval(look: Look) -> tuple[float, float] | None:
    right, count = look.number("accuracy", "correct"), look.number("accuracy", "count")
    return wilson(int(right), int(count)) if right is not None and count is not None else None


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _scale(measure: _Measure, everyone: Sequence[Look]) -> Scale:
    found = [value for look in everyone if (value := measure.of(look)) is not None]
    spread = [end for look in everyone for end in measure.spread(look) or ()]
    return Scale.of([*found, *spread], 6.0, _STRIP - 6.0, log=measure.log)


def _cell(measure: _Measure, look: Look, dense: Look | None, scale: Scale) -> Cell:
    value = measure.of(look)
    if not measure.strip:
        return numeric(value, measure.shown(value))
    reference = None if dense is None else measure.of(dense)
    low, high = measure.spread(look) or (None, None)
    mark = dot_strip(value, scale, dense=reference, low=low, high=high, width=_STRIP)
    return numeric(value, measure.shown(value), mark)
