"""Interleaved ANS in NumPy: what the bits mean, and what works where nothing can be compiled.

Lane j = i mod L holds the state of symbol i, an integer of 32 bits that is at least 2^16 between symbols. All lanes
share one sequence of 16-bit words. With frequency f and cumulated frequency c of a symbol, out of 2^14:

    decoding:  slot = x mod 2^14,  x ← f·⌊x / 2^14⌋ + slot − c,  and x ← x·2^16 + the next word where x < 2^16
    encoding:  the low word of x is given out where x ≥ f·2^18,  then  x ← ⌊x / f⌋·2^14 + x mod f + c

Words are given out from the last symbol to the first and stored downwards, so that a decoder reads them upwards.

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540; Giesen, "Interleaved entropy coders", arXiv 1402.3392.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gossamer.coding.rans_model import LEAST, PRECISION

__all__ = ["decode_words", "encode_words"]

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
Look = Callable[[slice, npt.NDArray[np.uint64]], tuple[U8, U32]]


def encode_words(entries: U32, lanes: int, begin: U16 | None = None) -> tuple[U32, U16]:
    """Codes symbols, each told by what it takes.

    Args:
        entries: [n] uint32, frequency · 2^16 + cumulated frequency of each symbol under its table.
        lanes: L, a power of two from 1 to 128.
        begin: [L] uint16, the low halves of the states to begin with; None: zeros.

    Returns:
        (states [L] uint32, words uint16 in the order in which they are read).

    Cost: about 20 µs for every L symbols.
    """
    states = np.full(lanes, LEAST, dtype=np.uint64)
    if begin is not None:
        states += begin
    wide = entries.astype(np.uint64)
    words: list[U16] = []
    for first in range((len(wide) - 1) // lanes * lanes if len(wide) else 0, -1, -lanes):
        entry = wide[first : first + lanes]
        frequency, start = entry >> np.uint64(16), entry & np.uint64(0xFFFF)
        state = states[: len(entry)]
        full = state >> np.uint64(32 - PRECISION) >= frequency
        words.append((state[full] & np.uint64(0xFFFF)).astype(np.uint16))
        state[full] >>= np.uint64(16)
        if len(entry):
            state[:] = (state // frequency << np.uint64(PRECISION)) + state % frequency + start
    return states.astype(np.uint32), np.concatenate(words[::-1]) if words else np.zeros(0, dtype=np.uint16)


def decode_words(out: U8, states: U32, words: U16, look: Look) -> int | None:
    """The inverse of `encode_words`, for bytes that are not trusted.

    Args:
        out: [n] uint8, filled.
        states: [L] uint32, advanced in place.
        words: uint16.
        look: (part of the symbols, the slot of each) → (symbols, their entries).

    Returns:
        The number of words read; None where more would have been needed.

    Cost: about 20 µs for every L symbols.
    """
    lanes, at = len(states), 0
    wide, below = states.astype(np.uint64), np.uint64((1 << PRECISION) - 1)
    for first in range(0, len(out), lanes):
        part = slice(first, min(first + lanes, len(out)))
        state = wide[: part.stop - first]
        slot = state & below
        symbols, entries = look(part, slot)
        out[part] = symbols
        entry = entries.astype(np.uint64)
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
