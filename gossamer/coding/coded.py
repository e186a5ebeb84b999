"""A coded leaf: which coder, its table, its payload."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, cast

from gossamer.errors import FormatError

__all__ = ["Coded", "Coder"]


class Coder(IntEnum):
    """The closed set of coders. The numbers are part of the file format: never renumbered, never reused."""

    RAW = 0  # bytes as they are
    CONSTANT = 1  # all symbols equal: the table holds the value
    PACKED = 2  # value minus minimum, at the fewest bits
    STATIC = 3  # one static frequency table, ANS
    SPLIT = 4  # upper part of each value as STATIC, its low bits as they are
    MASK_BITMAP = 5  # one bit for each position
    MASK_BERNOULLI = 6  # one static probability for all positions, ANS
    MASK_GAPS = 7  # distances between live (or dead) positions, as symbols
    MASK_CLASSES = 8  # one static probability for each (row class, column class), ANS
    SPARSE_ZERO_SYMBOL = 9  # symbols over all dense positions, dead = one more symbol
    FLOAT_PLANES = 10  # byte planes, each as symbols or raw
    # from container version 2 on
    BLOCKS = 11  # one static frequency table, interleaved ANS in blocks
    FLOAT_BLOCKS = 12  # byte planes in blocks, each coded so or raw
    FLOAT_DISTINCT = 13  # a list of distinct values and their indices as symbols
    FLOAT_SPARSE = 14  # a mask of what is not +0 and the floats that are not
    FLOAT_COARSE = 15  # runs of floats that were once of fewer bits, and the others, each coded on its own
    TABLES = 16  # static tables by class of span and of column, interleaved ANS in blocks
    SPARSE_TABLES = 17  # symbols over all dense positions as TABLES, dead = one more symbol
    MASK_TABLES = 18  # a mask as TABLES
    # from container version 3 on
    SHORT = 19  # one static frequency table, interleaved ANS in one block that begins with the last symbols


_CODERS: Final[Mapping[int, Coder]] = types.MappingProxyType({int(coder): coder for coder in Coder})


@dataclass(frozen=True)
class Coded:
    """One leaf at rest: `coder` names the reader, `table` is its model, `payload` the symbols.

    Args:
        coder: the coder that cost the fewest bytes.
        table: code table (minimum, alphabet, frequencies, classes); may be empty.
        payload: the coded symbols; may be empty.

    Example:
        >>> coded = Coded(Coder.PACKED, b"ab", b"c")
        >>> coded.header, coded.data
        ((2, 2, 1), b'abc')
        >>> Coded.from_parts([2, 2, 1], b"abc") == coded
        True
    """

    coder: Coder
    table: bytes
    payload: bytes | memoryview

    @property
    def nbytes(self) -> int:
        """Bytes of table and payload together."""
        return len(self.table) + len(self.payload)

    @property
    def header(self) -> tuple[int, int, int]:
        """The self-description `(coder, len(table), len(payload))`, ready for JSON."""
        return int(self.coder), len(self.table), len(self.payload)

    @property
    def data(self) -> bytes:
        """Table and payload, one after the other."""
        return b"".join((self.table, self.payload))

    @classmethod
    def from_parts(cls, header: Sequence[object], data: bytes | memoryview) -> Coded:
        """The inverse of `header` and `data`, checked.

        Args:
            header: `[coder, len(table), len(payload)]` as parsed from JSON; not trusted.
            data: table and payload, one after the other.

        Returns:
            The coded leaf; whether its content makes sense is checked on decoding.

        Raises:
            FormatError: the header is not three integers, names no coder, or does not add up to `len(data)`.
        """
        if not isinstance(header, list | tuple) or len(header) != 3:
            raise FormatError("coded leaf: the header is not [coder, table bytes, payload bytes]")
        code, table, payload = cast("Sequence[int]", header)
        good = {type(code), type(table), type(payload)} <= {int, Coder}
        if not (good and 0 <= min(code, table, payload) <= max(code, table, payload) < 1 << 63):
            raise FormatError("coded leaf: the header is not three non-negative integers of at most 63 bits")
        coder = _CODERS.get(code)
        if coder is None:
            raise FormatError(f"coded leaf: unknown coder {code}, expected one of 0 to {int(max(Coder))}")
        if table + payload != len(data):
            raise FormatError(f"coded leaf: {len(data)} bytes, expected {table} of table and {payload} of payload")
        return cls(coder, bytes(data[:table]), data[table:])
