"""Writes a packed file piece by piece."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, final

from gossamer.errors import PlanError
from gossamer.store.byte_file import read_bytes
from gossamer.store.packed_layout import RESERVED, Entry, deflated, sealed_header
from gossamer.store.packed_piece import Piece

__all__ = ["PackedWriter", "check_written"]

Json = Any


@final
class PackedWriter:
    """Pieces in order, then the dense file's header and the index, then the header over the room that was left for it.

    Args:
        file: open for writing, empty or as far as `resume` says.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.entries: list[Entry] = []
        self.end = RESERVED
        if file.seek(0, 2) == 0:
            file.write(bytes(RESERVED))

    def resume(self, entries: Sequence[Entry]) -> None:
        """Take in pieces whose bytes lie in the file already; what follows them is cut off."""
        self.entries += entries
        self.end += sum(entry.nbytes for entry in entries)
        self._file.truncate(self.end)
        self._file.seek(self.end)

    def add(self, piece: Piece) -> None:
        """Write the next piece."""
        self._file.write(piece.payload)
        self._file.write(piece.table)
        self.entries.append(piece.entry)
        self.end += piece.entry.nbytes

    def finish(self, header: bytes, references: Json) -> int:
        """Write the rest.

        Args:
            header: of the dense file, without its length field.
            references: records of the files that pieces are differences to.

        Returns:
            Bytes of the file.
        """
        head = deflated(header)
        about: dict[str, Json] = {"header": [len(header), zlib.crc32(head)]}
        about |= {"references": references} if references else {}
        listed = [entry.to_json() for entry in self.entries]
        index = deflated(json.dumps({**about, "pieces": listed}, separators=(",", ":")).encode())
        self._file.write(head)
        self._file.write(index)
        sealed = sealed_header((self.end - RESERVED, len(head), len(index)), zlib.crc32(index))
        self._file.seek(0)
        self._file.write(sealed)
        return self.end + len(head) + len(index)


def check_written(path: Any, entries: Sequence[Entry]) -> None:
    """Compare what lies in an unfinished file with what is said of it.

    Raises:
        PlanError: it is not what was written.
        FormatError: it is too short.
    """
    at = RESERVED
    for number, entry in enumerate(entries):
        found = zlib.crc32(read_bytes(path, at, entry.nbytes).data)
        if found != entry.coded_sum:
            raise PlanError(
                f"{path}: piece {number}: found checksum {found:08x}, the journal expected {entry.coded_sum:08x}: "
                "this run cannot be resumed; delete it and its journal"
            )
        at += entry.nbytes
