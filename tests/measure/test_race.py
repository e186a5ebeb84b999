"""A race names the fastest call, and looks twice only at those that are close to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from gossamer.measure import race
from gossamer.measure.latency import Timing


class Stopwatch:
    """Stands for the clock: every look gives the next of the times that were written down."""

    def __init__(self, **times: list[float]) -> None:
        self.times = times
        self.looks: Counter[str] = Counter()

    def __call__(
        self, calls: Mapping[str, Callable[[], object]], *, seconds: float, warm_up: int, at_least: int
    ) -> dict[str, Timing]:
        del seconds, warm_up
        found = {}
        for name in calls:
            ms = self.times[name][self.looks[name]]
            found[name] = Timing(ms, ms, ms, at_least)
            self.looks[name] += 1
        return found


def medians(watch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(race, "interleaved", watch)
    calls = dict.fromkeys(watch.times, lambda: None)
    return {name: timing.median_ms for name, timing in race.raced(calls, seconds=1.0).items()}


def test_what_is_far_behind_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(a=[1.0, 1.1], b=[1.2, 1.0], c=[2.0])
    assert medians(watch, monkeypatch) == {"a": 1.1, "b": 1.0, "c": 2.0}
    assert watch.looks == {"a": 2, "b": 2, "c": 1}


def test_a_single_one_in_front_has_won(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(a=[3.0], b=[1.0], c=[2.0])
    assert medians(watch, monkeypatch) == {"a": 3.0, "b": 1.0, "c": 2.0}
    assert watch.looks == {"a": 1, "b": 1, "c": 1}


def test_what_was_left_behind_stays_behind_when_the_others_slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    found = medians(Stopwatch(a=[1.0, 4.0], b=[1.1, 3.0], c=[2.0]), monkeypatch)
    assert min(found, key=lambda name: found[name]) == "b" and found["c"] == pytest.approx(3.9)


def test_calls_are_really_run() -> None:
    ran: list[str] = []
    found = race.raced({"a": lambda: ran.append("a"), "b": lambda: time.sleep(0.002)}, seconds=0.0)
    assert found["a"].median_ms < found["b"].median_ms and ran.count("a") == 3  # one to warm up
