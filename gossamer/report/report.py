"""What was measured, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from gossamer.report.headline import chosen, headline
from gossamer.report.looks import looks_of
from gossamer.report.page import page_of
from gossamer.store.atomic import write_atomically

__all__ = ["Report"]


@final
@dataclass(frozen=True)
class Report:
    """A report.

    Args:
        document: JSON, see docs/report.md.
    """

    document: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """What it comes to, in one sentence."""
        looks, dense = looks_of(self.document)
        best = chosen(looks, dense)
        return str(self.document["title"]) if best is None else headline(best, dense)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON, pictures included."""
        return dict(self.document)

    def html(self) -> str:
        """The page: one file without any request to anywhere."""
        return page_of(self.document)

    def save(self, path: str | Path) -> int:
        """Write the page, atomically.

        Returns:
            Bytes written.

        Raises:
            DataError: it cannot be written there.
        """
        return write_atomically(Path(path), [self.html().encode()])
