"""Description length: what it takes to send the network and then the labels, beside sending the labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gossamer.report.looks import DENSE_LETTER, Look
from gossamer.report.plots import file_cell, length_strip
from gossamer.report.scales import Scale, count, finite
from gossamer.report.svg import Markup
from gossamer.report.tables import Cell, Column, Figure, Table, numeric

__all__ = ["description_lengths"]

_WIDTH = 240.0


@final
@dataclass(frozen=True)
class _Length:
    """Bits of one network and one set of labels.

    Args:
        letter: of the file.
        name: of the file.
        model: of the file.
        labels: under the network.
        calibrated: with one temperature, or None.
        pays_from: labels from which on it is shorter to send the network first, or None: never.
    """

    letter: str
    name: str
    model: float
    labels: float
    calibrated: float | None
    pays_from: float | None

    @property
    def total(self) -> float:
        """Of both parts."""
        return self.model + self.labels


def description_lengths(looks: Sequence[Look], dense: Look | None) -> list[Figure]:
    """A figure per set of labels that all files with a description length have."""
    found = [(look, part) for look in looks if (part := look.part("description_length")) is not None]
    names = [name for name in (found[0][1]["sets"] if found else ()) if all(name in p["sets"] for _, p in found)]
    return [_figure(i, str(name), found, dense) for i, name in enumerate(names)]


def _figure(i: int, name: str, found: Sequence[tuple[Look, Mapping[str, Any]]], dense: Look | None) -> Figure:
    one: Mapping[str, Any] = found[0][1]["sets"][name]
    uniform = float(one["uniform_bits"])
    own = [_own(look, part, name) for look, part in found]
    shown = [*own, *_of_dense(found, dense, name)]
    ends = [uniform, *(length.total for length in shown), *(length.labels for length in shown)]
    scale = Scale.of(ends, 6.0, _WIDTH - 6.0, log=True, room=0.03)
    calibrated = any(length.calibrated is not None for length in shown)
    note = (
        f"Bits to send {one['labels']:,} labels to someone who has the inputs: what they take under the network "
        "(orange), and with the network's file sent first (blue; of the dense one grey), on a logarithmic scale. "
        "The tick is what they take without any network: left of it, the file pays for itself."
    )
    paying = sum(length.total < uniform for length in own)
    title = f"Description length, {name} labels: " + (
        f"{paying} of {len(own)} files pay for themselves" if paying else "no file pays for itself yet"
    )
    columns = (
        Column("file", False),
        Column("file + labels", hint="bits in all"),
        Column("file", hint="bits"),
        Column("labels", hint="bits"),
        *([Column("labels, calibrated", hint="bits, with one temperature")] if calibrated else []),
        Column("pays from", hint="labels from which on sending the network first is shorter"),
    )
    rows = tuple(_row(length, scale, uniform, calibrated=calibrated) for length in shown)
    return Figure(f"lengths-{i}", title, note, Markup(""), Table(title, columns, rows), open=True)


def _own(look: Look, part: Mapping[str, Any], name: str) -> _Length:
    labels: Mapping[str, Any] = part["sets"][name]
    return _Length(
        look.letter,
        look.name,
        float(part["model_bits"]),
        float(labels["label_bits"]),
        finite(labels.get("label_bits_calibrated")),
        finite(part["pays_from"].get(name)),
    )


def _of_dense(found: Sequence[tuple[Look, Mapping[str, Any]]], dense: Look | None, name: str) -> list[_Length]:
    """The dense network, as those who were compared with it say."""
    for _, part in found:
        labels: Mapping[str, Any] = part["sets"][name]
        bits, whole = finite(labels.get("dense_label_bits")), part.get("dense_two_part_bits")
        if bits is not None and whole and name in whole:
            calibrated = finite(labels.get("dense_label_bits_calibrated"))
            pays = finite((part.get("dense_pays_from") or {}).get(name))
            shown = DENSE_LETTER if dense is None else dense.name
            return [_Length(DENSE_LETTER, shown, float(whole[name]) - bits, bits, calibrated, pays)]
    return []


def _row(length: _Length, scale: Scale, uniform: float, *, calibrated: bool) -> tuple[Cell, ...]:
    mark = length_strip(length.labels, length.total, scale, uniform, _WIDTH)
    cells = [
        file_cell(length.letter, length.name),
        numeric(length.total, count(length.total), mark),
        numeric(length.model, count(length.model)),
        numeric(length.labels, count(length.labels)),
    ]
    if calibrated:
        cells.append(numeric(length.calibrated, count(length.calibrated)))
    never = length.pays_from is None
    return (*cells, Cell("never", None) if never else numeric(length.pays_from, f"{length.pays_from:,.0f}"))
