"""Static ANS streams: exact integer frequencies in, the fewest bytes out, through `constriction`.

A stream is a sequence of parts, each with its own static frequencies. Frequencies are integers that sum to 2^24, the
precision of the coder, so no rounding is left to decide between encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, final

import constriction
import numpy as np
import numpy.typing as npt

from gossamer.errors import FormatError

__all__ = ["MAX_ALPHABET", "PRECISION", "AnsReader", "Part", "ans_encode", "frequencies", "frequency_bits"]

I64 = npt.NDArray[np.int64]
Part = tuple[npt.NDArray[Any], I64]

PRECISION: Final = 24
MAX_ALPHABET: Final = 4096
_CHUNK: Final = 1 << 20


def frequencies(weights: I64) -> I64:
    """Integer weights scaled to frequencies that sum to 2^24, each at least 1: `max(1, ⌊w·2²⁴/Σw⌋)`, the rest to the
    largest.

    Args:
        weights: [k] int64, 1 ≤ k ≤ 4096, each from 1 to 2^32.

    Returns:
        [k] int64. Integer arithmetic only, so the same on every machine.

    Example:
        >>> frequencies(np.array([1, 3])).tolist()
        [4194304, 12582912]
    """
    scaled: I64 = np.maximum(1, (weights << PRECISION) // int(weights.sum()))
    # at most k − 1 entries were raised to 1, and the largest is at least 2^24/k ≥ k: it stays positive
    scaled[int(scaled.argmax())] += (1 << PRECISION) - int(scaled.sum())
    return scaled


def frequency_bits(counts: I64, scaled: I64) -> float:
    """Bits that `counts` symbols cost under the given frequencies: `Σ c·(24 − log₂ f)`."""
    return float((counts * (PRECISION - np.log2(scaled))).sum())


def _model(scaled: I64) -> Any:
    # `perfect=False` gives entry i the frequency ⌊p_i·(2^24 − k)/Σp⌋ + 1 by cumulated sums; with p = f − 1 the sum is
    # 2^24 − k, the scale is exactly 1, and the coder's frequencies are exactly ours (held by a test).
    return constriction.stream.model.Categorical((scaled - 1).astype(np.float64), lazy=False, perfect=False)


def ans_encode(parts: Sequence[Part]) -> bytes:
    """One ANS stream of several parts.

    Args:
        parts: in the order in which they will be read: (indices [n] of any integer dtype or bool, frequencies [k]
            int64). A part with k = 1 is free.

    Returns:
        The stream: words in little-endian order, zero bytes at the end cut off.
    """
    coder = constriction.stream.stack.AnsCoder()
    for indices, scaled in reversed(parts):
        if len(scaled) < 2 or not len(indices):
            continue
        model = _model(scaled)
        for start in reversed(range(0, len(indices), _CHUNK)):
            coder.encode_reverse(np.ascontiguousarray(indices[start : start + _CHUNK], dtype=np.int32), model)
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


@final
class AnsReader:
    """Reads the parts of a stream that `ans_encode` wrote, in the same order.

    Args:
        payload: the stream; not trusted.
        what: the name that faults are reported under.
    """

    def __init__(self, payload: bytes, what: str) -> None:
        if payload.endswith(b"\0"):
            raise FormatError(f"{what}: stream of {len(payload)} bytes ends in a zero byte, which is never written")
        padded = payload + bytes(-len(payload) % 4)
        ans = constriction.stream.stack.AnsCoder
        self._coder = ans(np.frombuffer(padded, dtype="<u4").astype(np.uint32)) if padded else ans()
        self._what = what

    def read(self, count: int, scaled: I64) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
        """The next part: pieces of at most 2^20 indices, each with the slice of the part that it fills."""
        model = _model(scaled) if len(scaled) > 1 and count else None
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            piece = np.zeros(size, dtype=np.int32) if model is None else self._coder.decode(model, size)
            yield slice(start, start + size), piece

    def finish(self) -> None:
        """Refuses a stream that holds more than was read: after the last part the coder is back where it started.

        The about 24 bits that a stream takes beyond its symbols are what makes this check sharp.
        """
        if not self._coder.is_empty():
            raise FormatError(f"{self._what}: the stream does not end with the last symbol")
