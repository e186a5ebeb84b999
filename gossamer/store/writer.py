"""Writing containers: small ones as compact as they can be, large ones tensor by tensor into a reserved header's file.

Below 16 MiB of dense tensors everything is coded first, plain tensors come first and the header is as short as it can
be. From there on arrays are written in the order of the tensors, as they come: room for the largest header that can be
needed is reserved at the start and patched last, and a tensor that coding does not make smaller lies raw in a U8 array,
as arrays of wider dtypes could not be aligned. Where more than a thousandth of the file would stay blank, what follows
the header is moved up to it: a network that became small would carry the room of a large one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, final

from gossamer.coding import Effort
from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.encoding.weights import link
from gossamer.errors import DataError
from gossamer.store.atomic import replacing, write_atomically
from gossamer.store.book import Book, Entry
from gossamer.store.dtypes import dtype_name, to_bytes
from gossamer.store.layout import BLANK_SUM, INDEX, LARGE_FROM, POOLED_BELOW, SMALL, VERSION, Json
from gossamer.store.pieces import Piece, code_tensor, shared_leaves
from gossamer.store.safetensors_file import header_bytes

__all__ = ["PieceWriter", "container_bytes", "is_large", "write_container", "write_pieces"]

Arrays = dict[str, tuple[str, tuple[int, ...], int]]

_CLOSED_FROM = 1000  # blanks in the header that are more than the file divided by this are not left there
_MOVED_AT_ONCE = 1 << 22


def is_large(specs: Sequence[TensorSpec]) -> bool:
    """Whether a container of these tensors has the layout of large ones."""
    return sum(s.nbytes for s in specs) >= LARGE_FROM


def write_container(
    path: str | Path,
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    notes: Mapping[str, Json] | None = None,
    effort: Effort = "best",
) -> int:
    """Write trees to one file, atomically.

    Args:
        path: where; replaced only when the new file is complete.
        specs: the tensors, in order.
        trees: per canonical name.
        notes: JSON to keep beside them (recipe, plan); optional, costs bytes.
        effort: how long to look for fewer bytes.

    Returns:
        Bytes written.

    Raises:
        DataError: a dtype that cannot be stored, or a file that cannot be written.

    Cost: one entropy-coding pass over every leaf.
    """
    refuse_names(specs)
    linked = link({spec.name: trees[spec.name] for spec in specs})
    shared = shared_leaves(linked)
    pieces = (code_tensor(name, tree, shared, effort) for name, tree in linked.items())
    if not is_large(specs):
        return write_pieces(path, specs, list(pieces), notes)
    with replacing(Path(path)) as file:
        writer = PieceWriter(file, specs)
        for piece in pieces:
            writer.add(piece)
        writer.finish(notes)
        return writer.close_room(file)


def write_pieces(
    path: str | Path, specs: Sequence[TensorSpec], pieces: Sequence[Piece], notes: Mapping[str, Json] | None = None
) -> int:
    """Write a small container from all of its pieces, atomically.

    Returns:
        Bytes written.
    """
    refuse_names(specs)
    return write_atomically(Path(path), _compact(specs, pieces, notes))


def container_bytes(specs: Sequence[TensorSpec], pieces: Iterable[Piece]) -> int:
    """Size of the container of these pieces; nothing is written.

    Args:
        specs: the tensors, in order.
        pieces: one for each, taken one at a time where the container is a large one.
    """
    if not is_large(specs):
        return sum(len(part) for part in _compact(specs, list(pieces), None))
    writer = PieceWriter(None, specs)
    for piece in pieces:
        writer.add(piece)
    return writer.finish() - writer.blank


def refuse_names(specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors named like arrays of the container itself.

    Raises:
        DataError: names the tensor.
    """
    taken = next((n for s in specs for n in s.names if n in (INDEX, SMALL, "__metadata__")), None)
    if taken is not None:
        raise DataError(f"tensor {taken!r}: found a name that the container itself uses, expected another")


def _compact(
    specs: Sequence[TensorSpec], pieces: Sequence[Piece], notes: Mapping[str, Json] | None
) -> Iterator[bytes | memoryview]:
    """The bytes of a small container."""
    book = Book()
    entries = [(piece.plain, book.add(piece)) for piece in pieces]
    entries = [(plain, entry) for plain, entry in entries if entry.handles]
    small = [e for plain, e in entries if plain is None and e.nbytes < POOLED_BELOW]
    large = [(plain, e) for plain, e in entries if plain is not None or e.nbytes >= POOLED_BELOW]
    large.sort(key=lambda c: -(1 if c[0] is None else c[0].element_size()))
    arrays: Arrays = {}
    data: list[bytes | memoryview] = []
    listed: list[tuple[str, int, list[Entry] | None, list[int]]] = []
    for plain, entry in large:
        raw = b"".join(p.data for p in entry.parts) if plain is None else to_bytes(plain).data
        kind = ("U8", (len(raw),)) if plain is None else (dtype_name(plain.dtype), tuple(plain.shape))
        arrays[entry.name] = (*kind, len(raw))
        data.append(raw)
        listed.append((entry.name, zlib.crc32(raw), [entry] if plain is None else None, entry.handles))
    if small:
        pooled = b"".join(p.data for e in small for p in e.parts)
        arrays[SMALL] = ("U8", (len(pooled),), len(pooled))
        data.append(pooled)
        listed.append((SMALL, zlib.crc32(pooled), small, [h for e in small for h in e.handles]))
    packed = book.packed(specs, listed, notes)
    yield _sealed_header(arrays, packed, book.version)
    yield from data
    yield packed


def _sealed_header(arrays: Arrays, packed: bytes, version: int, size: int = 0) -> bytes:
    """Length field and header of at least ``size`` bytes, with the sums of the index and of itself."""
    arrays = {**arrays, INDEX: ("U8", (len(packed),), len(packed))}
    seal = f"{version} {zlib.crc32(packed):08x} "
    header = header_bytes(arrays, {"gossamer": seal + BLANK_SUM}, size)
    total = f"{zlib.crc32(header):08x}".encode()
    return header.replace((seal + BLANK_SUM).encode(), seal.encode() + total, 1)


def reserved_bytes(specs: Sequence[TensorSpec]) -> int:
    """Bytes of the longest header that these tensors can need: an array for each, at the highest offsets."""
    most = 2 * sum(s.nbytes for s in specs) + (1 << 24)  # coded data never double
    arrays: Arrays = {s.name: ("U8", (most,), most) for s in specs}
    arrays[SMALL] = ("U8", (most,), most)
    wide = len(str(most)) + len(str(len(specs) + 2))  # offsets add up
    return -(-(len(_sealed_header(arrays, b"", VERSION)) + 3 * (wide + 1)) // 8) * 8


@final
class PieceWriter:
    """Writes a large container piece by piece, in the order of the tensors.

    Args:
        file: open for reading and writing, empty or as far as `resume` says; None: only sizes are wanted.
        specs: the tensors, in order.
    """

    def __init__(self, file: BinaryIO | None, specs: Sequence[TensorSpec]) -> None:
        refuse_names(specs)
        self._file, self._specs = file, tuple(specs)
        self._book = Book()
        self._reserved = reserved_bytes(specs)
        self._arrays: Arrays = {}
        self._listed: list[tuple[str, int, list[Entry] | None, list[int]]] = []
        self._small: list[tuple[Entry, bytes]] = []
        self._shortest = b""
        self.end = self._reserved
        if file is not None:
            if file.seek(0, 2) == 0:
                file.write(bytes(self._reserved))
            file.seek(self._reserved)

    def add(self, piece: Piece) -> tuple[int, int, bytes]:
        """Write a tensor's data, or keep them for the pool of small ones.

        Returns:
            (bytes written at the old `end`, their CRC-32, data kept for the pool).
        """
        entry = self._book.add(piece)
        crc = 0
        if entry.nbytes < POOLED_BELOW:
            pooled = b"".join(p.data for p in entry.parts)
            self._pool(entry, pooled)
            return 0, 0, pooled
        if self._file is not None:
            for part in entry.parts:
                self._file.write(part.data)
                crc = zlib.crc32(part.data, crc)
        self._list(entry, crc)
        return entry.nbytes, crc, b""

    def resume(self, piece: Piece, crc: int, pooled: bytes) -> None:
        """Take in a tensor whose data lie in the file already, checked by the caller."""
        entry = self._book.add(piece)
        if entry.nbytes < POOLED_BELOW:
            self._pool(entry, pooled)
            return
        self._list(entry, crc)
        if self._file is not None:
            self._file.seek(self.end)

    def _pool(self, entry: Entry, pooled: bytes) -> None:
        if entry.handles:
            self._small.append((_without_data(entry), pooled))

    def _list(self, entry: Entry, crc: int) -> None:
        self._arrays[entry.name] = ("U8", (entry.nbytes,), entry.nbytes)
        self._listed.append((entry.name, crc, [_without_data(entry)], entry.handles))
        self.end += entry.nbytes

    def finish(self, notes: Mapping[str, Json] | None = None) -> int:
        """Write the pool and the index, then the header into the room that was left for it.

        Returns:
            Bytes of the file.
        """
        pooled = b"".join(data for _, data in self._small)
        if self._small:
            entries = [entry for entry, _ in self._small]
            self._arrays[SMALL] = ("U8", (len(pooled),), len(pooled))
            self._listed.append((SMALL, zlib.crc32(pooled), entries, [h for e in entries for h in e.handles]))
        packed = self._book.packed(self._specs, self._listed, notes)
        self.end += len(pooled) + len(packed)
        header = _sealed_header(self._arrays, packed, self._book.version, self._reserved)
        if len(header) != self._reserved:
            raise DataError(f"found a header of {len(header)} bytes, expected at most {self._reserved} as reserved")
        self._shortest = _sealed_header(self._arrays, packed, self._book.version)
        if self._file is not None:
            self._file.write(pooled + packed)
            self._file.truncate()
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
        return self.end

    @property
    def blank(self) -> int:
        """Bytes of a finished file that closing its room saves; 0 where they are hardly any of it."""
        room = self._reserved - len(self._shortest)
        return room if _CLOSED_FROM * room > self.end else 0

    def close_room(self, file: BinaryIO) -> int:
        """Move what follows the header up to it, where that saves anything worth it.

        Args:
            file: the finished one or a copy of it, open for reading and writing. Damaged if this is interrupted.

        Returns:
            Bytes of the file.

        Raises:
            DataError: the file ends before its last array does.
        """
        if not self.blank:
            return self.end
        source, target = self._reserved, len(self._shortest)
        while source < self.end:
            file.seek(source)
            piece = file.read(_MOVED_AT_ONCE)
            if not piece:
                raise DataError(f"found a file of {source} bytes, expected {self.end}, as were written")
            file.seek(target)
            file.write(piece)
            source, target = source + len(piece), target + len(piece)
        file.truncate(target)
        file.seek(0)
        file.write(self._shortest)
        file.flush()
        return target


def _without_data(entry: Entry) -> Entry:
    return Entry(entry.name, entry.handles, [type(p)(p.entry, b"", p.shared) for p in entry.parts])
