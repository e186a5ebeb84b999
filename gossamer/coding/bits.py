"""Bits for small tables (one at a time) and for whole leaves (fixed width, vectorised)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref, c_int64
from itertools import accumulate
from typing import Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import coders, loaded
from gossamer.errors import FormatError

__all__ = ["BitReader", "BitWriter", "golomb_bits", "int_list_bits", "iter_uints", "pack_uints", "unpack_uints"]

U64 = npt.NDArray[np.uint64]

MAX_TABLE_BYTES: Final = 1 << 18  # no honest table comes near: 4096 symbols of 64-bit values take 90 KB
_CHUNK: Final = 1 << 16  # a multiple of 8 values, so that chunks end on whole bytes
_ORDERS: Final = 16
_COMPILED: Final = 12  # codes from which on a call of compiled code pays
_WORTH: Final = 24  # from which on loading it does
_MOST_SYMBOLS: Final = 4096
_BEHIND: Final = bytes(8)  # may be touched
_DIRECT, _DELTA, _EQUAL = 0, 1, 2


def golomb_bits(values: npt.NDArray[np.int64], order: int) -> npt.NDArray[np.int64]:
    """Length in bits of the exponential Golomb code of each value: `2·⌊log₂((v >> k) + 1)⌋ + 1 + k`."""
    # frexp's exponent is the bit length, exact below 2^53
    return 2 * np.frexp(((values >> order) + 1).astype(np.float64))[1].astype(np.int64) - 1 + order


def _steps(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """First value, then differences folded onto 0, 1, 2, … as 0, −1, 1, −2, …"""
    steps = np.diff(values)
    return np.concatenate([values[:1], np.where(steps < 0, -2 * steps - 1, 2 * steps)])


def _int_list_plan(values: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """(kind, order, bits) of the cheapest form of a list of non-negative integers below 2^50."""
    best = (_DIRECT, 0, 1 << 60)
    if len(values) > 1 and bool(np.all(values == values[0])):
        first = int(values[0])
        return min(
            ((_EQUAL, k, 6 + int(golomb_bits(np.array([first]), k)[0])) for k in range(_ORDERS)),
            key=lambda plan: plan[2],
        )
    for kind, coded in ((_DIRECT, values), (_DELTA, _steps(values))):
        # the cheapest order lies near the bit length of the mean
        near = int(coded.sum() / len(coded)).bit_length() if len(coded) else 0
        first = max(0, near - 2)
        orders = np.arange(first, min(_ORDERS, near + 2))
        if not len(orders):
            continue
        # frexp's exponent is the bit length, exact below 2^53: all orders at once
        upper = np.frexp(((coded[None, :] >> orders[:, None]) + 1).astype(np.float64))[1].sum(1, dtype=np.int64)
        lengths = 2 * upper + len(coded) * (orders - 1)
        at = int(lengths.argmin())
        if 6 + int(lengths[at]) < best[2]:
            best = (kind, first + at, 6 + int(lengths[at]))
    return best if best[2] < 1 << 60 else (_DIRECT, _ORDERS - 1, 6 + int(golomb_bits(values, _ORDERS - 1).sum()))


def int_list_bits(values: npt.NDArray[np.int64]) -> int:
    """Bits that `BitWriter.int_list` will write."""
    return _int_list_plan(values)[2]


@final
class BitWriter:
    """Collects bits, most significant first; `finish` pads with zeros to whole bytes."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def uint(self, value: int, width: int) -> None:
        """`value` in exactly `width` bits."""
        if width:
            self._parts.append(format(value, f"0{width}b"))

    def golomb(self, value: int, order: int) -> None:
        """`value ≥ 0` in the exponential Golomb code of the given order."""
        upper = (value >> order) + 1
        self._parts.append("0" * (upper.bit_length() - 1) + format(upper, "b"))
        self.uint(value & ((1 << order) - 1), order)

    def signed(self, value: int) -> None:
        """Any integer, short when near zero."""
        self.golomb(-2 * value - 1 if value < 0 else 2 * value, 2)

    def int_list(self, values: npt.NDArray[np.int64]) -> None:
        """Integers from 0 to 2^50, by value or by difference, whichever is shorter; the reader knows how many."""
        kind, order, _ = _int_list_plan(values)
        self.uint(kind, 2)
        self.uint(order, 4)
        coded = values[:1] if kind == _EQUAL else _steps(values) if kind == _DELTA else values
        for value in coded.tolist():
            self.golomb(value, order)

    def likely_list(self, values: Sequence[int]) -> None:
        """As `int_list`, by value, in the order of Golomb codes that suits the mean: some bits longer, much quicker."""
        mean = sum(values) // len(values)
        order = min(_ORDERS - 1, max(0, mean.bit_length() - 1))
        less = (1 << order) - 1
        self.uint(_DIRECT, 2)
        self.uint(order, 4)
        for value in values:
            text = format(value + less + 1, "b")  # the upper bits, by one larger, and the lower ones
            self._parts.append("0" * (len(text) - order - 1) + text)

    def finish(self) -> bytes:
        """All bits so far, padded with zeros to whole bytes."""
        text = "".join(self._parts)
        size = -(-len(text) // 8)
        return int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big") if size else b""


@final
class BitReader:
    """Reads what `BitWriter` wrote; every fault is a `FormatError`.

    Args:
        table: the bytes; not trusted.
        what: the name that faults are reported under.
    """

    def __init__(self, table: bytes, what: str) -> None:
        if len(table) > MAX_TABLE_BYTES:
            raise FormatError(f"{what}: table of {len(table)} bytes, at most {MAX_TABLE_BYTES} expected")
        self._table = table
        self._text = format(int.from_bytes(table, "big"), f"0{8 * len(table)}b") if table else ""
        self._at = 0
        self._what = what

    def uint(self, width: int) -> int:
        """`width` bits."""
        end = self._at + width
        if end > len(self._text):
            raise FormatError(f"{self._what}: table ends after {len(self._table)} bytes, more expected")
        value = int(self._text[self._at : end], 2) if width else 0
        self._at = end
        return value

    def golomb(self, order: int) -> int:
        """One exponential Golomb code, below 2^80."""
        return self._golombs(1, order)[0]

    def _golombs(self, count: int, order: int) -> list[int]:
        text, at, end, values = self._text, self._at, len(self._text), []
        less = 1 << order
        for _ in range(count):
            one = text.find("1", at, at + 65)
            if one < 0:
                raise FormatError(f"{self._what}: table has no number at bit {at}")
            at = 2 * one - at + 1 + order  # as many zeros before the one as bits behind it, then `order` bits
            if at > end:
                raise FormatError(f"{self._what}: table ends after {len(self._table)} bytes, more expected")
            values.append(int(text[one:at], 2) - less)
        self._at = at
        return values

    def signed(self) -> int:
        """The inverse of `BitWriter.signed`."""
        folded = self.golomb(2)
        return -(folded + 1) // 2 if folded & 1 else folded // 2

    def int_list(self, count: int, limit: int) -> list[int]:
        """`count` integers from 0 to `limit`; `count` must be bounded by the caller."""
        quick = self._quick_lists(1, count, limit) if count >= _COMPILED else None
        if quick is not None:
            found: list[int] = quick[0].tolist()
            return found
        kind, order = self.uint(2), self.uint(4)
        if kind > _EQUAL:
            raise FormatError(f"{self._what}: list of kind {kind}, expected 0, 1 or 2")
        coded = min(count, 1) if kind == _EQUAL else count
        values = self._golombs(coded, order)
        values = values * count if kind == _EQUAL else values
        if kind == _DELTA:
            steps = (-(value + 1) // 2 if value & 1 else value // 2 for value in values[1:])
            values = list(accumulate(steps, initial=values[0])) if values else values
        for value in (min(values, default=0), max(values, default=0)):
            if not 0 <= value <= limit:
                raise FormatError(f"{self._what}: table entry {value}, expected 0 to {limit}")
        return values

    def int_lists(self, lists: int, count: int, limit: int) -> npt.NDArray[np.int64]:
        """So many lists as `int_list` reads, one after the other: [lists, count] int64; both bounded by the caller."""
        quick = self._quick_lists(lists, count, limit) if lists * count >= _COMPILED else None
        if quick is not None:
            return quick
        return np.array([self.int_list(count, limit) for _ in range(lists)], dtype=np.int64).reshape(lists, count)

    def _quick_lists(self, lists: int, count: int, limit: int) -> npt.NDArray[np.int64] | None:
        """The same, compiled; None where that cannot be, or cannot say what is wrong."""
        made = coders() if lists * count >= _WORTH else loaded()
        if made is None:
            return None
        out, at = np.empty((lists, count), dtype=np.int64), c_int64(self._at)
        made.lists(self._table + _BEHIND, 8 * len(self._table), lists, count, limit, out.ctypes.data, byref(at))
        if at.value < 0:
            return None
        self._at = at.value
        return out

    def frequency_table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Offsets and roots of a `table.FrequencyTable`, compiled; None where that cannot be, and nothing is read."""
        made = loaded()
        if made is None:
            return None
        room, at = np.empty((2, _MOST_SYMBOLS), dtype=np.int64), (c_int64 * 2)(self._at)
        offsets = room.ctypes.data
        made.table(self._table + _BEHIND, 8 * len(self._table), offsets, offsets + room.strides[0], at)
        if at[0] < 0:
            return None
        self._at = at[0]
        found = room[:, : at[1]].copy()
        return found[0], found[1]

    def rest(self) -> bytes:
        """Skips to the next whole byte and returns all that follows."""
        start = -(-self._at // 8)
        if "1" in self._text[self._at : 8 * start]:
            raise FormatError(f"{self._what}: table padding is not zero")
        self._at = len(self._text)
        return self._table[start:]

    def finish(self) -> None:
        """Refuses bytes that nobody asked for."""
        left = self.rest()
        if left:
            raise FormatError(f"{self._what}: {len(left)} bytes left over after the table")


def pack_uints(values: U64, width: int) -> bytes:
    """Each value in `width` bits, least significant first, one after the other, padded with zeros to whole bytes.

    Args:
        values: [n] uint64, each below 2^width.
        width: 0 to 64.

    Returns:
        `⌈n·width/8⌉` bytes.
    """
    parts: list[bytes] = []
    for start in range(0, len(values) if width else 0, _CHUNK):
        octets = np.ascontiguousarray(values[start : start + _CHUNK], dtype="<u8").view(np.uint8).reshape(-1, 8)
        if width % 8 == 0:
            parts.append(octets[:, : width // 8].tobytes())
        else:
            bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
            parts.append(np.packbits(bits.ravel(), bitorder="little").tobytes())
    return b"".join(parts)


def iter_uints(packed: bytes, count: int, width: int, what: str) -> Iterator[tuple[slice, U64]]:
    """The inverse of `pack_uints`, in pieces: at most 2^16 values, each with the slice of the whole that it fills.

    Raises:
        FormatError: the number of bytes is not `⌈count·width/8⌉`, or padding bits are set.
    """
    size = -(-count * width // 8)
    if len(packed) != size:
        raise FormatError(f"{what}: {len(packed)} bytes, expected {size} for {count} values of {width} bits")
    spare = 8 * size - count * width
    if spare and packed[-1] >> (8 - spare):
        raise FormatError(f"{what}: padding bits are not zero")
    used = -(-width // 8)
    source = np.frombuffer(packed, dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - start)
        window = source[start * width // 8 : -(-(start + rows) * width // 8)]
        octets = np.zeros((rows, 8), dtype=np.uint8)
        if width % 8 == 0:
            octets[:, :used] = window.reshape(rows, used)
        else:
            bits = np.unpackbits(window, count=rows * width, bitorder="little").reshape(rows, width)
            octets[:, :used] = np.packbits(bits, axis=1, bitorder="little")
        yield slice(start, start + rows), octets.view("<u8").reshape(rows).astype(np.uint64, copy=False)


def unpack_uints(packed: bytes, count: int, width: int, what: str) -> U64:
    """The inverse of `pack_uints`: [count] uint64, or `FormatError` as `iter_uints`."""
    values = np.empty(count, dtype=np.uint64)
    for part, piece in iter_uints(packed, count, width, what):
        values[part] = piece
    return values
