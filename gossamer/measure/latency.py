"""Latency: candidates interleaved in one run, warmed up, threads pinned, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from gossamer.errors import DataError

__all__ = ["Runner", "Timing", "in_turns", "interleaved", "runner"]

Runner = Callable[[int], Sequence[float]]
"""Runs something so many times and returns the milliseconds of each, wherever it runs."""


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

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        """Of milliseconds, at least one.

        Example:
            >>> Timing.of([3.0, 1.0, 2.0])
            Timing(median_ms=2.0, low_ms=1.0, high_ms=3.0, repeats=3)
        """
        ordered = sorted(times)
        quarter = len(ordered) // 4
        return cls(ordered[len(ordered) // 2], ordered[quarter], ordered[-1 - quarter], len(ordered))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    warm_up: int = 3,
    at_least: int = 5,
    at_most: int = 2000,
) -> dict[str, Timing]:
    """Time several calls in turn, so that a noisy neighbour disturbs all of them alike.

    Args:
        calls: by name, without arguments.
        seconds: for all of them together, warm-up excluded.
        threads: for torch (and the kernels, which follow it); restored afterwards.
        warm_up: runs of each that do not count, at least one.
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
        runners = {name: runner(call) for name, call in calls.items()}
        taken = in_turns(runners, seconds=seconds, warm_up=warm_up, at_least=at_least, at_most=at_most)
    finally:
        torch.set_num_threads(before)
    return {name: Timing.of(times) for name, times in taken.items()}


def runner(call: Callable[[], object]) -> Runner:
    """Times a call in this process, in inference mode."""

    def run(count: int) -> list[float]:
        taken = []
        with torch.inference_mode():
            for _ in range(count):
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
        return taken

    return run


def in_turns(
    runners: Mapping[str, Runner],
    *,
    seconds: float,
    warm_up: int = 1,
    at_least: int = 3,
    at_most: int = 2000,
    turn_ms: float = 0.0,
    in_a_row: int = 1,
    patience: float = 20.0,
) -> dict[str, list[float]]:
    """Milliseconds of several runners that take turns, in this process or in others.

    Args:
        runners: by name.
        seconds: for all of them together, warm-up excluded.
        warm_up: runs of each that do not count.
        at_least: turns, however long they take.
        at_most: turns.
        turn_ms: length of a turn; what takes less is run several times in a row, for a process that was woken up for
            a few microseconds finds cold caches.
        in_a_row: runs of a turn, if they take longer than that.
        patience: what takes so many times as long as the median of all runners (such as bf16 on a processor without
            instructions for it) is run once more and then left out of the turns, or it would take all the time.

    Example:
        >>> in_turns({"a": lambda count: [1.0] * count}, seconds=0.0)
        {'a': [1.0, 1.0, 1.0]}
    """
    fastest = {name: max(1e-3, min(run(warm_up))) for name, run in runners.items()}
    limit = patience * statistics.median(fastest.values()) if fastest else 0.0
    runs = {name: max(in_a_row, min(int(turn_ms / ms), 1000)) for name, ms in fastest.items() if ms <= limit}
    taken: dict[str, list[float]] = {n: [] if n in runs else list(run(1)) for n, run in runners.items()}
    until = time.perf_counter() + seconds
    for turn in range(at_most):
        if turn >= at_least and time.perf_counter() > until:
            break
        for name, count in runs.items():
            taken[name] += runners[name](count)
    return taken
