"""What writer and reader of packed files share: constants, the cutting into pieces, entries, the seal."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gossamer.coding import Coder
from gossamer.coding.difference import Difference
from gossamer.errors import FormatError
from gossamer.store.safetensors_file import Array, header_bytes

__all__ = [
    "BLANK_SUM",
    "DATA",
    "ENDING",
    "HEADER",
    "INDEX",
    "PIECE_BYTES",
    "RESERVED",
    "SEAL",
    "VERSION",
    "Entry",
    "Unit",
    "deflated",
    "inflated",
    "sealed_header",
    "units_of",
]

Json = Any

VERSION: Final = 1
SEAL: Final = "gossamer.packed"
DATA: Final = "packed.data"
HEADER: Final = "packed.header"
INDEX: Final = "packed.index"
ENDING: Final = ".packed"
RESERVED: Final = 448  # bytes of the header, at whatever sizes
BLANK_SUM: Final = "00000000"

PIECE_BYTES: Final = 1 << 23
PIECE_ITEMS: Final = 1 << 22
SMALL_BELOW: Final = 1 << 16  # bytes; a tensor's own code tables and its entry cost some hundred
POOL_BYTES: Final = 1 << 18  # decoded at once where one small tensor is wanted

_MAX_INDEX: Final = 1 << 27
_MOST_SMALLER: Final = 256  # bytes per deflated byte; entries have sums in them, which do not shrink so far


@dataclass(frozen=True)
class Unit:
    """Bytes of the dense file that are coded together: one tensor, or small neighbours of one dtype.

    Args:
        dtype: safetensors name.
        names: of the tensors, in the order of their bytes.
        start: first byte, counted from the end of the dense file's header.
        stop: one past the last.
    """

    dtype: str
    names: tuple[str, ...]
    start: int
    stop: int

    def pieces(self, bits: int) -> Iterator[tuple[int, int]]:
        """Where the parts that are coded on their own begin and end; ``bits`` of an item, 0 where unknown."""
        step = min(PIECE_BYTES, PIECE_ITEMS * max(8, bits) // 8)
        return ((at, min(self.stop, at + step)) for at in range(self.start, self.stop, step))


def units_of(arrays: Mapping[str, Array]) -> list[Unit]:
    """The arrays of a dense file, in the order of their bytes, cut into units; empty ones are in none.

    Example:
        >>> small, large = Array("F32", (9,), 0, 36), Array("F32", (1 << 20,), 40, (1 << 22) + 40)
        >>> [u.names for u in units_of({"a": small, "b": Array("F32", (), 36, 40), "c": large})]
        [('a', 'b'), ('c',)]
    """
    units: list[Unit] = []
    open_to_more = False
    for name, array in arrays.items():
        size = array.stop - array.start
        if not size:
            continue
        small = size < SMALL_BELOW
        last = units[-1] if units else None
        if small and open_to_more and last is not None and last.dtype == array.dtype:
            units[-1] = Unit(last.dtype, (*last.names, name), last.start, array.stop)
        else:
            units.append(Unit(array.dtype, (name,), array.start, array.stop))
        open_to_more = small and units[-1].stop - units[-1].start < POOL_BYTES
    return units


@dataclass(frozen=True)
class Entry:
    """One coded piece.

    Args:
        difference: to the reference.
        symbols: coded as whole integers; False: by byte planes.
        coder: which.
        table: bytes of its table.
        payload: bytes of its payload.
        coded_sum: CRC-32 of table and payload.
        dense_sum: CRC-32 of the bytes that it stands for.
    """

    difference: Difference
    symbols: bool
    coder: Coder
    table: int
    payload: int
    coded_sum: int
    dense_sum: int

    @property
    def nbytes(self) -> int:
        """Coded bytes."""
        return self.table + self.payload

    def to_json(self) -> list[int]:
        """For index and journal."""
        way = 2 * int(self.difference) + int(self.symbols)
        return [way, int(self.coder), self.table, self.payload, self.coded_sum, self.dense_sum]

    @classmethod
    def from_json(cls, found: Json) -> Entry:
        """The inverse, checked.

        Raises:
            FormatError: not an entry.
        """
        good = isinstance(found, list) and len(found) == 6 and all(type(x) is int and 0 <= x < 1 << 48 for x in found)
        if not good or found[0] > 7 or found[1] not in tuple(Coder) or max(found[4:]) >= 1 << 32:
            raise FormatError(f"{INDEX}: found entry {str(found)[:80]}, expected one of a piece")
        way, coder, table, payload, coded_sum, dense_sum = found
        return cls(Difference(way // 2), bool(way % 2), Coder(coder), table, payload, coded_sum, dense_sum)


def deflated(data: bytes) -> bytes:
    """Raw-deflated, but never so far that `inflated` would refuse."""
    for level in (9, 0):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush()
        if len(data) <= _most(len(packed)):
            break
    return packed


def inflated(packed: bytes, what: str) -> bytes:
    """The inverse of `deflated`.

    Raises:
        FormatError: damaged, or larger than is believed.
    """
    most = _most(len(packed))
    unpacker = zlib.decompressobj(-15)
    try:
        data = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise FormatError(f"{what}: found damaged data: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"{what}: found truncated, trailing or more than {most} bytes of data")
    return data


def _most(packed: int) -> int:
    return min(_MAX_INDEX, _MOST_SMALLER * packed + (1 << 16))


def sealed_header(sizes: Sequence[int], index_sum: int) -> bytes:
    """Length field and header of the packed file.

    Args:
        sizes: bytes of data, header and index.
        index_sum: CRC-32 of the index.
    """
    arrays = {name: ("U8", (size,), size) for name, size in zip((DATA, HEADER, INDEX), sizes, strict=True)}
    seal = f"{VERSION} {index_sum:08x} "
    blank = header_bytes(arrays, {SEAL: seal + BLANK_SUM}, RESERVED)
    return blank.replace((seal + BLANK_SUM).encode(), f"{seal}{zlib.crc32(blank):08x}".encode(), 1)
