"""Static frequency tables: which symbols occur, and how often, in as few bits as the leaf deserves."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.ans import MAX_ALPHABET, frequencies, frequency_bits
from gossamer.coding.bits import BitReader, BitWriter, int_list_bits
from gossamer.coding.paths import paths
from gossamer.errors import FormatError

__all__ = ["FrequencyTable", "counts_bits", "fit_weights"]

I64 = npt.NDArray[np.int64]

MAX_ROOT: Final = 1 << 16
_MAX_STEP: Final = (1 << 50) - 1


def counts_bits(counts: I64) -> float:
    """Order-0 entropy of symbols that occur so often: `Σ c·log₂(n/c)` bits."""
    seen = counts[counts > 0].astype(np.float64)
    total = float(seen.sum())
    return float((seen * np.log2(total / seen)).sum()) if total else 0.0


def fit_weights(counts: I64) -> tuple[I64, float]:
    """Square roots of symbol weights, as precise as pays: `q ≈ σ·√c`, σ by total cost.

    Steps of √p are steps of equal redundancy (the Fisher metric of a categorical distribution): a step Δ on k symbols
    costs about `k·Δ²/6` nats a symbol and `k·log₂(1/Δ)` bits of table, least at `Δ = √(3/n)`, so at `σ = 1/√3`. A few σ
    around it are measured, and equal weights.

    Args:
        counts: [k] int64; zeros stay zeros.

    Returns:
        (roots [k] int64 from 0 to 2^16, estimated bits of table and data).
    """
    present = counts > 0
    seen = counts[present]
    best: tuple[I64, float] | None = None
    previous: I64 | None = None
    for step in range(-10, 5):
        roots = np.zeros_like(counts)
        sigma = min(2.0 ** (step / 2) / sqrt(3.0), (MAX_ROOT - 1) / sqrt(float(seen.max())))
        roots[present] = np.maximum(1, np.rint(np.sqrt(seen.astype(np.float64)) * sigma)).astype(np.int64)
        if previous is not None and np.array_equal(roots, previous):
            continue
        previous = roots
        cost = int_list_bits(roots) + frequency_bits(seen, frequencies(roots[present] ** 2))
        if best is None or cost < best[1]:
            best = (roots, cost)
    assert best is not None
    return best


@dataclass(frozen=True)
class FrequencyTable:
    """Alphabet and frequencies of one static model.

    Args:
        offsets: [k] int64, strictly increasing from 0: the symbols that occur, as distances from the least.
        roots: [k] int64, from 1 to 2^16: the weights of the symbols are their squares.

    Raises:
        FormatError: on reading, any table that is not of this form.

    Source: quantisation by √p follows the variance-stabilising transform of the multinomial; own derivation.
    """

    offsets: I64
    roots: I64

    @staticmethod
    def fit(offsets: I64, counts: I64) -> tuple[FrequencyTable, float]:
        """Table for symbols `offsets` [k ≥ 2] that occur `counts` times, and the estimated bits of table and data."""
        roots, bits = fit_weights(counts)
        table = FrequencyTable(offsets, roots)
        return table, bits + 13 + table._alphabet_bits()

    @staticmethod
    def tight(offsets: I64, counts: I64) -> tuple[FrequencyTable, float]:
        """As `fit`, in fewer bits by up to a fifth of the table and at ten times the cost; spans of at most 256."""
        spread = np.zeros(int(offsets[-1]) + 1, dtype=np.int64)
        spread[offsets] = counts
        best = FrequencyTable.fit(offsets, counts)
        for path in paths(spread):
            table = FrequencyTable(np.flatnonzero(path), path[path > 0])
            # Symbols that do not occur have frequencies too, and bits of the table only.
            bits = frequency_bits(spread[table.offsets], table.frequencies) + 13 + table._bits()
            if bits < best[1]:
                best = (table, bits)
        return best

    def _bits(self) -> int:
        return int_list_bits(self.roots) + self._alphabet_bits()

    @staticmethod
    def quick(offsets: I64, counts: I64) -> FrequencyTable:
        """Table for many symbols: roots of at most 9 bits, which lose less than 10^-5 of the size."""
        sigma = min(1 / sqrt(3.0), 256 / sqrt(float(counts.max())))
        roots = np.rint(np.sqrt(counts.astype(np.float64)) * sigma).astype(np.int64)
        return FrequencyTable(offsets, np.maximum(1, roots))

    @property
    def frequencies(self) -> I64:
        """[k] int64, summing to 2^24."""
        return frequencies(self.roots**2)

    def _spread(self) -> I64 | None:
        """Roots over the whole span with zeros at absent symbols, where that is no longer than listing the symbols."""
        span = int(self.offsets[-1]) + 1
        if span > MAX_ALPHABET:
            return None
        spread = np.zeros(span, dtype=np.int64)
        spread[self.offsets] = self.roots
        listed = int_list_bits(np.diff(self.offsets) - 1) + int_list_bits(self.roots)
        return spread if int_list_bits(spread) <= listed else None

    def _alphabet_bits(self) -> int:
        spread = self._spread()
        if spread is None:
            return int_list_bits(np.diff(self.offsets) - 1)
        return int_list_bits(spread) - int_list_bits(self.roots)

    def write(self, writer: BitWriter, *, quick: bool = False) -> None:
        """Appends the table; quickly, with the likely choices, or in the fewest bits."""
        if quick:
            self._write_quickly(writer)
            return
        spread = self._spread()
        writer.uint(0 if spread is not None else 1, 1)
        if spread is not None:
            writer.golomb(len(spread) - 2, 3)
            writer.int_list(spread)
        else:
            writer.golomb(len(self.offsets) - 2, 3)
            writer.int_list(np.diff(self.offsets) - 1)
            writer.int_list(self.roots)

    def _write_quickly(self, writer: BitWriter) -> None:
        span = int(self.offsets[-1]) + 1
        listed = span > min(MAX_ALPHABET, 2 * len(self.offsets))
        writer.uint(int(listed), 1)
        if listed:
            writer.golomb(len(self.offsets) - 2, 3)
            writer.likely_list((np.diff(self.offsets) - 1).tolist())
            writer.likely_list(self.roots.tolist())
        else:
            spread = np.zeros(span, dtype=np.int64)
            spread[self.offsets] = self.roots
            writer.golomb(span - 2, 3)
            writer.likely_list(spread.tolist())

    @staticmethod
    def read(reader: BitReader, what: str) -> FrequencyTable:
        """Reads what `write` wrote; not trusted."""
        quick = reader.frequency_table()
        if quick is not None:
            return FrequencyTable(*quick)
        listed = reader.uint(1)
        size = reader.golomb(3) + 2
        if size > MAX_ALPHABET:
            raise FormatError(f"{what}: alphabet of {size} symbols, at most {MAX_ALPHABET} expected")
        if listed:
            gaps = np.array(reader.int_list(size - 1, _MAX_STEP), dtype=np.int64)  # 4096 · 2^50 < 2^63
            offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(gaps + 1)])
            roots = np.array(reader.int_list(size, MAX_ROOT), dtype=np.int64)
            if roots.min() < 1:
                raise FormatError(f"{what}: a listed symbol has frequency 0")
            return FrequencyTable(offsets, roots)
        spread = np.array(reader.int_list(size, MAX_ROOT), dtype=np.int64)
        offsets = np.flatnonzero(spread).astype(np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != size - 1:
            raise FormatError(f"{what}: the ends of the alphabet have frequency 0")
        return FrequencyTable(offsets, spread[offsets])
