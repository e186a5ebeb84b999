"""What a long run has finished, one checked line each, so that a killed run can go on."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, final

from gossamer.errors import FormatError

__all__ = ["Journal", "read_journal"]

Json = Any


@final
class Journal:
    """Appends records; each is on disk when `append` returns.

    Args:
        path: of the journal.
        keep: bytes of good lines to keep; what follows them is cut off.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._file = path.open("r+b" if keep else "wb")
        self._file.truncate(keep)
        self._file.seek(keep)

    def append(self, record: Json) -> None:
        """Write one record and wait for the disk."""
        text = json.dumps(record, separators=(",", ":")).encode()
        self._file.write(f"{zlib.crc32(text):08x} ".encode() + text + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> tuple[list[Json], int]:
    """The records, and how many bytes they take; a last line that a kill cut short is left out.

    Raises:
        FormatError: a damaged line before the last.
    """
    records: list[Json] = []
    good = 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        crc, _, text = line.partition(b" ")
        if crc != f"{zlib.crc32(text):08x}".encode():
            if number == len(lines) - 1:
                break
            raise FormatError(f"{path}: line {number}: found checksum {zlib.crc32(text):08x}, expected {crc[:8]!r}")
        records.append(json.loads(text))
        good += len(line) + 1
    return records, good
