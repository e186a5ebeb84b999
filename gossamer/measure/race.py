"""Which of several calls is fastest, without measuring for long what is far behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from gossamer.measure.latency import Timing, interleaved

__all__ = ["raced"]

_GLANCE = 0.25
"""Share of the time that goes to the first look at all of them."""

_FAR = 1.3
"""Times the fastest from which on a call is not looked at again: noise is less than that in the best of some rounds."""


def raced(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, Timing]:
    """Time several calls in turn: all of them shortly, then those that may be the fastest.

    Args:
        calls: by name, without arguments.
        seconds: for all of them, if all are about equally fast; warm-up excluded.

    Returns:
        Timings of all. Of a call that was left behind the median is that of the first look, but no less than what left
        it behind, so that it never is the fastest.

    Cost: three runs of each, and four more of those that are close, however long they take.

    Example:
        >>> sorted(raced({"a": lambda: 1, "b": lambda: sum(range(1000))}, seconds=0.01))
        ['a', 'b']
    """
    first = interleaved(calls, seconds=_GLANCE * seconds, warm_up=1, at_least=2)
    limit = _FAR * min(timing.low_ms for timing in first.values())
    close = {name: call for name, call in calls.items() if first[name].low_ms <= limit}
    if len(close) == 1:
        again = {name: first[name] for name in close}
    else:
        left = seconds * (1 - _GLANCE) * len(close) / len(calls)
        again = interleaved(close, seconds=left, warm_up=1, at_least=3)
    least = _FAR * min(timing.median_ms for timing in again.values())
    return {
        name: again[name] if name in again else replace(timing, median_ms=max(timing.median_ms, least))
        for name, timing in first.items()
    }
