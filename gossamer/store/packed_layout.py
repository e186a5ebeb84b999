"""What writer and reader of packed files share: constants, the cutting into pieces, entries, the seal."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gossamer.coding import Coder
from gossamer.coding.difference import Difference
from gossamer.errors import FormatError
from gossamer.store.dtypes import BITS
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
    """Bytes of the dense file that are coded together: one tensor, or small ones of one dtype, one after the other.

    Args:
        dtype: safetensors name.
        names: of the tensors, in the order of their bytes.
        places: first byte of each, and one past its last, counted from the end of the dense file's header.
    """

    dtype: str
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(stop - start for start, stop in self.places)

    @property
    def step(self) -> int:
        """Bytes of the pieces that it is cut into."""
        return min(PIECE_BYTES, PIECE_ITEMS * max(8, BITS.get(self.dtype, 0)) // 8)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Where the parts that are coded on their own begin and end, counted within the unit."""
        nbytes, step = self.nbytes, self.step
        return ((at, min(nbytes, at + step)) for at in range(0, nbytes, step))

    def within(self, start: int, stop: int) -> Iterator[tuple[int, str, int, int]]:
        """Where some bytes of the unit lie.

        Returns:
            Of each tensor that has some: (the first of them, counted from ``start``; its name; their first byte in the
            dense file, and one past their last).
        """
        at = 0
        for name, (first, last) in zip(self.names, self.places, strict=True):
            low, high = max(start, at), min(stop, at + last - first)
            if low < high:
                yield low - start, name, first + low - at, first + high - at
            at += last - first


def units_of(arrays: Mapping[str, Array]) -> list[Unit]:
    """The arrays of a dense file, in the order of their bytes, gathered into units; empty ones are in none.

    Small ones join the last unit of small ones of their dtype until that is large enough.

    Example:
        >>> arrays = {"a": Array("F32", (9,), 0, 36), "b": Array("F32", (1 << 20,), 36, (1 << 22) + 36)}
        >>> arrays["c"] = Array("F32", (), (1 << 22) + 36, (1 << 22) + 40)
        >>> [u.names for u in units_of(arrays)]
        [('a', 'c'), ('b',)]
    """
    gathered: list[tuple[str, list[str], list[tuple[int, int]]]] = []
    growing: dict[str, tuple[int, int]] = {}  # dtype → number of the unit that takes more, its bytes
    for name, array in arrays.items():
        size = array.stop - array.start
        if not size:
            continue
        number, before = growing.get(array.dtype, (len(gathered), 0)) if size < SMALL_BELOW else (len(gathered), 0)
        if number == len(gathered):
            gathered.append((array.dtype, [], []))
        gathered[number][1].append(name)
        gathered[number][2].append((array.start, array.stop))
        if size < SMALL_BELOW:
            growing[array.dtype] = number, before + size
            if before + size >= POOL_BYTES:
                del growing[array.dtype]
    return [Unit(dtype, tuple(names), tuple(places)) for dtype, names, places in gathered]


@dataclass(frozen=True)
class Entry:
    """One coded piece.

    Args:
        difference: to the reference.
        symbols: coded as whole integers; False: by byte planes.
        coder: which.
        table: bytes of its table.
        payload: bytes of its payload.
        coded_sum: CRC-32 of payload and table, as they lie in the file.
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
