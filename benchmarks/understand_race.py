"""The race with torchattacks on one network of `benchmarks.understand`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.understand_attacks import raced, saved
from benchmarks.understand_networks import Network
from benchmarks.understand_worker import Place

__all__ = ["row_of"]


def row_of(place: Place, network: Network, kind: str, rest: list[str]) -> dict[str, Any]:
    """One race."""
    del kind
    seed, variant = rest
    inputs, targets = place.fashion.test[: place.images], place.fashion.test_labels[: place.images]
    steps, queries = (5, 10) if place.quick else (20, 100)
    with tempfile.TemporaryDirectory() as folder:
        file = saved(place.network(network, int(seed), variant), inputs[:1], Path(folder) / "network.ts")
        return raced(file, inputs, targets, steps=steps, queries=queries)
