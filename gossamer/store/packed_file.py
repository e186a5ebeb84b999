"""Reads packed files: any tensor, or some of its rows, without the rest; every byte checked."""

from __future__ import annotations

import mmap
import zlib
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.coding.difference import Difference
from gossamer.errors import DataError, FormatError
from gossamer.store.dtypes import EVERY_DTYPE
from gossamer.store.packed_layout import (
    BLANK_SUM,
    DATA,
    HEADER,
    INDEX,
    RESERVED,
    SEAL,
    VERSION,
    Entry,
    Unit,
    inflated,
    units_of,
)
from gossamer.store.packed_piece import decode_part, decode_piece
from gossamer.store.reference import Lookup, Reference
from gossamer.store.safetensors_file import Array, Layout, open_layout, parse_header, parse_json

__all__ = ["PackedFile", "PackedPiece"]

Json = Any
U8 = npt.NDArray[np.uint8]


@final
class PackedPiece:
    """Where a piece lies.

    Args:
        unit: what it is of.
        start: first of its bytes, counted within the unit.
        stop: one past the last.
        at: its first coded byte in the packed file.
        entry: how it is coded.
    """

    __slots__ = ("at", "entry", "start", "stop", "unit")

    def __init__(self, unit: Unit, start: int, stop: int, at: int, entry: Entry) -> None:
        self.unit, self.start, self.stop, self.at, self.entry = unit, start, stop, at, entry


@final
class PackedFile:
    """A checkpoint that `gossamer.pack` wrote, opened for reading; the file is mapped.

    Args:
        path: the packed file; nothing in it is trusted.
        reference: the checkpoint that it is a difference to, where it is one. Its sizes are compared here, its bytes
            through the sum of every piece that is read.
        workers: threads that decode the blocks of a piece.

    Raises:
        DataError: no such file, or a reference that is another.
        FormatError: not a packed file, damaged, or of another version.

    Cost: opening inflates header and index; a tensor costs its own pieces (at most 8 MiB
    each), a row the blocks that hold it.

    Example:
        >>> import tempfile
        >>> import gossamer as gs
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.arange(6.0).view(3, 2)}, f"{folder}/a.safetensors")
        ...     packed = gs.pack(f"{folder}/a.safetensors", f"{folder}/a.packed")
        ...     file = PackedFile(f"{folder}/a.packed")
        ...     file.names(), file.rows("w", 1, 3).tolist()
        (('w',), [[2.0, 3.0], [4.0, 5.0]])
    """

    def __init__(self, path: str | Path, reference: str | Path | Reference | None = None, *, workers: int = 1) -> None:
        self.path, self._workers = Path(path), workers
        layout, whole = open_layout(self.path)
        self._whole = whole
        try:
            index = _index(layout, whole)
            self.header = _header(index, layout, whole)
            self._dense = parse_header(self.header, None, every_dtype=True)
            self._arrays = dict(self._dense.arrays)
            self.references = _references(index)
            self._homes: dict[str, tuple[int, int]] = {}  # tensor → first piece of its unit, first byte within it
            self.pieces = self._listed(index, layout)
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from error
        self._lookup: Lookup | None = None
        if reference is not None and self.references:
            known = reference if isinstance(reference, Reference) else Reference(reference)
            self._lookup = known.recorded(self.references, whole=False)

    @property
    def file_bytes(self) -> int:
        """Of the packed file."""
        return len(self._whole)

    @property
    def dense_bytes(self) -> int:
        """Of the file that was packed."""
        return self._dense.file_bytes

    @property
    def metadata(self) -> dict[str, str]:
        """The dense file's free-form strings."""
        return dict(self._dense.metadata)

    def names(self) -> tuple[str, ...]:
        """All tensors, in the order of their bytes."""
        return tuple(self._arrays)

    def array(self, name: str) -> Array:
        """Dtype (safetensors name), shape and place in the dense file.

        Raises:
            DataError: no such tensor.
        """
        if name not in self._arrays:
            raise DataError(f"{self.path}: found no tensor {name!r}, expected one of {len(self._arrays)} names")
        return self._arrays[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """As `tensor` returns it: F4 has two values in an item, so half as many in the last dimension."""
        array = self.array(name)
        if array.dtype != "F4" or not array.shape:
            return array.shape
        if array.shape[-1] % 2:
            raise DataError(f"tensor {name!r}: found F4 of shape {array.shape}, expected an even last dimension")
        return (*array.shape[:-1], array.shape[-1] // 2)

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor.

        Raises:
            DataError: PyTorch has no such dtype; `raw` gives the bytes.
        """
        found = self.array(name).dtype
        if found not in EVERY_DTYPE:
            raise DataError(
                f"tensor {name!r}: found dtype {found[:20]}, expected one of PyTorch's; raw() has the bytes"
            )
        return EVERY_DTYPE[found]

    def tensor(self, name: str) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            DataError: no such tensor, a dtype that PyTorch lacks, or a reference that is missing or another.
            FormatError: damaged.
        """
        dtype, shape = self.dtype(name), self.shape(name)
        return _as_tensor(self.raw(name), dtype, shape)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """``tensor(name)[first:last]`` of which only the pieces with these rows are decoded.

        Raises:
            DataError: see `tensor`; or not rows of it.
        """
        dtype, shape = self.dtype(name), self.shape(name)
        if not shape or not 0 <= first <= last <= shape[0]:
            raise DataError(f"tensor {name!r}: found rows {first} to {last}, expected some of shape {shape}")
        row = prod(shape[1:]) * dtype.itemsize
        return _as_tensor(self._bytes(name, first * row, last * row), dtype, (last - first, *shape[1:]))

    def raw(self, name: str) -> U8:
        """The tensor's little-endian bytes, uint8 [nbytes], of every dtype."""
        array = self.array(name)
        return self._bytes(name, 0, array.stop - array.start)

    def _bytes(self, name: str, start: int, stop: int) -> U8:
        try:
            out = np.empty(stop - start, dtype=np.uint8)
        except MemoryError as error:
            raise DataError(f"{self.path}: found {stop - start} bytes declared, more than memory has") from error
        if start == stop:
            return out
        number, home = self._homes[name]
        number += (home + start) // self.pieces[number].unit.step
        at = home + start
        while at < home + stop:
            piece = self.pieces[number]
            end = min(home + stop, piece.stop)
            part = self._part(piece, at, end) if (at, end) != (piece.start, piece.stop) else None
            if part is None:
                part = self.decode(piece)[at - piece.start : end - piece.start]
            out[at - home - start : end - home - start] = part
            at, number = end, number + 1
        return out

    def decode(self, piece: PackedPiece) -> U8:
        """All bytes of one piece; not to be written to.

        Raises:
            DataError: the reference is missing or another.
            FormatError: damaged.
        """
        base = None
        if piece.entry.difference is not Difference.NONE:
            if self._lookup is None:
                names = ", ".join(str(record[0])[:80] for record in self.references) or "another file"
                raise DataError(f"{self.path}: found differences to {names}, expected reference=")
            base = self._lookup.bytes_of(piece.unit, self._arrays, piece.start, piece.stop)
        nbytes = piece.stop - piece.start
        coded, what = self._coded(piece), self._name(piece)
        return decode_piece(piece.entry, coded, piece.unit.dtype, nbytes, base, what, workers=self._workers)

    def _part(self, piece: PackedPiece, first: int, last: int) -> U8 | None:
        first, last, nbytes = first - piece.start, last - piece.start, piece.stop - piece.start
        return decode_part(piece.entry, self._coded(piece), piece.unit.dtype, nbytes, first, last, self._name(piece))

    def _coded(self, piece: PackedPiece) -> memoryview:
        return self._whole[piece.at : piece.at + piece.entry.nbytes]

    def _name(self, piece: PackedPiece) -> str:
        return f"{self.path}: tensor {piece.unit.names[0]!r}"

    def forget(self) -> None:
        """Let the system take back the memory of what was read; it is read again where needed."""
        held = self._whole.obj
        if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            held.madvise(mmap.MADV_DONTNEED)

    def _listed(self, index: dict[str, Json], layout: Layout) -> list[PackedPiece]:
        entries = index["pieces"]
        if not isinstance(entries, list):
            raise FormatError(f"{INDEX}: found pieces {str(entries)[:60]}, expected a list")
        at = layout.data_start + layout.arrays[DATA].start
        end = layout.data_start + layout.arrays[DATA].stop
        listed: list[PackedPiece] = []
        for unit in units_of(self._arrays):
            home = 0
            for name, (first, last) in zip(unit.names, unit.places, strict=True):
                self._homes[name] = len(listed), home
                home += last - first
            for start, stop in unit.pieces():
                if len(listed) == len(entries):
                    raise FormatError(f"{INDEX}: found {len(entries)} pieces, the header expected more")
                entry = Entry.from_json(entries[len(listed)])
                if entry.difference is not Difference.NONE and not self.references:
                    raise FormatError(f"{INDEX}: found differences, expected a reference that they are to")
                listed.append(PackedPiece(unit, start, stop, at, entry))
                at += entry.nbytes
                if at > end:
                    raise FormatError(f"{INDEX}: found pieces of more bytes than there are")
        if len(listed) != len(entries) or at != end:
            raise FormatError(f"{INDEX}: found {len(entries)} pieces, expected {len(listed)} that fill the data")
        return listed


def _as_tensor(raw: U8, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not raw.size:
        return torch.empty(shape, dtype=dtype)
    flat = torch.from_numpy(raw)
    if dtype is torch.bool and int(raw.max()) > 1:
        raise DataError("found truth values other than 0 and 1, expected a tensor of PyTorch; raw() has the bytes")
    return flat.view(dtype).view(shape)


def _index(layout: Layout, whole: memoryview) -> dict[str, Json]:
    """Check version and sums, inflate and parse the index."""
    seal = layout.metadata.get(SEAL, "").split(" ")
    if len(seal) != 3 or not all(len(s) == 8 for s in seal[1:]):
        raise FormatError("found no seal of a packed file in the metadata, expected a file that gossamer pack wrote")
    if seal[0] != str(VERSION):
        raise FormatError(f"found version {seal[0][:12]!r} of packed files, expected {VERSION}")
    text = " ".join(seal).encode()
    raw = bytes(whole[: layout.data_start])
    blank = raw.replace(text, text[:-8] + BLANK_SUM.encode(), 1)
    if raw.count(text) != 1 or f"{zlib.crc32(blank):08x}" != seal[2]:
        raise FormatError(f"header: found checksum {zlib.crc32(blank):08x}, expected {seal[2]!r}")
    if tuple(layout.arrays) != (DATA, HEADER, INDEX) or any(a.dtype != "U8" for a in layout.arrays.values()):
        raise FormatError(f"found arrays {str(list(layout.arrays))[:60]}, expected {DATA}, {HEADER} and {INDEX}")
    if layout.data_start != RESERVED:
        raise FormatError(f"found a header of {layout.data_start} bytes, expected {RESERVED}")
    packed = _array_bytes(layout, whole, INDEX)
    if f"{zlib.crc32(packed):08x}" != seal[1]:
        raise FormatError(f"{INDEX}: found checksum {zlib.crc32(packed):08x}, expected {seal[1]!r}")
    index = parse_json(inflated(packed, INDEX), INDEX)
    wanted = {"header", "pieces"}
    if not (isinstance(index, dict) and wanted <= set(index) <= wanted | {"references"}):
        raise FormatError(f"{INDEX}: found {str(index)[:60]}, expected an object with {sorted(wanted)}")
    return index


def _array_bytes(layout: Layout, whole: memoryview, name: str) -> bytes:
    array = layout.arrays[name]
    return bytes(whole[layout.data_start + array.start : layout.data_start + array.stop])


def _header(index: dict[str, Json], layout: Layout, whole: memoryview) -> bytes:
    packed = _array_bytes(layout, whole, HEADER)
    header = inflated(packed, HEADER)
    found = [len(header), zlib.crc32(packed)]
    if found != index["header"]:
        raise FormatError(f"{HEADER}: found {found} as length and checksum, expected {str(index['header'])[:60]}")
    return header


def _references(index: dict[str, Json]) -> list[Json]:
    found = index.get("references", [])
    if not (isinstance(found, list) and all(isinstance(r, list) and len(r) == 3 for r in found)):
        raise FormatError(f"{INDEX}: found references {str(found)[:60]}, expected [name, bytes, checksum] of each")
    return found
