"""One piece of a packed file: some bytes of one dtype, coded in the cheapest way, and back."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding import Coded, Coder, decode_floats, decode_symbols, encode_floats
from gossamer.coding.difference import Difference, restore, take
from gossamer.coding.float_blocks import encode_float_blocks
from gossamer.coding.floats import decode_floats_part
from gossamer.coding.sums import checksum, count_bytes
from gossamer.coding.symbols import counts_bits, decode_symbols_part, encode_nested_symbols
from gossamer.errors import DataError, FormatError
from gossamer.store.packed_layout import Entry

__all__ = ["Items", "Piece", "decode_part", "decode_piece", "encode_piece", "items_of", "verified"]

U8 = npt.NDArray[np.uint8]

_FLOATS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 4}  # a complex number is two floats
_BYTE_FLOATS: Final = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_INTEGERS: Final = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2"}

_ALL_TRIED: Final = 1 << 12  # bytes up to which every way is tried rather than estimated
_SAMPLES: Final = 16
_SAMPLE: Final = 1 << 12  # items
_BLOCKS_FROM: Final = 1 << 15  # items
_SPAN: Final = 1 << 16  # of whole integers that are coded as symbols
_FAST: Final = 256  # symbols up to this span are coded at the speed of planes
_SLOW: Final = 0.05  # what a wider span must save to be worth a tenth of the speed
_ENTRY_BITS: Final = 12.0  # of a code table, for each distinct symbol


@dataclass(frozen=True)
class Items:
    """How the bytes of a dtype are looked at.

    Args:
        kind: of the integers that they are coded as.
        floats: they are floats, whose bits have parts.
    """

    kind: np.dtype[Any]
    floats: bool

    @property
    def size(self) -> int:
        """Bytes of an item."""
        return self.kind.itemsize


def items_of(dtype: str, nbytes: int) -> Items:
    """How to look at so many bytes of a safetensors dtype; packed and unknown ones are bytes.

    Example:
        >>> items_of("BF16", 8).size, items_of("F6_E2M3", 3).size
        (2, 1)
    """
    if dtype in _FLOATS:
        items = Items(np.dtype(f"<u{_FLOATS[dtype]}"), True)
    elif dtype in _BYTE_FLOATS:
        items = Items(np.dtype(np.uint8), True)
    else:
        items = Items(np.dtype(_INTEGERS.get(dtype, "|u1")), False)
    return items if nbytes % items.size == 0 else Items(np.dtype(np.uint8), False)


@dataclass(frozen=True)
class Piece:
    """A coded piece and what must be known to read it.

    Args:
        entry: for the index.
        payload: lies first in the file.
        table: follows it.
    """

    entry: Entry
    payload: bytes | memoryview
    table: bytes


@dataclass(frozen=True)
class _Way:
    """One way of coding: bytes as they are or as a difference, by planes or as whole symbols."""

    difference: Difference
    symbols: bool
    data: U8
    kind: np.dtype[Any]

    def sample(self) -> U8:
        """Items from all over the piece, all of a small one."""
        size = self.kind.itemsize
        count = len(self.data) // size
        if count <= _SAMPLES * _SAMPLE:
            return self.data
        starts = np.linspace(0, count - _SAMPLE, _SAMPLES).astype(int)
        return np.concatenate([self.data[size * s : size * (s + _SAMPLE)] for s in starts])

    def estimate(self) -> float:
        """Bits, by the sample."""
        seen = self.sample()
        share = len(self.data) / len(seen)
        if not self.symbols:
            return share * _plane_bits(seen, self.kind.itemsize)
        x = seen.view(self.kind)
        low = int(x.min())
        if int(x.max()) - low >= _SPAN:
            return float("inf")
        offsets = x - x.dtype.type(low)  # wraps to the right bits where the difference is of more than a signed item
        counts = np.bincount(offsets.view(f"<u{x.itemsize}").astype(np.int64))
        bits = share * counts_bits(counts) + _ENTRY_BITS * int(np.count_nonzero(counts))
        return bits if len(counts) <= _FAST else (1 + _SLOW) * bits

    def coded(self) -> Coded:
        """Table and payload."""
        if self.symbols:
            return encode_nested_symbols(self.data.view(self.kind))
        size = self.kind.itemsize
        if self.difference is not Difference.NONE and len(self.data) >= _BLOCKS_FROM * size and not self._mask_pays():
            blocks = encode_float_blocks(self.data, size, 1)
            if blocks is not None:
                return blocks
        return encode_floats(self.data, size)

    def _mask_pays(self) -> bool:
        """Whether telling zeros by a mask, which `encode_floats` tries, saves what it costs in time.

        Differences have zeros nearly always, and planes of which each tells them anew.
        """
        items = self.sample().view(self.kind)
        live = items[items != 0]
        mask = counts_bits(np.array([len(live), len(items) - len(live)]))
        masked = mask + _plane_bits(live.view(np.uint8), items.itemsize)
        return masked < (1 - _SLOW) * _plane_bits(items.view(np.uint8), items.itemsize)


def _plane_bits(x: U8, size: int) -> float:
    """Of byte planes, straight or turned by one bit, as `encode_floats` has them."""
    items = x.view(f"<u{size}")
    turned = (items << items.dtype.type(1)) | (items >> items.dtype.type(8 * size - 1))
    both = (x, turned.view(np.uint8)) if size > 1 else (x,)
    return min(sum(counts_bits(count_bytes(np.ascontiguousarray(v[i::size]))) for i in range(size)) for v in both)


def encode_piece(raw: U8, dtype: str, base: U8 | None = None) -> Piece:
    """Code bytes of one dtype in the way that takes the fewest.

    Floats go by byte planes; integers as symbols or, where they span 2^16 or more, by planes; with a reference also
    their differences, both ways.

    Args:
        raw: [nbytes] uint8, little-endian.
        dtype: safetensors name.
        base: as many bytes of the reference.

    Returns:
        The piece. Exact for every bit pattern; never larger than ``raw``.

    Cost: that of the coder, and with a reference of estimates on samples of 2^16 items.
    """
    raw = np.ascontiguousarray(raw)
    dense_sum = checksum(raw.data)
    if base is not None and np.array_equal(raw, base):
        return Piece(Entry(Difference.SAME, False, Coder.RAW, 0, 0, 0, dense_sum), b"", b"")
    items = items_of(dtype, len(raw))
    ways = _ways(raw, items, base)
    if len(ways) > 1 and len(raw) > _ALL_TRIED:
        ways = [min(ways, key=_Way.estimate)]
    tried = [(way, way.coded()) for way in ways]
    way, coded = min(tried, key=lambda t: t[1].nbytes)
    if coded.nbytes >= len(raw):
        return _as_it_is(raw, dense_sum)
    coded_sum = zlib.crc32(coded.table, checksum(coded.payload))
    sizes = len(coded.table), len(coded.payload)
    return Piece(
        Entry(way.difference, way.symbols, coded.coder, *sizes, coded_sum, dense_sum), coded.payload, coded.table
    )


def _as_it_is(raw: U8, dense_sum: int) -> Piece:
    return Piece(Entry(Difference.NONE, False, Coder.RAW, 0, len(raw), dense_sum, dense_sum), raw.tobytes(), b"")


def verified(piece: Piece, raw: U8, dtype: str, base: U8 | None = None) -> Piece:
    """A piece that was decoded again and found right; if ever it were not, its bytes as they are.

    Args:
        piece: coded.
        raw, dtype, base: what it was coded from.

    Returns:
        ``piece``, or one with `Coder.RAW`.

    Cost: that of decoding.
    """
    data = b"".join((piece.payload, piece.table))
    try:
        if np.array_equal(decode_piece(piece.entry, data, dtype, len(raw), base, "a new piece"), raw):
            return piece
    except (DataError, FormatError):
        pass
    return _as_it_is(raw, checksum(raw.data))


def _ways(raw: U8, items: Items, base: U8 | None) -> list[_Way]:
    plain = []
    if items.floats or items.size > 1:
        plain.append(_Way(Difference.NONE, False, raw, np.dtype(f"<u{items.size}")))
    if not items.floats and (items.size == 1 or _span(raw.view(items.kind)) < _SPAN or len(raw) <= _ALL_TRIED):
        plain.insert(0, _Way(Difference.NONE, True, raw, items.kind))
    if base is None:
        return plain
    unsigned = np.dtype(f"<u{items.size}")
    taken = [(how, take(raw, base, items.size, how, floats=items.floats)) for how in (Difference.XOR, Difference.MINUS)]
    return plain + [_Way(how, symbols, d, unsigned) for how, d in taken for symbols in (False, True)]


def _span(x: npt.NDArray[Any]) -> int:
    return int(x.max()) - int(x.min()) if len(x) else 0


def decode_piece(
    entry: Entry, data: bytes | memoryview, dtype: str, nbytes: int, base: U8 | None, what: str, *, workers: int = 1
) -> U8:
    """The inverse of `encode_piece`; both sums are checked.

    Args:
        entry: not trusted, nor ``data``.
        data: payload and table.
        dtype: safetensors name.
        nbytes: of the result; trusted, it bounds time and memory.
        base: bytes of the reference, if the entry is a difference.
        what: the name that faults are reported under.
        workers: threads.

    Returns:
        [nbytes] uint8.

    Raises:
        FormatError: damaged.
        DataError: the reference is not the one that was packed with.
    """
    _check_coded(entry, data, what)
    if entry.difference is Difference.NONE:
        raw = _decoded(entry, data, items_of(dtype, nbytes), nbytes, what, workers)
    else:
        if base is None or len(base) != nbytes:
            raise FormatError(f"{what}: found a difference, expected none where the reference has no such tensor")
        raw = base
        if entry.difference is not Difference.SAME:
            items = items_of(dtype, nbytes)
            unsigned = Items(np.dtype(f"<u{items.size}"), items.floats)
            kept = _decoded(entry, data, unsigned, nbytes, what, workers)
            raw = restore(kept, base, items.size, entry.difference, floats=items.floats)
        elif entry.nbytes:
            raise FormatError(f"{what}: found {entry.nbytes} bytes, expected none where nothing differs")
    if checksum(raw.data) != entry.dense_sum:
        found = f"{what}: found checksum {checksum(raw.data):08x} of the dense bytes, expected {entry.dense_sum:08x}"
        if entry.difference is not Difference.NONE:
            raise DataError(f"{found}: this is not the reference that was packed with")
        raise FormatError(found)
    return raw


def decode_part(
    entry: Entry, data: bytes | memoryview, dtype: str, nbytes: int, first: int, last: int, what: str
) -> U8 | None:
    """Bytes ``first`` to ``last`` of a piece, where they can be had without the rest; None where not.

    Args:
        entry, data, dtype, nbytes, what: as for `decode_piece`. Of the sums that of ``data`` is checked.
        first: byte of the piece.
        last: the one behind the last.

    Returns:
        [last − first] uint8, or None: the piece is a difference, or not coded in blocks.

    Raises:
        FormatError: damaged.
    """
    items = items_of(dtype, nbytes)
    in_blocks = entry.coder is (Coder.BLOCKS if entry.symbols else Coder.FLOAT_BLOCKS)
    if entry.difference is not Difference.NONE or not in_blocks:
        return None
    _check_coded(entry, data, what)
    coded = Coded(entry.coder, bytes(data[entry.payload :]), memoryview(data)[: entry.payload])
    count, start, stop = nbytes // items.size, first // items.size, -(-last // items.size)
    try:
        if entry.symbols:
            part = decode_symbols_part(coded, start, stop, count, items.kind).view(np.uint8)
        else:
            part = decode_floats_part(coded, start, stop, count, items.size)
    except FormatError as error:
        raise FormatError(f"{what}: {error}") from error
    return part[first - start * items.size : last - start * items.size]


def _check_coded(entry: Entry, data: bytes | memoryview, what: str) -> None:
    if len(data) != entry.nbytes or checksum(data) != entry.coded_sum:
        raise FormatError(f"{what}: found checksum {checksum(data):08x}, expected {entry.coded_sum:08x}")


def _decoded(entry: Entry, data: bytes | memoryview, items: Items, nbytes: int, what: str, workers: int) -> U8:
    coded = Coded(entry.coder, bytes(data[entry.payload :]), memoryview(data)[: entry.payload])
    try:
        if entry.coder is Coder.RAW:
            if entry.table or entry.payload != nbytes:
                raise FormatError(f"found {entry.table} + {entry.payload} raw bytes, expected 0 + {nbytes}")
            return np.frombuffer(data, np.uint8)
        if entry.symbols:
            return decode_symbols(coded, (nbytes // items.size,), items.kind, workers=workers).view(np.uint8)
        return decode_floats(coded, nbytes, items.size, workers=workers)
    except FormatError as error:
        raise FormatError(f"{what}: {error}") from error
