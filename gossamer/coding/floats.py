"""Float leaves: planes, distinct values, or a mask of zeros and the rest, whichever takes fewest bytes; lossless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.float_blocks import decode_float_blocks, decode_float_part, encode_float_blocks, sample_of
from gossamer.coding.float_planes import ITEMSIZES, checked_floats, decode_planes, encode_planes
from gossamer.coding.masks import decode_mask, encode_mask
from gossamer.coding.symbols import decode_symbols, encode_nested_symbols
from gossamer.errors import DataError, FormatError

__all__ = [
    "coarse_floats",
    "decode_floats",
    "decode_floats_part",
    "encode_floats",
    "listed_floats",
    "masked_floats",
]

U8 = npt.NDArray[np.uint8]

_WORTH: Final = 1 << 12  # bytes from which on directory, states and shorter frequencies cost little
_FEW: Final = 256  # distinct values that are listed
_RUN: Final = 128  # floats, of which rows are a multiple as a rule
_FEW_RUNS: Final = 0.005  # share of runs, coarse or fine, that pay for telling them apart
_LOW_BITS: Final = {4: 13, 8: 29}  # mantissa bits of a float32 beyond float16's, of a float64 beyond float32's
_ZEROS: Final = 0.02  # share of zeros from which on a mask of them is tried


def encode_floats(raw: U8, itemsize: int, *, workers: int = 1) -> Coded:
    """Codes floats without losing a bit: sign and mantissa look random, exponents do not.

    Small leaves are taken apart into byte planes (`encode_planes`), those of 2^12 bytes and more likewise in blocks
    (`encode_float_blocks`). There, up to 256 distinct values are listed and their indices coded; where there are zeros
    a mask may tell them; and runs that once were of fewer bits may be coded apart: whatever takes fewest bytes.

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
    raw = checked_floats(raw, itemsize)
    if len(raw) < _WORTH:
        return encode_planes(raw, itemsize)
    items = raw.view(f"<u{itemsize}")
    listed = listed_floats(items, workers)
    if listed is not None:
        return listed
    sample = sample_of(items)
    candidates = [_blocks_or_raw(raw, itemsize, workers, sample)]
    if np.count_nonzero(sample) <= (1 - _ZEROS) * len(sample):
        candidates.append(masked_floats(items, workers))
    else:
        candidates += coarse_floats(items, workers)
    return min(candidates, key=lambda coded: coded.nbytes)


def _blocks_or_raw(raw: U8, itemsize: int, workers: int, sample: npt.NDArray[Any] | None = None) -> Coded:
    """Planes, in blocks where there are enough, or the bytes as they are."""
    if len(raw) < _WORTH:
        return encode_planes(raw, itemsize)
    coded = encode_float_blocks(raw, itemsize, workers, sample)
    return coded if coded is not None and coded.nbytes < len(raw) else Coded(Coder.RAW, b"", raw.tobytes())


def coarse_floats(items: npt.NDArray[Any], workers: int) -> list[Coded]:
    """Runs whose low bits are all zero, as those of rows that once were float16 or bfloat16, apart from the others.

    None where there are few such runs, or few others, whose planes then tell it by themselves.
    """
    low = _LOW_BITS.get(items.itemsize)
    runs = len(items) // _RUN
    if low is None:
        return []
    whole = items[: runs * _RUN].reshape(runs, _RUN)
    fine = (np.bitwise_or.reduce(whole, axis=1) & items.dtype.type((1 << low) - 1)) != 0
    if not _FEW_RUNS * runs <= int(fine.sum()) <= (1 - _FEW_RUNS) * runs:
        return []
    mask = encode_mask(fine)
    parts = [whole[~fine].reshape(-1), np.concatenate([whole[fine].reshape(-1), items[runs * _RUN :]])]
    coded = [_blocks_or_raw(part.view(np.uint8), items.itemsize, workers) for part in parts]
    return [_several(Coder.FLOAT_COARSE, [mask, *coded])]


def _several(coder: Coder, parts: Sequence[Coded]) -> Coded:
    """Parts one after the other: their headers, tables and payloads."""
    writer = BitWriter()
    for part in parts:
        writer.golomb(int(part.coder), 4)
        writer.golomb(len(part.table), 5)
        writer.golomb(len(part.payload), 12)
    table = b"".join([writer.finish(), *(part.table for part in parts)])
    return Coded(coder, table, b"".join(part.payload for part in parts))


def _parts(reader: BitReader, count: int, payload: bytes | memoryview, what: str) -> list[Coded]:
    """The inverse of `_several`; nothing is left over."""
    headers = [(reader.golomb(4), reader.golomb(5), reader.golomb(12)) for _ in range(count)]
    tables, payloads, found = memoryview(reader.rest()), memoryview(payload), []
    for coder, table, size in headers:
        if table > len(tables) or size > len(payloads):
            raise FormatError(f"{what}: a part of {str(table)[:20]} + {str(size)[:20]} bytes, expected fewer")
        if coder not in tuple(Coder):
            raise FormatError(f"{what}: unknown coder {str(coder)[:20]}")
        found.append(Coded(Coder(coder), bytes(tables[:table]), payloads[:size]))
        tables, payloads = tables[table:], payloads[size:]
    if tables or payloads:
        raise FormatError(f"{what}: {len(tables)} + {len(payloads)} bytes left over")
    return found


def listed_floats(items: npt.NDArray[Any], workers: int) -> Coded | None:
    """A list of distinct values and their indices; None where there are many, or only few for each."""
    if len(set(items[: 2 * _FEW].tolist())) > _FEW:
        return None
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
    inner = encode_nested_symbols(places.astype(np.uint8), workers=workers)
    listed = Coded(Coder.RAW, b"", values.tobytes())
    return _several(Coder.FLOAT_DISTINCT, [listed, inner])


def masked_floats(items: npt.NDArray[Any], workers: int) -> Coded:
    """A mask of what is not zero, and that."""
    live = items != 0
    rest = np.ascontiguousarray(items[live]).view(np.uint8)
    return _several(Coder.FLOAT_SPARSE, [encode_mask(live), _blocks_or_raw(rest, items.itemsize, workers)])


def decode_floats(coded: Coded, nbytes: int, itemsize: int, *, workers: int = 1, out: U8 | None = None) -> U8:
    """The inverse of `encode_floats`.

    Args:
        coded: the coded leaf; not trusted.
        nbytes: trusted: it bounds time and memory.
        itemsize: bytes of one float: 1, 2, 4 or 8.
        workers: threads, for blocks.
        out: [nbytes] uint8, contiguous, to be filled: memory that was used before takes no page faults, which can
            take as long as decoding. None: a new array.

    Returns:
        [nbytes] uint8, the floats as little-endian bytes.

    Raises:
        FormatError: table or payload is not what `encode_floats` writes for this size.
        DataError: ``out`` is no such array.
    """
    if itemsize not in ITEMSIZES or nbytes < 0 or nbytes % itemsize:
        raise FormatError(f"floats: {nbytes} bytes of items of {itemsize} bytes, expected whole items of 1, 2, 4 or 8")
    if out is not None:
        fits = out.dtype == np.uint8 and out.shape == (nbytes,) and out.flags.c_contiguous and out.flags.writeable
        if not fits:
            raise DataError(f"out: found {out.dtype} {out.shape}, expected {nbytes} contiguous, writeable bytes")
    if coded.coder is Coder.FLOAT_BLOCKS:
        return decode_float_blocks(coded, nbytes, itemsize, workers, out)
    if coded.coder is Coder.FLOAT_DISTINCT:
        found = _read_listed(coded, nbytes, itemsize, workers)
    elif coded.coder is Coder.FLOAT_SPARSE:
        found = _read_masked(coded, nbytes, itemsize, workers)
    elif coded.coder is Coder.FLOAT_COARSE:
        found = _read_coarse(coded, nbytes, itemsize, workers)
    else:
        found = decode_planes(coded, nbytes, itemsize)
    if out is None:
        return found
    out[:] = found
    return out


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

    Cost: that of the blocks touched, of 2^20 floats each; of the whole leaf for the other coders.

    Example:
        >>> raw = np.arange(100, dtype="<f4").view(np.uint8)
        >>> decode_floats_part(encode_floats(raw, 4), 98, 100, 100, 4).view("<f4").tolist()
        [98.0, 99.0]
    """
    if not 0 <= first <= last <= count:
        raise FormatError(f"floats: {first} to {last} asked for, expected some of {count}")
    if coded.coder is Coder.FLOAT_BLOCKS and itemsize in ITEMSIZES:
        return decode_float_part(coded, count, slice(first, last), itemsize, 1)
    return decode_floats(coded, count * itemsize, itemsize)[first * itemsize : last * itemsize]


def _read_blocks_or_raw(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    if coded.coder is Coder.FLOAT_BLOCKS:
        return decode_float_blocks(coded, nbytes, itemsize, workers)
    return decode_planes(coded, nbytes, itemsize)


def _read_listed(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    what = "float_distinct floats"
    listed, inner = _parts(BitReader(coded.table, what), 2, coded.payload, what)
    most = _FEW * itemsize
    if listed.coder is not Coder.RAW or listed.table or len(listed.payload) % itemsize or len(listed.payload) > most:
        raise FormatError(f"{what}: values of {len(listed.payload)} bytes, expected at most {most}")
    values = np.frombuffer(listed.payload, dtype=f"<u{itemsize}")
    places = decode_symbols(inner, (nbytes // itemsize,), np.dtype(np.uint8), workers=workers)
    if len(places) and int(places.max()) >= len(values):
        raise FormatError(f"{what}: index {int(places.max())}, expected less than {len(values)}")
    return values[places].view(np.uint8)


def _read_masked(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    what = "float_sparse floats"
    mask, inner = _parts(BitReader(coded.table, what), 2, coded.payload, what)
    live = decode_mask(mask, (nbytes // itemsize,))
    out = np.zeros(nbytes // itemsize, dtype=f"<u{itemsize}")
    out[live] = _read_blocks_or_raw(inner, int(live.sum()) * itemsize, itemsize, workers).view(out.dtype)
    return out.view(np.uint8)


def _read_coarse(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    what = "float_coarse floats"
    mask, *inner = _parts(BitReader(coded.table, what), 3, coded.payload, what)
    count = nbytes // itemsize
    runs = count // _RUN
    fine = decode_mask(mask, (runs,))
    coarse = int((~fine).sum()) * _RUN
    parts = [
        _read_blocks_or_raw(part, size * itemsize, itemsize, workers).view(f"<u{itemsize}")
        for part, size in zip(inner, (coarse, count - coarse), strict=True)
    ]
    out = np.empty(count, dtype=f"<u{itemsize}")
    whole = out[: runs * _RUN].reshape(runs, _RUN)
    whole[~fine] = parts[0].reshape(-1, _RUN)
    whole[fine] = parts[1][: int(fine.sum()) * _RUN].reshape(-1, _RUN)
    out[runs * _RUN :] = parts[1][int(fine.sum()) * _RUN :]
    return out.view(np.uint8)
