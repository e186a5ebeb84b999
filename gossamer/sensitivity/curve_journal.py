"""The finished layers of a measurement on disk, so that a killed run goes on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch

from gossamer.errors import DataError, FormatError, PlanError
from gossamer.sensitivity.layer_curves import LayerCurve
from gossamer.sensitivity.measuring import Finished
from gossamer.sensitivity.probe import Kind
from gossamer.store.journal import Journal, read_journal

__all__ = ["CurveJournal", "sum_of_code"]

_COMPUTING = ("encoding", "methods", "drive", "network", "sensitivity")


def sum_of_code() -> str:
    """A checksum of the code that the numbers come from, and torch's version.

    Example:
        >>> sum_of_code() == sum_of_code()
        True
    """
    root, crc = Path(__file__).parents[1], 0
    for folder in _COMPUTING:
        for file in sorted((root / folder).rglob("*.py")):
            crc = zlib.crc32(file.read_bytes(), zlib.crc32(str(file.relative_to(root)).encode(), crc))
    return f"{crc:08x}, torch {torch.__version__}"


@final
class CurveJournal:
    """One line per finished layer and kind.

    Args:
        path: of the file; it appears with the first finished layer.
        asked: what the run is, as text; a run with anything else in it is not gone on with.
        resume: go on with what is there; from the start if nothing is.

    Raises:
        PlanError: a run is there and is not to be gone on with, or it is another one.
        FormatError: a damaged file.
        DataError: one that cannot be read.
    """

    def __init__(self, path: Path, asked: Mapping[str, str], *, resume: bool) -> None:
        self.path, self._asked = path, dict(asked)
        self._journal: Journal | None = None
        self._known: dict[tuple[str, str], Finished] = {}
        if path.exists() and not resume:
            raise PlanError(f"{path}: found an unfinished run, expected none: add --resume, or delete it")
        try:
            records, self._good = read_journal(path) if path.exists() else ([], 0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        for key, value in self._asked.items() if records else ():
            found = records[0].get(key) if isinstance(records[0], dict) else None
            if found != value:
                what = f"found a run with another {key}: {str(found)[:200]!r}, expected {value[:200]!r}"
                raise PlanError(f"{path}: {what}; delete it to begin anew")
        for number, record in enumerate(records[1:], 2):
            try:
                self._known[record["name"], record["kind"]] = _finished(record)
            except (KeyError, TypeError, ValueError) as error:
                raise FormatError(f"{path}: line {number}: found no finished layer, expected one") from error

    @property
    def resumed(self) -> int:
        """Curves that an earlier run had finished."""
        return len(self._known)

    def known(self, name: str, kind: Kind) -> Finished | None:
        """What an earlier run found."""
        return self._known.get((name, kind))

    def keep(self, name: str, kind: Kind, found: Finished) -> None:
        """On disk when this returns."""
        try:
            if self._journal is None:
                self._journal = Journal(self.path, self._good)
                if not self._good:
                    self._journal.append(self._asked)
            self._journal.append({"name": name, "kind": kind, **_plain(found)})
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; it stays."""
        if self._journal is not None:
            self._journal.close()


def _plain(found: Finished) -> dict[str, Any]:
    if found.curve is None:
        return {"reason": found.reason}
    return {"curve": found.curve.to_json()}


def _finished(record: Mapping[str, Any]) -> Finished:
    if "reason" in record:
        return Finished(None, str(record["reason"]))
    return Finished(LayerCurve.from_json(record["curve"]))
