"""Blocks of small numbers by interleaved ANS, each number under one of several static tables known before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import coders
from gossamer.coding.rans import open_block, whole_block, written_block
from gossamer.coding.rans_model import PRECISION, byte_frequencies
from gossamer.coding.rans_numpy import decode_words, encode_words

__all__ = ["TabledModel", "decode_tabled", "encode_tabled"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]


@final
@dataclass(frozen=True, eq=False)
class TabledModel:
    """Several static tables over the numbers below k.

    Args:
        weights: [T, k] int64, 1 ≤ k ≤ 256, from 0 to 2^48: frequencies are these, scaled so that each table's sum to
            2^14; 0: a number that does not occur under the table. No table is all zeros.

    Example:
        >>> model = TabledModel(np.array([[1, 1], [0, 5]]))
        >>> [[hex(entry) for entry in table] for table in model.entries]
        [['0x20000000', '0x20002000'], ['0x0', '0x40000000']]
    """

    weights: I64

    @cached_property
    def frequencies(self) -> I64:
        """[T, k] int64: each row sums to 2^14."""
        return byte_frequencies(self.weights)

    @cached_property
    def entries(self) -> U32:
        """[T, k] uint32: frequency · 2^16 + cumulated frequency."""
        starts = np.cumsum(self.frequencies, axis=1) - self.frequencies
        return np.where(self.frequencies > 0, self.frequencies << 16 | starts, 0).astype(np.uint32)

    @cached_property
    def slots(self) -> U8:
        """[T · 2^14 + 3] uint8: the number of each slot; words of 4 bytes can be read from each."""
        numbers = np.tile(np.arange(self.weights.shape[1], dtype=np.uint8), len(self.weights))
        return np.concatenate([np.repeat(numbers, self.frequencies.ravel()), np.zeros(3, dtype=np.uint8)])

    def bits(self, counts: I64) -> float:
        """Bits that so many [T, k] of each number take under each table."""
        seen = counts > 0
        return float((counts[seen] * (PRECISION - np.log2(self.frequencies[seen]))).sum())


def encode_tabled(numbers: U8, which: U8, model: TabledModel, lanes: int, *, compiled: bool = True) -> U8:
    """One block, in the form of `rans.encode_block`.

    Args:
        numbers: [n] uint8, contiguous, each of frequency above 0 under its table.
        which: [n] uint8, contiguous, the table of each number.
        model: the tables.
        lanes: L, a power of two from 1 to 128.
        compiled: False: NumPy, whose bytes are the same.

    Returns:
        The block, uint8.

    Cost: about 4 ns a number; NumPy 0.3 µs.

    Example:
        >>> model = TabledModel(np.array([[1, 1], [9, 1]]))
        >>> numbers, which = np.array([0, 1, 0], dtype=np.uint8), np.array([1, 0, 1], dtype=np.uint8)
        >>> block = encode_tabled(numbers, which, model, 1)
        >>> len(block), decode_tabled(block.data, numbers * 0, which, model, 1, "weights").tolist()
        (4, [0, 1, 0])
    """
    made = coders() if compiled else None
    if made is None:
        return whole_block(*encode_words(model.entries[which, numbers], lanes))
    entries = model.entries  # held here: another thread may put others into the model meanwhile

    def run(end: int, states: int, wrote: int) -> None:
        arrays = numbers.ctypes.data, which.ctypes.data, len(numbers)
        made.encode_tabled(*arrays, end, states, lanes, entries.ctypes.data, entries.shape[1], wrote)

    return written_block(len(numbers), lanes, run)


def decode_tabled(
    block: bytes | memoryview, out: U8, which: U8, model: TabledModel, lanes: int, what: str, *, compiled: bool = True
) -> U8:
    """The inverse of `encode_tabled`.

    Args:
        block: not trusted.
        out: [n] uint8, contiguous; filled. Its length bounds time.
        which: [n] uint8, contiguous, the table of each number, below T.
        model: the tables.
        lanes: L, a power of two from 1 to 128.
        what: the name that faults are reported under.
        compiled: False: NumPy.

    Returns:
        `out`, the numbers.

    Raises:
        FormatError: the block does not hold exactly so many numbers.

    Cost: about 1 ns a number with 64 lanes and registers of 512 bits, else 3 ns; NumPy 0.3 µs.
    """
    opened = open_block(block, lanes, what)
    made = coders() if compiled else None
    if made is None:

        def look(part: slice, slot: npt.NDArray[np.uint64]) -> tuple[U8, U32]:
            table = which[part].astype(np.int64)
            symbols = model.slots[(table << PRECISION) + slot.astype(np.int64)]
            return symbols, model.entries[table, symbols]

        read = decode_words(out, opened.states, opened.words, look)
        opened.read[0] = -1 if read is None else read
    else:
        slots, entries = model.slots, model.entries  # held here, as above
        made.decode_tabled(
            out.ctypes.data,
            which.ctypes.data,
            len(out),
            *opened.arguments(),
            slots.ctypes.data,
            entries.ctypes.data,
            entries.shape[1],
            opened.read.ctypes.data,
        )
    opened.finish(len(out), what)
    return out
