"""The picture of a network's sensitivities: layers by levels, the darker the more the loss rises. Plain SVG text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final
from xml.sax.saxutils import escape, quoteattr

from gossamer.sensitivity.layer_curves import LayerCurve, Sensitivities
from gossamer.sensitivity.probe import Kind

__all__ = ["heat_map", "level_text", "rise_text", "shortened"]

_STOPS = ((253, 250, 244), (249, 214, 143), (229, 115, 66), (150, 28, 62), (66, 8, 42))  # light to dark
_DECADES = 4  # from the largest rise down; what is smaller is as light as nothing
_MARGIN = 24
_MOST_LETTERS = 44
_HEADS: dict[Kind, str] = {"sparsity": "sparsity", "bits": "bits per weight", "rank": "rank, share of full"}
_UNITS = {
    "loss": "rise of the loss",
    "kl": "Kullback–Leibler divergence from the dense outputs",
    "squares": "squared error of the outputs, relative to them",
}


@final
@dataclass(frozen=True)
class _Sizes:
    """Pixels.

    Args:
        row: height of a row.
        cell: width of a cell.
        font: of names and numbers.
        numbers: whether numbers stand in the cells.
    """

    row: int
    cell: int
    font: float
    numbers: bool


_ROOMY, _TIGHT = _Sizes(20, 50, 11, True), _Sizes(12, 30, 9.5, False)
_MOST_ROOMY = 60


def heat_map(found: Sensitivities, title: str) -> str:
    """An SVG document: one row per layer in the network's order, one panel per kind of compression.

    Args:
        found: what was measured.
        title: such as the file's name; escaped.

    Returns:
        The whole document; it refers to nothing outside of itself.

    Example:
        >>> curve = LayerCurve("<fc>.weight", "bits", (4, 4), 1, ((2, 0.5), (4, 0.01)))
        >>> text = heat_map(Sensitivities("loss", 1.0, (curve,)), "net")
        >>> text.count("<rect"), "&lt;fc&gt;.weight" in text
        (33, True)
    """
    names = list(dict.fromkeys(c.name for c in _in_order(found)))
    sizes = _ROOMY if len(names) <= _MOST_ROOMY else _TIGHT
    letters = max(min(len(name), _MOST_LETTERS) for name in names)
    left = _MARGIN + math.ceil(letters * 0.61 * sizes.font) + 64
    top = 104
    scale = _Scale.of(found.curves)
    parts: list[str] = []
    widest = left
    for kind in found.kinds:
        curves = {c.name: c for c in found.of(kind)}
        levels = sorted({level for c in curves.values() for level, _ in c.points})
        parts += _panel(kind, levels, curves, names, widest, top, sizes, scale)
        widest += max(len(levels) * sizes.cell, math.ceil(len(_HEADS[kind]) * 7.4)) + 20  # no head over the next panel
    elements = {c.name: c.elements for c in found.curves}
    for i, name in enumerate(names):
        base = top + i * sizes.row + sizes.row / 2 + sizes.font * 0.36
        short = shortened(name, _MOST_LETTERS)
        x = left - 64
        parts.append(_text(x, base, short, sizes.font, "end", hint=name if short != name else "", mono=True))
        parts.append(_text(left - 8, base, _count(elements[name]), sizes.font, "end", fill="#777", mono=True))
    bottom = top + len(names) * sizes.row
    parts.append(_text(left - 8, top - 8, "weights", 10, "end", fill="#777"))
    width = max(widest - 20 + _MARGIN, 520)
    parts += _legend(_MARGIN, bottom + 26, scale, _UNITS[found.metric])
    head = "Sensitivity of " + shortened(title, max(24, int((width - 2 * _MARGIN) / 11) - 15))
    dense = f" Loss of the dense network: {found.base:.4g}." if found.metric == "loss" else ""
    what = f"One layer alone is compressed; darker is worse.{dense}"
    parts.insert(0, _text(_MARGIN, 34, head, 17, weight="600", hint=title))
    parts.insert(1, _text(_MARGIN, 54, what, 12, fill="#555"))
    height = bottom + 84
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="system-ui, Helvetica, Arial, sans-serif">\n'
        f"<title>{_clean(f'Sensitivity of {title}')}</title>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def level_text(kind: Kind, level: float) -> str:
    """How a level is written: ``90%``, ``4 bit``, ``25%``.

    Example:
        >>> level_text("sparsity", 0.995), level_text("bits", 4), level_text("rank", 0.125)
        ('99.5%', '4 bit', '12.5%')
    """
    return f"{level:g} bit" if kind == "bits" else f"{100 * level:g}%"


def rise_text(rise: float) -> str:
    """A rise in at most six characters.

    Example:
        >>> [rise_text(r) for r in (0.0, 0.01234, -0.2, 3.6e-6, 12.34, 123456.0, float("inf"))]
        ['0', '0.012', '-0.200', '4e-06', '12.3', '1e+05', 'inf']
    """
    size = abs(rise)
    if rise == 0 or not math.isfinite(rise):
        return f"{rise:g}"
    if size < 0.0005:
        return f"{rise:.0e}"
    return f"{rise:.3f}" if size < 9.9995 else f"{rise:.1f}" if size < 999.95 else f"{rise:.0e}"


def shortened(text: str, most: int) -> str:
    """A text with its beginning left out where it is too long: ends of names say most.

    Example:
        >>> shortened("model.layers.12.self_attn.q_proj.weight", 27)
        '…12.self_attn.q_proj.weight'
    """
    text = text.replace("\n", " ")
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]


@final
@dataclass(frozen=True)
class _Scale:
    """Colours of rises, by their logarithm.

    Args:
        low: exponent of ten of the lightest colour.
        high: of the darkest.
    """

    low: float
    high: float

    @classmethod
    def of(cls, curves: Iterable[LayerCurve]) -> _Scale:
        rises = [r for c in curves for _, r in c.points if math.isfinite(r) and r > 0]
        if not rises:
            return cls(-1.0, 0.0)
        high = math.log10(max(rises))
        return cls(min(max(math.log10(min(rises)), high - _DECADES), high - 1), high)

    def colour(self, rise: float) -> tuple[int, int, int]:
        """Red, green and blue."""
        if not math.isfinite(rise):
            return (0, 0, 0)
        share = 0.0 if rise <= 0 else (math.log10(rise) - self.low) / (self.high - self.low)
        at = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
        i = min(int(at), len(_STOPS) - 2)
        r, g, b = (round(x + (at - i) * (y - x)) for x, y in zip(_STOPS[i], _STOPS[i + 1], strict=True))
        return r, g, b


def _in_order(found: Sensitivities) -> Sequence[LayerCurve]:
    """Curves by the network's order as far as it shows: the longest list first."""
    return [c for kind in sorted(found.kinds, key=lambda k: -len(found.of(k))) for c in found.of(kind)]


def _panel(
    kind: Kind,
    levels: Sequence[float],
    curves: dict[str, LayerCurve],
    names: Sequence[str],
    left: int,
    top: int,
    sizes: _Sizes,
    scale: _Scale,
) -> list[str]:
    parts = [_text(left, top - 26, _HEADS[kind], 12, weight="600")]
    for j, level in enumerate(levels):
        label = f"{level:g}" if kind == "bits" else level_text(kind, level)
        parts.append(_text(left + (j + 0.5) * sizes.cell, top - 8, label, 10 if sizes.numbers else 9, "middle"))
    for i, name in enumerate(names):
        points = dict(curves[name].points) if name in curves else {}
        for j, level in enumerate(levels):
            x, y = left + j * sizes.cell, top + i * sizes.row
            rise = points.get(level)
            colour = scale.colour(rise) if rise is not None else (240, 240, 240)
            shown = "–" if rise is None else "∞" if math.isinf(rise) else rise_text(rise)
            faint = rise is None or abs(rise) < 10**scale.low
            hint = "" if sizes.numbers else f"{name}, {level_text(kind, level)}: {shown}"
            parts.append(_cell(x, y, sizes.cell - 1, sizes.row - 1, colour, hint))
            if sizes.numbers:
                dark = sum(w * c for w, c in zip((0.3, 0.59, 0.11), colour, strict=True)) < 140
                centre = (x + (sizes.cell - 1) / 2, y + sizes.row / 2 + 3)
                fill = "#999" if faint else "#fff" if dark else "#222"
                parts.append(_text(*centre, "≈0" if faint and rise is not None else shown, 10, "middle", fill=fill))
    return parts


def _legend(left: int, top: int, scale: _Scale, unit: str) -> list[str]:
    steps, width, height = 30, 8, 12
    parts = []
    for i in range(steps):
        colour = scale.colour(10 ** (scale.low + (scale.high - scale.low) * (i + 0.5) / steps))
        parts.append(_cell(left + i * width, top, width, height, colour))
    for exponent in range(math.ceil(scale.low), math.floor(scale.high) + 1):
        x = left + (exponent - scale.low) / (scale.high - scale.low) * steps * width
        parts.append(f'<path d="M{x:.1f} {top + height}v4" stroke="#555"/>')
        parts.append(_text(x, top + height + 15, f"{10.0**exponent:g}", 10, "middle", fill="#555"))
    parts.append(_text(left + steps * width + 12, top + 10, unit, 11, fill="#555"))
    return parts


def _cell(x: float, y: float, width: float, height: float, colour: tuple[int, int, int], hint: str = "") -> str:
    start = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="#{bytes(colour).hex()}"'
    return f"{start}><title>{_clean(hint)}</title></rect>" if hint else f"{start}/>"


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    anchor: str = "start",
    *,
    fill: str = "#222",
    weight: str = "",
    hint: str = "",
    mono: bool = False,
) -> str:
    more = f" text-anchor={quoteattr(anchor)}" if anchor != "start" else ""
    more += f' font-weight="{weight}"' if weight else ""
    more += ' font-family="ui-monospace, Menlo, Consolas, monospace"' if mono else ""
    inside = (f"<title>{_clean(hint)}</title>" if hint else "") + _clean(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{more}>{inside}</text>'


def _clean(text: str) -> str:
    """Escaped; characters that XML does not have become a replacement."""
    return escape("".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe" else "\ufffd" for c in text))


def _count(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:.0f}{unit}"
    return str(number)
