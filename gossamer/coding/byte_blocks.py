"""Symbols of a span below 256 in blocks: one static model for the leaf, interleaved ANS in each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.blocks import Blocks, block_log2, write_blocks
from gossamer.coding.rans import decode_block, encode_block_into, lanes_for, most_bytes
from gossamer.coding.rans_model import MOST_LANES, ByteModel, byte_frequencies
from gossamer.coding.table import FrequencyTable
from gossamer.errors import FormatError

__all__ = ["WORTH", "BytePlan"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_TABLE_BITS: Final = 9  # of a table, for each byte that occurs, about
WORTH: Final = 1 << 13
"""Symbols from which on directory, states and shorter frequencies cost little."""


@final
@dataclass(frozen=True)
class BytePlan:
    """How a leaf of bytes is coded: the alphabet and its frequencies, symbols to a block, lanes.

    Args:
        table: symbols as distances from the first of them, and their weights.
        low: the first symbol's byte; those of others follow, modulo 256.
        log2: of the symbols to a block.
        lanes: of each block.
    """

    table: FrequencyTable
    low: int
    log2: int
    lanes: int

    @staticmethod
    def fit(
        table: FrequencyTable, counts: I64, low: int, log2: int | None = None, beside: int = 0
    ) -> tuple[BytePlan, float]:
        """A plan for symbols of a table, which occur so often, and the bits that it takes.

        Blocks may be given, and how many bytes lie beside each symbol, of which lanes may cost their share too.
        """
        total = int(counts.sum())
        bits = BytePlan(table, low, 0, 1).model.bits(counts)
        log2 = block_log2(bits / total) if log2 is None else log2
        blocks = -(-total >> log2)
        lanes = lanes_for((bits / 8 + beside * total) * min(1.0, (1 << log2) / total))
        overhead = 8 * blocks * (8 + 3 * lanes) + _TABLE_BITS * len(table.roots)
        return BytePlan(table, low, log2, lanes), bits + overhead

    @property
    def model(self) -> ByteModel:
        """The frequencies that coders use."""
        return ByteModel((self.low + self.table.offsets & 255).astype(np.uint8), byte_frequencies(self.table.roots**2))

    def write(self, writer: BitWriter) -> None:
        """Appends everything but the first byte."""
        writer.uint(self.log2, 5)
        writer.uint(self.lanes.bit_length() - 1, 3)
        self.table.write(writer, quick=True)

    @staticmethod
    def read(reader: BitReader, low: int, what: str) -> BytePlan:
        """Reads what `write` wrote; not trusted."""
        log2, lanes = reader.uint(5), 1 << reader.uint(3)
        table = FrequencyTable.read(reader, what)
        if lanes > MOST_LANES:
            raise FormatError(f"{what}: {lanes} lanes, at most {MOST_LANES} expected")
        if int(table.offsets[-1]) > 255:
            raise FormatError(f"{what}: symbols that span {int(table.offsets[-1])}, at most 255 expected")
        return BytePlan(table, low & 255, log2, lanes)

    def encode(self, x: U8, workers: int) -> memoryview:
        """The payload of [n] contiguous bytes."""
        model, size = self.model, 1 << self.log2

        def write(number: int, room: U8) -> int:
            return encode_block_into(room, x[number * size : (number + 1) * size], model, self.lanes)

        return write_blocks(-(-len(x) // size), most_bytes(min(size, len(x)), self.lanes), write, workers)

    def decode_part(
        self, payload: bytes | memoryview, count: int, part: slice, what: str, workers: int, room: U8 | None = None
    ) -> U8:
        """Some of the bytes of a payload that is not trusted, from the blocks that hold them alone.

        All of them into a room, where one is given.
        """
        blocks, model = Blocks(payload, count, self.log2, what), self.model

        def read(block: memoryview, piece: U8, _: slice, where: str) -> None:
            decode_block(block, piece, model, self.lanes, where)

        out = np.empty(blocks.reach(part), dtype=np.uint8) if room is None else room
        return blocks.decode(part, out, read, workers)
