"""An output that grows beside its place and gets there when it is complete; with a journal if it is large."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, final

from gossamer.errors import DataError, FormatError, PlanError
from gossamer.store.atomic import publish, replacing
from gossamer.store.journal import Journal, read_journal
from gossamer.store.layout import LARGE_FROM

__all__ = ["Growing", "growing", "refuse_output"]

Json = Any


def refuse_output(out: Path) -> None:
    """Refuse to write where something is, or where nothing can be.

    Raises:
        PlanError: ``out`` is there already.
        DataError: its folder is not.
    """
    if out.exists() or out.is_symlink():
        raise PlanError(f"{out}: found something there, expected a new name: nothing is overwritten")
    if not out.absolute().parent.is_dir():
        raise DataError(f"{out}: found no folder {out.absolute().parent}, expected it to be there")


@final
class Growing:
    """The file, and what an earlier run says of it.

    Args:
        path: of the file, as errors should name it.
        file: open for writing.
        journal: of this run; None if it is too small to go on with.
        records: of the earlier run, but for its first.
    """

    def __init__(self, path: Path, file: BinaryIO, journal: Journal | None, records: list[Json]) -> None:
        self.path, self.file, self._journal, self.records = path, file, journal, records

    def keep(self, record: Json) -> None:
        """Note what is finished, once it is on disk."""
        if self._journal is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self._journal.append(record)


@contextlib.contextmanager
def growing(out: Path, start: dict[str, Json], nbytes: int, *, resume: bool) -> Iterator[Growing]:
    """The file that takes the place ``out`` when the block ends well.

    From 16 MiB of input on it is ``out`` + ".part", beside a journal (".journal"); both stay when the run is killed,
    interrupted or out of room. Below, nothing stays.

    Args:
        out: where; nothing is there yet.
        start: JSON that must be the same when a run is resumed, by the names of what may differ.
        nbytes: of the input.
        resume: go on where an earlier run stopped; from the start if there was none.

    Raises:
        PlanError: an earlier run that this one does not continue.
        DataError: the file cannot be written.
    """
    part, log = out.with_name(out.name + ".part"), out.with_name(out.name + ".journal")
    if log.exists() and not resume:
        raise PlanError(f"{log}: found an unfinished run, expected none: add --resume, or delete it")
    if nbytes < LARGE_FROM:
        with replacing(out) as file:
            yield Growing(out, file, None, [])
        return
    records, good = _earlier(log, start) if log.exists() else ([], 0)
    if not part.exists():
        records, good = [], 0
    try:
        with part.open("r+b" if records else "wb") as file, contextlib.closing(Journal(log, good)) as journal:
            if not good:
                journal.append(start)
            yield Growing(part, file, journal, records)
        publish(part, out)
        log.unlink()
    except FormatError:  # what there is was made of damaged input
        part.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        raise
    except OSError as error:
        why = error.strerror
        raise DataError(
            f"{part}: writing failed: {why}; what is finished is kept: make room and add --resume"
        ) from error


def _earlier(log: Path, start: dict[str, Json]) -> tuple[list[Json], int]:
    records, good = read_journal(log)
    if not records:
        return [], 0
    for key, expected in start.items():
        found = records[0].get(key) if isinstance(records[0], dict) else None
        if found != expected:
            raise PlanError(
                f"{log}: found a run with another {key}: found {str(found)[:80]}, expected {str(expected)[:80]}; "
                "delete it to start anew"
            )
    return records[1:], good
