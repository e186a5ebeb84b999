"""Up to 256 distinct symbols as numbers from 0 on, in increasing order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.errors import FormatError

__all__ = ["Alphabet", "check_fits", "limits", "raised"]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_MOST: Final = 256
_SPAN: Final = 1 << 16
_WORD: Final = 1 << 64


def check_fits(low: int, high: int, dtype: np.dtype[Any], what: str) -> None:
    """Refuses symbols from `low` to `high` that a dtype cannot hold.

    Raises:
        FormatError: another dtype than an integer or bool, or one that does not hold them all.
    """
    if dtype.kind not in "iub":
        raise FormatError(f"{what}: dtype {dtype}, expected an integer dtype or bool")
    least, most = limits(dtype)
    if not least <= low <= high <= most:
        raise FormatError(f"{what}: symbols from {str(low)[:25]} to {str(high)[:25]} do not fit {dtype}")


@cache
def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest symbol of an integer dtype or bool."""
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def raised(offsets: Array, low: int, dtype: np.dtype[Any]) -> Array:
    """Symbols of a dtype that holds them, from unsigned distances to the least."""
    return (offsets.astype(np.uint64, copy=False) + np.array([low % _WORD], dtype=np.uint64)).astype(dtype)


@final
@dataclass(frozen=True, eq=False)
class Alphabet:
    """Distinct symbols.

    Args:
        low: the least.
        gaps: [k − 1] int64, how many integers lie between each and the next, at most 2^16.

    Example:
        >>> alphabet, numbers = Alphabet.of(np.array([-3, 5, -3, -2], dtype=np.int8))
        >>> alphabet.low, alphabet.gaps.tolist(), numbers.tolist()
        (-3, [0, 6], [0, 2, 0, 1])
        >>> alphabet.restored(numbers, np.dtype(np.int8), "weights").tolist()
        [-3, 5, -3, -2]
    """

    low: int
    gaps: I64

    @staticmethod
    def of(x: Array) -> tuple[Alphabet, U8] | None:
        """The alphabet of integers or bool, not empty, and their numbers, flat; None beyond 256 or a span of 2^16."""
        low = int(x.min())
        if int(x.max()) - low >= _SPAN:
            return None
        flat = x.reshape(-1).astype(x.dtype.newbyteorder("="), copy=False)
        flat = flat.view(np.uint8) if flat.dtype == np.bool_ else flat
        # a difference modulo 2^bits is the true one, which is not negative and has no more bits
        offsets = (flat - flat.dtype.type(low)).view(f"u{flat.dtype.itemsize}")
        present = np.bincount(offsets.astype(np.intp)) > 0
        symbols = np.flatnonzero(present)
        if len(symbols) > _MOST:
            return None
        gaps = np.diff(symbols).astype(np.int64) - 1
        if len(symbols) == len(present):
            return Alphabet(low, gaps), offsets.astype(np.uint8)
        return Alphabet(low, gaps), (np.cumsum(present) - 1).astype(np.uint8)[offsets]

    def __len__(self) -> int:
        return len(self.gaps) + 1

    def write(self, writer: BitWriter) -> None:
        """Appends the alphabet."""
        writer.signed(self.low)
        writer.uint(len(self) - 1, 8)
        writer.uint(int(self.gaps.any()), 1)
        if self.gaps.any():
            writer.int_list(self.gaps)

    @staticmethod
    def read(reader: BitReader) -> Alphabet:
        """Reads what `write` wrote; not trusted."""
        low, more = reader.signed(), reader.uint(8)
        gaps = reader.int_list(more, _SPAN) if reader.uint(1) else [0] * more
        return Alphabet(low, np.array(gaps, dtype=np.int64))

    def restored(self, numbers: U8, dtype: np.dtype[Any], what: str) -> Array:
        """The symbols with these numbers, flat; may be `numbers` itself, changed.

        Raises:
            FormatError: another dtype than an integer or bool, or one that does not hold them all.
        """
        check_fits(self.low, self.low + len(self.gaps) + int(self.gaps.sum()), dtype, what)
        if dtype.itemsize == 1 and not self.gaps.any():
            if self.low:
                numbers += np.uint8(self.low & 255)
            return numbers.view(dtype)
        places = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.gaps + 1)])
        return np.array([self.low + place for place in places.tolist()], dtype=dtype).take(numbers)
