"""The one sentence that a report comes to."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.report.looks import Look
from gossamer.report.scales import percent, times

__all__ = ["chosen", "claim", "headline", "why_chosen"]

_LOSS = 0.01


def chosen(looks: Sequence[Look], dense: Look | None) -> Look | None:
    """The file that the headline is about.

    The smallest of those that lose at most one point of accuracy; if none does, the most accurate; without
    accuracies the smallest.
    """
    if not looks:
        return None
    measured = [look for look in looks if look.accuracy is not None]
    if not measured:
        return min(looks, key=_size)
    before = None if dense is None else dense.accuracy
    if before is None:
        return max(measured, key=lambda look: (look.accuracy or 0.0, -_size(look)))
    good = [look for look in measured if (look.accuracy or 0.0) >= before - _LOSS]
    return min(good, key=_size) if good else max(measured, key=lambda look: look.accuracy or 0.0)


def _size(look: Look) -> float:
    return look.number("file_bytes") or 0.0


def headline(look: Look, dense: Look | None) -> str:
    """Such as ``model.gsm: 71× smaller, 90.6% right (dense 91.1%), 2.3× faster``."""
    return f"{look.file['path_name']}: {claim(look, dense)}"


def claim(look: Look, dense: Look | None) -> str:
    """The same without the name."""
    parts = [f"{times(look.number('ratio'))} smaller"]
    after, before = look.accuracy, None if dense is None else dense.accuracy
    perplexity = look.number("accuracy", "perplexity")
    if perplexity is not None:
        other = None if dense is None else dense.number("accuracy", "perplexity")
        parts.append(f"perplexity {perplexity:.3g}" + (f" (dense {other:.3g})" if other is not None else ""))
    elif after is not None:
        parts.append(f"{percent(after)} right" + (f" (dense {percent(before)})" if before is not None else ""))
    speed = look.speed
    if speed is not None:
        parts.append(_speed(speed))
    return ", ".join(parts)


def _speed(speed: float) -> str:
    told = times(max(speed, 1 / speed))
    return "as fast" if told == times(1.0) else f"{told} faster" if speed > 1 else f"{told} slower"


def why_chosen(look: Look, looks: Sequence[Look], dense: Look | None) -> str:
    """Why the headline is about this file, or "" if there is no other."""
    if len(looks) < 2:
        return ""
    before = None if dense is None else dense.accuracy
    if look.accuracy is None:
        return f"The smallest of {len(looks)} files."
    if before is None:
        return f"The most accurate of {len(looks)} files."
    if look.accuracy >= before - _LOSS:
        return f"Of {len(looks)} files the smallest that loses at most one point of accuracy."
    return f"Of {len(looks)} files the most accurate; all lose more than one point."
