"""Integer leaves: constant, packed, static or split, whichever takes the fewest bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.alphabet import check_fits, limits, raised
from gossamer.coding.ans import MAX_ALPHABET, AnsReader, ans_encode
from gossamer.coding.bits import BitReader, BitWriter, iter_uints, pack_uints, unpack_uints
from gossamer.coding.byte_blocks import WORTH, BytePlan
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.short import (
    SHORT_BELOW,
    SHORT_FROM,
    SHORT_LEAST,
    SHORT_MOST,
    SHORT_SPAN,
    encode_short,
    read_short,
    short_table,
)
from gossamer.coding.small import SMALL_CODERS, small_symbols
from gossamer.coding.sums import count_bytes
from gossamer.coding.table import FrequencyTable, counts_bits
from gossamer.errors import DataError, FormatError

__all__ = [
    "counts_bits",
    "decode_symbols",
    "decode_symbols_part",
    "encode_nested_symbols",
    "encode_plain_symbols",
    "encode_symbols",
    "order0_bits",
]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_CODERS: Final = (Coder.CONSTANT, Coder.PACKED, Coder.STATIC, Coder.SPLIT, Coder.BLOCKS, Coder.SHORT)
_WORD: Final = 1 << 64
_BYTE: Final = 255
_MORE: Final = 1.0042  # of the entropy that blocks may cost
_DENSE_SPAN: Final = 1 << 16  # spans up to here are counted with a table, wider ones by sorting
_PIECE: Final = 1 << 20
_LARGE: Final = 1 << 20  # from so many symbols on, estimates are sharp enough to code one candidate only
_SLOWER: Final = 1.002  # times its bytes count for a coder that is read at a tenth of the speed
_MAX_OFFSET: Final = 1 << 49  # tables list alphabets up to here
_SPLIT_FROM: Final = 32  # fewer distinct symbols than this, where a table can list them, are never worth splitting


def _checked(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "iub":
        raise DataError(f"symbols of dtype {dtype}, expected an integer dtype or bool")
    return dtype


def _offsets(x: Array) -> tuple[Array, int]:
    """Symbols as distances from their minimum: [n] uint64, or uint8 for unsigned bytes and bool; and the minimum."""
    flat = x.ravel()
    flat = flat.view(np.uint8) if flat.dtype == np.bool_ else flat
    low = int(flat.min()) if len(flat) else 0
    if flat.dtype == np.uint8:
        return (flat - np.uint8(low) if low else flat), low
    wide = flat.astype(np.uint64) if flat.dtype.kind in "ub" else flat.astype(np.int64).view(np.uint64)
    return wide - np.array([low % _WORD], dtype=np.uint64), low


def _restore(offsets: U64, low: int, dtype: np.dtype[Any], what: str) -> Array:
    """The inverse of `_offsets`, checked against the dtype."""
    check_fits(low, low + (int(offsets.max()) if len(offsets) else 0), dtype, what)
    return raised(offsets, low, dtype)


def _count(offsets: Array, high: int) -> tuple[U64, I64]:
    """Distinct offsets in increasing order, and how often each occurs."""
    if high < _DENSE_SPAN:
        counts = np.zeros(high + 1, dtype=np.int64)
        for start in range(0, len(offsets), _PIECE):
            counts += np.bincount(offsets[start : start + _PIECE].astype(np.int64), minlength=high + 1)
        distinct = np.flatnonzero(counts)
        return distinct.astype(np.uint64), counts[distinct].astype(np.int64)
    values, times = np.unique(offsets, return_counts=True)
    return values, times.astype(np.int64)


def order0_bits(x: Array) -> float:
    """Empirical order-0 entropy of all symbols together: `Σ c·log₂(n/c)` bits.

    Args:
        x: integers or bool, any shape.

    Returns:
        Bits for the whole array; no static coder that ignores positions can take fewer, its table aside.

    Example:
        >>> order0_bits(np.array([0, 0, 1, 1, 2, 2, 3, 3]))
        16.0
    """
    _checked(x.dtype)
    if not x.size:
        return 0.0
    offsets, _ = _offsets(x)
    return counts_bits(_count(offsets, int(offsets.max()))[1])


def _bit_length(values: U64) -> I64:
    powers = np.array([1 << i for i in range(64)], dtype=np.uint64)
    return np.searchsorted(powers, values, side="right").astype(np.int64)


@dataclass(frozen=True)
class _Split:
    """Value = bucket and low bits: linear (`v >> e`, e low bits), or logarithmic with 2^s buckets to each octave."""

    logarithmic: bool
    parameter: int

    def buckets(self, values: U64) -> tuple[I64, I64]:
        """(bucket, number of low bits) of each value."""
        if not self.logarithmic:
            shift = np.uint64(self.parameter)
            return (values >> shift).astype(np.int64), np.full(len(values), self.parameter, dtype=np.int64)
        low = np.maximum(0, _bit_length(values) - 1 - self.parameter)
        upper = (values >> low.astype(np.uint64)).astype(np.int64)
        return (low << self.parameter) + upper, low

    def low_bits(self, buckets: I64) -> I64:
        """The number of low bits of values in each bucket."""
        if not self.logarithmic:
            return np.full(len(buckets), self.parameter, dtype=np.int64)
        low: I64 = np.maximum(0, (buckets >> self.parameter) - 1)
        return low

    def base(self, buckets: I64) -> U64:
        """The least value of each bucket."""
        low = self.low_bits(buckets)
        upper = buckets - (low << self.parameter) if self.logarithmic else buckets
        return upper.astype(np.uint64) << low.astype(np.uint64)

    def largest_bucket(self) -> int:
        """The bucket of 2^64 − 1."""
        return int(self.buckets(np.array([_WORD - 1], dtype=np.uint64))[0][0])


def _merge(buckets: I64, counts: I64) -> tuple[I64, I64]:
    """Sums the counts of equal buckets; buckets must not decrease."""
    starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]]))
    return buckets[starts], np.add.reduceat(counts, starts)


def _best_split(values: U64, counts: I64) -> tuple[_Split, float] | None:
    """The split of least estimated bits, from distinct values and their counts."""
    best: tuple[_Split, float] | None = None
    width = int(values[-1]).bit_length()
    splits = [_Split(True, s) for s in range(6)] + [_Split(False, e) for e in range(max(1, width - 12), width)]
    for split in splits:
        buckets, low = split.buckets(values)
        merged, times = _merge(buckets, counts)
        if not 2 <= len(merged) <= MAX_ALPHABET:
            continue
        bits = counts_bits(times) + float((counts * low).sum()) + 5.0 * len(merged)
        if best is None or bits < best[1]:
            best = (split, bits)
    return best


def _indices(offsets: Array, alphabet: U64) -> Array:
    """Position of each offset in the alphabet, which holds them all."""
    if int(alphabet[-1]) == len(alphabet) - 1:
        return offsets if offsets.dtype == np.uint8 else offsets.astype(np.int32)
    if int(alphabet[-1]) < _DENSE_SPAN:
        kind = np.uint8 if offsets.dtype == np.uint8 else np.int32
        lookup = np.zeros(int(alphabet[-1]) + 1, dtype=kind)
        lookup[alphabet] = np.arange(len(alphabet), dtype=kind)
        return lookup[offsets]
    return np.searchsorted(alphabet, offsets).astype(np.int32)


def _packed(offsets: Array, low: int, width: int) -> Coded:
    writer = BitWriter()
    writer.signed(low)
    writer.uint(width - 1, 6)
    return Coded(Coder.PACKED, writer.finish(), pack_uints(offsets, width))


def _static(offsets: Array, low: int, table: FrequencyTable) -> Coded:
    writer = BitWriter()
    writer.signed(low)
    table.write(writer)
    indices = _indices(offsets, table.offsets.astype(np.uint64))
    return Coded(Coder.STATIC, writer.finish(), ans_encode([(indices, table.frequencies)]))


def _split(offsets: Array, low: int, split: _Split) -> Coded:
    offsets = offsets.astype(np.uint64, copy=False)
    buckets, low_bits = split.buckets(offsets)
    first = int(buckets.min())
    distinct, counts = _count((buckets - first).astype(np.uint64), int(buckets.max()) - first)
    table, _ = FrequencyTable.fit(distinct.astype(np.int64), counts)
    stream = ans_encode([(_indices((buckets - first).astype(np.uint64), distinct), table.frequencies)])
    rest = [offsets[low_bits == e] & np.uint64((1 << e) - 1) for e in range(1, int(low_bits.max()) + 1)]
    writer = BitWriter()
    writer.signed(low)
    writer.uint(int(split.logarithmic), 1)
    writer.uint(split.parameter, 6)
    writer.golomb(first, 2)
    table.write(writer)
    writer.golomb(len(stream), 7)
    tail = b"".join(pack_uints(values, e) for e, values in enumerate(rest, start=1))
    return Coded(Coder.SPLIT, writer.finish(), stream + tail)


@dataclass(frozen=True)
class _Bytes:
    """Symbols that span less than 256.

    Args:
        raw: [n] uint8, contiguous: the symbols themselves where they have one byte, else less the least.
        low: the least.
        offsets: [k] int64, those that occur, less the least.
        counts: [k] int64, how often.
    """

    raw: npt.NDArray[np.uint8]
    low: int
    offsets: I64
    counts: I64

    @staticmethod
    def of(x: Array) -> _Bytes | None:
        """Of integers or bool, not empty; None beyond that span."""
        if x.dtype.itemsize == 1:
            raw = np.ascontiguousarray(x.ravel()).view(np.uint8)
            counts = count_bytes(raw)
            signed = x.dtype.kind == "i"
            counts = np.roll(counts, 128) if signed else counts
            seen = np.flatnonzero(counts)
            low = int(seen[0]) - (128 if signed else 0)
        else:
            low = int(x.min())
            if int(x.max()) - low > _BYTE:
                return None
            raw = (x.ravel() - x.dtype.type(low)).astype(np.uint8)
            counts = count_bytes(raw)
            seen = np.flatnonzero(counts)
        return _Bytes(raw, low, (seen - seen[0]).astype(np.int64), counts[seen])

    @property
    def packed(self) -> int:
        """Bits at the fewest whole bits each."""
        return len(self.raw) * int(self.offsets[-1]).bit_length()

    def constant(self) -> Coded | None:
        """All equal, or None."""
        writer = BitWriter()
        writer.signed(self.low)
        return Coded(Coder.CONSTANT, writer.finish(), b"") if len(self.offsets) == 1 else None


def _in_blocks(x: Array, workers: int) -> Coded | None:
    """Symbols that span less than 256, constant or as blocks; None where they take 0.42% more than the entropy."""
    found = _Bytes.of(x)
    if found is None or len(found.offsets) == 1:
        return None if found is None else found.constant()
    table = FrequencyTable.quick(found.offsets, found.counts)
    plan, bits = BytePlan.fit(table, found.counts, found.low if x.dtype.itemsize == 1 else 0)
    least = min(counts_bits(found.counts), found.packed)
    if bits > _MORE * least or found.packed == 8 * len(found.raw) <= bits:
        return None
    writer = BitWriter()
    writer.signed(found.low)
    plan.write(writer)
    return Coded(Coder.BLOCKS, writer.finish(), plan.encode(found.raw, workers))


def _in_short(x: Array) -> Coded | None:
    """Symbols that span less than 256, constant or at once; None where their table takes half a per cent and more."""
    found = _Bytes.of(x)
    if found is None or len(found.offsets) == 1:
        return None if found is None else found.constant()
    least = counts_bits(found.counts)
    if least < SHORT_LEAST:
        return None
    table, bits = short_table(found.offsets, found.counts)
    if bits > SHORT_MOST * least or bits >= found.packed:
        return None
    coded = encode_short(found.raw, found.low, table, x.dtype.itemsize == 1, least, bits)
    return coded if 8 * coded.nbytes < found.packed else None


def encode_symbols(x: Array, *, workers: int = 1) -> Coded:
    """Codes an integer leaf in the fewest bytes among constant, packed, static and split.

    From 2^10 symbols on that span less than 256, `Coder.SHORT` instead of static: it is decoded some ten times as fast.
    From 2^18 on, `Coder.BLOCKS` within 0.42% of the order-0 entropy, on several threads and in part.

    static: `n·H₀` bits and a table of the alphabet and of √frequency, as precise as pays; split: the same over the
    upper part of each value, low bits as they are, for wide alphabets.

    Args:
        x: any shape, flattened in C order; any integer dtype or bool.
        workers: threads.

    Returns:
        The coded leaf; ties go to the simpler coder.

    Raises:
        DataError: the dtype is neither integer nor bool.

    Cost: one pass to count (a sort where symbols span 2^16 or more), one to code; about 2 ns a symbol in blocks, else
    10. Always exact.

    Example:
        >>> coded = encode_symbols(np.array([7, 7, 7], dtype=np.int8))
        >>> coded.coder.name, decode_symbols(coded, (3,), np.dtype(np.int8)).tolist()
        ('CONSTANT', [7, 7, 7])

    Source: Duda et al., "The use of asymmetric numeral systems", PCS 2015, for the coder.
    """
    _checked(x.dtype)
    made = None
    if x.size >= SHORT_BELOW:
        made = _in_blocks(x, workers)
    elif x.size >= SHORT_FROM:
        made = _in_short(x)
    return _streamed(x, short=x.size >= SHORT_FROM) if made is None else made


def encode_nested_symbols(x: Array, *, workers: int = 1) -> Coded:
    """As `encode_symbols`, by coders that containers of version 2 know: what lies within such a coder."""
    _checked(x.dtype)
    blocks = _in_blocks(x, workers) if x.size >= WORTH else None
    return encode_plain_symbols(x) if blocks is None else blocks


def encode_plain_symbols(x: Array) -> Coded:
    """As `encode_symbols`, without blocks, as containers of version 1 have it: one stream for the whole leaf.

    Cost: about 10 ns a symbol. From 2²⁰ symbols on one candidate is coded, the simplest within 0.2% of the lowest
    estimate.
    """
    _checked(x.dtype)
    return _streamed(x, short=False)


def _streamed(x: Array, *, short: bool) -> Coded:
    """The cheapest of all but blocks."""
    offsets, low = _offsets(x)
    high = int(offsets.max()) if len(offsets) else 0
    if high == 0:
        writer = BitWriter()
        writer.signed(low)
        return Coded(Coder.CONSTANT, writer.finish(), b"")
    width = high.bit_length()
    values, counts = _count(offsets, high)
    candidates: list[tuple[float, int, Callable[[], Coded]]] = [
        (len(offsets) * width, 0, lambda: _packed(offsets, low, width))
    ]
    if 2 <= len(values) <= MAX_ALPHABET and high < _MAX_OFFSET:
        least = counts_bits(counts)
        brief = short and high < SHORT_SPAN and least >= SHORT_LEAST
        table, bits = (short_table if brief else FrequencyTable.fit)(values.astype(np.int64), counts)
        if brief:
            narrow = x.dtype.itemsize == 1
            wanted = (offsets + np.uint64(low % 256 if narrow else 0)).astype(np.uint8)
            candidates.append((bits, 1, lambda: encode_short(wanted, low, table, narrow, least, bits)))
        else:
            candidates.append((bits, 1, lambda: _static(offsets, low, table)))
    split = _best_split(values, counts) if len(values) >= _SPLIT_FROM or high >= _MAX_OFFSET else None
    if split is not None:
        chosen, bits = split
        candidates.append((bits, 2, lambda: _split(offsets, low, chosen)))
    # estimates are within a few per cent plus a few bytes: code what may win, and measure
    lowest = min(bits for bits, _, _ in candidates)
    if len(offsets) >= _LARGE:  # the simplest within 0.2% of the lowest
        return next(build() for bits, _, build in candidates if bits <= 1.002 * lowest)
    likely = lowest * 1.05 + 256
    coded = [build() for bits, _, build in sorted(candidates, key=lambda c: c[1]) if bits <= likely]
    most = SHORT_MOST * counts_bits(counts)
    slower = _SLOWER if any(c.coder is Coder.SHORT and 8 * c.nbytes <= most for c in coded) else 1.0
    return min(coded, key=lambda c: c.nbytes * (slower if c.coder is Coder.SPLIT else 1.0))


def _read_static(payload: bytes, count: int, table: FrequencyTable, out: U64, what: str) -> None:
    stream = AnsReader(payload, what)
    alphabet = table.offsets.astype(np.uint64)
    for part, indices in stream.read(count, table.frequencies):
        out[part] = alphabet[indices]
    stream.finish()


def _read_split(reader: BitReader, payload: bytes, count: int, what: str) -> U64:
    split = _Split(bool(reader.uint(1)), reader.uint(6))
    if split.logarithmic and split.parameter > 5:
        raise FormatError(f"{what}: {split.parameter} bits of mantissa, at most 5 expected")
    first = reader.golomb(2)
    table = FrequencyTable.read(reader, what)
    size = reader.golomb(7)
    reader.finish()
    if size > len(payload):
        raise FormatError(f"{what}: a stream of {str(size)[:25]} bytes in a payload of {len(payload)}")
    if first + int(table.offsets[-1]) > split.largest_bucket():
        raise FormatError(f"{what}: symbols of more than 64 bits")
    values = np.zeros(count, dtype=np.uint64)
    _read_static(payload[:size], count, table, values, what)
    buckets = values.view(np.int64)
    buckets += first
    low_bits, values = split.low_bits(buckets), split.base(buckets)
    at = size
    for e in range(1, int(low_bits.max()) + 1 if count else 1):
        where = np.flatnonzero(low_bits == e)
        end = at + -(-len(where) * e // 8)
        values[where] |= unpack_uints(payload[at:end], len(where), e, what)
        at = end
    if at != len(payload):
        raise FormatError(f"{what}: payload of {len(payload)} bytes, expected {at}")
    return values


def _read_blocks(
    reader: BitReader,
    low: int,
    payload: bytes | memoryview,
    part: slice,
    count: int,
    dtype: np.dtype[Any],
    what: str,
    workers: int,
    room: npt.NDArray[np.uint8] | None = None,
) -> Array:
    narrow = dtype.itemsize == 1
    plan = BytePlan.read(reader, low if narrow else 0, what)
    reader.finish()
    check_fits(low, low + int(plan.table.offsets[-1]), dtype, what)
    found = plan.decode_part(payload, count, part, what, workers, room if narrow else None)
    return found.view(dtype) if narrow else raised(found, low, dtype)


def decode_symbols_part(coded: Coded, first: int, last: int, count: int, dtype: np.dtype[Any]) -> Array:
    """Some symbols of a leaf, from the blocks that hold them alone.

    Args:
        coded: the coded leaf, by `Coder.BLOCKS` or `Coder.SHORT`; not trusted.
        first: of the flattened symbols, the first that is wanted.
        last: the one behind the last.
        count: of all symbols; trusted.
        dtype: integer dtype or bool.

    Returns:
        [last − first] symbols.

    Raises:
        FormatError: another coder, damaged data, or symbols beyond the leaf.

    Cost: that of the blocks touched, of 2^16 to 2^24 symbols each; short leaves are decoded as a whole.

    Example:
        >>> x = np.arange(100_000) % 7
        >>> decode_symbols_part(encode_symbols(x), 99_998, 100_000, 100_000, x.dtype).tolist()
        [3, 4]
    """
    what = f"{coded.coder.name.lower()} symbols"
    if coded.coder is Coder.SHORT and 0 <= first <= last <= count:
        return decode_symbols(coded, (count,), dtype)[first:last]
    if coded.coder is not Coder.BLOCKS or not 0 <= first <= last <= count:
        raise FormatError(f"{what}: symbols {first} to {last} asked for, expected some of {count} in blocks")
    reader = BitReader(coded.table, what)
    low = reader.signed()
    return _read_blocks(reader, low, coded.payload, slice(first, last), count, np.dtype(dtype), what, 1)


def decode_symbols(
    coded: Coded, shape: tuple[int, ...], dtype: np.dtype[Any], *, workers: int = 1, out: Array | None = None
) -> Array:
    """The inverse of `encode_symbols`.

    Args:
        coded: the coded leaf; not trusted.
        shape: trusted: it bounds time and memory.
        dtype: integer dtype or bool.
        workers: threads, for blocks.
        out: an array of this shape and dtype, contiguous, to be filled: memory that was used before takes no page
            faults, which can take as long as decoding. None: a new array.

    Returns:
        The symbols, in `shape` and `dtype`.

    Raises:
        FormatError: table or payload is not what `encode_symbols` writes for this shape and dtype.
        DataError: ``out`` is no such array.

    Cost: about 1 ns a symbol in blocks, else 20 ns and up to 32 bytes of memory.

    Example:
        >>> x = np.arange(6, dtype=np.int32).reshape(2, 3)
        >>> bool(np.array_equal(decode_symbols(encode_symbols(x), (2, 3), x.dtype), x))
        True
    """
    dtype = np.dtype(dtype)
    if out is None:
        return _decoded(coded, shape, dtype, workers, None)
    if out.dtype != dtype or out.shape != shape or not (out.flags.c_contiguous and out.flags.writeable):
        raise DataError(f"out: found {out.dtype} {out.shape}, expected a contiguous, writeable {dtype} {shape}")
    room = out.reshape(-1).view(np.uint8) if dtype.itemsize == 1 else None
    found = _decoded(coded, shape, dtype, workers, room)
    if room is None or coded.coder not in (Coder.BLOCKS, Coder.SHORT):
        out[...] = found
    return out


def _decoded(
    coded: Coded, shape: tuple[int, ...], dtype: np.dtype[Any], workers: int, room: npt.NDArray[np.uint8] | None
) -> Array:
    """As `decode_symbols`; blocks and short leaves of one-byte symbols fill the room."""
    what = f"{coded.coder.name.lower()} symbols"
    count = prod(shape)
    if coded.coder not in _CODERS:
        raise FormatError(f"{what}: not a coder of symbols")
    if dtype.itemsize == 1 and dtype.kind in "iub" and coded.coder in SMALL_CODERS:
        quick = np.empty(shape, dtype=np.uint8)
        if small_symbols(coded, quick.reshape(-1), *limits(dtype)):
            return quick.view(dtype)
    reader = BitReader(coded.table, what)
    low = reader.signed()
    if coded.coder is Coder.CONSTANT:
        reader.finish()
        if coded.payload:
            raise FormatError(f"{what}: payload of {len(coded.payload)} bytes, expected none")
        value = _restore(np.zeros(1, dtype=np.uint64), low, dtype, what)
        return np.full(shape, value[0], dtype=dtype)
    if coded.coder is Coder.PACKED:
        width = reader.uint(6) + 1
        reader.finish()
        out = np.empty(count, dtype=dtype)
        for part, offsets in iter_uints(bytes(coded.payload), count, width, what):
            out[part] = _restore(offsets, low, dtype, what)
        return out.reshape(shape)
    if coded.coder is Coder.STATIC:
        table = FrequencyTable.read(reader, what)
        reader.finish()
        alphabet = _restore(table.offsets.astype(np.uint64), low, dtype, what)
        out = np.empty(count, dtype=dtype)
        stream = AnsReader(bytes(coded.payload), what)
        for part, indices in stream.read(count, table.frequencies):
            out[part] = alphabet[indices]
        stream.finish()
        return out.reshape(shape)
    if coded.coder is Coder.BLOCKS:
        some = slice(0, count)
        return _read_blocks(reader, low, coded.payload, some, count, dtype, what, workers, room).reshape(shape)
    if coded.coder is Coder.SHORT:
        return read_short(reader, low, coded.payload, count, dtype, what, room).reshape(shape)
    return _restore(_read_split(reader, bytes(coded.payload), count, what), low, dtype, what).reshape(shape)
