"""A static model of bytes for interleaved ANS: frequencies that sum to 2^14, and what coders look up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import coders
from gossamer.errors import FormatError

__all__ = ["HEAPS", "LEAST", "MOST_LANES", "PRECISION", "SLOTS_BEHIND", "ByteModel", "Heap", "byte_frequencies"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]

PRECISION: Final = 14
"""Bits of frequencies: a state of 32 bits keeps at least 2 more, so that rounding costs less than 0.05% of the size."""
MOST_LANES: Final = 128
LEAST: Final = 1 << 16
"""The least state between symbols, and every lane's state before the first and after the last one."""
SLOTS_BEHIND: Final = 32
"""Bytes behind the last slot that may be touched."""
HEAPS: Final = (16, 32, 64)
"""So many distinct bytes are searched in registers, where these are wide."""
_HALVES: Final = 32  # 16-bit integers in a register of 512 bits
_SEARCHED: Final = 32  # lanes from which on they are
_MOST_SLOTS: Final = (1 << PRECISION) - (1 << PRECISION - 9)
"""Where all but one in 512 symbols are among the most frequent ones, the others may take longer."""


def byte_frequencies(weights: I64) -> I64:
    """Integer weights scaled to frequencies that sum to 2^14: `max(1, ⌊w·2¹⁴/Σw⌋)`, the rest to the largest.

    Args:
        weights: [..., k] int64, 1 ≤ k ≤ 256, from 0 to 2^48: what has none gets none. Not all zero along the last axis.

    Returns:
        [..., k] int64, each sum along the last axis 2^14. Integer arithmetic only, so the same on every machine.

    Example:
        >>> byte_frequencies(np.array([1, 3])).tolist()
        [4096, 12288]
    """
    quotients = (weights << PRECISION) // weights.sum(-1, keepdims=True)
    scaled: I64 = np.maximum(weights > 0, quotients, order="C")  # so that rows are a view of it
    # Where m entries are raised to 1, the k − m others share 2^14: the largest of them is at least 2^14/(k − m) ≥ m,
    # since m·(k − m) ≤ 2^14, and the m raised ones add less than m. So it stays positive.
    rows = scaled.reshape(-1, scaled.shape[-1])
    rows[np.arange(len(rows)), rows.argmax(1)] += (1 << PRECISION) - rows.sum(1)
    return scaled


@final
@dataclass(frozen=True, eq=False)
class Heap:
    """The most frequent bytes, for a search in registers.

    Args:
        size: of the heap, 16, 32 or 64.
        table: uint16 [4, max(32, size)], see `rans_code`.
    """

    size: int
    table: npt.NDArray[np.uint16]


@final
@dataclass(frozen=True, eq=False)
class ByteModel:
    """Bytes and their frequencies; they share the slots from 0 to 2^14 in falling order of frequency, then of bytes.

    Args:
        bytes: [k] uint8, distinct, 2 ≤ k ≤ 256.
        frequencies: [k] int64, positive, summing to 2^14.

    Raises:
        FormatError: anything else.

    Example:
        >>> model = ByteModel(np.array([0, 7], dtype=np.uint8), np.array([4096, 12288]))
        >>> [hex(entry) for entry in model.table[[0, 7]]]
        ['0x10003000', '0x30000000']
    """

    bytes: U8
    frequencies: I64

    def __post_init__(self) -> None:
        k = len(self.bytes)
        good = 2 <= k == len(self.frequencies) and len(set(self.bytes.tolist())) == k
        if not (good and int(self.frequencies.min()) > 0 and int(self.frequencies.sum()) == 1 << PRECISION):
            raise FormatError(
                f"model of {k} bytes: found other frequencies than positive ones that sum to 2^{PRECISION}"
            )

    @cached_property
    def _ordered(self) -> tuple[U8, I64, U32]:
        """Bytes, the slots behind each, and entries, frequency · 2^16 + first slot, in the order of slots."""
        order = np.argsort((1 << PRECISION) - self.frequencies << 8 | self.bytes)
        frequencies = self.frequencies[order]
        ends = np.cumsum(frequencies)
        return self.bytes[order], ends, (frequencies << 16 | ends - frequencies).astype(np.uint32)

    @cached_property
    def _looked_up(self) -> tuple[U8, U32]:
        """Slots and table."""
        slots = np.empty((1 << PRECISION) + SLOTS_BEHIND, dtype=np.uint8)
        table = np.zeros(256, dtype=np.uint32)
        made = coders()
        if made is None:
            bytes_, _, entries = self._ordered
            slots[: 1 << PRECISION] = np.repeat(bytes_, entries >> 16)
            table[bytes_] = entries
        else:
            # read by address: other dtypes would be read as something else
            symbols = np.ascontiguousarray(self.bytes, dtype=np.uint8)
            frequencies = np.ascontiguousarray(self.frequencies, dtype=np.int64)
            keys = np.empty(len(symbols) + 1, dtype=np.int64)
            arrays = symbols.ctypes.data, frequencies.ctypes.data, len(symbols), keys.ctypes.data
            made.model(*arrays, slots.ctypes.data, table.ctypes.data)
        slots[1 << PRECISION :] = 0
        return slots, table

    @property
    def table(self) -> U32:
        """[256] uint32: the entry of each byte; zero where it does not occur."""
        return self._looked_up[1]

    @property
    def slots(self) -> U8:
        """[2^14 + 32] uint8: the byte of each slot; words of 4 bytes can be read from each."""
        return self._looked_up[0]

    def heap_for(self, lanes: int) -> Heap | None:
        """What a search in registers needs, see `rans_code`; None for few lanes or many frequent bytes."""
        return self._heap if lanes >= _SEARCHED else None

    @cached_property
    def _heap(self) -> Heap | None:
        bytes_, ends, entries = self._ordered
        k = len(bytes_)
        size = next((size for size in HEAPS if k <= size or ends[size - 2] >= _MOST_SLOTS), None)
        if size is None:
            return None
        few = k if k <= size else size - 1
        bounds = np.full(size, 1 << PRECISION, dtype=np.int64)  # no slot is as large as that
        bounds[:few] = ends[:few]
        table = np.zeros((4, max(size, _HALVES)), dtype=np.uint16)
        half = size // 2
        while half:  # the level of `size // (2·half)` nodes holds every other multiple of half
            level = size // (2 * half)
            table[0, level : 2 * level] = bounds[half - 1 : size - 1 : 2 * half]
            half //= 2
        table[0, 0] = ends[few - 1]  # slots from here on are not found
        first = size % table.shape[1]
        parts = (bytes_, entries >> 16, entries & 0xFFFF)
        for row, values in zip(table[1:], parts, strict=True):
            row[first : first + few] = values[:few]
        return Heap(size, table)

    @cached_property
    def window(self) -> npt.NDArray[np.uint16]:
        """uint16 [65], see `rans_code`: frequencies and first slots of the 32 neighbours that are most frequent."""
        sums = np.cumsum(np.concatenate([[0], self.table >> 16]))
        first = int((sums[_HALVES:] - sums[:-_HALVES]).argmax())
        entries = self.table[first : first + _HALVES]
        return np.concatenate([entries >> 16, entries & 0xFFFF, [first]]).astype(np.uint16)

    def bits(self, counts: npt.NDArray[Any]) -> float:
        """Bits that so many of each byte take: `Σ n·(14 − log₂ f)`."""
        return float((counts * (PRECISION - np.log2(self.frequencies))).sum())
