"""The files of a report as the page speaks of them: a letter, a name, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gossamer.report.scales import finite

__all__ = ["DENSE_LETTER", "Look", "letters", "looks_of", "small_names", "with_dense"]

DENSE_LETTER = "dense"
_LONGEST = 56


@final
@dataclass(frozen=True)
class Look:
    """One file.

    Args:
        letter: by which it is found again in every figure.
        name: without the words that all names begin with.
        file: its part of the document.
    """

    letter: str
    name: str
    file: Mapping[str, Any]

    def number(self, *keys: str) -> float | None:
        """A number at a path of keys, or None where anything of it is missing."""
        found: Any = self.file
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return finite(found)

    def part(self, key: str) -> Mapping[str, Any] | None:
        """A part that was measured, or None."""
        found = self.file.get(key)
        return found if isinstance(found, Mapping) else None

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return self.number("accuracy", "value")

    @property
    def speed(self) -> float | None:
        """How many times faster than the dense network."""
        own, dense = self.number("latency", "milliseconds"), self.number("latency", "dense_milliseconds")
        return dense / own if own and dense else None


def looks_of(document: Mapping[str, Any]) -> tuple[tuple[Look, ...], Look | None]:
    """The compressed files in their order, and the dense network if there is one."""
    files: Sequence[Mapping[str, Any]] = document["files"]
    whole = next((f for f in files if f["dense"]), None)
    dense = None
    if whole is not None:  # its letter says already that it is dense
        dense = Look(DENSE_LETTER, "before compression" if whole["name"] == DENSE_LETTER else str(whole["name"]), whole)
    compressed = [f for f in files if not f["dense"]]
    names = small_names([str(f["name"]) for f in compressed], _LONGEST)
    named = zip(letters(len(compressed)), names, compressed, strict=True)
    return tuple(Look(letter, name, f) for letter, name, f in named), dense


def with_dense(looks: Sequence[Look], dense: Look | None) -> list[Look]:
    """The compressed files, then the dense network if there is one."""
    return [*looks, *([dense] if dense is not None else [])]


def letters(count: int) -> list[str]:
    """A, B, … Z, AA, AB, …

    Example:
        >>> letters(28)[-3:]
        ['Z', 'AA', 'AB']
    """
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    found = []
    for i in range(count):
        high, low = divmod(i, 26)
        found.append((alphabet[high - 1] if high else "") + alphabet[low])
    return found


def small_names(names: Sequence[str], most: int) -> list[str]:
    """Names without the words that all begin with, shortened in the middle.

    Example:
        >>> small_names(["net-a", "net-b"], 10), small_names(["sixteen shared values"], 11)
        (['a', 'b'], ['sixt…values'])
    """
    shared = 0
    if len(set(names)) > 1:
        short, long = min(names), max(names)
        while shared < min(len(short), len(long)) and short[shared] == long[shared]:
            shared += 1
        while shared and short[shared - 1].isalnum():
            shared -= 1
    return [_middle(name[shared:] or name, most) for name in names]


def _middle(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    head = (most - 1) * 2 // 5
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"
