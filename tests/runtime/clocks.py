"""What stands for the clock in tests: who wins is decided here, not by the machine."""

from collections.abc import Callable, Mapping

import torch

from gossamer.measure.latency import Timing

__all__ = ["Recording", "sparse_wins", "tiles_win"]

Calls = Mapping[str, Callable[[], object]]


def sparse_wins(calls: Calls, *, seconds: float) -> dict[str, Timing]:
    """Everything is faster than dense, and a fused network than one with its layers replaced."""
    del seconds
    ranks = {"dense": 2.0, "module replacement": 1.5}
    return {name: Timing(ranks.get(name, 1.0), 1.0, 2.0, 5) for name in calls}


def tiles_win(calls: Calls, *, seconds: float) -> dict[str, Timing]:
    """Sliced groups, and the form of a network that is made for them."""
    del seconds
    ranks = {"feature-major": 1.0, "sliced": 1.0, "module replacement": 1.5}
    return {name: Timing(ranks.get(name, 2.0), 1.0, 2.0, 5) for name in calls}


class Recording:
    """Says which candidates were timed, runs them, and lets one of them win, and networks of such layers with it."""

    def __init__(self, winner: str) -> None:
        self.winner = winner
        self.offered: list[set[str]] = []

    def __call__(self, calls: Calls, *, seconds: float) -> dict[str, Timing]:
        del seconds
        self.offered.append(set(calls))
        with torch.inference_mode():
            for call in calls.values():
                call()
        ranks = {self.winner: 1.0, "module replacement": 1.5}
        return {k: Timing(ranks.get(k, 2.0), 1.0, 2.0, 5) for k in calls}
