"""Payloads in blocks that are checked and decoded on their own: a directory of sizes and checksums, then the blocks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.sums import checksum
from gossamer.errors import FormatError

Array = npt.NDArray[Any]
U8 = npt.NDArray[np.uint8]

__all__ = ["LARGEST_BLOCK", "SMALLEST_BLOCK", "Blocks", "block_log2", "for_each", "write_blocks"]

SMALLEST_BLOCK: Final = 16
LARGEST_BLOCK: Final = 24
"""Symbols of a block, as powers of two."""

_AIM: Final = 19  # bytes of a block, as a power of two: it fits the second-level cache, and overheads vanish
_ENTRY: Final = 8  # bytes of a directory entry


def block_log2(bits: float) -> int:
    """Symbols of so many bits each that fill a block, as a power of two.

    Example:
        >>> block_log2(16.0), block_log2(3.4), block_log2(0.1)
        (18, 20, 24)
    """
    symbols = int(8 * (1 << _AIM) / max(bits, 1e-3))
    return min(max(symbols.bit_length() - 1, SMALLEST_BLOCK), LARGEST_BLOCK)


def write_blocks(count: int, most: int, write: Callable[[int, U8], int], workers: int) -> memoryview:
    """Directory, uint32 [blocks, 2] of sizes and CRC-32 sums, and the blocks.

    Args:
        count: of blocks.
        most: bytes that a block takes at most.
        write: writes a block into [most] uint8 and says how many bytes it took.
        workers: threads.

    Returns:
        The payload.
    """
    head = _ENTRY * count
    room = np.empty(head + count * most, dtype=np.uint8)  # what is not written to costs nothing
    directory = np.zeros((count, 2), dtype="<u4")
    ends = [head] * (count + 1)

    def one(number: int) -> None:
        # Alone, each block is written behind the last; several at a time get room of their own and move up later.
        start = ends[number] if workers < 2 else head + number * most
        size = write(number, room[start : start + most])
        directory[number] = size, checksum(room[start : start + size].data)
        ends[number + 1] = start + size

    for_each(count, one, workers)
    end = head
    for number, size in enumerate(directory[:, 0].tolist()):
        if workers > 1:
            start = head + number * most
            room[end : end + size] = room[start : start + size]
        end += size
    room[:head] = directory.view(np.uint8).reshape(-1)
    return room[:end].data.toreadonly()


@final
@dataclass(frozen=True)
class Blocks:
    """The inverse of `write_blocks`.

    Args:
        payload: not trusted.
        count: symbols of all blocks.
        log2: of the symbols of each block but the last.
        what: the name that faults are reported under.

    Raises:
        FormatError: sizes that do not add up to the payload; a block that does not match its checksum when it is read.
    """

    payload: bytes | memoryview
    count: int
    log2: int
    what: str

    def __post_init__(self) -> None:
        if not SMALLEST_BLOCK <= self.log2 <= LARGEST_BLOCK:
            raise FormatError(
                f"{self.what}: blocks of 2^{self.log2} symbols, expected 2^{SMALLEST_BLOCK} to 2^{LARGEST_BLOCK}"
            )
        size = _ENTRY * len(self)
        if size > len(self.payload):
            raise FormatError(f"{self.what}: payload of {len(self.payload)} bytes, expected {size} of directory alone")
        if self._ends[-1] != len(self.payload):
            raise FormatError(f"{self.what}: blocks of {self._ends[-1]} bytes in all, expected {len(self.payload)}")

    def __len__(self) -> int:
        return -(-self.count >> self.log2) if self.count else 0

    @cached_property
    def _directory(self) -> list[list[int]]:
        found: list[list[int]] = np.frombuffer(self.payload, "<u4", 2 * len(self)).reshape(-1, 2).tolist()
        return found

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate((size for size, _ in self._directory), initial=_ENTRY * len(self)))

    def span(self, number: int) -> slice:
        """The symbols that a block holds."""
        return slice(number << self.log2, min(self.count, (number + 1) << self.log2))

    def block(self, number: int) -> memoryview:
        """A block whose checksum is right."""
        found = memoryview(self.payload)[self._ends[number] : self._ends[number + 1]]
        computed, expected = checksum(found), self._directory[number][1]
        if computed != expected:
            raise FormatError(f"{self.what}: block {number} has checksum {computed:08x}, expected {expected:08x}")
        return found

    def decode(
        self, part: slice, out: Array, read: Callable[[memoryview, Array, slice, str], None], workers: int
    ) -> Array:
        """Some of the symbols, from the blocks that hold them alone.

        Args:
            part: of all symbols.
            out: as many as `reach` says; filled.
            read: decodes a block into its piece of ``out``, given the symbols that it holds and a name for faults.
            workers: threads.

        Returns:
            The part, of ``out``.
        """
        first, last = self._touched(part)
        begin = first << self.log2

        def one(number: int) -> None:
            number += first
            span = self.span(number)
            read(self.block(number), out[span.start - begin : span.stop - begin], span, f"{self.what}: block {number}")

        for_each(last - first, one, workers)
        return out[part.start - begin : part.stop - begin]

    def reach(self, part: slice) -> int:
        """Symbols of all blocks that hold some of a part."""
        first, last = self._touched(part)
        return max(0, min(self.count, last << self.log2) - (first << self.log2))

    def _touched(self, part: slice) -> tuple[int, int]:
        return part.start >> self.log2, -(-part.stop >> self.log2)


def for_each(count: int, work: Callable[[int], None], workers: int) -> None:
    """Runs `work(0)` to `work(count − 1)`, on so many threads; the first error that is found is raised."""
    if workers < 2 or count < 2:
        for number in range(count):
            work(number)
        return
    with ThreadPoolExecutor(min(workers, count)) as pool:
        for done in pool.map(work, range(count)):
            assert done is None
