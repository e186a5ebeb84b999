"""Blocks of bytes by interleaved ANS: compiled for this processor, or the same bytes from NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import coders
from gossamer.coding.rans_model import LEAST, MOST_LANES, ByteModel
from gossamer.coding.rans_numpy import decode_words, encode_words
from gossamer.errors import FormatError

__all__ = [
    "Opened",
    "decode_begun",
    "decode_block",
    "encode_block",
    "encode_block_into",
    "lanes_for",
    "most_bytes",
    "open_block",
    "whole_block",
    "written_block",
]

U8 = npt.NDArray[np.uint8]

_HALF: Final = 16  # bits of a word
_PER_LANE: Final = 500 * 3.0  # a lane's last state takes 4 bytes, of which about one tells symbols


def lanes_for(payload: float) -> int:
    """As many lanes as cost at most two thousandths of a block's bytes.

    Example:
        >>> [lanes_for(size) for size in (100, 10_000, 1_000_000)]
        [1, 4, 128]
    """
    most = max(1.0, payload / _PER_LANE)
    return min(MOST_LANES, 1 << int(log2(most)))


def encode_block(
    x: U8, model: ByteModel, lanes: int, *, compiled: bool = True, begin: npt.NDArray[np.uint16] | None = None
) -> bytes:
    """One block: the last states [L] uint32, then uint16 words, all little-endian.

    Args:
        x: [n] uint8, each among `model.bytes`; contiguous.
        model: the frequencies.
        lanes: L, a power of two from 1 to 128.
        compiled: False: NumPy, whose bytes are the same.
        begin: [L] uint16, told along: the low halves of the states that coding begins with; None: zeros.

    Returns:
        `4·L + 2·words` bytes, about `n·H/8 + 3·L` where symbols follow the model.

    Cost: 0.4 ns a byte with 32 lanes or more and registers of 512 bits, else 4 ns; NumPy 0.3 µs.

    Example:
        >>> model = ByteModel(np.array([0, 7], dtype=np.uint8), np.array([4096, 12288]))
        >>> x = np.array([7, 7, 0, 7], dtype=np.uint8)
        >>> block = encode_block(x, model, 1)
        >>> len(block), decode_block(block, np.empty(4, np.uint8), model, 1, "weights").tolist()
        (4, [7, 7, 0, 7])

    Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540; Giesen, "Interleaved entropy coders", arXiv 1402.3392.
    """
    return _encoded(x, model, lanes, compiled, begin).tobytes()


def encode_block_into(room: U8, x: U8, model: ByteModel, lanes: int) -> int:
    """As `encode_block`, into the first bytes of a room; says how many."""
    block = _encoded(x, model, lanes, True, None)
    room[: len(block)] = block
    return len(block)


def most_bytes(count: int, lanes: int) -> int:
    """Bytes that a block of so many symbols takes at most: a word each."""
    return 4 * lanes + 2 * count


def _encoded(x: U8, model: ByteModel, lanes: int, compiled: bool, begin: npt.NDArray[np.uint16] | None) -> U8:
    made = coders() if compiled else None
    if made is None:
        return whole_block(*encode_words(model.table[x], lanes, begin))
    table, window = model.table, model.window  # held here: another thread may put others into the model meanwhile

    def run(end: int, states: int, wrote: int) -> None:
        made.encode(x.ctypes.data, len(x), end, states, lanes, table.ctypes.data, wrote, window.ctypes.data)

    return written_block(len(x), lanes, run, begin)


def whole_block(states: npt.NDArray[np.uint32], words: npt.NDArray[np.uint16]) -> U8:
    """A block of last states and words."""
    return np.concatenate([states.astype("<u4").view(np.uint8), words.astype("<u2").view(np.uint8)])


def written_block(
    count: int, lanes: int, run: Callable[[int, int, int], None], begin: npt.NDArray[np.uint16] | None = None
) -> U8:
    """The block that a compiled encoder writes.

    Args:
        count: of symbols.
        lanes: L.
        run: takes the addresses of the words' end, of the states uint32 [L], and of the number of words, int64.
        begin: as in `encode_block`.
    """
    room = np.empty(2 * lanes + count, dtype="<u2")
    states, wrote = np.full(lanes, LEAST, dtype=np.uint32), np.zeros(1, dtype=np.int64)
    if begin is not None:
        states += begin
    run(room.ctypes.data + room.nbytes, states.ctypes.data, wrote.ctypes.data)
    first = len(room) - int(wrote[0]) - 2 * lanes
    room[first : first + 2 * lanes] = states.astype("<u4").view("<u2")
    return room[first:].view(np.uint8)


def decode_block(
    block: bytes | memoryview, out: U8, model: ByteModel, lanes: int, what: str, *, compiled: bool = True
) -> U8:
    """The inverse of `encode_block`.

    Args:
        block: not trusted.
        out: [n] uint8, contiguous; filled. Its length bounds time.
        model: the frequencies.
        lanes: L, a power of two from 1 to 128.
        what: the name that faults are reported under.
        compiled: False: NumPy.

    Returns:
        `out`.

    Raises:
        FormatError: the block does not hold exactly so many symbols: states and words must end where an encoder began.

    Cost: 0.4 ns a byte with 128 lanes and registers of 512 bits (1 ns where many bytes are about as frequent), else 2.
    """
    _decoded(block, out, model, lanes, what, compiled).finish(len(out), what)
    return out


def decode_begun(
    block: bytes | memoryview, out: U8, model: ByteModel, lanes: int, what: str, *, compiled: bool = True
) -> npt.NDArray[np.uint16]:
    """As `decode_block`, of a block that begins with other states than zeros: what it begins with, uint16 [L]."""
    return _decoded(block, out, model, lanes, what, compiled).begun(len(out), what)


def _decoded(block: bytes | memoryview, out: U8, model: ByteModel, lanes: int, what: str, compiled: bool) -> Opened:
    opened = open_block(block, lanes, what)
    made = coders() if compiled else None
    if made is None:

        def look(_: slice, slot: npt.NDArray[np.uint64]) -> tuple[U8, npt.NDArray[np.uint32]]:
            symbols = model.slots[slot]
            return symbols, model.table[symbols]

        read = decode_words(out, opened.states, opened.words, look)
        opened.read[0] = -1 if read is None else read
    else:
        slots, table = model.slots, model.table  # held here: another thread may put others into the model meanwhile
        arguments = [*opened.arguments(), slots.ctypes.data, table.ctypes.data, opened.read.ctypes.data]
        heap = model.heap_for(lanes) if made.decode_few else None
        if heap is None:
            made.decode(out.ctypes.data, len(out), *arguments)
        else:
            made.decode_few[heap.size](out.ctypes.data, len(out), *arguments, heap.table.ctypes.data)
    return opened


@final
@dataclass(frozen=True, eq=False)
class Opened:
    """A block taken apart for a decoder.

    Args:
        states: [L] uint32.
        words: uint16.
        read: [1] int64: how many words a decoder read, −1 where more would have been needed.
    """

    states: npt.NDArray[np.uint32]
    words: npt.NDArray[np.uint16]
    read: npt.NDArray[np.int64]

    def arguments(self) -> list[int]:
        """Of a compiled decoder: words, their end, states, lanes."""
        first = self.words.ctypes.data
        return [first, first + self.words.nbytes, self.states.ctypes.data, len(self.states)]

    def begun(self, count: int, what: str) -> npt.NDArray[np.uint16]:
        """What an encoder began with; refuses a block that holds other than so many symbols."""
        if int(self.read[0]) != len(self.words) or bool((self.states >> _HALF != 1).any()):
            self._refuse(count, what)
        return self.states.astype(np.uint16)

    def finish(self, count: int, what: str) -> None:
        """Refuses a block that holds other than so many symbols: states and words end where an encoder began."""
        if int(self.read[0]) != len(self.words) or bool((self.states != LEAST).any()):
            self._refuse(count, what)

    def _refuse(self, count: int, what: str) -> None:
        size = self.states.nbytes + self.words.nbytes
        raise FormatError(f"{what}: block of {size} bytes does not end with its {count} symbols")


def open_block(block: bytes | memoryview, lanes: int, what: str) -> Opened:
    """Takes a block apart; see `decode_block`."""
    words = np.frombuffer(block, dtype="<u2") if len(block) % 2 == 0 else None
    if words is None or len(words) < 2 * lanes:
        raise FormatError(f"{what}: block of {len(block)} bytes, expected {4 * lanes} of states and whole words")
    states = words[: 2 * lanes].view("<u4").astype(np.uint32)
    if int(states.min()) < LEAST:
        raise FormatError(f"{what}: block begins with state {int(states.min())}, expected at least {LEAST}")
    return Opened(states, words[2 * lanes :], np.zeros(1, dtype=np.int64))
