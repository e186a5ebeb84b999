"""Leaves of some thousand symbols: one static table and one block, whose lanes begin with the last symbols."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.alphabet import check_fits, raised
from gossamer.coding.bits import BitReader, BitWriter, pack_uints, unpack_uints
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.rans import decode_begun, encode_block
from gossamer.coding.rans_model import MOST_LANES, ByteModel, byte_frequencies
from gossamer.coding.table import FrequencyTable, counts_bits
from gossamer.errors import FormatError

__all__ = [
    "SHORT_BELOW",
    "SHORT_FROM",
    "SHORT_LEAST",
    "SHORT_MOST",
    "SHORT_SPAN",
    "encode_short",
    "read_short",
    "short_table",
]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

SHORT_FROM: Final = 1 << 10
"""Symbols from which on tables take less time than they save."""
SHORT_BELOW: Final = 1 << 18
"""Symbols that are always decoded together."""
SHORT_SPAN: Final = 256
"""What symbols must span less than."""
SHORT_LEAST: Final = 1 << 13
"""Bits of entropy from which on a whole state costs little."""
SHORT_TIGHT: Final = 1 << 15
"""Bits of entropy from which on a table may take time."""
SHORT_MOST: Final = 1.0048
"""Of the entropy, with the table: where it takes more, other coders may take less."""
_ENTRY: Final = 9  # bits of a quick table for each symbol, about
_QUICK: Final = 1e-3  # of the entropy, that a quick table may take
_TIGHT: Final = 1.0035  # of the entropy with the table, from which on a better one is looked for
_LANE: Final = 1.8  # bytes that a lane costs, about
_SHARE: Final = 0.002  # of a leaf's bytes that lanes may cost
_ALL: Final = 1.0045  # of the entropy that they may cost with the table
_WORD: Final = 16  # bits that a lane begins with


def _model(table: FrequencyTable, low: int) -> ByteModel:
    """Bytes are symbols modulo 256, so that those of one byte are there as soon as they are decoded."""
    return ByteModel((low + table.offsets & 255).astype(np.uint8), byte_frequencies(table.roots**2))


def _tail(table: FrequencyTable, lanes: int, count: int) -> tuple[int, int]:
    """How many of the last symbols the lanes begin with, and the bits of each."""
    width = int(table.offsets[-1]).bit_length()
    return min(count, _WORD * lanes // width), width


def short_table(offsets: I64, counts: I64) -> tuple[FrequencyTable, float]:
    """A table for symbols that occur so often, and the bits that it takes with them."""
    least = counts_bits(counts)
    if _ENTRY * len(counts) > _QUICK * least:
        table, bits = FrequencyTable.fit(offsets, counts)
        if bits > _TIGHT * least and least > SHORT_TIGHT and int(offsets[-1]) < SHORT_SPAN:
            return FrequencyTable.tight(offsets, counts)
        return table, bits
    table = FrequencyTable.quick(offsets, counts)
    return table, least + _ENTRY * len(counts)


def encode_short(raw: U8, low: int, table: FrequencyTable, narrow: bool, least: float, bits: float) -> Coded:
    """Codes symbols that span less than 256.

    A lane's last state takes 32 bits, of which about 8 tell symbols; what it begins with, 2^16 to 2^17 − 1, may be
    anything, so it is some of the last symbols, at the fewest whole bits each.

    Args:
        raw: [n] uint8, contiguous, all of the table: symbols of one byte, or those of more less the least.
        low: the least symbol.
        table: its frequencies.
        narrow: symbols have one byte.
        least: bits of the symbols by their entropy.
        bits: that they take with the table, about.
    """
    room = min(_SHARE * least, _ALL * least - bits) / (8 * _LANE)
    lanes = min(MOST_LANES, 1 << int(max(1.0, room)).bit_length() - 1)
    base = low & 255 if narrow else 0
    tail, width = _tail(table, lanes, len(raw))
    rest = len(raw) - tail
    begin = np.zeros(lanes, dtype="<u2")
    packed = pack_uints((raw[rest:] - np.uint8(base)).astype(np.uint64), width)
    begin.view(np.uint8)[: len(packed)] = np.frombuffer(packed, dtype=np.uint8)
    writer = BitWriter()
    writer.signed(low)
    writer.uint(lanes.bit_length() - 1, 3)
    table.write(writer)
    return Coded(Coder.SHORT, writer.finish(), encode_block(raw[:rest], _model(table, base), lanes, begin=begin))


def read_short(
    reader: BitReader,
    low: int,
    payload: bytes | memoryview,
    count: int,
    dtype: np.dtype[Any],
    what: str,
    room: U8 | None = None,
) -> Array:
    """The inverse of `encode_short`, flat.

    Args:
        reader: behind the least symbol; not trusted.
        low: the least symbol.
        payload: not trusted.
        count: trusted: it bounds time and memory.
        dtype: integer dtype or bool.
        what: the name that faults are reported under.
        room: [n], filled where symbols have one byte; None: a new array.

    Raises:
        FormatError: anything but what `encode_short` writes for so many symbols.
    """
    lanes = 1 << reader.uint(3)
    table = FrequencyTable.read(reader, what)
    reader.finish()
    span = int(table.offsets[-1])
    if span >= SHORT_SPAN:
        raise FormatError(f"{what}: symbols that span {span}, expected at most {SHORT_SPAN - 1}")
    check_fits(low, low + span, dtype, what)
    narrow = dtype.itemsize == 1
    base = low & 255 if narrow else 0
    tail, width = _tail(table, lanes, count)
    out = np.empty(count, dtype=np.uint8) if room is None or not narrow else room
    begin = decode_begun(payload, out[: count - tail], _model(table, base), lanes, what)
    told = begin.astype("<u2").tobytes()
    size = -(-tail * width // 8)
    last = unpack_uints(told[:size], tail, width, what)
    if any(told[size:]) or (tail and int(last.max()) > span):
        raise FormatError(f"{what}: lanes do not begin with {tail} symbols that span {span}")
    out[count - tail :] = last.astype(np.uint8) + np.uint8(base)
    return out.view(dtype) if narrow else raised(out, low, dtype)
