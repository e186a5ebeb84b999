"""SVG elements as text in which nothing can be anything but text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.report.needs import Markup, escape

__all__ = ["Markup", "clean", "label", "line", "number", "tag", "widest"]

_EMPTY = frozenset({"br", "circle", "image", "img", "line", "path", "polygon", "rect", "use"})


def tag(name: str, attributes: Mapping[str, Any] | None = None, *children: object) -> Markup:
    """An element. Attributes and children are escaped, except children that are elements already.

    Args:
        name: of the element, from our own code.
        attributes: those that are None are left out, numbers are written short.
        children: elements or text.

    Example:
        >>> tag("text", {"x": 1.50, "class": None}, "<b>")
        Markup('<text x="1.5">&lt;b&gt;</text>')
    """
    written = "".join(f' {key}="{_value(value)}"' for key, value in (attributes or {}).items() if value is not None)
    inside = "".join(str(escape(clean(child) if type(child) is str else child)) for child in children)
    if name in _EMPTY and not inside:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inside}</{name}>")  # all parts are escaped


def label(x: float, y: float, text: str, kind: str = "", anchor: str | None = None) -> Markup:
    """Text at a place.

    Args:
        x: pixels.
        y: pixels, of the base line.
        text: any.
        kind: class of the style sheet.
        anchor: "middle" or "end"; None: the start.
    """
    return tag("text", {"x": x, "y": y, "class": kind or None, "text-anchor": anchor}, text)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line of a class."""
    return tag("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def number(value: float) -> str:
    """A coordinate, to a hundredth of a pixel.

    Example:
        >>> number(3.0), number(0.125), number(-0.001)
        ('3', '0.12', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def widest(text: str, size: float) -> float:
    """Pixels that a text of a size takes at most, about, in the widest of the usual fonts.

    Example:
        >>> widest("fill", 10) < widest("WWWW", 10)
        True
    """
    return size * sum(0.4 if c in _NARROW else 1.02 if c in _WIDE or c > "\u2fff" else 0.64 for c in text)


def clean(text: str) -> str:
    """Text without what a document cannot hold or what turns it around: such characters become �.

    Control characters, halves of surrogate pairs, and overrides of the direction of writing, by which a name could look
    like another one, and rearrange the words after it.

    Example:
        >>> clean("a\\x00\\udc80b\\nc")
        'a��b c'
    """
    return "".join(" " if c in "\t\n\r" else c if _holds(c) else "\ufffd" for c in text)


_NARROW, _WIDE = frozenset("fijlrt.,:;|!'()[]/- "), frozenset("mwMW%@…→<>=+&")
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _holds(c: str) -> bool:
    if c in _TURNS or c in "\ufffe\uffff":
        return False
    return c >= " " and not "\x7f" <= c <= "\x9f" and not "\ud800" <= c <= "\udfff"


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(escape(clean(str(value))))
