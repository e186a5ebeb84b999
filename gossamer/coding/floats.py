"""Float leaves: planes, distinct values, or a mask of zeros and the rest, whichever takes fewest bytes; lossless."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.byte_blocks import WORTH
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.float_blocks import decode_float_blocks, decode_float_part, encode_float_blocks, sample_of
from gossamer.coding.float_planes import decode_planes, encode_planes
from gossamer.coding.masks import decode_mask, encode_mask
from gossamer.coding.symbols import decode_symbols, encode_symbols
from gossamer.errors import DataError, FormatError

__all__ = ["decode_floats", "decode_floats_part", "encode_floats"]

U8 = npt.NDArray[np.uint8]

_ITEMSIZES: Final = (1, 2, 4, 8)
_FEW: Final = 256  # distinct values that are listed
_ZEROS: Final = 0.02  # share of zeros from which on a mask of them is tried


def encode_floats(raw: U8, itemsize: int, *, workers: int = 1) -> Coded:
    """Codes floats without losing a bit: sign and mantissa look random, exponents do not.

    Small leaves are taken apart into byte planes (`encode_planes`), those of 2^15 floats and more likewise in blocks
    (`encode_float_blocks`); there, up to 256 distinct values are listed and their indices coded, and where there are
    zeros a mask tells them, each where it takes fewer bytes.

    Args:
        raw: [nbytes] uint8, the floats as little-endian bytes; any bit pattern.
        itemsize: bytes of one float: 1, 2 (bf16, fp16), 4 or 8.
        workers: threads.

    Returns:
        The coded leaf; `Coder.RAW` with an empty table where nothing was gained.

    Raises:
        DataError: not bytes, an unknown item size, or not a whole number of items.

    Cost: about 1 ns a byte for large leaves, 15 ns for small ones. Always exact.

    Example:
        >>> raw = np.full(100, -0.0, dtype="<f4").view(np.uint8)
        >>> coded = encode_floats(raw, 4)
        >>> coded.nbytes < 16, bool(np.array_equal(decode_floats(coded, 400, 4), raw))
        (True, True)
    """
    if raw.dtype != np.uint8 or raw.ndim != 1:
        raise DataError(f"floats as {raw.dtype} of shape {raw.shape}, expected flat uint8 bytes")
    if itemsize not in _ITEMSIZES or len(raw) % itemsize:
        raise DataError(f"{len(raw)} bytes of floats of {itemsize} bytes, expected whole items of 1, 2, 4 or 8 bytes")
    raw = np.ascontiguousarray(raw)
    if len(raw) < WORTH * itemsize:
        return encode_planes(raw, itemsize)
    items = raw.view(f"<u{itemsize}")
    listed = _listed(items, workers)
    if listed is not None:
        return listed
    whole = encode_float_blocks(raw, itemsize, workers) or Coded(Coder.RAW, b"", b"")
    size = whole.nbytes if whole.coder is not Coder.RAW else len(raw)
    if float((sample_of(items) == 0).mean()) >= _ZEROS:
        masked = _masked(items, workers)
        if masked.nbytes < size:
            return masked
    return whole if size < len(raw) else Coded(Coder.RAW, b"", raw.tobytes())


def _listed(items: npt.NDArray[Any], workers: int) -> Coded | None:
    """A list of distinct values and their indices; None where there are many, or only few for each."""
    values = np.unique(sample_of(items))
    if len(values) > _FEW:
        return None
    places = np.searchsorted(values, items)
    places[places == len(values)] = 0
    others = np.unique(items[values[places] != items])
    if len(values) + len(others) > _FEW:
        return None
    if len(others):
        values = np.union1d(values, others)
        places = np.searchsorted(values, items)
    inner = encode_symbols(places.astype(np.uint8), workers=workers)
    writer = BitWriter()
    writer.uint(len(values) - 1, 8)
    _write_header(writer, inner)
    return Coded(Coder.FLOAT_DISTINCT, writer.finish() + values.tobytes() + inner.table, inner.payload)


def _masked(items: npt.NDArray[Any], workers: int) -> Coded:
    """A mask of what is not zero, and that."""
    live = items != 0
    mask = encode_mask(live)
    rest = np.ascontiguousarray(items[live]).view(np.uint8)
    inner = encode_float_blocks(rest, items.itemsize, workers) if len(rest) >= WORTH * items.itemsize else None
    if inner is None:
        inner = encode_planes(rest, items.itemsize)
    writer = BitWriter()
    _write_header(writer, mask)
    _write_header(writer, inner)
    return Coded(
        Coder.FLOAT_SPARSE, writer.finish() + mask.table + inner.table, b"".join((mask.payload, inner.payload))
    )


def _write_header(writer: BitWriter, inner: Coded) -> None:
    writer.golomb(int(inner.coder), 4)
    writer.golomb(len(inner.table), 5)
    writer.golomb(len(inner.payload), 12)


def _read_header(reader: BitReader) -> tuple[int, int, int]:
    return reader.golomb(4), reader.golomb(5), reader.golomb(12)


def _inner(
    header: tuple[int, int, int], tables: bytes, payloads: bytes | memoryview, what: str
) -> tuple[Coded, bytes, bytes | memoryview]:
    """A coded part, and what follows it."""
    coder, table, payload = header
    if table > len(tables) or payload > len(payloads):
        raise FormatError(f"{what}: a part of {str(table)[:20]} + {str(payload)[:20]} bytes, expected fewer")
    inner = Coded.from_parts((coder, table, payload), b"".join((tables[:table], payloads[:payload])))
    return inner, tables[table:], payloads[payload:]


def decode_floats(coded: Coded, nbytes: int, itemsize: int, *, workers: int = 1) -> U8:
    """The inverse of `encode_floats`.

    Args:
        coded: the coded leaf; not trusted.
        nbytes: trusted: it bounds time and memory.
        itemsize: bytes of one float: 1, 2, 4 or 8.
        workers: threads, for blocks.

    Returns:
        [nbytes] uint8, the floats as little-endian bytes.

    Raises:
        FormatError: table or payload is not what `encode_floats` writes for this size.
    """
    if itemsize not in _ITEMSIZES or nbytes < 0 or nbytes % itemsize:
        raise FormatError(f"floats: {nbytes} bytes of items of {itemsize} bytes, expected whole items of 1, 2, 4 or 8")
    if coded.coder is Coder.FLOAT_BLOCKS:
        return decode_float_blocks(coded, nbytes, itemsize, workers)
    if coded.coder is Coder.FLOAT_DISTINCT:
        return _read_listed(coded, nbytes, itemsize, workers)
    if coded.coder is Coder.FLOAT_SPARSE:
        return _read_masked(coded, nbytes, itemsize, workers)
    return decode_planes(coded, nbytes, itemsize)


def decode_floats_part(coded: Coded, first: int, last: int, count: int, itemsize: int) -> U8:
    """Some floats of a leaf; from the blocks that hold them alone, where it is coded by `Coder.FLOAT_BLOCKS`.

    Args:
        coded: the coded leaf; not trusted.
        first: of the floats, the first that is wanted.
        last: the one behind the last.
        count: of all floats; trusted.
        itemsize: bytes of one float: 1, 2, 4 or 8.

    Returns:
        [(last − first) · itemsize] uint8.

    Raises:
        FormatError: damaged data, or floats beyond the leaf.

    Cost: that of the blocks touched, of 2^18 floats each; of the whole leaf for the other coders.

    Example:
        >>> raw = np.arange(100, dtype="<f4").view(np.uint8)
        >>> decode_floats_part(encode_floats(raw, 4), 98, 100, 100, 4).view("<f4").tolist()
        [98.0, 99.0]
    """
    if not 0 <= first <= last <= count:
        raise FormatError(f"floats: {first} to {last} asked for, expected some of {count}")
    if coded.coder is Coder.FLOAT_BLOCKS and itemsize in _ITEMSIZES:
        return decode_float_part(coded, count, slice(first, last), itemsize, 1)
    return decode_floats(coded, count * itemsize, itemsize)[first * itemsize : last * itemsize]


def _read_listed(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    what = "float_distinct floats"
    reader = BitReader(coded.table, what)
    size = itemsize * (reader.uint(8) + 1)
    header = _read_header(reader)
    rest = reader.rest()
    values = np.frombuffer(rest[: len(rest[:size]) // itemsize * itemsize], dtype=f"<u{itemsize}")
    if values.nbytes != size:
        raise FormatError(f"{what}: {values.nbytes} bytes of values, expected {size}")
    inner, tables, payloads = _inner(header, rest[size:], coded.payload, what)
    if tables or payloads:
        raise FormatError(f"{what}: {len(tables)} + {len(payloads)} bytes left over")
    places = decode_symbols(inner, (nbytes // itemsize,), np.dtype(np.uint8), workers=workers)
    if len(places) and int(places.max()) >= len(values):
        raise FormatError(f"{what}: index {int(places.max())}, expected less than {len(values)}")
    return values[places].view(np.uint8)


def _read_masked(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    what = "float_sparse floats"
    reader = BitReader(coded.table, what)
    headers = _read_header(reader), _read_header(reader)
    mask, tables, payloads = _inner(headers[0], reader.rest(), coded.payload, what)
    inner, tables, payloads = _inner(headers[1], tables, payloads, what)
    if tables or payloads:
        raise FormatError(f"{what}: {len(tables)} + {len(payloads)} bytes left over")
    live = decode_mask(mask, (nbytes // itemsize,))
    size = int(live.sum()) * itemsize
    if inner.coder is Coder.FLOAT_BLOCKS:
        rest = decode_float_blocks(inner, size, itemsize, workers)
    else:
        rest = decode_planes(inner, size, itemsize)
    out = np.zeros(nbytes // itemsize, dtype=f"<u{itemsize}")
    out[live] = rest.view(out.dtype)
    return out.view(np.uint8)
