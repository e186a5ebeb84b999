"""Where the bytes of a file are, as a treemap that keeps its letters' size at any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gossamer.report.looks import Look
from gossamer.report.scales import bytes_text, percent
from gossamer.report.svg import Markup, label, tag, widest
from gossamer.report.tables import Column, Figure, Table, numeric, text
from gossamer.report.treemap import Tile, squarified

__all__ = ["byte_map"]

_WIDTH, _HEIGHT = 760.0, 340.0
_MOST = 36
_SMALLEST = 0.0015  # of the file: what is less is a line, not a tile
_TEXT = 13.75  # pixels, of a name, a tenth more than it has as it is bold
_WIDTHS = {"on-slim": 300.0, "on-wide": 640.0, "on-whole": 1080.0}  # pixels of a map at least, by screens


@final
@dataclass(frozen=True)
class _Piece:
    """What gets a tile.

    Args:
        name: shown.
        size: bytes.
        bits: per weight, or None for what is no weight.
    """

    name: str
    size: float
    bits: float | None


def byte_map(look: Look) -> Figure | None:
    """A treemap of a file's bytes, the largest first; None for an empty file."""
    pieces = _pieces(look)
    total = sum(p.size for p in pieces)
    if total <= 0:
        return None
    shown = _merged(pieces, total)
    tiles = squarified([p.size for p in shown], _WIDTH, _HEIGHT)
    parts = [_tile(p, t, total) for p, t in zip(shown, tiles, strict=True)]
    most = shown[0]
    title = (
        f"{percent(most.size / total, 0)} of the bytes are in {most.name if most.bits is None else f'“{most.name}”'}"
    )
    attributes = {"width": "100%", "height": _HEIGHT, "role": "img", "class": "map"}
    chart = tag("svg", {**attributes, "aria-label": f"Bytes of {look.name}: {title}"}, *parts)
    note = "Area is bytes in the file, darker is more bits per weight."
    name = f"bytes-{look.letter.lower()}"
    return Figure(name, title, note, tag("div", {"class": "map-box"}, chart, _legend()), _table(look, pieces, total))


def _pieces(look: Look) -> list[_Piece]:
    layers: Sequence[Mapping[str, Any]] = look.file["layers"]
    found = [_Piece(str(r["name"]), float(r["bytes"]), float(r["bits"])) for r in layers if r["bytes"] > 0]
    rest = float(look.file["file_bytes"]) - sum(p.size for p in found)
    if rest > 0:
        found.append(_Piece("header and index", rest, None))
    return sorted(found, key=lambda p: -p.size)


def _merged(pieces: Sequence[_Piece], total: float) -> list[_Piece]:
    """The largest; all others together as one piece."""
    kept = [p for p in pieces[:_MOST] if p.size >= _SMALLEST * total]
    small = pieces[len(kept) :]
    if small:
        kept.append(_Piece(f"{len(small)} smaller", sum(p.size for p in small), None))
    return sorted(kept, key=lambda p: -p.size)


def _tile(piece: _Piece, tile: Tile, total: float) -> Markup:
    share = percent(piece.size / total)
    bits = "" if piece.bits is None else f", {piece.bits:.3g} bits per weight"
    inside: list[Markup] = [
        tag("title", {}, f"{piece.name}: {bytes_text(piece.size)}, {share}{bits}"),
        tag("rect", {"width": "100%", "height": "100%", "class": f"tile t{_shade(piece.bits)}"}),
    ]
    ink = f"i{_shade(piece.bits)}"
    if tile.height >= 19:
        names = _fitting(_names(piece.name), tile.width)
        inside += _labels(15, f"tile-name {ink}", names)
        if tile.height >= 34:
            sizes = _fitting((f"{bytes_text(piece.size)} · {share}", share), tile.width)
            inside += _labels(
                30, f"tile-size {ink}", [size if name else "" for name, size in zip(names, sizes, strict=True)]
            )
    place = {"x": tile.x / _WIDTH, "y": tile.y / _HEIGHT, "width": tile.width / _WIDTH, "height": tile.height / _HEIGHT}
    return tag("svg", {key: f"{100 * value:.3f}%" for key, value in place.items()}, *inside)


def _names(name: str) -> list[str]:
    """A tensor's name, and what may stand for it: without its first words, or of two words the first.

    Example:
        >>> _names("block.0.query.weight")
        ['block.0.query.weight', '…0.query.weight', '…query.weight', 'query…']
    """
    words = name.split(".")
    ends = [f"…{'.'.join(words[i:])}" for i in range(1, len(words) - 1)]
    return [name, *ends, *([f"{words[-2]}…"] if len(words) > 1 else [])]


def _fitting(texts: Sequence[str], width: float) -> list[str]:
    """The first of the texts that fits into a tile, or none, for each width of the map."""
    return [next((t for t in texts if widest(t, _TEXT) <= width / _WIDTH * own - 10), "") for own in _WIDTHS.values()]


def _labels(base: float, kind: str, texts: Sequence[str]) -> list[Markup]:
    """A text for each width of the map, of which the style sheet shows one; what is the same but once."""
    shown: dict[str, str] = {}
    for where, one in zip(_WIDTHS, texts, strict=True):
        if one:
            shown[one] = f"{shown.get(one, kind)} {where}"
    return [label(6, base, one, classes) for one, classes in shown.items()]


def _shade(bits: float | None) -> str:
    """0 (below a quarter of a bit) to 7 (32 bits); x for what has no weights."""
    if bits is None:
        return "x"
    return str(min(7, max(0, round(math.log2(max(bits, 0.25)) + 2))))


def _legend() -> Markup:
    """Shades and the bits that they stand for."""
    parts: list[Markup] = []
    for i in range(8):
        x = i * 34.0
        parts.append(tag("rect", {"x": x, "y": 0.0, "width": 34.0, "height": 10.0, "class": f"tile t{i}"}))
        parts.append(label(x + 17, 24, f"{2.0 ** (i - 2):g}", "tick", "middle"))
    shades = tag("svg", {"width": 272, "height": 28, "aria-hidden": "true"}, *parts)
    return tag("p", {"class": "key"}, shades, "bits per weight")


def _table(look: Look, pieces: Sequence[_Piece], total: float) -> Table:
    shown = pieces[:_MOST]
    rows = [
        (
            text(p.name),
            numeric(p.size, f"{p.size:,.0f}"),
            numeric(p.size / total, percent(p.size / total, 2)),
            numeric(p.bits, "" if p.bits is None else f"{p.bits:.3f}"),
        )
        for p in shown
    ]
    rest = pieces[_MOST:]
    if rest:
        size = sum(p.size for p in rest)
        rows.append(
            (
                text(f"{len(rest)} smaller"),
                numeric(size, f"{size:,.0f}"),
                numeric(size / total, percent(size / total, 2)),
                numeric(None, ""),
            )
        )
    columns = (Column("what", False), Column("bytes"), Column("share"), Column("bits per weight"))
    return Table(f"Bytes of {look.name}", columns, tuple(rows))
