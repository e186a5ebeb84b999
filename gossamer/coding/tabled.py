"""Blocks of small numbers by interleaved ANS, each number under one of several static tables known before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.rans import open_block
from gossamer.coding.rans_model import LEAST, PRECISION, byte_frequencies

if TYPE_CHECKING:
    from gossamer.coding.rans_kernels import RansKernels

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
        out = np.zeros_like(self.weights)
        for table, weights in zip(out, self.weights, strict=True):
            table[weights > 0] = byte_frequencies(weights[weights > 0])
        return out

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
        lanes: L, a power of two from 1 to 64.
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
    made = _kernels() if compiled else None
    if made is None:
        final_, words = _encoded(numbers, which, model, lanes)
        return np.concatenate([final_.astype("<u4").view(np.uint8), words.astype("<u2").view(np.uint8)])
    room = np.empty(2 * lanes + len(numbers), dtype="<u2")
    states, wrote = np.full(lanes, LEAST, dtype=np.uint32), np.zeros(1, dtype=np.int64)
    end = room.ctypes.data + room.nbytes
    made.encode_tabled(
        numbers.ctypes.data,
        which.ctypes.data,
        len(numbers),
        end,
        states.ctypes.data,
        lanes,
        model.entries.ctypes.data,
        model.entries.shape[1],
        wrote.ctypes.data,
    )
    first = len(room) - int(wrote[0]) - 2 * lanes
    room[first : first + 2 * lanes] = states.astype("<u4").view("<u2")
    return room[first:].view(np.uint8)


def decode_tabled(
    block: bytes | memoryview, out: U8, which: U8, model: TabledModel, lanes: int, what: str, *, compiled: bool = True
) -> U8:
    """The inverse of `encode_tabled`.

    Args:
        block: not trusted.
        out: [n] uint8, contiguous; filled. Its length bounds time.
        which: [n] uint8, contiguous, the table of each number, below T.
        model: the tables.
        lanes: L, a power of two from 1 to 64.
        what: the name that faults are reported under.
        compiled: False: NumPy.

    Returns:
        `out`, the numbers.

    Raises:
        FormatError: the block does not hold exactly so many numbers.

    Cost: about 1 ns a number with 64 lanes and registers of 512 bits, else 3 ns; NumPy 0.3 µs.
    """
    opened = open_block(block, lanes, what)
    made = _kernels() if compiled else None
    if made is None:
        read = _decoded(out, which, opened.states, opened.words, model)
        opened.read[0] = -1 if read is None else read
    else:
        made.decode_tabled(
            out.ctypes.data,
            which.ctypes.data,
            len(out),
            *opened.arguments(),
            model.slots.ctypes.data,
            model.entries.ctypes.data,
            model.entries.shape[1],
            opened.read.ctypes.data,
        )
    opened.finish(len(out), what)
    return out


def _encoded(numbers: U8, which: U8, model: TabledModel, lanes: int) -> tuple[U32, U16]:
    """States and words in the order in which they are read."""
    states = np.full(lanes, LEAST, dtype=np.uint64)
    entries = model.entries[which, numbers].astype(np.uint64)
    words: list[U16] = []
    for first in range((len(numbers) - 1) // lanes * lanes if len(numbers) else 0, -1, -lanes):
        entry = entries[first : first + lanes]
        frequency, start = entry >> np.uint64(16), entry & np.uint64(0xFFFF)
        state = states[: len(entry)]
        full = state >> np.uint64(32 - PRECISION) >= frequency
        words.append((state[full] & np.uint64(0xFFFF)).astype(np.uint16))
        state[full] >>= np.uint64(16)
        if len(entry):
            state[:] = (state // frequency << np.uint64(PRECISION)) + state % frequency + start
    return states.astype(np.uint32), np.concatenate(words[::-1]) if words else np.zeros(0, dtype=np.uint16)


def _decoded(out: U8, which: U8, states: U32, words: U16, model: TabledModel) -> int | None:
    """Fills `out` and advances the states; the number of words read, None where more would have been needed."""
    lanes, at = len(states), 0
    wide, table = states.astype(np.uint64), model.entries.astype(np.uint64)
    below = np.uint64((1 << PRECISION) - 1)
    for first in range(0, len(out), lanes):
        part, number = out[first : first + lanes], which[first : first + lanes].astype(np.int64)
        state = wide[: len(part)]
        slot = state & below
        part[:] = model.slots[(number << PRECISION) + slot.astype(np.int64)]
        entry = table[number, part]
        # states of damaged blocks may be anything: arithmetic stays that of 32 bits
        moved = (entry >> np.uint64(16)) * (state >> np.uint64(PRECISION)) + slot - (entry & np.uint64(0xFFFF))
        state[:] = moved & np.uint64(0xFFFFFFFF)
        short = np.flatnonzero(state < LEAST)
        if len(short) > len(words) - at:
            return None
        state[short] = state[short] << np.uint64(16) | words[at : at + len(short)]
        at += len(short)
    states[:] = wide.astype(np.uint32)
    return at


def _kernels() -> RansKernels | None:
    from gossamer.coding.rans_kernels import kernels  # loads the compiler, which most of Gossamer does without

    return kernels()
