"""The checkpoint that another one is told as a difference to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError, FormatError
from gossamer.store.byte_file import file_sums, read_bytes
from gossamer.store.packed_layout import INDEX, Unit
from gossamer.store.safetensors_file import Array, Layout, open_layout

__all__ = ["Lookup", "Reference", "ReferenceFile"]

Json = Any
U8 = npt.NDArray[np.uint8]


@final
class ReferenceFile:
    """One file of it.

    Args:
        name: with ``/``, counted from the reference's folder.
        path: where.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.layout: Layout
        self.layout, whole = open_layout(path, every_dtype=True)
        whole.release()
        self._lock = threading.Lock()
        self._sum: str | None = None

    def sum(self) -> str:
        """Checksum of all of it; the file is read once."""
        with self._lock:
            if self._sum is None:
                self._sum = file_sums(self.path, self.layout.file_bytes)
            return self._sum

    def record(self) -> list[Json]:
        """What a packed file keeps of it: name, bytes, checksum."""
        return [self.name, self.layout.file_bytes, self.sum()]


@dataclass(frozen=True)
class Lookup:
    """Files in the order in which a tensor is looked for."""

    files: tuple[ReferenceFile, ...]

    def find(self, name: str, like: Array) -> tuple[ReferenceFile, Array] | None:
        """The first tensor of that name, dtype and shape."""
        for file in self.files:
            found = file.layout.arrays.get(name)
            if found is not None and (found.dtype, found.shape) == (like.dtype, like.shape):
                return file, found
        return None

    def bytes_of(self, unit: Unit, arrays: dict[str, Array], start: int, stop: int) -> U8 | None:
        """The reference's bytes for a range of a unit, zeros for tensors that it lacks; None if it lacks them all."""
        base: U8 | None = None
        for at, name, first, last in unit.within(start, stop):
            found = self.find(name, arrays[name])
            if found is None:
                continue
            if base is None:
                base = np.zeros(stop - start, dtype=np.uint8)
            file, place = found
            there = file.layout.data_start + place.start + first - arrays[name].start
            base[at : at + last - first] = read_bytes(file.path, there, last - first)
        return base

    def used_by(self, arrays: dict[str, Array]) -> Lookup:
        """Only the files in which one of these tensors is found."""
        found = {id(hit[0]) for name, array in arrays.items() if (hit := self.find(name, array)) is not None}
        return Lookup(tuple(file for file in self.files if id(file) in found))


@final
class Reference:
    """A ``.safetensors`` file, or all those in a folder and the folders within.

    Args:
        path: which.

    Raises:
        DataError: nothing there.
        FormatError: a file that is truncated or whose header is malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            found = sorted(p for p in self.path.rglob("*.safetensors") if p.is_file())
            named = [(p.relative_to(self.path).as_posix(), p) for p in found]
            if not found:
                raise DataError(f"{self.path}: found no *.safetensors, expected the reference")
        else:
            named = [(self.path.name, self.path)]
        self.files = tuple(ReferenceFile(name, p) for name, p in named)

    def identity(self) -> Json:
        """What must be the same when a run goes on."""
        return [[f.name, f.layout.file_bytes, f.path.stat().st_mtime_ns] for f in self.files]

    def near(self, name: str) -> Lookup:
        """All files, that of this name first."""
        return Lookup(tuple(sorted(self.files, key=lambda f: f.name != name)))

    def recorded(self, records: Sequence[Json], *, whole: bool) -> Lookup:
        """The files that a packed file speaks of.

        Args:
            records: as `ReferenceFile.record` made them; not trusted.
            whole: also compare checksums, for which the files are read; else only sizes.

        Raises:
            DataError: files that are missing or are others.
        """
        known = {f.name: f for f in self.files}
        found = []
        for record in records:
            good = isinstance(record, list) and len(record) == 3
            if not (good and isinstance(record[0], str) and type(record[1]) is int and isinstance(record[2], str)):
                raise FormatError(f"{INDEX}: found reference {str(record)[:80]}, expected [name, bytes, checksum]")
            name, size, checksum = record
            alone = len(records) == len(self.files) == 1  # one file may have been renamed
            file = self.files[0] if alone else known.get(name)
            if file is None:
                raise DataError(f"{self.path}: found no {name[:80]!r}, expected the reference that was packed with")
            if file.layout.file_bytes != size:
                raise DataError(
                    f"{file.path}: found {file.layout.file_bytes} bytes, expected the reference of {size} bytes that "
                    "was packed with"
                )
            if whole and file.sum() != checksum:
                raise DataError(
                    f"{file.path}: found checksum {file.sum()}, expected {checksum[:8]}: this is not the reference "
                    "that was packed with"
                )
            found.append(file)
        return Lookup(tuple(found))
