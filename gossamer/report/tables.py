"""Tables behind the figures: what is shown, what it is sorted by, and marks within cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gossamer.report.scales import finite
from gossamer.report.svg import Markup, clean

__all__ = ["Cell", "Column", "Figure", "Panel", "Section", "Table", "joined", "numeric", "text"]

NOTHING = Markup("")


@final
@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        title: in its head.
        number: whether cells are numbers, aligned to the right.
        hint: longer, or "".
    """

    title: str
    number: bool = True
    hint: str = ""


@final
@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        shown: text.
        key: number or text to sort by and to write to CSV; None sorts last.
        mark: a drawing beside the text.
        kind: class of the style sheet, or "".
    """

    shown: str
    key: float | str | None
    mark: Markup = NOTHING
    kind: str = ""

    @property
    def key_text(self) -> str:
        """The key as the script reads it."""
        if self.key is None:
            return ""
        if not isinstance(self.key, float):
            return clean(str(self.key))
        # Counts of bytes and bits are exact, however large; JavaScript has no larger whole numbers than these.
        return f"{self.key:.0f}" if self.key.is_integer() and abs(self.key) < 2**53 else f"{self.key:.7g}"

    @property
    def key_differs(self) -> bool:
        """Whether the script cannot take the text for the key."""
        return bool(self.mark) or self.key_text != clean(self.shown)


@final
@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its head.

    Args:
        caption: what it lists.
        columns: as many as cells in a row.
        rows: in the order first shown.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@final
@dataclass(frozen=True)
class Figure:
    """A drawing with its caption and its table.

    Args:
        name: of its anchor and its downloads; letters and dashes, from our own code.
        title: what it shows, best as a claim.
        note: how to read it.
        drawing: elements.
        table: the numbers.
        open: whether the table *is* the figure and is shown as it stands.
        wide: whether it takes the width of the page.
    """

    name: str
    title: str
    note: str
    drawing: Markup
    table: Table
    open: bool = False
    wide: bool = True


@final
@dataclass(frozen=True)
class Panel:
    """Figures about one file.

    Args:
        letter: of the file.
        name: of the file, short.
        whole: its whole name.
        lead: in one sentence.
        figures: of it.
    """

    letter: str
    name: str
    whole: str
    lead: str
    figures: tuple[Figure, ...]


@final
@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of its anchor, from our own code.
        title: its heading.
        lead: what it is about.
        figures: of all files.
        panels: one per file, of which one is looked at.
    """

    name: str
    title: str
    lead: str
    figures: tuple[Figure, ...] = ()
    panels: tuple[Panel, ...] = ()


def text(shown: str, mark: Markup = NOTHING, kind: str = "") -> Cell:
    """A cell of text.

    Example:
        >>> text("fc1").key_text
        'fc1'
    """
    return Cell(shown, shown, mark, kind)


def numeric(value: object, shown: str, mark: Markup = NOTHING, kind: str = "") -> Cell:
    """A cell of a number; a dash where there is none.

    Example:
        >>> numeric(0.5, "50%").key_text, numeric(None, "").shown
        ('0.5', '–')
    """
    found = finite(value)
    return Cell(shown if found is not None else "–", found, mark, kind)


def joined(parts: Sequence[Markup]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(parts)
