"""Latency: candidates interleaved in one run, warmed up, threads pinned, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gossamer.errors import DataError

__all__ = ["Timing", "interleaved"]


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Args:
        median_ms: middle of all repeats, milliseconds.
        low_ms: 25th percentile.
        high_ms: 75th percentile.
        repeats: how many.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    at_least: int = 5,
    at_most: int = 2000,
) -> dict[str, Timing]:
    """Time several calls in turn, so that a noisy neighbour disturbs all of them alike.

    Args:
        calls: by name, without arguments.
        seconds: for all of them together, warm-up excluded.
        threads: for torch (and the kernels, which follow it); restored afterwards.
        at_least: repeats of each, however long they take.
        at_most: repeats of each.

    Example:
        >>> sorted(interleaved({"a": lambda: 1, "b": lambda: 2}, seconds=0.01))
        ['a', 'b']
    """
    if not calls:
        raise DataError("found nothing to time, expected at least one call")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return _run(calls, seconds, at_least, at_most)
    finally:
        torch.set_num_threads(before)


def _run(calls: Mapping[str, Callable[[], object]], seconds: float, at_least: int, at_most: int) -> dict[str, Timing]:
    for call in calls.values():
        for _ in range(3):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while len(next(iter(taken.values()))) < at_most:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
        if time.perf_counter() > until and len(next(iter(taken.values()))) >= at_least:
            break
    return {name: _summary(times) for name, times in taken.items()}


def _summary(times: list[float]) -> Timing:
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return Timing(
        median_ms=ordered[len(ordered) // 2] * 1e3,
        low_ms=ordered[quarter] * 1e3,
        high_ms=ordered[-1 - quarter] * 1e3,
        repeats=len(ordered),
    )
