"""From numbers to pixels, and to words of few letters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["Scale", "bytes_text", "count", "finite", "milliseconds", "percent", "points", "times"]


@final
@dataclass(frozen=True)
class Scale:
    """Numbers to pixels, linear or by their logarithm.

    Args:
        low: number at the start.
        high: number at the end, above ``low``; both positive for a logarithm.
        start: pixel of ``low``.
        end: pixel of ``high``, which may be the smaller one.
        log: by the logarithm.

    Example:
        >>> scale = Scale(1, 100, 0.0, 200.0, log=True)
        >>> scale(10), scale.ticks(4)
        (100.0, (1.0, 10.0, 100.0))
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def of(cls, numbers: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
        """That holds all numbers and some room at both ends.

        Args:
            numbers: those that are not finite (or not positive, for a logarithm) do not count.
            start: pixel of the smallest.
            end: pixel of the largest.
            log: by the logarithm.
            room: share of the width on each side.
        """
        found = [x for x in numbers if math.isfinite(x) and (x > 0 or not log)]
        low, high = (min(found), max(found)) if found else (1.0, 2.0)
        if log:
            low, high = math.log(low), math.log(high)
        width = high - low
        if width < 1e-9 * max(1.0, abs(high)):
            width = 1.0 if log else max(abs(high) * 0.2, 1e-6)
            low, high = low - width / 2, high + width / 2
        low, high = low - room * width, high + room * width
        return cls(math.exp(low), math.exp(high), start, end, log=True) if log else cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a number, held between both ends."""
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(max(value, 1e-300))
        share = min(max((x - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> tuple[float, ...]:
        """Round numbers between both ends, at most so many."""
        if not self.log:
            return _round_ticks(self.low, self.high, most)
        for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = _log_ticks(self.low, self.high, factors)
            if len(found) <= most:
                return found if len(found) >= 2 else _round_ticks(self.low, self.high, most)
        found = _log_ticks(self.low, self.high, (1,))
        return found[:: math.ceil(len(found) / most)]


def _round_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    rough = (high - low) / max(1, most)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(
        f * unit for f in (1, 2, 2.5, 5, 10, 20) if math.floor(high / (f * unit)) - math.ceil(low / (f * unit)) < most
    )
    first = math.ceil(low / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float, factors: Sequence[int]) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return tuple(f * 10.0**d for d in decades for f in factors if low * (1 - 1e-9) <= f * 10.0**d <= high * (1 + 1e-9))


def finite(value: object) -> float | None:
    """A number, or None where there is none.

    Example:
        >>> finite(1), finite(float("nan")), finite(None)
        (1.0, None, None)
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def bytes_text(size: float | None) -> str:
    """A size in the unit that keeps it short; thousands, as disks are sold.

    Example:
        >>> [bytes_text(n) for n in (17, 24_164, 1_724_320, 350e9, None)]
        ['17 B', '24.2 kB', '1.72 MB', '350 GB', '–']
    """
    if size is None:
        return "–"
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= power:
            return f"{_three(size / power)} {unit}"
    return f"{size:.0f} B"


def times(ratio: float | None) -> str:
    """How many times.

    Example:
        >>> times(71.36), times(2.31), times(1234.0), times(None)
        ('71×', '2.3×', '1,234×', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:,.0f}×"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent.

    Example:
        >>> percent(0.9062), percent(1.0, 0), percent(None)
        ('90.6%', '100%', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, signed.

    Example:
        >>> points(-0.0052), points(0.0), points(None)
        ('−0.5', '0.0', '–')
    """
    if difference is None:
        return "–"
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def milliseconds(time: float | None) -> str:
    """A time.

    Example:
        >>> milliseconds(0.02464), milliseconds(12.3456), milliseconds(None)
        ('25 µs', '12.3 ms', '–')
    """
    if time is None:
        return "–"
    if time < 1:
        return f"{_three(time * 1e3) if time * 1e3 < 10 else f'{time * 1e3:.0f}'} µs"
    return f"{_three(time)} ms" if time < 1000 else f"{_three(time / 1e3)} s"


def count(number: float | None) -> str:
    """A number of things, short.

    Example:
        >>> count(950), count(266_610), count(1_300_000_000)
        ('950', '267k', '1.3G')
    """
    if number is None:
        return "–"
    for power, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{float(f'{number / power:.3g}'):g}{unit}"
    return f"{number:.0f}"


def _three(number: float) -> str:
    """Three digits that count."""
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:,.0f}"
