"""One ``.safetensors`` file to one packed file and back, some megabytes at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.coding.difference import Difference
from gossamer.coding.sums import checksum
from gossamer.drive.growing import growing, refuse_output
from gossamer.drive.progress import Progress
from gossamer.drive.workers import Workers
from gossamer.errors import DataError, PlanError
from gossamer.store.byte_file import read_bytes
from gossamer.store.packed_file import PackedFile, PackedPiece
from gossamer.store.packed_layout import VERSION, Entry, Unit, units_of
from gossamer.store.packed_piece import Piece, encode_piece, verified
from gossamer.store.packed_writer import PackedWriter, check_written
from gossamer.store.reference import Lookup, Reference
from gossamer.store.safetensors_file import Layout, open_layout

__all__ = ["PackedUnit", "Source", "Tally", "pack_file", "unpack_file"]

Json = Any
U8 = npt.NDArray[np.uint8]

IN_FLIGHT = 32 << 20  # bytes of pieces that are worked on at once; a coder takes some times as much
_KEPT_EVERY = 1 << 24  # bytes of input between notes in the journal, each of which waits for the disk


@dataclass(frozen=True)
class PackedUnit:
    """What packing did with one tensor, or with small neighbours that were coded together.

    Args:
        tensors: their names.
        dtype: safetensors name.
        nbytes: dense.
        packed_nbytes: coded, without its part of the index.
        coders: names of the coders of its pieces.
        differences: to the reference: "none", "xor", "minus" or "same".
    """

    tensors: tuple[str, ...]
    dtype: str
    nbytes: int
    packed_nbytes: int
    coders: tuple[str, ...]
    differences: tuple[str, ...]


@dataclass
class Tally:
    """Bytes done of all, over several files; calls the progress."""

    title: str
    total: int
    report: Progress
    done: int = 0

    def add(self, nbytes: int) -> None:
        """So many more are done."""
        self.done += nbytes
        self.report.update(self.title, self.done, self.total)


class Source:
    """A dense file whose header was checked.

    Args:
        path: the ``.safetensors`` file.

    Raises:
        DataError: no such file.
        FormatError: truncated, or with a malformed header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise DataError(f"{path}: found a folder, expected a file")
        self.layout: Layout
        self.layout, whole = open_layout(path, every_dtype=True)
        whole.release()
        self.arrays = dict(self.layout.arrays)
        self.units = units_of(self.arrays)

    def identity(self) -> Json:
        """Name, bytes, time and header: what must be the same when a run goes on."""
        return [self.path.name, self.layout.file_bytes, self.path.stat().st_mtime_ns, checksum(self.layout.header)]

    def pieces(self) -> Iterator[tuple[Unit, int, int]]:
        """Unit, first and last byte of each piece, in order."""
        for unit in self.units:
            for start, stop in unit.pieces():
                yield unit, start, stop

    def read(self, unit: Unit, start: int, stop: int) -> U8:
        """Bytes of a unit."""
        return _gathered(self.path, self.layout.data_start, unit, start, stop)


def _gathered(path: Path, data_start: int, unit: Unit, start: int, stop: int) -> U8:
    """Bytes of a unit from a dense file."""
    parts = [read_bytes(path, data_start + first, last - first) for _, _, first, last in unit.within(start, stop)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def pack_file(
    source: Source,
    out: Path,
    *,
    reference: Reference | None,
    near: str,
    verify: bool,
    resume: bool,
    workers: int,
    tally: Tally,
) -> tuple[int, list[PackedUnit], int]:
    """Pack one file.

    Args:
        source: the dense file.
        out: the packed file to write.
        reference: what differences are taken to.
        near: name of the reference's file in which tensors are looked for first.
        verify: decode every piece and compare before it is written.
        resume: go on where an earlier run stopped.
        workers: threads.
        tally: of bytes read.

    Returns:
        (bytes of the packed file, what was done, pieces that an earlier run had finished).

    Raises:
        PlanError: something lies at ``out``, or an earlier run that this one does not continue.
        DataError: a file that cannot be read or written.
        FormatError: the dense file has changed meanwhile.
    """
    refuse_output(out)
    lookup = reference.near(near).used_by(source.arrays) if reference is not None else Lookup(())
    before = source.identity()
    start = {"version": VERSION, "checkpoint": before, "reference": reference.identity() if reference else None}
    jobs = list(source.pieces())
    names = [str(number) for number in range(len(jobs))]
    sizes = {name: stop - first for name, (_, first, stop) in zip(names, jobs, strict=True)}

    def work(name: str) -> Piece:
        unit, first, stop = jobs[int(name)]
        base = lookup.bytes_of(unit, source.arrays, first, stop) if lookup.files else None
        raw = source.read(unit, first, stop)
        piece = encode_piece(raw, unit.dtype, base)
        return verified(piece, raw, unit.dtype, base) if verify else piece

    with growing(out, start, source.layout.file_bytes, resume=resume) as target, _threads(workers, sizes) as pool:
        writer = PackedWriter(target.file)
        earlier = [Entry.from_json(e) for record in target.records for e in record["pieces"]]
        check_written(target.path, earlier)
        writer.resume(earlier)
        tally.add(sum(sizes[name] for name in names[: len(earlier)]))
        fresh, since = len(earlier), 0
        for name, piece in zip(names[len(earlier) :], pool.map(work, names[len(earlier) :]), strict=True):
            writer.add(piece)
            since += sizes[name]
            if since >= _KEPT_EVERY:
                target.keep({"pieces": [e.to_json() for e in writer.entries[fresh:]]})
                fresh, since = len(writer.entries), 0
            tally.add(sizes[name])
        if source.identity() != before:
            raise DataError(f"{source.path}: found it changed while it was packed, expected it to stay as it was")
        if reference is not None and reference.identity() != start["reference"]:
            raise DataError(f"{reference.path}: found it changed while it was read, expected it to stay as it was")
        tally.add(source.layout.data_start)
        written = writer.finish(source.layout.header, [file.record() for file in lookup.files])
    return written, _units(jobs, writer.entries), len(earlier)


def _threads(workers: int, sizes: dict[str, int]) -> Workers:
    if workers < 1:
        raise PlanError(f"workers: found {workers}, expected at least 1")
    return Workers(workers, sizes, IN_FLIGHT)


def _units(jobs: list[tuple[Unit, int, int]], entries: list[Entry]) -> list[PackedUnit]:
    by_unit: dict[int, tuple[Unit, list[Entry]]] = {}
    for (unit, _, _), entry in zip(jobs, entries, strict=True):
        by_unit.setdefault(unit.places[0][0], (unit, []))[1].append(entry)
    return [
        PackedUnit(
            unit.names,
            unit.dtype,
            unit.nbytes,
            sum(e.nbytes for e in mine),
            tuple(dict.fromkeys(e.coder.name for e in mine)),
            tuple(dict.fromkeys(e.difference.name.lower() for e in mine)),
        )
        for unit, mine in by_unit.values()
    ]


def unpack_file(
    packed: PackedFile, out: Path, *, reference: Reference | None, resume: bool, workers: int, tally: Tally
) -> int:
    """The dense file again, to the byte.

    Args:
        packed: opened with the reference, if it is a difference.
        out: the ``.safetensors`` file to write.
        reference: the same; its checksum is compared before anything is written.
        resume: go on where an earlier run stopped: what it wrote is kept as far as its sums are right.
        workers: threads.
        tally: of bytes written.

    Returns:
        Bytes of the dense file.

    Raises:
        PlanError: something lies at ``out``, or what an earlier run left is there.
        DataError: the reference is missing or another, or the file cannot be written.
        FormatError: damaged.
    """
    refuse_output(out)
    if any(piece.entry.difference is not Difference.NONE for piece in packed.pieces):
        if reference is None:
            wanted = ", ".join(str(record[0])[:80] for record in packed.references)
            raise DataError(f"{packed.path}: found differences to {wanted}, expected --reference")
        reference.recorded(packed.references, whole=True)
    _refuse_full_disk(out, packed.dense_bytes)
    names = [str(number) for number in range(len(packed.pieces))]
    sizes = {name: piece.stop - piece.start for name, piece in zip(names, packed.pieces, strict=True)}
    head = len(packed.header).to_bytes(8, "little") + packed.header
    start = {"version": VERSION, "packed file": [packed.file_bytes, checksum(head)]}

    with growing(out, start, packed.dense_bytes, resume=resume) as target, _threads(workers, sizes) as pool:
        done = max((record["pieces"] for record in target.records), default=0)
        done = _right(target.path, packed.pieces[:done], len(head))
        target.file.seek(0)
        target.file.write(head)
        target.file.truncate(packed.dense_bytes)
        tally.add(len(head) + sum(sizes[name] for name in names[:done]))
        since = 0
        todo = names[done:]
        decoded = pool.map(lambda name: packed.decode(packed.pieces[int(name)]), todo)
        for number, (name, raw) in enumerate(zip(todo, decoded, strict=True), done + 1):
            piece = packed.pieces[int(name)]
            for at, _, first, last in piece.unit.within(piece.start, piece.stop):
                target.file.seek(len(head) + first)
                target.file.write(raw[at : at + last - first].data)
            since += sizes[name]
            if since >= _KEPT_EVERY:
                packed.forget()
                target.keep({"pieces": number})
                since = 0
            tally.add(sizes[name])
    return packed.dense_bytes


def _refuse_full_disk(out: Path, nbytes: int) -> None:
    part = out.with_name(out.name + ".part")
    free = shutil.disk_usage(out.absolute().parent).free + (part.stat().st_size if part.is_file() else 0)
    if nbytes > free:
        raise DataError(f"{out}: found room for {free} bytes, expected {nbytes}")


def _right(path: Path, pieces: list[PackedPiece], first: int) -> int:
    """How many of the pieces lie in an unfinished file as they should."""
    size = path.stat().st_size if pieces else 0
    for number, piece in enumerate(pieces):
        if any(first + last > size for _, _, _, last in piece.unit.within(piece.start, piece.stop)):
            return number
        if checksum(_gathered(path, first, piece.unit, piece.start, piece.stop).data) != piece.entry.dense_sum:
            return number
    return len(pieces)
